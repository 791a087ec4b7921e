"""Which way of computing a step fits into the memory that there is, and is the fastest of those that do.

What can be chosen: rows at a time (the effective batch stays), and for each decoder layer whether its activations are kept or recomputed, whether
its weights are kept in 16 bits or lie in the computer's memory. Layers differ in nothing but their place, so a choice is a number of layers of
each kind; the last ones keep their activations, because their backward comes first. A model of a few layers is simulated for each number of rows,
the rest follows in a line, and what is chosen is simulated whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from halfbyte.budget.predict import Peak, enough_bytes, tight_peak, training_peak
from halfbyte.budget.rates import Rates, effort_of, step_seconds
from halfbyte.budget.shadow import FLOAT
from halfbyte.budget.step import SLOTS, Work, layer_bytes
from halfbyte.recipe.plan import Placement, tell_layers

FEW_LAYERS = 3
MOST_TRIES = 6
LINE_ERROR = 0.02
"""So far the line from few layers may lie off: what is this near to the budget and faster is simulated whole."""
TIGHT_SPARE = 0.05
"""Of the limit, left free where a step fits only by handing pages back: on an H200 at 8 GB rows ran out that were 3 % shorter than by this simulation."""
DRIVER_BYTES = 900_000_000
"""CUDA's context, its kernels and cuBLAS' and cuDNN's own memory, outside PyTorch's (880 MB measured on an H200 after a step)."""


@dataclass(frozen=True)
class Way:
    """How many layers of each kind: the last `kept` ones keep their activations, the first `away` ones have their weights in the computer's memory,
    the first `sixteen` ones keep them in 16 bits."""

    rows: int
    kept: int = 0
    sixteen: int = 0
    away: int = 0
    inputs_away: bool = False

    def placements(self, layers: int) -> tuple[Placement, ...]:
        made = []
        for number in range(layers):
            weights = "cpu" if number < self.away else "16bit" if number < self.sixteen else "4bit"
            activations = "kept" if number >= layers - self.kept else "cpu" if self.inputs_away else "recomputed"
            made.append(Placement(weights, activations))
        return tuple(made)


@dataclass(frozen=True)
class Choice:
    """One way, priced."""

    way: Way
    work: Work
    peak_bytes: int
    """Of the whole GPU: PyTorch, the driver's part, paged optimizer state."""
    torch_bytes: int
    """Of it, what PyTorch is expected to take."""
    step_seconds: float
    fits: bool
    tight: bool = False
    """It fits because PyTorch hands idle pages back when it meets the limit."""
    path: str = "plain"
    record: bool = False
    one_buffer: bool = False
    """On the fast path: one piece of memory for the 16-bit weights of all layers."""
    fp8: bool = False
    """On the fast path: products with the frozen weights in 8 bits."""
    standing_bytes: int = 0
    """What the fast path holds between steps, beside the base: buffers, gradients, recordings."""
    host_bytes: int = 0
    """Of the computer's memory, for what the fast path parks there."""

    @property
    def loaded(self) -> Work:
        """As the base lies when nothing is trained. What the fast path keeps in 16 bits stands beside the base."""
        if self.path == "plain":
            return self.work
        return replace(self.work, layers=tuple(replace(layer, weights="4bit") for layer in self.work.layers))

    @property
    def accumulation(self) -> int:
        return self.work.accumulation

    @property
    def tokens_per_second(self) -> float:
        return self.work.tokens_per_batch * self.accumulation / self.step_seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path, "rows": self.way.rows, "accumulation": self.accumulation, "told": self.told(), "optimizer": self.work.optimizer,
            "peak_bytes": self.peak_bytes, "step_seconds": self.step_seconds, "tokens_per_second": self.tokens_per_second, "fits": self.fits,
        }  # fmt: skip

    def told(self) -> str:
        """In words, such as `24 of 32 layers recomputed`."""
        if self.path == "fast":
            parts = [f"fast path{' in FP8' * self.fp8}", *tell_layers(self.work.layers, self.fp8)]
            parts += [f"one piece of memory for all weights in {8 if self.fp8 else 16} bits"] if self.one_buffer else []
            return ", ".join([*parts, "recorded"] if self.record else parts)
        way, layers = self.way, self.work.shape.layers
        if way.kept == layers:
            parts = ["activations kept"]
        elif way.kept:
            parts = [f"{layers - way.kept} of {layers} layers recomputed"]
        else:
            parts = ["all layers recomputed"]
        if way.inputs_away:
            parts.append("their inputs in the computer's memory")
        if way.away:
            parts.append(f"weights of {way.away} layers in the computer's memory")
        if way.sixteen:
            parts.append(f"weights of {'all' if way.sixteen == layers else way.sixteen} layers kept in 16 bits")
        if self.tight:
            parts.append("idle memory handed back in between")
        return ", ".join(parts)


