"""An answer names one class or none; the figures are scikit-learn's."""

import numpy as np
import pytest

from halfbyte.evaluate.labels import (
    Majority,
    accuracy_rows,
    confusion,
    macro,
    macro_f1_rows,
    majority_baseline,
    micro,
    parse_label,
    per_class,
    unseen_labels,
)  # fmt: skip

ACTS = ("inform", "request", "give_opinion", "confirm", "verify_attribute", "suggest", "request_explanation", "recommend", "request_attribute")
STARS = ("1", "2", "3", "4", "5")
MOODS = ("good", "bad", "None", "New York", "York", "C++", "non-fiction")
# Raw answers as models write them, with the class that a person would read in each; None where it names none or two.
BY_HAND = [
    (ACTS, "inform", "inform"),
    (ACTS, " inform", "inform"),
    (ACTS, "inform\n", "inform"),
    (ACTS, "inform.", "inform"),
    (ACTS, '"inform"', "inform"),
    (ACTS, "'inform'.", "inform"),
    (ACTS, "\u201cinform.\u201d", "inform"),
    (ACTS, "**inform**", "inform"),
    (ACTS, "`give_opinion`", "give_opinion"),
    (ACTS, "Inform", "inform"),
    (ACTS, "GIVE_OPINION.", "give_opinion"),
    (ACTS, "inform\nThe sentence states facts.", "inform"),
    (ACTS, "inform, since it states facts", "inform"),
    (ACTS, "inform: it states facts", "inform"),
    (ACTS, "inform - it states facts", "inform"),
    (ACTS, "inform(name[Portal 2], rating[good])", "inform"),
    (ACTS, "**inform**: facts", "inform"),
    (ACTS, "request!", "request"),
    (ACTS, "inform\ninform\ninform", "inform"),
    (ACTS, "request_attribute", "request_attribute"),
    (ACTS, "request_explanation\n\n### Prompt:\nWhat is", "request_explanation"),
    (ACTS, "request_attributes", None),
    (ACTS, "request_", None),
    (ACTS, "request attribute", None),
    (ACTS, "informs", None),
    (ACTS, "informative", None),
    (ACTS, "The act is inform", None),
    (ACTS, "Answer: inform", None),
    (ACTS, "not inform", None),
    (ACTS, "inform the user about it", None),
    (ACTS, "inform or request", None),
    (ACTS, "inform, request", None),
    (ACTS, "inform\nrequest", None),
    (ACTS, "inform/request", None),
    (ACTS, "confirm (or verify_attribute)", None),
    (ACTS, "", None),
    (ACTS, "   \n", None),
    (ACTS, '"."', None),
    (ACTS, "I recall that you liked it.", None),
    (STARS, "4", "4"),
    (STARS, "4 (quite good)", "4"),
    (STARS, "4.7", None),
    (STARS, "4, or perhaps 5", None),
    (STARS, "45", None),
    (MOODS, "None", "None"),
    (MOODS, "none.", "None"),
    (MOODS, "This is not good", None),
    (MOODS, "New York, of course", "New York"),
    (MOODS, "c++", "C++"),
    (MOODS, "non-fiction; a good one", None),
]


def test_there_are_fifty_answers():
    assert len(BY_HAND) == 50
    assert len({answer for _, answer, _ in BY_HAND}) == 50


@pytest.mark.parametrize(("classes", "answer", "meant"), BY_HAND)
def test_answers_are_read_as_a_person_reads_them(classes, answer, meant):
    assert parse_label(answer, classes) == meant


@pytest.mark.parametrize("label", [*ACTS, *STARS, *MOODS, "a.", '"x"', ".", "\u00c9t\u00e9", "two words", "a, b", " x "])
def test_a_class_is_itself(label):
    """Whatever is in it: blanks, quotes and a full stop that belong to it included."""
    assert parse_label(label, [label, "something else"]) == label


def test_capitals_are_looked_over_only_where_that_is_unambiguous():
    assert parse_label("it", ["IT", "US"]) == "IT"
    assert parse_label("it", ["IT", "It"]) is None
    assert parse_label("It", ["IT", "It"]) == "It"
    assert parse_label("it, since", ["IT", "It"]) is None
    assert parse_label("E\u0301TE\u0301", ["\u00e9t\u00e9", "x"]) == "\u00e9t\u00e9"


def test_the_longest_class_that_fits_begins_an_answer():
    assert parse_label("New York\nBig.", ["York", "New York", "New"]) == "New York"
    assert parse_label("New York: York", ["York", "New York", "New"]) is None


