"""Tokens -> rows of at most max_length: a text is cut into blocks; short documents share a row.

Each block of a text begins with the begin mark (where the base has one) and the text ends with the end
mark, so that a model tuned on tales still knows how to stop. Packing is best fit decreasing (D. S. Johnson,
Fast algorithms for bin packing, JCSS 8, 1974): the longest first, each into the fullest row that has room.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from halfbyte.data.batches import row_lengths
from halfbyte.data.tokens import Tokens


def cut_blocks(texts: Iterable[Tokens], begin: list[int], end: int | None, max_length: int) -> list[Tokens]:
    """Each text -> blocks of at most max_length ids; no block spans two texts."""
    blocks = []
    for text in texts:
        cutter = BlockCutter(begin, end, max_length, text.file, text.line)
        blocks += cutter.feed(text.ids) + cutter.close()
    return blocks


class BlockCutter:
    """One text, fed in pieces of any size, so that it need not be in memory at once -> blocks of at most max_length ids.

    A block begins with what is not trained: the begin mark, or, where the base has none, the id before the block's own.
    Every id of the text is trained in one block, but for a first one that nothing precedes. `skip`: the blocks begin that many ids
    later, as if those were not there.
    """

    def __init__(self, begin: list[int], end: int | None, max_length: int, file: str = "", line: int = 1, skip: int = 0) -> None:
        self.begin, self.end, self.file, self.line, self.skip = begin, end, file, line, skip
        self.room = max_length - max(1, len(begin))
        if self.room < 1:
            raise ValueError(f"max_length {max_length} leaves no room for an id that is trained")
        self.held: list[int] = []  # ids that fill no block yet
        self.before: list[int] | None = None  # what the next block begins with; None until the text's first ids were seen

    def feed(self, ids: list[int]) -> list[Tokens]:
        """The blocks that are full now."""
        self.held += ids[self.skip :]
        self.skip -= min(self.skip, len(ids))
        if self.before is None and len(self.held) < max(1, len(self.begin)):
            return []
        self._begin()
        return self._cut(len(self.held) - len(self.held) % self.room)

    def close(self) -> list[Tokens]:
        """The end mark stands behind the text, and the last block may be shorter. Of no text there is no end."""
        if self.before is None and not self.held:
            return []
        self.held += [self.end] if self.end is not None else []
        self._begin()
        return self._cut(len(self.held))

    def _begin(self) -> None:
        """Takes off what is not trained at the very start of the text, once."""
        if self.before is None:
            first = self.held[: max(1, len(self.begin))]
            self.before = self.begin or first
            if first == self.before:
                del self.held[: len(first)]

    def _cut(self, count: int) -> list[Tokens]:
        """The first `count` of the ids that are held, as blocks."""
        blocks = []
        for start in range(0, count, self.room):
            own = self.held[start : min(start + self.room, count)]
            before = self.before or []
            blocks.append(Tokens(before + own, [False] * len(before) + [True] * len(own), self.file, self.line))
            self.before = self.begin or own[-1:]
        del self.held[:count]
        return blocks


@dataclass(frozen=True)
class Packs:
    """Pack p holds the rows members[offsets[p]:offsets[p + 1]]."""

    members: np.ndarray  # (N,) int64, every row once
    offsets: np.ndarray  # (P + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1


def best_fit(lengths: np.ndarray, max_length: int) -> Packs:
    """Rows of `lengths` (N,), each from 1 to max_length -> packs of at most max_length, the same for the same lengths.

    Packs are kept by the room that is left in them, and the rooms that occur are the bits of one integer: the
    tightest room that fits is its lowest bit from `length` upwards.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= max_length:
        raise ValueError(f"lengths of {lengths.min()} to {lengths.max()} do not fit into packs of {max_length}")
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    shortest = int(lengths.min(initial=max_length))
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # room that is left -> packs
    rooms = 0  # bit r is set where with_room[r] is not empty
    pack_of: list[int] = []  # of each row, in the order of longest_first
    packs = 0
    for length in lengths[longest_first].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = max_length, packs
            packs += 1
        pack_of.append(pack)
        if room - length >= shortest:
            with_room[room - length].append(pack)
            rooms |= 1 << (room - length)
    by_pack = np.argsort(np.array(pack_of, np.int64), kind="stable")
    sizes = np.bincount(np.array(pack_of, np.int64), minlength=packs)
    return Packs(longest_first[by_pack], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


class PackedRows(Sequence[Tokens]):
    """Rows seen through packs: row p is the documents of pack p, one behind the other. Nothing is copied until a row is asked for."""

    def __init__(self, rows: Sequence[Tokens], packs: Packs) -> None:
        self.rows, self.packs = rows, packs
        self.lengths = np.add.reduceat(row_lengths(rows)[packs.members], packs.offsets[:-1]) if len(packs) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return join_documents([self.rows[member] for member in self.packs.members[self.packs.offsets[place] : self.packs.offsets[place + 1]].tolist()])


def join_documents(documents: Sequence[Tokens]) -> Tokens:
    """One row. The first id of every document is untrained: what stands before it is another document."""
    ids = list(chain.from_iterable(document.ids for document in documents))
    trained = list(chain.from_iterable([False, *document.trained[1:]] for document in documents))
    return Tokens(ids, trained, documents[0].file, documents[0].line, tuple(len(document.ids) for document in documents))
