"""The verdict: which comparison speaks, what it rests on, and that nothing that got worse is left unsaid."""

import pytest

from halfbyte.runs.verdict import in_order, judge, rests_on, sample
from toy_runs import comparison

EMPTY = {"perplexity": None, "evaluation": {name: {"perplexity": None, "tokens": None} for name in ("base", "tuned")}, "data": {},
         "training": {"steps": 0, "first_loss": None, "last_loss": None}}  # fmt: skip


def judged(*comparisons):
    return judge({**EMPTY, "comparisons": list(comparisons)})


@pytest.mark.parametrize(("tuned", "word", "title"), [
    (0.9, "better", "Better than its base"), (0.52, "no evidence", "No evidence of a difference"), (0.1, "worse", "Worse than its base"),
])  # fmt: skip
def test_the_primary_comparison_speaks(tuned, word, title):
    other = comparison("text", "perplexity", 1.0, 2.0, 0.1, 0.1)
    found = judged(other, comparison("labels", "macro F1", 0.5, tuned, 0.1, 0.1, primary=True))
    assert (found["word"], found["title"]) == (word, title)
    assert found["sentence"].startswith("Macro F1 on the test rows")


def test_the_first_speaks_where_none_is_primary():
    assert judged(comparison("text", "a", 1, 2, 0.1, 0.1), comparison("text", "b", 2, 1, 0.1, 0.1))["word"] == "better"


def test_what_got_worse_is_named():
    found = judged(comparison("text", "a", 1, 2, 0.1, 0.1, primary=True), comparison("neutral text", "perplexity", 1, 2, 0.1, 0.1, higher=False))
    assert found["others"] == "Of 2 comparisons: 1 better, 1 worse."
    assert found["worse"] == ["perplexity (neutral text)"]
    assert found["title"] == "Better than its base, but worse in perplexity on neutral text"
    more = [comparison("replies", name, 2, 1, 0.1, 0.1) for name in ("chrF", "BLEU")]
    assert judged(comparison("text", "a", 1, 2, 0.1, 0.1, primary=True), *more)["title"] == "Better than its base, but worse in 2 of 3 figures"
    assert judged(comparison("text", "a", 1, 2, 0.1, 0.1))["others"] is None


def test_a_word_that_is_none_of_ours_is_not_shown_as_a_verdict():
    assert judged(comparison("text", "a", 1, 2, 0.1, 0.1) | {"verdict": "BEST EVER"})["word"] == "not tested"


def test_what_is_not_known_is_left_out():
    bare = {"metric": "a", "group": "text"}
    assert list(rests_on(bare)) == ["measured by", "on"]
    full = comparison("text", "a", 1, 2, 0.1, 0.1)
    assert list(rests_on(full)) == ["measured by", "on", "change", "95 % interval", "smallest change it could show", "test"]


@pytest.mark.parametrize(("rows", "units", "unit", "words"), [
    (70, 70, "test rows", "test rows, 70 rows"), (1083, 1083, "1083 test rows, by likelihood", "1083 test rows, by likelihood"),
    (40, 12, "neutral text", "neutral text, 40 rows of 12 documents"), (1, 1, "", "1 row"), (None, None, "test rows", "test rows"),
])  # fmt: skip
def test_the_sample_in_words(rows, units, unit, words):
    assert sample({"rows": rows, "units": units, "unit": unit}) == words


def test_groups_stand_in_the_order_of_the_report_and_new_ones_last():
    groups = ["neutral text", "tasks", "labels", "text"]
    assert [one["group"] for one in in_order([{"group": group} for group in groups])] == ["text", "labels", "neutral text", "tasks"]


@pytest.mark.parametrize(("change", "words"), [
    ({}, "No training step is logged yet."),
    ({"training": {"steps": 1, "first_loss": 4.0, "last_loss": 4.0}}, "One training step is logged, with loss 4."),
    ({"training": {"steps": 9, "first_loss": 4.0, "last_loss": 3.0}}, "the tuned model is not compared with its base yet."),
    ({"training": {"steps": 9, "first_loss": 4.0, "last_loss": 3.0}, "data": {"test_rows": 0}}, "there is no test row to compare it on."),
])  # fmt: skip
def test_without_a_comparison_the_sentence_says_how_far_the_run_is(change, words):
    found = judge({**EMPTY, "comparisons": [], **change})
    assert found["word"] == "not compared"
    assert found["sentence"].endswith(words)
