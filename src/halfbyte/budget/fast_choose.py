"""The fast path's ways for a number of rows and a budget: what of each layer is kept, where it waits, and what idle memory is used for.

Layers differ in nothing but their place, so memory and time are lines between ways that treat all layers alike: for every pair of neighbouring kinds as
many layers as fit are given the larger one, by the line, and what comes out is replayed whole. Last layers keep more, because their backward comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from halfbyte.budget.allocator import Allocator
from halfbyte.budget.choose import Bounds, Choice, Way
from halfbyte.budget.fast import FastPeak, fast_peak, step_of
from halfbyte.budget.fast_time import fast_effort, fast_seconds
from halfbyte.budget.fast_work import FastWork, groups_of
from halfbyte.budget.shadow import HALF
from halfbyte.budget.step import Work
from halfbyte.recipe.plan import Placement

LADDER = ("recomputed", "attention", "thin", "kept")
UNPARKED = 2
"""Last layers whose tensors are wanted back at once."""
RECORD_BELOW = 8_192
"""Tokens: from there on kernels are long enough."""
OF_IDLE = 0.75
"""Of idle memory, that weights in 16 bits may take."""
MOST_TRIES = 6


@dataclass(frozen=True)
class FastRun:
    """What is asked; rows and layers of `work` are chosen. alike: rows are of one length, each a document."""

    work: Work
    effective_rows: int
    checkpointing: bool | None
    alike: bool = False
    hopper: bool = True
    host_bytes: int = 0
    fp8: bool = False

    def micro_batch(self, rows: int, layers: tuple[Placement, ...], one_buffer: bool = False, record: bool = False) -> FastWork:
        work = replace(self.work, rows=rows, accumulation=self.effective_rows // rows, layers=layers)
        beyond = work.shape.window is not None and work.tokens > work.shape.window
        supervised = rows * (work.tokens - 1)
        return FastWork(work, (work.tokens,) * rows, supervised, one_buffer, record, not self.alike or work.packed or beyond, self.hopper, self.fp8)


def fast_ways(run: FastRun, bounds: Bounds) -> list[Choice]:
    """For each number of rows the fastest way that fits and, where it does not, the one that keeps all; where none fits, the smallest of all."""
    smallest = _smallest(run, 1, bounds)
    if not smallest.fits:  # then nothing larger needs to be looked at
        return [_price(run, run.micro_batch(run.effective_rows, _split(run.work.shape.layers, "kept", "kept", 0)), bounds), smallest]
    found: list[Choice] = []
    for rows in [rows for rows in range(run.effective_rows, 0, -1) if run.effective_rows % rows == 0]:
        best = _best(run, rows, bounds)
        if best is not None:
            found.append(best)
            if all(layer.activations == "kept" and not layer.parked for layer in best.work.layers) and best.record == run.alike:
                break  # fewer rows at a time have nothing to gain
        if run.checkpointing is None and (best is None or best.work.layers[0].activations != "kept"):
            found.append(_price(run, run.micro_batch(rows, _split(run.work.shape.layers, "kept", "kept", 0)), bounds))
    return found if any(choice.fits for choice in found) else [*found, smallest]


def _best(run: FastRun, rows: int, bounds: Bounds) -> Choice | None:
    layers = run.work.shape.layers
    ladder = {None: LADDER, True: LADDER[:1], False: LADDER[-1:]}[run.checkpointing]
    found = _climb(lambda count, low, high: _split(layers, low, high, count), ladder, run, rows, bounds)
    if run.checkpointing is not False and (found is None or found.work.layers[0].activations != "kept"):
        fitting = [
            choice for choice in (found, *_away(run, rows, ladder, bounds)) if choice is not None and choice.fits and choice.host_bytes <= run.host_bytes
        ]
        found = min(fitting, key=lambda choice: choice.step_seconds, default=None)
    return _with_idle_memory(run, found, bounds) if found is not None else None


def _away(run: FastRun, rows: int, ladder: tuple[str, ...], bounds: Bounds) -> list[Choice]:
    """What waits in the computer's memory: what `thin` or `attention` keeps, with one piece of memory for all weights or not; or, where none fits, inputs."""
    layers = run.work.shape.layers
    found = []
    for low in ladder[-2:0:-1] or ladder[:1]:
        for one_buffer in (False, True):
            choice = _climb(lambda count, low, high: _parked(layers, low, high, count), (low, ladder[-1]), run, rows, bounds, one_buffer)
            if choice is not None and choice.host_bytes <= run.host_bytes:
                found.append(choice)
                break  # one buffer alone is never quicker
    return found or _lean(run, rows, bounds)


def _lean(run: FastRun, rows: int, bounds: Bounds) -> list[Choice]:
    """All inputs away; and with one piece of memory for all weights, where that is not enough."""
    away = _price(run, run.micro_batch(rows, _parked(run.work.shape.layers, "recomputed", "recomputed", 0)), bounds)
    return [away] if away.fits else [_smallest(run, rows, bounds)]


def _smallest(run: FastRun, rows: int, bounds: Bounds) -> Choice:
    parked = _parked(run.work.shape.layers, "recomputed", "recomputed", 0)
    if run.checkpointing is False:
        return _price(run, run.micro_batch(rows, (Placement(),) * run.work.shape.layers, one_buffer=True), bounds)
    smallest = _price(run, run.micro_batch(rows, parked, one_buffer=True), bounds)
    if smallest.host_bytes <= run.host_bytes:
        return smallest
    return _price(run, run.micro_batch(rows, _split(run.work.shape.layers, "recomputed", "recomputed", 0), one_buffer=True), bounds)


