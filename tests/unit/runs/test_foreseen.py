"""Predicted beside measured: memory by phase and the time of a step, in the report and in all its forms, and nothing of it where nothing was predicted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halfbyte.cli.screen import Screen
from halfbyte.runs.foreseen import bar, bars, rows, told_of_memory, told_of_time
from halfbyte.runs.report import write_report
from toy_runs import END, RUNS, comparison, perplexities, training, write_run

GB = 10**9
PHASES = [
    {"name": "load", "peak_bytes": 5_500_000_000, "told": "weights are read"}, {"name": "step", "peak_bytes": 22_000_000_000, "told": "1 x 16 rows"},
    {"name": "evaluate", "peak_bytes": 9_200_000_000, "told": "2 rows at a time"}, {"name": "generate", "peak_bytes": 9_400_000_000, "told": "2 rows"},
]  # fmt: skip
PLAN = {
    "predicted_bytes": 22_000_000_000, "predicted_step_seconds": 2.0,
    "memory": {"gpu": "RTX 4090", "budget_bytes": 24_000_000_000, "phases": PHASES, "rates_from": "datasheet of the RTX 4090", "driver_bytes": 900_000_000},
}  # fmt: skip


def memory(phase: str, peak_bytes: int) -> dict[str, Any]:
    return {"event": "memory", "phase": phase, "peak_bytes": peak_bytes}


PEAKS = [memory("load", 5 * GB), memory("train", 21 * GB), memory("evaluate", 10 * GB)]


def gpu_run(folder: Path, peaks: list[dict[str, Any]] = PEAKS, plan: dict[str, Any] = PLAN) -> Path:
    steps = [event for event in training("toy") if event["event"] not in ("labels", "choice", "test_opened")]
    compared = comparison("text", "perplexity", 36.26, 27.41, 1.6, 1.9, higher=False, unit="test text", primary=True)
    return write_run(folder, [*steps, *peaks, *perplexities(36.26, 27.41), compared, {**END, "peak_bytes": 10 * GB}], plan)


def words_of(page: str) -> str:
    return re.sub("<style>.*</style>", "", page, flags=re.DOTALL).replace("\u00a0", " ")


def test_phases_stand_beside_what_they_took(tmp_path):
    report = write_report(gpu_run(tmp_path))
    assert report["memory"] == {
        "budget_bytes": 24 * GB, "predicted_bytes": 22 * GB, "measured_bytes": 21 * GB, "changes": [],
        "phases": [
            {"name": "load", "predicted_bytes": 5_500_000_000, "measured_bytes": 5 * GB},
            {"name": "step", "predicted_bytes": 22 * GB, "measured_bytes": 21 * GB},
            {"name": "evaluate", "predicted_bytes": 9_200_000_000, "measured_bytes": 10 * GB},
            {"name": "generate", "predicted_bytes": 9_400_000_000, "measured_bytes": None},
        ],
    }  # fmt: skip
    assert rows(report)[1] == ["memory, step", "22 GB", "21 GB", "\u22124.5\u00a0%"]
    assert rows(report)[3][2:] == ["\u2013", "\u2013"]


def test_the_time_of_a_step_is_the_median_of_the_steps(tmp_path):
    """Of 2,048 tokens at 920 to 980 a second, but the first, which is slower."""
    report = write_report(gpu_run(tmp_path))
    assert report["time"]["predicted_step_seconds"] == 2.0
    assert report["time"]["measured_step_seconds"] == pytest.approx(2048 / report["training"]["tokens_per_second"])
    assert 2048 / 980 < report["time"]["measured_step_seconds"] < 2048 / 920
    assert rows(report)[-1][:2] == ["a step", "2 s"]


def test_the_last_of_a_phase_counts_and_the_highest_of_all(tmp_path):
    """A resumed run loads twice; a run that is measured again tells of that measurement."""
    report = write_report(gpu_run(tmp_path, [*PEAKS, memory("evaluate", 23 * GB), memory("load", 6 * GB)]))
    assert [phase["measured_bytes"] for phase in report["memory"]["phases"]] == [6 * GB, 21 * GB, 23 * GB, None]
    assert report["memory"]["measured_bytes"] == 23 * GB


def test_every_form_of_the_report_tells_it(tmp_path):
    report = write_report(gpu_run(tmp_path))
    page, text = words_of((tmp_path / "report.html").read_text(encoding="utf-8")), (tmp_path / "report.md").read_text(encoding="utf-8")
    for words in (
        "22 GB was predicted, 21 GB measured (\u22124.5 %)",
        "memory, evaluate",
        "9.2 GB",
        "10 GB",
        "+8.7 %",
        told_of_time(report["time"]).replace("\u00a0", " "),
    ):
        assert words in page, words
        assert words in text, words
    assert page.split("<h2>Predicted")[1].count("<rect") == 7  # four predicted, three measured
    assert "the line is the budget of 24 GB" in page
    console = Console(record=True, width=200)
    Screen(console).show_result(tmp_path)
    assert f"memory: {told_of_memory(report['memory'])}; a step: {told_of_time(report['time'])}" in console.export_text()


def test_what_was_not_predicted_is_not_told(tmp_path):
    """Runs of early versions, and runs without a GPU."""
    for kind, make in RUNS.items():
        report = write_report(make(tmp_path / kind))
        assert rows(report) == []
        assert bars(report) == ""
        assert "<h2>Predicted</h2>" not in (tmp_path / kind / "report.html").read_text(encoding="utf-8")
        assert "## Predicted" not in (tmp_path / kind / "report.md").read_text(encoding="utf-8")


def test_a_report_without_time_is_shown(tmp_path):
    """report.json of an early version, as a resume of a finished run shows it."""
    report = write_report(gpu_run(tmp_path))
    del report["time"]
    report["memory"] = {"predicted_bytes": None, "measured_bytes": 5}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    console = Console(record=True, width=200)
    Screen(console).show_result(tmp_path)
    assert "predicted" not in console.export_text()


@pytest.mark.parametrize("plan", [
    {"memory": 3}, {"memory": {"phases": 3}}, {"memory": {"phases": [3, None, {}]}},
    {"memory": {"phases": [{"name": 7, "peak_bytes": "x"}], "budget_bytes": []}},
    {"predicted_bytes": "x", "predicted_step_seconds": {}}, {"memory": {"phases": [{"name": "<script>", "peak_bytes": 1}], "budget_bytes": 0}},
])  # fmt: skip
def test_a_damaged_plan_is_no_obstacle(tmp_path, plan):
    write_report(gpu_run(tmp_path, plan=plan))
    assert "<script>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_peak_that_is_none_is_left_out(tmp_path):
    report = write_report(gpu_run(tmp_path, [memory("load", 5 * GB), {"event": "memory", "phase": "train", "peak_bytes": "x"}, {"event": "memory"}]))
    assert [phase["measured_bytes"] for phase in report["memory"]["phases"]] == [5 * GB, None, None, None]


def test_bars_share_a_scale_and_show_what_was_too_much():
    drawn = bar(6.0, 12.0, 10.0, 12.0)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert "bar worse" in drawn
    assert "worse" not in bar(6.0, 9.0, 10.0, 12.0)
