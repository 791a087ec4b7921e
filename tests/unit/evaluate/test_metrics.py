"""Values of summed statistics agree with scikit-learn and sacrebleu, whatever stands before the last axis."""

import json
import math
import random

import numpy as np
import pytest

from halfbyte.evaluate.metrics import LARGEST_LOSS, VALUES, Metric, Scores, metric_as_json, metric_from_json

WORDS = ["the", "a", "of", "creature", "night", "storm", ",", ".", "I", "life", "science", "friend", "was", "not", "and", "wandered", "alone"]
SKLEARN = 1e-12
SACREBLEU = 1e-9


def class_statistics(gold, predicted, classes):
    """(N, 3C): true positives, predicted, gold of each class."""
    names = np.arange(classes)
    is_gold, is_predicted = gold[:, None] == names, predicted[:, None] == names
    return np.stack([is_gold & is_predicted, is_predicted, is_gold], axis=-1).reshape(len(gold), -1).astype(float)


def value(kind, rows):
    return float(VALUES[kind](np.asarray(rows, dtype=float).sum(0)))


@pytest.mark.parametrize(("classes", "rows", "seed"), [(2, 40, 0), (6, 200, 1), (30, 50, 2), (3, 1, 3)])
def test_classes_agree_with_scikit_learn(classes, rows, seed):
    from sklearn.metrics import accuracy_score, f1_score

    draw = np.random.default_rng(seed)
    gold = draw.choice(classes, rows, p=draw.dirichlet(np.ones(classes)))
    predicted = np.where(draw.random(rows) < 0.5, gold, draw.integers(0, classes, rows))
    statistics = class_statistics(gold, predicted, classes)
    assert value("macro_f1", statistics) == pytest.approx(f1_score(gold, predicted, average="macro"), abs=SKLEARN)
    assert value("f1", statistics[:, :3]) == pytest.approx(f1_score(gold == 0, predicted == 0, zero_division=0), abs=SKLEARN)
    correct = np.stack([gold == predicted, np.ones(rows)], axis=-1)
    assert value("mean", correct) == pytest.approx(accuracy_score(gold, predicted), abs=SKLEARN)


def test_an_answer_that_names_no_class_counts_against_its_gold_class():
    from sklearn.metrics import f1_score

    gold, predicted = np.array([0, 0, 1, 2]), np.array([0, -1, 1, -1])
    expected = f1_score(gold, predicted, average="macro", labels=[0, 1, 2], zero_division=0)
    assert value("macro_f1", class_statistics(gold, predicted, 3)) == pytest.approx(expected, abs=SKLEARN)


def mangled(draw, words):
    """Some words replaced, dropped or added: from nearly right to nothing in common."""
    harm = draw.random()
    kept = [draw.choice(WORDS) if draw.random() < harm else word for word in words if draw.random() > harm / 3]
    return " ".join(kept + draw.choices(WORDS, k=draw.randrange(3)) * (draw.random() < harm))


def corpus(seed, rows, longest):
    draw = random.Random(seed)
    references = [draw.choices(WORDS, k=draw.randrange(1, longest)) for _ in range(rows)]
    return [mangled(draw, words) for words in references], [" ".join(words) for words in references]


