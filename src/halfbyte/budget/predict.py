"""Peak memory and step time of one piece of work: what choose.py weighs, from simulation and rates."""

from dataclasses import dataclass

from halfbyte.budget.allocator import LARGE_PAGE, SMALL_PAGE, Allocator
from halfbyte.budget.step import MICRO_BATCHES, Work, paged_bytes, place_adapter, place_base, run_steps

SPARE_SHARE = 0.02
"""What is called enough is a little more than the simulation: a page of each pool, and what small differences between versions may take."""


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

    @property
    def enough_bytes(self) -> int:
        """With this much PyTorch does not run out."""
        return enough_bytes(self.reserved_bytes)


def enough_bytes(reserved_bytes: int) -> int:
    return int(reserved_bytes * (1 + SPARE_SHARE)) + SMALL_PAGE + LARGE_PAGE


def training_peak(work: Work, steps: int = 2) -> Peak:
    """Of the first two optimizer steps; the others repeat the second, and `steps` 1 begins there."""
    allocator = Allocator()
    held = place_base(work, allocator)
    base = allocator.allocated
    held += place_adapter(work, allocator)
    run_steps(work, allocator, steps)
    times = max(1, work.accumulation // MICRO_BATCHES)
    return Peak(allocator.peak_allocated, allocator.reserved, base, paged_bytes(work), allocator.taken * times, allocator.written * times)
