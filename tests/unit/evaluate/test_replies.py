"""The summed statistics of replies give what sacrebleu and rouge_score give for the whole."""

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from halfbyte.evaluate.metrics import value_of
from halfbyte.evaluate.replies import bleu_scores, chrf_scores, count_empty, reply_scores, rouge_scores

WORDS = ["the", "lamp,", "went", "out.", "Peter's", "(old)", "said:", "été", "12.5", "%", "—", "don't", "日本語です", "Ω"]


def random_replies(count, seed):
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) for _ in range(count)]
    answers = [" ".join(word if draw.random() < 0.6 else draw.choice(WORDS) for word in text.split()[: draw.randrange(0, 40)]) for text in references]
    return answers, references


CASES = {
    "random": random_replies(60, seed=1),
    "one row": (["the cat sat on the mat today"], ["the cat sat on the mat"]),
    "equal": (["a b c d e"] * 3, ["a b c d e"] * 3),
    "nothing shared": (["x y z"], ["a b c"]),
    "all empty": (["", "  "], ["a b", "c"]),
    "short": (["a", "b"], ["a", "c"]),
    "empty reference": (["a b", "c d e f g"], ["", "c d e f g"]),
    "looks tokenised": (["the end ."] * 120, ["the end."] * 120),
}


@pytest.mark.parametrize("case", CASES)
def test_bleu_and_chrf_of_the_sums_are_sacrebleus(case, caplog):
    answers, references = CASES[case]
    bleu, chrf = bleu_scores(answers, references), chrf_scores(answers, references)
    assert not caplog.records
    assert bleu.rows.shape == (len(answers), 10)
    assert chrf.rows.shape == (len(answers), 18)
    assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(answers, [references], force=True).score, abs=1e-9)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-9)


def test_any_choice_of_rows_is_the_score_of_those_rows():
    answers, references = CASES["random"]
    drawn = np.random.default_rng(0).integers(0, len(answers), 40)
    chosen, asked = [answers[row] for row in drawn], [references[row] for row in drawn]
    for scores, whole in ((bleu_scores(answers, references), sacrebleu.corpus_bleu), (chrf_scores(answers, references), sacrebleu.corpus_chrf)):
        assert value_of(scores.metric, scores.rows[drawn]) == pytest.approx(whole(chosen, [asked]).score, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_rouge_is_the_mean_of_its_rows(case):
    answers, references = CASES[case]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    each = [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in zip(answers, references)]
    assert rouge_scores(answers, references).value == pytest.approx(np.mean(each), abs=1e-12)


def test_rouge_of_long_repetitive_texts_is_the_table_of_rouge_score():
    """More words than a machine word has bits, of few kinds, so that many subsequences compete."""
    draw, scorer = random.Random(4), RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(20):
        answer, reference = (" ".join(draw.choices(["a", "B", "c3", "d-e", "\u0130", "\u212a"], k=draw.randrange(150))) for _ in range(2))
        assert rouge_scores([answer], [reference]).value == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure, abs=1e-12)


def test_rouge_by_hand():
    """The longest common subsequence of a b c d and b x d is b d: recall 2/4, precision 2/3; without stemming, cats is not cat."""
    assert rouge_scores(["b x d"], ["a b c d"]).value == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert rouge_scores(["the running cats"], ["the run cat"]).value == pytest.approx(1 / 3)


def test_lengths_variety_and_ends_by_hand():
    answers, references = ["a a a b", "", "x", "one two three"], ["a b", "c", "x", "1 2 3 4 5 6"]
    found = {score.metric.name: score for score in reply_scores(answers, references, [True, True, False, True])}
    assert list(found) == ["chrF", "BLEU", "ROUGE-L", "length error", "length ratio", "distinct-1", "distinct-2", "ended by itself"]
    assert found["length ratio"].value == 8 / 10
    assert found["length error"].value == (2 + 1 + 0 + 3) / 10
    assert found["distinct-1"].rows.tolist() == [[2 / 4, 1], [0, 0], [1, 1], [1, 1]]
    assert found["distinct-2"].rows.tolist() == [[2 / 3, 1], [0, 0], [0, 0], [1, 1]]
    assert found["ended by itself"].value == 3 / 4
    assert count_empty([*answers, " \n"]) == 2


def test_variety_does_not_fall_because_answers_are_counted_twice():
    one = {score.metric.name: score.value for score in reply_scores(["a b c a"], ["x"], [True])}
    two = {score.metric.name: score.value for score in reply_scores(["a b c a"] * 2, ["x"] * 2, [True] * 2)}
    assert one["distinct-1"] == two["distinct-1"] == 3 / 4


def test_how_words_are_cut_is_said():
    units = {score.metric.name: score.metric.unit for score in reply_scores(["a"], ["b"], [True])}
    assert "tok:13a" in units["BLEU"]
    assert "nc:6|nw:0|space:no" in units["chrF"]
    assert all("version:" in units[name] for name in ("BLEU", "chrF"))
    assert "no stemming" in units["ROUGE-L"]


def test_every_row_leaves_statistics_and_lengths_must_agree():
    assert all(len(score.rows) == 2 for score in reply_scores(["", ""], ["", ""], [False, True]))
    assert [score.rows.shape[0] for score in reply_scores([], [], [])] == [0] * 8
    with pytest.raises(ValueError, match="2 answers, 1 references and 2 ends"):
        reply_scores(["a", "b"], ["a"], [True, True])
