"""Two runs on the same test rows; rows that differ are refused, and so is a perplexity of two tokenizers."""

import json

import numpy as np
import pytest

from halfbyte.errors import DataError
from halfbyte.evaluate.compare import compare_runs
from toy_evaluations import ACCURACY, BITS, PERPLEXITY, answer, losses, make_run, shares

ROWS = 40
BASE = shares([0] * ROWS)
ANSWERS = [answer(number) for number in range(ROWS)]


@pytest.fixture
def labelled(tmp_path):
    def make(name, right, answers=ANSWERS, **named):
        return make_run(tmp_path / name, [("labels", ACCURACY, BASE[: len(right)], shares(right))], answers, **named)

    return make


@pytest.fixture
def told(tmp_path):
    """A run on texts: perplexity and bits per byte of rows with these losses and lengths."""

    def make(name, means, tokens=10, bytes_=40, units=None, **named):
        rows = losses(means, tokens)
        bits = np.stack([rows[:, 0] / np.log(2), np.full(len(rows), bytes_, float)], axis=1)
        return make_run(tmp_path / name, [("text", PERPLEXITY, rows, rows), ("text", BITS, bits, bits)], units=units and {"text": np.array(units)}, **named)

    return make


def test_the_tuned_models_are_compared(labelled):
    few, many = labelled("few", [1] * 10 + [0] * 30), labelled("many", [1] * 30 + [0] * 10)
    versus = compare_runs(few, many)
    ((group, found),) = versus.compared
    assert (group, found.base, found.tuned, found.verdict, found.rows) == ("labels", 0.25, 0.75, "better", ROWS)
    assert found.p_value == pytest.approx(2 * 0.5**20)
    assert versus.sentence.startswith(f"{many} is better than {few}: accuracy")
    assert compare_runs(many, few).compared[0][1].verdict == "worse"


def test_equal_runs_show_no_evidence(labelled):
    versus = compare_runs(labelled("a", [1, 0] * 20), labelled("b", [1, 0] * 20))
    assert versus.compared[0][1].verdict == "no evidence"
    assert versus.sentence.startswith("No evidence that")
    assert "base" not in versus.sentence.replace(str(versus.first), "").replace(str(versus.second), "")


def test_json_names_first_and_second(labelled):
    one = compare_runs(labelled("a", [1] * ROWS), labelled("b", [0] * ROWS)).as_json()
    (found,) = json.loads(json.dumps(one, allow_nan=False))["comparisons"]
    assert (found["group"], found["metric"], found["first"], found["second"], found["verdict"]) == ("labels", "accuracy", 1.0, 0.0, "worse")
    assert {"first_interval", "second_interval", "interval", "p_value"} <= found.keys()
    assert not {"base", "tuned"} & found.keys()


# The same rows?


def test_rows_are_the_same_by_what_they_hold(labelled):
    """Another training part, another file name: the test rows are still the same."""
    moved = [{**one, "row": f"elsewhere.csv:{number}"} for number, one in enumerate(ANSWERS)]
    first = labelled("a", [1] * ROWS, rows_sha256="train-validation-test")
    assert compare_runs(first, labelled("b", [1] * ROWS, rows_sha256="other-other-test")).compared
    assert compare_runs(first, labelled("c", [1] * ROWS, answers=moved, rows_sha256="other-other-other")).compared


@pytest.mark.parametrize(("changed", "message"), [
    ([*ANSWERS[:-1], answer(ROWS - 1, prompt="another")], "the prompt of talk.csv:41 is 'question 39', that of talk.csv:41 is 'another'"),
    ([*ANSWERS[:-1], answer(ROWS - 1, reference="another")], "the reference answer of talk.csv:41 is 'answer 39'"),
    (ANSWERS[:-1], "40 rows and 39 rows"),
    (ANSWERS[::-1], "the prompt of talk.csv:2 is"),
])  # fmt: skip
def test_other_rows_are_refused_and_the_difference_told(labelled, changed, message):
    first, second = labelled("a", [1] * ROWS), labelled("b", [1] * ROWS, answers=changed, rows_sha256="train-validation-other")
    with pytest.raises(DataError, match="tested on different rows") as raised:
        compare_runs(first, second)
    assert message in raised.value.message