@dataclass(frozen=True)
class Bounds:
    """What there is, and what it is judged by."""

    budget_bytes: int
    rates: Rates
    driver_bytes: int = DRIVER_BYTES
    memory_factor: float = 1.0
    """What runs on this machine took, over what was predicted; at least 1."""
    paged_leaves: bool = False
    """Whether paged optimizer state is counted as having left the GPU, which the driver sees to when memory runs short."""

    def whole(self, torch_bytes: int) -> int:
        """Of the GPU, where PyTorch is predicted to take so much."""
        return int(torch_bytes * self.memory_factor) + self.driver_bytes


def choose_way(work: Work, effective_rows: int, bounds: Bounds, checkpointing: bool | None) -> tuple[Choice | None, list[Choice]]:
    """The fastest way that fits, None if none does, and what was weighed, most rows first. `work` holds what is asked; its rows and layers are replaced.

    checkpointing: None is free; True recomputes every layer, False none.
    """
    divisors = [rows for rows in range(effective_rows, 0, -1) if effective_rows % rows == 0]
    shown: list[Choice] = []
    fitting: list[Choice] = []
    for rows in divisors:
        lines = Lines(replace(work, rows=rows, accumulation=effective_rows // rows), bounds)
        ways = lines.ways(checkpointing)
        shown += ways
        fitting += [way for way in ways if way.fits]
        if any(choice.fits and choice.way.kept == work.shape.layers and (choice.way.sixteen == work.shape.layers or not work.four_bit) for choice in ways):
            break  # fewer rows at a time have nothing to gain
    near = [choice for choice in shown if bounds.budget_bytes < choice.peak_bytes <= bounds.budget_bytes * (1 + LINE_ERROR)]
    best = _exactly(fitting, shown, bounds, checkpointing)
    for choice in sorted(near, key=lambda choice: choice.step_seconds):
        if best is None or choice.step_seconds < best.step_seconds:
            whole = price(choice.work, choice.way, bounds)
            shown[shown.index(choice)] = whole
            best = whole if whole.fits else best
    return best, shown


def _exactly(fitting: list[Choice], shown: list[Choice], bounds: Bounds, checkpointing: bool | None) -> Choice | None:
    """The fastest of those that the lines call fitting, simulated whole; `shown` then holds it as it is."""
    exact: list[Choice] = []
    for _ in range(MOST_TRIES):
        if not fitting:
            return None
        best = min(fitting, key=lambda choice: (round(choice.step_seconds, 4), choice.peak_bytes))
        if best in exact:
            return best
        fitting.remove(best)
        whole = price(best.work, best.way, bounds)
        shown[shown.index(best)] = whole
        if whole.fits:
            exact.append(whole)
            fitting.append(whole)
        elif (less := _one_less(best, whole, bounds, checkpointing)) is not None:
            shown.append(less)
            fitting.append(less)
    return min(exact, key=lambda choice: choice.step_seconds, default=None)


def smallest_way(work: Work) -> Way:
    """Everything that can leave the GPU is away."""
    return Way(work.rows, inputs_away=True, away=work.shape.layers)


def smallest(work: Work, bounds: Bounds) -> Choice:
    """The least memory that these rows can be trained in, one row at a time."""
    alone = replace(work, rows=1)
    return Lines(alone, bounds).price(smallest_way(alone))


def tightest(work: Work, effective_rows: int, bounds: Bounds) -> Choice | None:
    """One row at a time with all away, where that fits only because PyTorch hands idle pages back; None where it does not."""
    way = smallest_way(replace(work, rows=1))
    placed = replace(work, rows=1, accumulation=effective_rows, layers=way.placements(work.shape.layers))
    room = int((bounds.budget_bytes - bounds.driver_bytes) / bounds.memory_factor)
    peak = tight_peak(placed, int(room * (1 - TIGHT_SPARE))) if placed.shape.exact and placed.shape.family != "falcon" else None
    if peak is None or (peak.paged_bytes and not bounds.paged_leaves):
        return None
    seconds = step_seconds(effort_of(placed, peak.launches, peak.written_bytes), bounds.rates)
    return Choice(way, placed, bounds.whole(peak.reserved_bytes), int(peak.reserved_bytes * bounds.memory_factor), seconds, fits=True, tight=True)


def price(work: Work, way: Way, bounds: Bounds) -> Choice:
    """Simulated whole."""
    placed = replace(work, rows=way.rows, layers=way.placements(work.shape.layers))
    peak = training_peak(placed)
    seconds = step_seconds(effort_of(placed, peak.launches, peak.written_bytes), bounds.rates)
    return _choice(placed, way, peak.enough_bytes, peak.paged_bytes, seconds, bounds)


def _choice(work: Work, way: Way, enough: int, paged: int, seconds: float, bounds: Bounds) -> Choice:
    torch_bytes = int(enough * bounds.memory_factor)
    whole = bounds.whole(enough) + (0 if bounds.paged_leaves else paged)
    return Choice(way, work, whole, torch_bytes, seconds, whole <= bounds.budget_bytes)


def _one_less(choice: Choice, exact: Choice, bounds: Bounds, checkpointing: bool | None) -> Choice | None:
    """A little less than a way that the line called fitting and the simulation did not."""
    way, layers = choice.way, choice.work.shape.layers
    over = exact.peak_bytes - bounds.budget_bytes
    if way.sixteen:
        way = replace(way, sixteen=way.sixteen - 1)
    elif way.kept and checkpointing is None:
        way = replace(way, kept=way.kept - 1)
    elif not way.inputs_away and checkpointing is not False:
        way = replace(way, inputs_away=True)
    elif way.away < layers and checkpointing is not False:
        way = replace(way, away=min(layers, max(SLOTS, way.away) + -(-over // layer_bytes(choice.work))))
    else:
        return None
    return replace(choice, way=way, peak_bytes=choice.peak_bytes - over, work=replace(choice.work, layers=way.placements(layers)))


class Lines:
    """Peak and effort of any way with some rows, from simulations of a few layers: everything grows in a line with the number of layers of a kind."""

    def __init__(self, work: Work, bounds: Bounds) -> None:
        self.work, self.bounds = work, bounds
        self.few = min(FEW_LAYERS, work.shape.layers - 1) or 1
        self.peaks: dict[tuple[int, Way], Peak] = {}

    def peak(self, layers: int, kept: int = 0, sixteen: int = 0, inputs_away: bool = False) -> Peak:
        """Of one micro-batch of a model with so many layers."""
        way = Way(self.work.rows, kept, sixteen, inputs_away=inputs_away)
        if (layers, way) not in self.peaks:
            shape = replace(self.work.shape, layers=layers)
            self.peaks[layers, way] = training_peak(replace(self.work, shape=shape, layers=way.placements(layers), accumulation=1))
        return self.peaks[layers, way]

    def price(self, way: Way) -> Choice:
        """In a line from the simulations of few layers."""
        work, layers, few, away = self.work, self.work.shape.layers, self.few, way.inputs_away
        start, more = (self.peak(number, inputs_away=away) for number in (few, few + 1))
        kept = [self.peak(few + 1, number, inputs_away=away) for number in (1, 2)] if way.kept else []
        sixteen = [self.peak(few + 1, few + 1, number) for number in (0, few + 1)] if way.sixteen else []

        def along(of: Callable[[Peak], int]) -> int:
            """The first layers, each of the others, what keeping the first and each of the others adds, what each in 16 bits adds."""
            whole = of(start) + (layers - few) * (of(more) - of(start))
            if kept:
                whole += of(kept[0]) - of(more) + (way.kept - 1) * (of(kept[1]) - of(kept[0]))
            if sixteen:
                whole += way.sixteen * (of(sixteen[1]) - of(sixteen[0])) // (few + 1)
            return whole

        held = along(lambda peak: peak.allocated_bytes) - max(0, way.away - SLOTS) * layer_bytes(work)
        gradients = work.adapter_weights * FLOAT  # while activations last they are free, or there already from the micro-batch before
        holes = max(peak.reserved_bytes - peak.allocated_bytes for peak in (start, more, *kept))  # as many in a model of many layers
        placed = replace(work, layers=way.placements(layers))
        launches, written = along(lambda peak: peak.launches), along(lambda peak: peak.written_bytes)
        effort = effort_of(placed, launches * work.accumulation, written * work.accumulation)
        seconds = step_seconds(effort, self.bounds.rates)
        return _choice(placed, way, enough_bytes(held + gradients + holes, start.spare_share), start.paged_bytes * layers // few, seconds, self.bounds)

    def ways(self, checkpointing: bool | None) -> list[Choice]:
        """The corners, and between them the one with as much kept as fits. Where nothing fits, the smallest alone."""
        layers = self.work.shape.layers
        whole, none = Way(self.work.rows, kept=layers), Way(self.work.rows)
        if checkpointing is False:
            found = [self.price(whole)]
            return found + self._most(lambda number: replace(whole, sixteen=number), layers if found[0].fits else 0)
        smallest = self.price(smallest_way(self.work))
        if not smallest.fits:
            return [smallest]
        found = []
        if checkpointing is None:
            found.append(self.price(whole))
            if found[0].fits:
                found += self._most(lambda number: replace(whole, sixteen=number), layers)
            else:
                found += self._most(lambda number: replace(none, kept=number), layers - 1)
        found.append(self.price(none))
        if not found[-1].fits:
            found.append(self.price(replace(none, inputs_away=True)))
        if not found[-1].fits:
            found += self._fewest(lambda number: replace(none, inputs_away=True, away=number), layers)
        return found

    def _most(self, way: Callable[[int], Way], most: int) -> list[Choice]:
        """The largest number that fits, if any does."""
        low, high = 0, most if self.work.four_bit or not way(1).sixteen else 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.price(way(middle)).fits else (low, middle - 1)
        return [self.price(way(low))] if low else []

    def _fewest(self, way: Callable[[int], Way], most: int) -> list[Choice]:
        """The smallest number of layers, two at least, whose weights must be away; all of them if even that is not enough."""
        low, high = SLOTS, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.price(way(middle)).fits else (middle + 1, high)
        return [self.price(way(low))]
