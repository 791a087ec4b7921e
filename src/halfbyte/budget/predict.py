"""Peak memory and step time of one piece of work: what choose.py weighs, from simulation and rates."""

from dataclasses import dataclass, replace

from halfbyte.budget.allocator import LARGE_PAGE, SMALL_PAGE, Allocator, Memory
from halfbyte.budget.limited import LimitedAllocator, OutOfMemory
from halfbyte.budget.step import Work, paged_bytes, place_adapter, place_base, run_step

SPARE_SHARE, SPARE_OF_SQUARES = 0.02, 0.08
"""What is called enough is a little more than the simulation: a page of each pool, and what small differences between versions may take. More where
whole squares of scores come and go (Falcon): whether they find holes depends on the order of a few frees."""


@dataclass(frozen=True)
class Peak:
    """Of PyTorch's memory on the GPU. What the driver and paged optimizer state take comes on top."""

    allocated_bytes: int
    reserved_bytes: int
    base_bytes: int
    """The frozen weights alone."""
    paged_bytes: int
    launches: int
    """Allocations in one optimizer step, most of them the result of a kernel."""
    written_bytes: int
    """What these results hold."""

    spare_share: float = SPARE_SHARE

    @property
    def enough_bytes(self) -> int:
        """With this much PyTorch does not run out."""
        return enough_bytes(self.reserved_bytes, self.spare_share)


def enough_bytes(reserved_bytes: int, spare_share: float) -> int:
    return int(reserved_bytes * (1 + spare_share)) + SMALL_PAGE + LARGE_PAGE


def training_peak(work: Work) -> Peak:
    """Of an optimizer step; the first takes no more, for it makes the optimizer's state after its backward pass."""
    allocator = Allocator()
    held = place_base(work, allocator)
    base = allocator.allocated
    held += place_adapter(work, allocator)
    run_step(work, allocator)
    return _peak(work, allocator, base)


def tight_peak(work: Work, limit_bytes: int) -> Peak | None:
    """Of a step that hands idle pages back whenever it would take more than `limit_bytes`; None where that is not enough either."""
    allocator = LimitedAllocator(limit_bytes)
    try:
        held = place_base(work, allocator)
        base = allocator.allocated
        held += place_adapter(work, allocator)
        run_step(work, allocator)
    except OutOfMemory:
        return None
    return replace(_peak(work, allocator, base), reserved_bytes=allocator.peak_reserved)


def _peak(work: Work, allocator: Memory, base: int) -> Peak:
    times = work.accumulation
    spare = SPARE_OF_SQUARES if work.shape.family == "falcon" else SPARE_SHARE
    return Peak(
        allocator.peak_allocated, allocator.reserved, base, paged_bytes(work), allocator.taken * times, allocator.written * times, spare
    )  # fmt: skip
