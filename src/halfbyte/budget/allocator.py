"""PyTorch's CUDA caching allocator with expandable segments, simulated: how much memory a sequence of allocations reserves.

From c10/cuda/CUDACachingAllocator.cpp: sizes are rounded to 512 bytes; up to 1 MiB they come from one pool, larger ones from another. Each pool
is one segment of addresses, of which physical pages (2 MiB, 20 MiB) are mapped as far as was ever needed. A request takes the smallest free block
that holds it, the one at the end of the mapped part last; the rest of the block stays free; neighbouring free blocks are joined.
"""

from bisect import bisect_left, insort
from typing import Any, Protocol

ROUND = 512
SMALL = 2**20
SMALL_PAGE, LARGE_PAGE = 2 * 2**20, 20 * 2**20


class Memory(Protocol):
    """What a step is simulated on: this allocator, or the one of limited.py."""

    allocated: int
    peak_allocated: int
    taken: int
    written: int

    @property
    def reserved(self) -> int:
        """Bytes of mapped pages."""

    def malloc(self, size: int) -> Any:
        """Returns what `free` takes back."""

    def write(self, size: int) -> None:
        """Counts what is computed into memory that is there already."""

    def free(self, block: Any) -> None:
        """Takes back what malloc returned."""


class Pool:
    """One segment: blocks by address, the free ones also by size."""

    __slots__ = ("free", "mapped", "page", "size_at", "start_of")

    def __init__(self, page: int) -> None:
        self.page = page
        self.mapped = 0
        self.free: list[tuple[int, int]] = []  # (size, address), sorted
        self.size_at: dict[int, int] = {}  # address -> size of the free block that begins there
        self.start_of: dict[int, int] = {}  # address -> begin of the free block that ends there

    def take(self, size: int) -> int:
        """The address of `size` bytes."""
        free = self.free
        place = bisect_left(free, (size, -1))
        if place < len(free):
            found, address = free[place]
            if address + found == self.mapped and place + 1 < len(free):  # the block at the end could grow: it is kept for later
                place += 1
                found, address = free[place]
            del free[place]
            del self.size_at[address]
            del self.start_of[address + found]
        else:
            found = 0
            address = self.start_of.pop(self.mapped, self.mapped)
            if address < self.mapped:  # a free block at the end, too small: it grows
                found = self.size_at.pop(address)
                del free[bisect_left(free, (found, address))]
            pages = -(-(size - found) // self.page)
            self.mapped += pages * self.page
            found += pages * self.page
        if found > size:
            self._put(address + size, found - size)
        return address

    def give(self, address: int, size: int) -> None:
        """Frees; joined with the free blocks before and behind."""
        behind = self.size_at.pop(address + size, 0)
        if behind:
            del self.free[bisect_left(self.free, (behind, address + size))]
            del self.start_of[address + size + behind]
            size += behind
        before = self.start_of.pop(address, None)
        if before is not None:
            length = self.size_at.pop(before)
            del self.free[bisect_left(self.free, (length, before))]
            address, size = before, size + length
        self._put(address, size)

    def _put(self, address: int, size: int) -> None:
        insort(self.free, (size, address))
        self.size_at[address] = size
        self.start_of[address + size] = address


Block = tuple[Pool, int, int]
"""What `malloc` gave: where it lies, and how long it is."""


class Allocator:
    """Counts allocated and reserved bytes, and the highest of both."""

    __slots__ = ("allocated", "large", "peak_allocated", "peak_reserved", "small", "taken", "written")

    def __init__(self) -> None:
        self.small, self.large = Pool(SMALL_PAGE), Pool(LARGE_PAGE)
        self.allocated = self.peak_allocated = self.peak_reserved = 0
        self.taken = self.written = 0
        """How often memory was asked for, and how many bytes in all: what was computed was written once."""

    @property
    def reserved(self) -> int:
        return self.small.mapped + self.large.mapped

    def malloc(self, size: int) -> Block:
        """What `free` takes back. Nothing is reserved for zero bytes."""
        size = -(-size // ROUND) * ROUND
        pool = self.small if size <= SMALL else self.large
        address = pool.take(size) if size else 0
        self.allocated += size
        self.write(size)
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return pool, address, size

    def write(self, size: int) -> None:
        """Counts what is computed into memory that is there already."""
        self.taken += 1
        self.written += size

    def free(self, block: Block) -> None:
        pool, address, size = block
        if size:
            pool.give(address, size)
        self.allocated -= size
