"""What a save costs: how lost seconds are counted, and that the script measures on a toy what it measures on a GPU."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def cost():
    sys.path.insert(0, str(BENCHMARKS))
    import checkpoint_cost

    yield checkpoint_cost
    sys.path.remove(str(BENCHMARKS))


def found(during):
    return {
        "run_steps": 1000, "saves": 10, "clean_steps": [1.0, 1.0, 1.0, 9.0], "steps_while_writing": during, "copy_seconds": [0.2, 0.4],
        "settle_seconds": [0.1, 0.1],
    }  # fmt: skip


def test_lost_is_waiting_and_slower_steps(cost):
    """One step of three is held up by half a second: two saves, three steps each, a hundred clean steps of 1 s between two saves."""
    told = cost.judge(found([[1.5, 1.0, 1.0], [1.5, 1.0, 1.0]]))
    assert told["lost_waiting"] == pytest.approx(0.4)
    assert told["lost_by_slower_steps"] == pytest.approx(0.5)
    assert told["share"] == pytest.approx(0.9 / 100)
    assert told["seconds_an_hour"] == pytest.approx(0.9 * 36)


def test_steps_that_are_quicker_pay_for_nothing(cost):
    told = cost.judge(found([[0.5], [0.5]]))
    assert (told["lost_by_slower_steps"], told["lost_seconds"]) == (0, pytest.approx(0.4))


def test_on_a_toy(cost, tmp_path):
    seen = []
    told = cost.measure(True, tmp_path, 1000, lambda found: seen.append(json.dumps(found)))
    assert len(seen) == cost.SAVES + 1
    assert "share" in json.loads(seen[0])
    assert [len(told[key]) for key in ("copy_seconds", "settle_seconds", "save_seconds", "at_once_seconds")] == [cost.SAVES] * 3 + [cost.AT_ONCE]
    assert told["said"] == []
    waits = zip(told["copy_seconds"], told["settle_seconds"], told["waited_seconds"], strict=True)
    assert all(0 < waited <= copy + settle for copy, settle, waited in waits)
    assert told["checkpoint_bytes"] > 3 * 4 * told["trainable"]