def test_texts_of_two_tokenizers_compare_by_bytes_alone(told):
    first = told("a", [3.0, 2.0, 1.0] * 3, rows_sha256="t-v-a", tokenizer="one")
    second = told("b", [2.9, 1.9, 0.9] * 3, tokens=8, rows_sha256="t-v-b", tokenizer="other")
    versus = compare_runs(first, second)
    assert [one.metric.name for _, one in versus.compared] == ["bits per byte"]
    assert versus.notes == ["perplexity on text is left out: it is per token and the tokenizers differ; bits per byte compares"]


def test_documents_pair_where_rows_were_cut_differently(told):
    """Seven documents of 80 bytes: in rows of 40 for one tokenizer, in whole documents for the other."""
    first = told("a", [3.0] * 14, units=[number // 2 for number in range(14)], rows_sha256="t-v-a", tokenizer="one")
    second = told("b", [2.0] * 7, tokens=16, bytes_=80, units=list(range(7)), rows_sha256="t-v-b", tokenizer="other")
    ((_, found),) = compare_runs(first, second).compared
    assert (found.metric, found.units) == (BITS, 7)
    assert found.base == pytest.approx(2 * 30 / np.log(2) / 80)
    assert found.tuned == pytest.approx(32 / np.log(2) / 80)


@pytest.mark.parametrize(("changes", "message"), [
    ({"bytes_": 41}, "row or document 1 has length 40 in the first run and 41 in the second"),
    ({"means": [1.0] * 8}, "9 rows and 8 rows"),
])  # fmt: skip
def test_other_texts_are_refused(told, changes, message):
    first = told("a", [1.0] * 9, rows_sha256="t-v-a", tokenizer="one")
    second = told("b", **{"means": [1.0] * 9, "rows_sha256": "t-v-b", "tokenizer": "other", **changes})
    with pytest.raises(DataError, match="tested on different texts") as raised:
        compare_runs(first, second)
    assert message in raised.value.message


def test_answers_and_texts_are_different_tests(told, labelled):
    with pytest.raises(DataError, match="different texts"):
        compare_runs(told("a", [1.0] * 9, rows_sha256="t-v-a"), labelled("b", [1] * ROWS))


# What is left out, and what is refused


def test_what_only_one_run_has_is_a_note(tmp_path):
    first = make_run(tmp_path / "a", [("labels", ACCURACY, BASE, BASE), ("replies", PERPLEXITY, BASE + 1, BASE + 1)], ANSWERS)
    second = make_run(tmp_path / "b", [("labels", ACCURACY, BASE, BASE), ("replies", BITS, BASE, BASE)], ANSWERS)
    versus = compare_runs(first, second)
    assert [one.metric.name for _, one in versus.compared] == ["accuracy"]
    assert versus.notes == ["perplexity on replies is left out: only the first run has it", "bits per byte on replies is left out: only the second run has it"]


@pytest.mark.parametrize(("rows", "told"), [(0, "0 test rows"), (1, "1 test row")])
def test_a_test_part_of_no_or_one_row_says_nothing(tmp_path, rows, told):
    runs = [make_run(tmp_path / name, [("labels", ACCURACY, BASE[:rows], BASE[:rows])], ANSWERS[:rows]) for name in "ab"]
    with pytest.raises(DataError, match=f"{told} cannot tell a change from chance"):
        compare_runs(*runs)


def test_one_run_is_no_comparison(labelled):
    path = labelled("a", [1] * ROWS)
    with pytest.raises(DataError, match="are one run"):
        compare_runs(path, path)


def test_a_run_without_evaluation_is_refused(labelled, tmp_path):
    with pytest.raises(DataError, match="no evaluation yet"):
        compare_runs(labelled("a", [1] * ROWS), make_run(tmp_path / "b"))
