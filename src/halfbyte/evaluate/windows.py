"""Sliding windows: a long text scored with more context than its training blocks give, each id exactly once.

The first window scores all that it holds; each later one begins `stride` ids further and scores only what no window before it reached
(as transformers' page on the perplexity of fixed-length models has it). A window begins as a training block does: with the begin mark,
or, where the base has none, with the id before its own. So with a stride as long as the room of a block, the windows are the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.data.batches import row_lengths
from halfbyte.data.tokens import Tokens
from halfbyte.errors import RecipeError


def sliding_windows(rows: Sequence[Tokens], begin: list[int], max_length: int, stride: int) -> tuple["Windows", np.ndarray]:
    """rows: texts in blocks as BlockCutter cuts them, `begin` the marks they begin with -> windows, and the document number (N,) of each.

    A window has at most `max_length` ids; it need not be as long as a block. Raises RecipeError for a stride that would leave ids out.
    """
    room = max_length - max(1, len(begin))
    if not 1 <= stride <= room:
        seen = f"evaluate.stride: {stride}, but a window of {max_length} ids has room for {max(0, room)} of the text"
        raise RecipeError(seen, hint=f"give a stride of 1 to {room}" if room >= 1 else "give a longer window")
    offsets, openings = _find_documents(rows, begin)
    bases, ends = offsets[openings], offsets[np.append(openings[1:], len(rows))]  # (D,) each, where a document begins and ends
    counts = 1 + np.maximum(0, -(-(ends - bases - room) // stride))  # (D,) windows: as many strides as what the first one leaves
    document = np.repeat(np.arange(len(counts)), counts)  # (N,)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # (N,) in its document
    starts = bases[document] + number * stride
    new = np.where(number == 0, starts, starts - stride + room)
    return Windows(rows, begin, offsets, openings[document], starts, new, np.minimum(starts + room, ends[document])), document


@dataclass(frozen=True)
class Windows(Sequence[Tokens]):
    """A window is made when it is asked for: kept are a few numbers of each row and window, however long the text.

    Places count the ids that the blocks have of their own, one block behind the other.
    """

    rows: Sequence[Tokens]
    begin: list[int]
    offsets: np.ndarray  # (R + 1,) place of the first own id of each block
    openings: np.ndarray  # (N,) the block with which the window's document begins
    starts: np.ndarray  # (N,) place of the window's first own id,
    new: np.ndarray  # (N,) of the first that it scores,
    ends: np.ndarray  # (N,) and behind its last

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        opening, start, new, end = (int(places[index]) for places in (self.openings, self.starts, self.new, self.ends))
        first = self.rows[opening]
        before = self.begin or (self._own(start - 1, start) if start > self.offsets[opening] else first.ids[:1])
        scored = [False] * (len(before) + new - start) + [True] * (end - new)
        return Tokens(before + self._own(start, end), scored, first.file, first.line)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, without making the windows (batches.row_lengths)."""
        return self.ends - self.starts + _lead(self.begin)

    def _own(self, start: int, end: int) -> list[int]:
        ids: list[int] = []
        row = int(np.searchsorted(self.offsets, start, side="right")) - 1
        while start < end:
            skip = _lead(self.begin) + start - int(self.offsets[row])
            ids += self.rows[row].ids[skip : skip + end - start]
            row += 1
            start = int(self.offsets[row])
        return ids


def _find_documents(rows: Sequence[Tokens], begin: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """offsets (R + 1,): ids that the blocks before each have of their own; openings (D,): the block with which each document begins.

    Neighbours of one file and line are one document, unless the first of them is shorter than a block is (only the last of a text may be)
    or, without a begin mark, does not end with what the second begins with. JSON on one line has many texts of one file and line.
    """
    lengths = row_lengths(rows)
    whole, openings = lengths.max(initial=0), []
    before: Tokens | None = None
    for number, row in enumerate(rows):
        goes_on = before is not None and (row.file, row.line) == (before.file, before.line) and len(before.ids) == whole
        if not goes_on or (not begin and before is not None and row.ids[0] != before.ids[-1]):
            openings.append(number)
        before = row
    return np.append(0, np.cumsum(lengths - _lead(begin))), np.array(openings, np.int64)


def _lead(begin: list[int]) -> int:
    """Ids with which a block begins that are not its own."""
    return max(1, len(begin))