def _split(layers: int, low: str, high: str, count: int) -> tuple[Placement, ...]:
    """The last `count` layers keep more."""
    return tuple(Placement(activations=high if number >= layers - count else low) for number in range(layers))


def _parked(layers: int, low: str, high: str, count: int) -> tuple[Placement, ...]:
    """The same, and what those before keep waits in the computer's memory, but for the last two."""
    return tuple(
        Placement(activations=high) if number >= layers - count else Placement(activations=low, parked=number < layers - max(count, UNPARKED))
        for number in range(layers)
    )  # fmt: skip


def _climb(
    place: Callable[[int, str, str], tuple[Placement, ...]], ladder: tuple[str, ...], run: FastRun, rows: int, bounds: Bounds, one_buffer: bool = False
) -> Choice | None:
    """As far up the ladder as fits; None where its foot does not."""
    layers = run.work.shape.layers
    whole = _price(run, run.micro_batch(rows, place(layers, ladder[-1], ladder[-1]), one_buffer), bounds)
    if whole.fits or len(ladder) == 1:
        return whole if whole.fits else None
    foot = _price(run, run.micro_batch(rows, place(0, ladder[0], ladder[0]), one_buffer), bounds)
    if not foot.fits:
        return None
    for low, high in pairwise(ladder):
        top = _price(run, run.micro_batch(rows, place(layers, low, high), one_buffer), bounds)
        if top.fits:
            foot = top
            continue
        room, step = bounds.budget_bytes - foot.peak_bytes, (top.peak_bytes - foot.peak_bytes) / layers
        count = min(layers - 1, int(room / step)) if step > 0 else 0
        for _ in range(MOST_TRIES):
            if count <= 0:
                return foot
            between = _price(run, run.micro_batch(rows, place(count, low, high), one_buffer), bounds)
            if between.fits:
                return between if between.step_seconds < foot.step_seconds else foot
            count = min(count - 1, int(count - (between.peak_bytes - bounds.budget_bytes) / max(step, 1)))
        return foot
    return foot


def _with_idle_memory(run: FastRun, choice: Choice, bounds: Bounds) -> Choice:
    """Steps recorded where rows are alike and short, weights in 16 bits where there is room for them: what is faster of that."""
    best, layers, rows = choice, choice.work.layers, choice.work.rows
    if run.alike and choice.work.tokens_per_batch <= RECORD_BELOW and not run.work.packed:
        recorded = _price(run, run.micro_batch(rows, layers, choice.one_buffer, record=True), bounds)
        best = recorded if recorded.fits and recorded.step_seconds < best.step_seconds else best
    each = int(sum(group.size for group in groups_of(run.work)) * HALF * bounds.memory_factor)
    count = min(len(layers), int((bounds.budget_bytes - best.peak_bytes) * OF_IDLE / each)) if run.work.four_bit else 0
    if count > 0 and all(layer.activations == "kept" for layer in layers):
        placed = tuple(replace(layer, weights="16bit") if number < count else layer for number, layer in enumerate(layers))
        more = _price(run, run.micro_batch(rows, placed, best.one_buffer, best.record), bounds)
        best = more if more.fits and more.step_seconds < best.step_seconds else best
    return best


def _price(run: FastRun, given: FastWork, bounds: Bounds) -> Choice:
    peak = _peak(given)
    work = given.work
    seconds = fast_seconds(fast_effort(given, peak.parked_bytes, work.accumulation), bounds.rates)
    # Beside a recording the last rows of an epoch, which are fewer, are computed as they are.
    beside = peak.recorded_bytes if given.record and work.rows > 1 else 0
    enough = peak.enough_bytes + beside
    whole = bounds.whole(enough) + (0 if bounds.paged_leaves else peak.paged_bytes)
    return Choice(
        Way(work.rows), work, whole, int(enough * bounds.memory_factor), seconds, whole <= bounds.budget_bytes, path="fast", record=given.record,
        one_buffer=given.tight, fp8=given.fp8, standing_bytes=standing_bytes(given) + peak.recorded_bytes, host_bytes=peak.host_bytes,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _peak(given: FastWork) -> FastPeak:
    return fast_peak(given)


def standing_bytes(given: FastWork) -> int:
    """Buffers and gradients, which stay while the model is evaluated."""
    memory = Allocator()
    step = step_of(given, memory)
    for group in step.groups:
        for back in (False, True) if given.fp8 else (False,):
            step.product(len(given.work.layers) - 1, group, 0, back)
    taken = memory.allocated
    del step
    return taken


def usual_seconds(choice: Choice, tokens: int, bounds: Bounds, alike: bool = False) -> float:
    """Of a step with rows of so many tokens, in the way that was chosen."""
    work = replace(choice.work, tokens=tokens)
    given = FastWork(work, (tokens,) * work.rows, None, choice.one_buffer, choice.record, not alike, fp8=choice.fp8)
    return fast_seconds(fast_effort(given, fast_peak(given).parked_bytes, work.accumulation), bounds.rates)
