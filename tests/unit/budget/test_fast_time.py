"""Time of the fast path: near what an H200 took, and in the order that more work has."""

from dataclasses import replace

import pytest

from halfbyte.budget.fast import fast_peak
from halfbyte.budget.fast_time import fast_effort, fast_seconds
from halfbyte.budget.fast_work import FastWork
from halfbyte.budget.rates import Rates
from halfbyte.recipe.plan import Placement
from recordings import make_work

MEASURED = [  # ms on an H200
    (4, 2048, "kept", {}, 461), (4, 2048, "thin", {}, 557), (4, 2048, "recomputed", {}, 602), (1, 2048, "kept", {}, 146),
    (1, 2048, "kept", {"record": True}, 128), (1, 2048, "recomputed", {}, 172), (1, 16384, "recomputed", {}, 1688),
    (4, 2048, "recomputed", {"parked": True}, 615), (4, 2048, "attention", {"parked": True}, 607),
    (1, 2048, "recomputed", {"parked": True, "tight": True, "record": True}, 172), (1, 2048, "attention", {"parked": True, "record": True}, 166),
    (1, 16384, "attention", {"parked": True}, 1608), (1, 16384, "recomputed", {"parked": True}, 1736), (4, 2048, "kept", {"resident": 14, "record": True}, 460),
]  # fmt: skip


def seconds(
    rows: int,
    tokens: int,
    kept: str,
    parked: bool = False,
    resident: int = 0,
    accumulation: int = 1,
    rates: Rates | None = None,
    name: str = "mistral-7b",
    **how,
) -> float:
    work = make_work(name)
    layers = tuple(Placement("16bit" if number < resident else "4bit", kept, parked and number < 30) for number in range(32))
    given = FastWork(replace(work, layers=layers), (tokens,) * rows, **how)
    return fast_seconds(fast_effort(given, fast_peak(given).parked_bytes, accumulation), rates or Rates())


@pytest.mark.parametrize(("rows", "tokens", "kept", "how", "ms"), MEASURED)
def test_what_was_measured_is_told_within_8_percent(rows, tokens, kept, how, ms):
    assert seconds(rows, tokens, kept, **how) * 1e3 == pytest.approx(ms, rel=0.08)


@pytest.mark.parametrize("name", ["mistral-7b", "falcon-7b"])
def test_more_that_is_kept_is_faster_and_recording_pays_where_rows_are_short(name):
    kinds = [seconds(4, 2048, kind, name=name) for kind in ("kept", "thin", "attention", "recomputed")]
    assert kinds == sorted(kinds)
    assert kinds[0] < 0.95 * kinds[-1]
    assert seconds(1, 512, "kept", record=True, name=name) < 0.6 * seconds(1, 512, "kept", name=name)
    assert seconds(4, 2048, "kept", resident=32, name=name) < seconds(4, 2048, "kept", name=name)


def test_two_micro_batches_take_as_long_as_one_of_twice_the_rows():
    assert seconds(2, 2048, "kept", accumulation=2) == pytest.approx(seconds(4, 2048, "kept"), rel=0.12)


def test_copies_that_do_not_fit_beside_the_arithmetic_are_waited_for():
    slow = replace(Rates(), copy_bytes=2e9)
    assert seconds(4, 2048, "attention", parked=True, rates=slow) > 1.5 * seconds(4, 2048, "attention", rates=slow)
