"""A step that memory is too short for is taken again, computed in less: more layers recomputed, then fewer rows at a time. The step stays the step.

    attempt: remember the random state -> compute -> memory runs out -> name what asked -> choose less -> put all back -> None: the same step again

The update comes last in a step, so until then weights and optimizer are those of the step before; gradients are dropped and the random state is
put back. Recomputing gives the same numbers to the bit. Fewer rows at a time give the same sum in another order; dropout is drawn anew for each
micro-batch, so there its draws are others from then on, which is told. Memory that runs out in the update itself may leave half of it done: then
nothing is tried, and the last checkpoint is what is left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from halfbyte.data.batches import Batch
from halfbyte.errors import OutOfMemory
from halfbyte.model.placement import can_recompute, place_activations
from halfbyte.model.room import Shortage, give_back, is_out_of_memory, let_go, look_at
from halfbyte.recipe.plan import Computing
from halfbyte.train.random_state import random_states, set_random_states
from halfbyte.train.step import Accumulate, StepResult
from halfbyte.train.ways import way_of

Compute = Callable[[list[Batch]], StepResult]


@dataclass
class Room:
    """How steps are computed, and what may give way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    computing: Computing
    may_recompute: bool
    """Not where the recipe says that nothing is to be recomputed."""
    log: Callable[[dict[str, Any]], None]
    dtype: torch.dtype
    way: Accumulate = field(init=False)
    """How a micro-batch's gradient is computed (ways.py); another one whenever `computing` changes."""

    def __post_init__(self) -> None:
        self.way = way_of(self.model, self.computing, self.dtype, self.scaler, tell=lambda said: self.log({"event": "note", "message": said}))

    def attempt(self, step: int, batches: list[Batch], compute: Compute) -> StepResult | None:
        """None: memory ran out, and the step is to be taken again with `computing`. Raises OutOfMemory where nothing is left that could give way."""
        followed, random = Followed(batches), random_states()
        try:
            return compute(followed)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            short = look_at(error, self.model)
            seen = f"out of memory in step {step}: {short.told()}, {followed.told()}"
            less = self._less(short)
            if less is None:
                raise OutOfMemory(seen) from error
            let_go(error)
        self._begin_again(random)
        self._change_to(less, step, seen)
        return None

    def _less(self, short: Shortage) -> tuple[Computing, str] | None:
        """What takes less, and in words."""
        computing, layers = self.computing, self.computing.layers
        if short.part == "update":
            return None
        kept = [number for number, layer in enumerate(layers) if layer.activations in ("kept", "thin", "attention")]
        fast = computing.path == "fast"
        if kept and self.may_recompute and (fast or can_recompute(self.model)):
            some = kept[: -(-len(kept) // 2)] if len(kept) == len(layers) else kept
            changed = tuple(replace(layer, activations="recomputed") if number in some else layer for number, layer in enumerate(layers))
            count = len(layers) - len(kept) + len(some)
            return replace(computing, layers=changed), f"{count} of {len(layers)} layers are recomputed from here on; losses are the same to the bit"
        rows, whole = computing.micro_batch_size, computing.micro_batch_size * computing.gradient_accumulation_steps
        if rows > 1:
            fewer = next(number for number in range(rows // 2, 0, -1) if whole % number == 0)
            told = f"{fewer} row{'s' * (fewer > 1)} at a time, {whole // fewer} times a step, instead of {rows}: the same step, its sums in another order"
            if any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules()):
                told += "; dropout is drawn for each micro-batch, so from here on its draws are not those of a run that did not run out"
            return replace(computing, micro_batch_size=fewer, gradient_accumulation_steps=whole // fewer), told
        if torch.cuda.is_available() and any(layer.activations == "recomputed" for layer in layers):
            changed = tuple(replace(layer, activations="cpu") for layer in layers)
            return replace(computing, layers=changed), "inputs of all layers wait in the computer's memory from here on; losses are the same to the bit"
        return None

    def _begin_again(self, random: dict[str, Any]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():  # it may have divided the gradients that were dropped, and would refuse to do so twice
            self.scaler.scale(torch.zeros((), device=next(self.model.parameters()).device))
            self.scaler.update(self.scaler.get_scale())
        give_back()
        set_random_states(random)

    def _change_to(self, less: tuple[Computing, str], step: int, seen: str) -> None:
        computing, told = less
        if computing.path == "fast":
            del self.way  # its buffers go before there are others
            self.way = way_of(self.model, computing, self.dtype, self.scaler)
        elif computing.layers != self.computing.layers:
            place_activations(self.model, computing.layers, next(self.model.parameters()).device)
        self.computing = computing
        self.log({
            "event": "memory_change", "phase": "train", "step": step, "message": f"{seen}; {told}", "micro_batch_size": computing.micro_batch_size,
            "gradient_accumulation_steps": computing.gradient_accumulation_steps, "activations": [layer.activations for layer in computing.layers],
        })  # fmt: skip


class Followed(list[Batch]):
    """The micro-batches of a step, and at which of them it is."""

    def __init__(self, batches: list[Batch]):
        super().__init__(batches)
        self.at = 0

    def __iter__(self) -> Iterator[Batch]:
        for self.at, batch in enumerate(super().__iter__()):
            yield batch

    def told(self) -> str:
        batch = self[self.at]
        longest = max(range(len(batch.lengths)), key=lambda row: batch.lengths[row])
        row = f"longest row {batch.origins[longest]}" if batch.origins else "longest row"
        return f"micro-batch {self.at + 1} of {len(self)}, {row} ({batch.lengths[longest]:,} tokens)"


def changed_computing(computing: Computing, events: list[dict[str, Any]]) -> Computing:
    """A resumed run is computed as it was when it ended: what gave way for want of memory stays so. The events tell it, last change last."""
    change = next((event for event in reversed(events) if event["event"] == "memory_change" and event.get("phase") == "train"), None)
    if change is None:
        return computing
    rows, times, kept = (change.get(key) for key in ("micro_batch_size", "gradient_accumulation_steps", "activations"))
    whole = computing.micro_batch_size * computing.gradient_accumulation_steps
    if isinstance(rows, int) and isinstance(times, int) and rows * times == whole and rows < computing.micro_batch_size:
        computing = replace(computing, micro_batch_size=rows, gradient_accumulation_steps=times)
    if isinstance(kept, list) and len(kept) == len(computing.layers) and set(kept) <= set(LEANER):
        leaner = [max(layer.activations, other, key=LEANER.index) for layer, other in zip(computing.layers, kept, strict=True)]
        computing = replace(computing, layers=tuple(replace(layer, activations=now) for layer, now in zip(computing.layers, leaner, strict=True)))
    return computing


LEANER = ("kept", "thin", "attention", "recomputed", "cpu")