HARD = {
    "nothing in common": (["x y z"], ["a b c d e"]),
    "empty answer": ([""], ["a b c d e"]),
    "empty reference": (["a b c d"], [""]),
    "no 4-gram": (["a b c"], ["a b c"]),
    "no 4-gram matches": (["a b c q d e"], ["a b c d e f"]),
    "only single words match": (["a q b q c q d"], ["a b c d"]),
    "one letter": (["a"], ["a"]),
    "exact": (["the storm was near , my friend"], ["the storm was near , my friend"]),
    "too long": (["the storm was near , my friend , and I wandered"], ["the storm was near"]),
}
CORPORA = {
    **HARD,
    **{f"{rows} rows up to {longest} words": corpus(seed, rows, longest) for seed, (rows, longest) in enumerate([(1, 4), (3, 6), (50, 12), (200, 40)])},
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("kind", ["bleu", "chrf"])
def test_bleu_and_chrf_are_sacrebleu_s_corpus_scores(kind, name):
    from sacrebleu.metrics import BLEU, CHRF

    trusted = {"bleu": BLEU, "chrf": CHRF}[kind]()
    answers, references = CORPORA[name]
    statistics = trusted._extract_corpus_statistics(answers, [references])
    assert value(kind, statistics) == pytest.approx(trusted.corpus_score(answers, [references]).score, abs=SACREBLEU)


def test_random_counts_have_sacrebleu_s_values():
    """Also sums that few texts have: what matters is the same formula."""
    from sacrebleu.metrics import BLEU, CHRF

    draw = np.random.default_rng(0)
    for _ in range(300):
        total = draw.integers(0, 9, 4)
        counts = [*draw.integers(1, 12, 2), *draw.integers(0, total + 1), *total]
        assert float(VALUES["bleu"](np.array(counts, float))) == pytest.approx(BLEU()._compute_score_from_stats(list(map(int, counts))).score, abs=SACREBLEU)
        pairs = draw.integers(0, 9, (6, 2))
        orders = np.concatenate([pairs, draw.integers(0, pairs.min(-1, keepdims=True) + 1)], axis=-1).ravel()
        assert float(VALUES["chrf"](orders.astype(float))) == pytest.approx(CHRF()._compute_score_from_stats(orders.tolist()).score, abs=SACREBLEU)


def test_perplexity_is_not_the_mean_of_exponentials():
    rows = np.array([[2.0, 1], [8.0, 8]])
    assert value("exp_ratio", rows) == pytest.approx(math.exp(10 / 9))
    assert value("exp_ratio", [[7 * math.log(320), 7]]) == pytest.approx(320, rel=1e-12)


def test_calibration_is_the_weighted_gap_of_the_bins():
    """Four rows of confidence 0.9, half right; one of 0.2, wrong: 4/5 of 0.4 and 1/5 of 0.2."""
    rows = [[1, 0, 0, 0.9, correct] for correct in (1, 1, 0, 0)] + [[1, 0.2, 0, 0, 0]]
    assert value("calibration", rows) == pytest.approx(0.8 * 0.4 + 0.2 * 0.2)


@pytest.mark.parametrize(("kind", "empty"), [
    ("mean", math.nan), ("ratio", 0), ("exp_ratio", math.nan), ("f1", 0), ("macro_f1", math.nan), ("bleu", 0), ("chrf", 0), ("calibration", math.nan),
])  # fmt: skip
def test_nothing_counted(kind, empty):
    columns = {"macro_f1": 9, "bleu": 10, "chrf": 18, "calibration": 21, "f1": 3}.get(kind, 2)
    with np.errstate(all="raise"):
        assert float(VALUES[kind](np.zeros(columns))) == pytest.approx(empty, nan_ok=True)


def test_odd_totals():
    assert math.isnan(value("ratio", [[3.0, 0]]))
    assert value("exp_ratio", [[1e9, 1]]) == math.exp(LARGEST_LOSS)


@pytest.mark.parametrize("kind", VALUES)
def test_leading_axes_change_nothing(kind):
    columns = {"macro_f1": 9, "bleu": 10, "chrf": 18, "calibration": 21, "f1": 3}.get(kind, 2)
    sums = np.random.default_rng(0).integers(0, 5, (4, 3, columns)).astype(float)
    sums[0, 0] = 0
    one_by_one = [[float(VALUES[kind](sums[i, j])) for j in range(3)] for i in range(4)]
    np.testing.assert_array_equal(VALUES[kind](sums), one_by_one)


@pytest.mark.parametrize(("kind", "columns"), [("mean", 3), ("f1", 2), ("macro_f1", 4), ("bleu", 11), ("calibration", 4)])
def test_statistics_of_another_metric_are_refused(kind, columns):
    with pytest.raises(ValueError):
        VALUES[kind](np.ones((2, columns)))


def test_a_metric_comes_back_from_json():
    metric = Metric("macro F1", "macro_f1", True, "1083 test rows", ("inform", "request"))
    saved = json.loads(json.dumps({**metric_as_json(metric), "group": "labels"}))
    assert metric_from_json(saved) == metric
    assert Scores(metric, np.ones((3, 6))).value == 1.0
    with pytest.raises(ValueError, match="no kind 'f2'"):
        Metric("F2", "f2", True)