# Figures


def drawn(seed, rows=200, classes=5, silent=0.2):
    """gold and predicted; some answers name none, one class is never true and one neither true nor predicted."""
    draw = np.random.default_rng(seed)
    names = [f"class {number}" for number in range(classes + 2)]
    gold = [names[number] for number in draw.integers(0, classes, rows)]
    predicted = [None if draw.random() < silent else names[number] for number in draw.integers(0, classes + 1, rows)]
    return gold, predicted, names


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("silent", [0.0, 0.3, 1.0])
def test_the_figures_are_those_of_scikit_learn(seed, silent):
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    gold, predicted, names = drawn(seed, silent=silent)
    theirs = [label or "(none)" for label in predicted]
    matrix = confusion(gold, predicted, names)
    np.testing.assert_array_equal(matrix, confusion_matrix(gold, theirs, labels=[*names, "(none)"])[:-1])
    each = precision_recall_fscore_support(gold, theirs, labels=names, zero_division=0)
    ours = per_class(matrix, names)
    np.testing.assert_allclose([one[1:] for one in ours], np.array(each).T, atol=1e-12, rtol=0)
    assert [one.label for one in ours] == names
    present = sorted(set(gold) | set(predicted) - {None})
    for average, ours in (("macro", macro(matrix)), ("micro", micro(matrix))):
        want = precision_recall_fscore_support(gold, theirs, labels=present, average=average, zero_division=0)[:3]
        np.testing.assert_allclose(ours, want, atol=1e-12, rtol=0)
    right, count = accuracy_rows(gold, predicted).sum(axis=0)
    assert right / count == pytest.approx(accuracy_score(gold, theirs), abs=1e-12)
    counts = macro_f1_rows(gold, predicted, names).sum(axis=0).reshape(-1, 3)  # right, predicted, true
    present = counts[:, 1:].sum(axis=1) > 0
    f1 = 2 * counts[present, 0] / counts[present, 1:].sum(axis=1)
    assert f1.mean() == pytest.approx(macro(matrix).f1, abs=1e-12)


def test_an_answer_that_names_no_class_is_wrong_and_counted():
    gold, predicted = ["a", "a", "b", "b"], ["a", None, None, "b"]
    assert accuracy_rows(gold, predicted).tolist() == [[1, 1], [0, 1], [0, 1], [1, 1]]
    assert confusion(gold, predicted, ["a", "b"]).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert micro(confusion(gold, predicted, ["a", "b"])) == (1.0, 0.5, pytest.approx(2 / 3))
    assert macro_f1_rows(gold, predicted, ["a", "b"]).tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]]


def test_a_label_that_is_no_class_is_our_bug():
    with pytest.raises(KeyError):
        confusion(["a", "c"], ["a", "a"], ["a", "b"])


def test_no_rows_are_no_division_by_nothing():
    matrix = confusion([], [], ["a", "b"])
    assert macro(matrix) == micro(matrix) == (0.0, 0.0, 0.0)
    assert accuracy_rows([], []).shape == (0, 2)
    assert macro_f1_rows([], [], ["a", "b"]).shape == (0, 6)
    assert majority_baseline({"a": 3}, []) == ("a", 0.0)


def test_the_majority_is_that_of_the_training_rows():
    """In the test rows b is the commonest; a baseline that knew that would have looked."""
    assert majority_baseline({"b": 10, "a": 60, "c": 30}, ["b", "b", "b", "a"]) == Majority("a", 0.25)
    assert majority_baseline({"b": 5, "a": 5}, ["b"]).label == "a"


def test_labels_that_training_never_saw_are_named_and_wrong():
    gold = ["a", "new", "b", "new", "zero"]
    unseen, note = unseen_labels({"a": 3, "b": 2, "zero": 0}, gold)
    assert unseen == ["new", "zero"]
    assert note.startswith("3 of 5 test rows are of classes that no training row has ('new', 'zero')")
    classes = ["a", "b"]
    predicted = [parse_label(answer, classes) for answer in ("a", "new", "b", "a", "zero")]
    assert accuracy_rows(gold, predicted)[:, 0].tolist() == [1, 0, 1, 0, 0]
    assert per_class(confusion(gold, predicted, [*classes, *unseen]), [*classes, *unseen])[2] == ("new", 0.0, 0.0, 0.0, 2)
    assert unseen_labels({"a": 3, "b": 2}, ["a", "b"]) == ([], "")
