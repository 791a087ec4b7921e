"""What the events of a run tell of how its last process ended: BAD_INPUTS 109 and 121."""

import pytest

from halfbyte.runs.goodbye import tell_ending, tell_unended

GONE, WHY = "the last run ended without goodbye", "(killed? out of memory?)"
RUN, MODEL, MEASURING = {"event": "run"}, {"event": "model"}, {"event": "measuring"}


def steps(first: int, last: int, peak: int = 1_000) -> list[dict]:
    return [{"event": "step", "step": step, "peak_bytes": peak} for step in range(first, last + 1)]


@pytest.mark.parametrize(("events", "resumed", "told"), [
    ([RUN, MODEL, *steps(1, 341)], 340, f"{GONE} at step 341 {WHY}; resuming from step-340, 1 step is repeated"),
    ([RUN, MODEL, *steps(1, 343)], 340, f"{GONE} at step 343 {WHY}; resuming from step-340, 3 steps are repeated"),
    ([RUN, MODEL, *steps(1, 340)], 340, f"{GONE} at step 340 {WHY}; resuming from step-340, nothing is repeated"),
    ([RUN, MODEL, *steps(1, 3)], None, f"{GONE} at step 3 {WHY}; beginning again at step 1, 3 steps are repeated"),
    ([RUN], None, f"{GONE} while it loaded {WHY}; beginning again at step 1, nothing is repeated"),
    ([RUN, MODEL], None, f"{GONE} before its first step {WHY}; beginning again at step 1, nothing is repeated"),
    ([RUN, MODEL, *steps(1, 9), MEASURING], 9,
     f"{GONE} while it measured {WHY}; resuming from step-9, nothing is repeated"),
    ([RUN, MODEL, *steps(1, 9), {"event": "interrupted", "step": 9}], 9, None),
    ([RUN, MODEL, *steps(1, 9), {"event": "failed", "message": "no"}], 8, "resuming from step-8, 1 step is repeated"),
    ([RUN, MODEL, *steps(1, 9), {"event": "interrupted", "at_once": True}], 8,
     "the last run was left at once at step 9; resuming from step-8, 1 step is repeated"),
    # The process before the last said goodbye, the last one did not.
    ([RUN, *steps(1, 9), {"event": "interrupted", "step": 9}, RUN], 9,
     f"{GONE} while it loaded {WHY}; resuming from step-9, nothing is repeated"),
    ([RUN, MODEL, *steps(1, 7)], 9,
     f"{GONE} at step 7 {WHY}; resuming from step-9, nothing is repeated; steps 8 to 9 were computed, but their "
     "lines were lost (power off?): the curves have a gap there"),
    ([], None, None),
    ([{"event": "note", "message": "standard output is closed"}], None, None),
])  # fmt: skip
def test_the_ending_is_told(events, resumed, told):
    assert tell_ending(events, resumed) == told


def test_a_process_that_had_filled_the_memory_was_likely_ended_for_it():
    events = [RUN, MODEL, *steps(1, 5, peak=15_200_000_000)]
    assert "(out of memory, most likely: it had taken 15.2 GB of 16 GB)" in tell_ending(events, 4, 16_000_000_000)
    assert WHY in tell_ending(events, 4, 32_000_000_000)


@pytest.mark.parametrize(("events", "told"), [
    ([RUN, MODEL, *steps(1, 341)],
     "runs/toy did not end: it is running yet, or was killed at step 341; halfbyte train --resume runs/toy goes on with it, this is a new run"),
    ([RUN, MODEL, *steps(1, 9), {"event": "end"}], None), ([RUN, {"event": "failed", "message": "no"}], None), ([], None),
])  # fmt: skip
def test_a_new_run_tells_of_one_that_never_ended(events, told):
    assert tell_unended(events, "runs/toy") == told
