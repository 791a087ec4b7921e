"""The same allocator under a limit: before it gives up, it hands back the pages that lie idle, and maps them where they are needed.

From c10/cuda/CUDACachingAllocator.cpp (release_cached_blocks, unmap_block, find_expandable_block): when what is mapped and what is asked for
exceed the limit, every page that lies wholly inside a free block is unmapped; then the lowest stretch of free and unmapped addresses that is
long enough is mapped whole. Only if that exceeds the limit too does the request fail. Slower than allocator.py, which knows no holes.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

from halfbyte.budget.allocator import LARGE_PAGE, ROUND, SMALL, SMALL_PAGE

FREE, USED, HOLE = range(3)
LARGE = 10 * 2**20
ENDLESS = 2**60


class OutOfMemory(Exception):
    """The limit does not allow what is asked for."""


@dataclass(slots=True, eq=False)
class Piece:
    """A stretch of addresses, with its neighbours."""

    address: int
    size: int
    state: int
    before: "Piece | None" = None
    behind: "Piece | None" = None


class LimitedPool:
    """One segment: pieces by address, the free ones by size, the holes by address; behind the last lies an endless hole."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.mapped = 0
        end = Piece(0, ENDLESS, HOLE)
        self.free: list[tuple[int, int]] = []  # (size, address), sorted
        self.holes = [0]
        self.at = {0: end}

    def take_free(self, size: int) -> Piece | None:
        """The smallest free piece that holds `size`; one that could grow counts as large as it could become."""
        place = bisect_left(self.free, (size, -1))
        if place == len(self.free):
            return None
        while place + 1 < len(self.free) and self._could_be(place + 1) < self._could_be(place):
            place += 1
        piece = self.at[self.free[place][1]]
        self._use(piece, size)
        return piece

    def take_mapping(self, size: int) -> Piece:
        """Maps what is missing of the lowest stretch that is long enough."""
        for address in self.holes:
            first = self.at[address]
            if first.before is not None and first.before.state == FREE:
                first = first.before
            found, piece = 0, first
            while found < size and piece is not None and piece.state != USED:
                found += piece.size
                piece = piece.behind  # type: ignore[assignment]
            if found >= size:
                break
        if first.state == HOLE:
            first = self._map(first, min(size, first.size))
        while first.size < size:
            behind = first.behind
            assert behind is not None
            if behind.state == HOLE:
                behind = self._map(behind, min(size - first.size, behind.size))
            first = self._join(first, behind)
        self._use(first, size)
        return first

    def give(self, piece: Piece) -> None:
        piece.state = FREE
        for neighbour in (piece.behind, piece.before):
            if neighbour is not None and neighbour.state == FREE:
                self._forget(neighbour)
                piece = self._joined(*sorted((piece, neighbour), key=lambda one: one.address))
        insort(self.free, (piece.size, piece.address))

    def release(self) -> None:
        """Unmaps every page that lies wholly inside a free piece."""
        for size, address in list(self.free):
            begin, end = -(-address // self.page) * self.page, (address + size) // self.page * self.page
            if end <= begin:
                continue
            piece = self.at[address]
            self._forget(piece)
            if begin > address:
                piece, rest = self._split(piece, begin - address)
                insort(self.free, (piece.size, piece.address))
                piece = rest
            if piece.address + piece.size > end:
                piece, rest = self._split(piece, end - begin)
                insort(self.free, (rest.size, rest.address))
            piece.state = HOLE
            self.mapped -= piece.size
            insort(self.holes, piece.address)
            for neighbour in (piece.behind, piece.before):
                if neighbour is not None and neighbour.state == HOLE:
                    first, second = sorted((piece, neighbour), key=lambda one: one.address)
                    self.holes.remove(second.address)
                    piece = self._joined(first, second)

    def _could_be(self, place: int) -> int:
        size, address = self.free[place]
        behind = self.at[address].behind
        return size + (behind.size if behind is not None and behind.state == HOLE else 0)

    def _map(self, hole: Piece, size: int) -> Piece:
        """The begin of a hole, in whole pages; free, but in no list."""
        size = -(-size // self.page) * self.page
        self.holes.remove(hole.address)
        piece = hole
        if size < hole.size:
            piece, rest = self._split(hole, size)
            insort(self.holes, rest.address)
        piece.state = FREE
        self.mapped += piece.size
        return piece

    def _join(self, first: Piece, second: Piece) -> Piece:
        for piece in (first, second):
            if (piece.size, piece.address) in self.free[bisect_left(self.free, (piece.size, piece.address)) :][:1]:
                self._forget(piece)
        return self._joined(first, second)

    def _use(self, piece: Piece, size: int) -> None:
        if (piece.size, piece.address) in self.free[bisect_left(self.free, (piece.size, piece.address)) :][:1]:
            self._forget(piece)
        if piece.size > size:
            piece, rest = self._split(piece, size)
            if rest.behind is not None and rest.behind.state == FREE:
                self._forget(rest.behind)
                rest = self._joined(rest, rest.behind)
            insort(self.free, (rest.size, rest.address))
        piece.state = USED

    def _forget(self, piece: Piece) -> None:
        del self.free[bisect_left(self.free, (piece.size, piece.address))]

    def _split(self, piece: Piece, size: int) -> tuple[Piece, Piece]:
        rest = Piece(piece.address + size, piece.size - size, piece.state, piece, piece.behind)
        if rest.behind is not None:
            rest.behind.before = rest
        piece.size, piece.behind = size, rest
        self.at[rest.address] = rest
        return piece, rest

    def _joined(self, first: Piece, second: Piece) -> Piece:
        del self.at[second.address]
        first.size += second.size
        first.behind = second.behind
        if second.behind is not None:
            second.behind.before = first
        return first


Block = tuple[LimitedPool, Piece | None, int]


class LimitedAllocator:
    """What Allocator is, with a limit on what is mapped. Raises OutOfMemory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.small, self.large = LimitedPool(SMALL_PAGE), LimitedPool(LARGE_PAGE)
        self.allocated = self.peak_allocated = self.peak_reserved = 0
        self.taken = self.written = 0
        self.releases = 0
        """How often idle pages were handed back; each waits for the GPU."""

    @property
    def reserved(self) -> int:
        return self.small.mapped + self.large.mapped

    def malloc(self, size: int) -> Block:
        size = -(-size // ROUND) * ROUND
        pool = self.small if size <= SMALL else self.large
        piece = pool.take_free(size) or self._map(pool, size) if size else None
        self.allocated += size
        self.write(size)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return pool, piece, size

    def write(self, size: int) -> None:
        self.taken += 1
        self.written += size

    def free(self, block: Block) -> None:
        pool, piece, size = block
        if piece is not None:
            pool.give(piece)
        self.allocated -= size

    def _map(self, pool: LimitedPool, size: int) -> Piece:
        asked = SMALL_PAGE if size <= SMALL else LARGE_PAGE if size < LARGE else -(-size // SMALL_PAGE) * SMALL_PAGE
        if self.reserved + asked > self.limit:
            self.small.release()
            self.large.release()
            self.releases += 1
            if self.reserved + asked > self.limit:
                raise OutOfMemory
        piece = pool.take_mapping(size)
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return piece
