"""Promises against a report: kept, not kept, and never a yes where nothing was measured."""

import json

import pytest

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.gate import check_promises, gain_of
from toy_evaluations import make_run


def compared(metric="perplexity", base=43.2, tuned=32.1, verdict="better", group="text", higher=False, rows=70, kind="exp_ratio", **changes):
    return {
        "group": group, "metric": metric, "kind": kind, "higher_is_better": higher, "base": base, "tuned": tuned, "rows": rows, "verdict": verdict, **changes,
    }  # fmt: skip


NEUTRAL = compared(base=20.0, tuned=20.4, verdict="worse", group="neutral text")


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "r")

    def write(*comparisons):
        (path / "report.json").write_text(json.dumps({"comparisons": list(comparisons)}))
        return path

    return write


def kept(*arguments, **named) -> list[bool]:
    return [promise.kept for promise in check_promises(*arguments, **named)]


@pytest.mark.parametrize(("base", "tuned", "higher", "gain"), [
    (43.2, 32.1, False, 0.25694), (32.1, 43.2, False, -0.34579), (0.4, 0.5, True, 0.25), (0.5, 0.4, True, -0.2), (0.5, 0.5, True, 0.0), (0.0, 0.5, True, None),
])  # fmt: skip
def test_a_gain_is_a_share_of_the_base_in_the_good_direction(base, tuned, higher, gain):
    found = gain_of(compared(base=base, tuned=tuned, higher=higher))
    assert found == (gain if gain is None else pytest.approx(gain, abs=1e-5))


@pytest.mark.parametrize(("verdict", "wanted", "expected"), [
    ("better", 0.25, True), ("better", 0.26, False), ("no evidence", 0.05, False), ("worse", 0.05, False), ("better", 0.0, True),
])  # fmt: skip
def test_a_gain_counts_only_where_it_is_more_than_chance(run, verdict, wanted, expected):
    assert kept(run(compared(verdict=verdict)), min_gain=wanted) == [expected]


def test_exactly_what_was_promised_is_kept(run):
    assert kept(run(compared(base=40.0, tuned=30.0)), min_gain=0.25) == [True]


def test_a_loss_that_is_sure_is_no_gain(run):
    assert kept(run(compared(base=30.0, tuned=45.0, verdict="worse")), min_gain=0.0) == [False]


def test_from_nothing_to_something_is_a_gain(run):
    assert kept(run(compared("exact match", 0.0, 0.3, higher=True, kind="mean")), min_gain=0.5) == [True]
    assert kept(run(compared("exact match", 0.0, 0.0, "no evidence", higher=True, kind="mean")), min_gain=0.0) == [False]


@pytest.mark.parametrize(("most", "expected"), [(0.03, True), (0.02, True), (0.0199, False), (0.0, False)])
def test_forgetting_is_the_rise_of_perplexity_on_neutral_text(run, most, expected):
    assert kept(run(compared(), NEUTRAL), max_forgetting=most + 1e-12) == [expected]


def test_the_primary_metric_is_meant_and_a_name_means_another(run):
    path = run(NEUTRAL, compared("accuracy", 0.4, 0.5, higher=True), compared("macro F1", 0.4, 0.41, "no evidence", higher=True, primary=True))
    assert kept(path, min_gain=0.01) == [False]
    assert kept(path, min_gain=0.01, metric="accuracy") == [True]


def test_the_line_tells_what_was_promised_and_what_came_out(run):
    promises = check_promises(run(compared(), NEUTRAL), min_gain=0.05, max_forgetting=0.01)
    assert [promise.line for promise in promises] == [
        "kept: a gain of at least 5.0% that is more than chance (perplexity 43.2 -> 32.1 on 70 rows, gain +25.7%; verdict: better)",
        "not kept: perplexity on neutral text rises by at most 1.0% (perplexity 20 -> 20.4 on 70 rows, +2.0%)",
    ]


@pytest.mark.parametrize(("verdict", "better", "not_worse"), [("better", True, True), ("no evidence", False, True), ("worse", False, False)])
def test_a_verdict_is_promised_at_least(run, verdict, better, not_worse):
    path = run(compared(verdict=verdict))
    assert kept(path) == kept(path, verdict="better") == [better]
    assert kept(path, verdict="no evidence") == [not_worse]


def test_all_that_is_asked_is_answered(run):
    assert kept(run(compared(), NEUTRAL), min_gain=0.3, max_forgetting=0.1, verdict="better") == [True, False, True]


# Nothing to hold a promise against


@pytest.mark.parametrize(("comparisons", "arguments", "message"), [
    ([], {}, "no comparison of base and tuned"),
    ([NEUTRAL], {}, "nothing was measured on test rows"),
    ([compared()], {"metric": "perplexty"}, "no metric 'perplexty'"),
    ([compared()], {"max_forgetting": 0.1}, "neutral text was not measured"),
    ([compared(rows=1)], {}, "on 1 test row:"),
    ([compared(rows=0)], {}, "on 0 test rows:"),
])  # fmt: skip
def test_what_was_not_measured_is_no_yes(run, comparisons, arguments, message):
    with pytest.raises(DataError, match=message):
        check_promises(run(*comparisons), **arguments)


def test_a_run_without_report_or_adapter_is_told(run, tmp_path):
    path = make_run(tmp_path / "bare")
    with pytest.raises(DataError, match="no report yet"):
        check_promises(path)
    path = run(compared())
    (path / "adapter" / "adapter_model.safetensors").write_bytes(b"another")
    with pytest.raises(IntegrityError, match="not what was written"):
        check_promises(path)


@pytest.mark.parametrize("content", [
    "{", "", '{"comparisons": [7]}', '{"comparisons": 7}', json.dumps({"comparisons": [compared(tuned=None)]}),
    json.dumps({"comparisons": [compared(verdict="great")]}), json.dumps({"comparisons": [compared(base=True)]}),
    json.dumps({"comparisons": [compared(), {"metric": "x"}]}), '{"comparisons": {"a": 1}}',
])  # fmt: skip
def test_a_damaged_report_is_told(run, content):
    path = run()
    (path / "report.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"report\.json"):
        check_promises(path)
