"""How the plan's accuracy is judged: what is counted, what is written, and that nothing is picked."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import Rates, effort_of, step_seconds

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def plan_accuracy():
    sys.path.insert(0, str(BENCHMARKS))
    import plan_accuracy

    yield plan_accuracy
    sys.path.remove(str(BENCHMARKS))


def measured(plan_accuracy: ModuleType, name: str, memory: float = 1.0, seconds: float = 1.0, fits: bool = True, limit: float = 1.0) -> dict[str, Any]:
    """As if the GPU had taken so many times what is predicted."""
    case = next(case for case in plan_accuracy.cases() if case.name == name)
    work = plan_accuracy.work_of(case, plan_accuracy.settings_of(case))
    peak = training_peak(work)
    taken = step_seconds(effort_of(work, peak.launches, peak.written_bytes), Rates()) * seconds
    return {
        **asdict(case), "device": "NVIDIA X", "peak_reserved": round(peak.reserved_bytes * memory), "seconds": taken,
        "all_seconds": [9.0] * plan_accuracy.WARM_UP + [taken * factor for factor in (0.8, 0.9, 1.0, 1.1, 1.2)], "fits": fits,
        "limit_bytes": round(peak.enough_bytes * limit), "versions": {"torch": "2.11.0"},
    }  # fmt: skip


@pytest.fixture
def judged(plan_accuracy, tmp_path, capsys):
    taken: dict[str, dict[str, Any]] = {
        "mistral-7b 1x512": {}, "mistral-7b 4x2048": {"memory": 1.2}, "falcon-7b 1x1024": {}, "mistral-7b 2x1024": {"memory": 1.04},
        "llama-1b 1x1024": {"memory": 1.1, "seconds": 1.3}, "mistral-7b 8x512": {"seconds": 0.9, "fits": False, "limit": 1.013},
        "qwen2-0.5b 4x512": {"seconds": 1.1},
    }  # fmt: skip
    found = {name: measured(plan_accuracy, name, **changes) for name, changes in taken.items()}
    (tmp_path / "plan_accuracy.json").write_text(json.dumps(found))
    page = BENCHMARKS.parent / "docs" / "planning.md"
    before = page.read_bytes()
    plan_accuracy.judge(tmp_path)
    assert page.read_bytes() == before  # figures of a trial go nowhere else
    return tmp_path, capsys.readouterr().out


def test_only_test_configurations_count_and_all_that_ran_out(judged):
    folder, _ = judged
    claims = {one["claim"]: one for one in json.loads((folder / "claims.json").read_text())}
    assert {name: (one["value"], one["unit"], one["where"]) for name, one in claims.items()} == {
        "memory-plan-within-5pct": (0.75, "share", "NVIDIA X"),
        "time-plan-within-15pct": (0.75, "share", "NVIDIA X"),
        "memory-plan-fits": (1, "cases", "NVIDIA X"),
    }


def test_every_configuration_is_in_the_table_with_its_spread(judged):
    folder, out = judged
    cases = json.loads((folder / "plan_accuracy_judged.json").read_text())["cases"]
    assert len(cases) == 7
    assert all(case["spread"] == pytest.approx(0.3) for case in cases)  # quartiles of five: 0.85 and 1.15
    assert sum(line.startswith("| ") and " GB | " in line for line in out.splitlines()) == 7
    assert "| llama-1b 1x1024 |" in out
    assert "3 of 4 within 5%" in out
    assert "Farthest off: llama-1b 1x1024 (-9.1%), mistral-7b 2x1024 (-3.8%)" in out
    assert (
        "Ran out of the memory that was called enough when it was measured: 1 of 7; what is called enough now is less than that for 1 of them, by 1.3%" in out
    )
    assert "calibration part can be counted too: 5 of 7 within 5%" in out
    assert "Not measured yet: mistral-7b 1x2048, " in out


def test_rates_that_are_shipped_are_compared_with_the_fit(plan_accuracy, judged):
    """Measured as predicted: nothing to paste."""
    _, out = judged
    for name in plan_accuracy.FITTED:
        assert f"{name}: shipped " in out
    assert "for rates.py" not in out


def test_the_table_replaces_the_one_before(plan_accuracy, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("one\n<!-- accuracy -->\n<!-- /accuracy -->\ntwo\n")
    for text in ("first", "second\nof two lines"):
        plan_accuracy.write_between(page, *plan_accuracy.MARKS, text)
    assert page.read_text() == "one\n<!-- accuracy -->\nsecond\nof two lines\n<!-- /accuracy -->\ntwo\n"
