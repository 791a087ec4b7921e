"""Tokens -> rows of at most max_length: a text is cut into blocks, a pair stays whole or is left out.

Each block of a text begins with the begin mark (where the base has one) and the text ends with the end
mark, so that a model tuned on tales still knows how to stop.
"""

from collections import Counter

from halfbyte.data.tokens import Tokens


def cut_blocks(texts: list[Tokens], begin: list[int], end: int | None, max_length: int) -> list[Tokens]:
    """Each text -> blocks of at most max_length ids. Every id of a text is trained in one block, but for a first one that nothing precedes.

    A block begins with what is not trained: the begin mark, or, where the base has none, the id before the block's own.
    """
    blocks = []
    room = max_length - max(1, len(begin))
    for text in texts:
        stream = text.ids + ([end] if end is not None else [])
        first = len(begin) if stream[: len(begin)] == begin else 0
        for start in range(first or (0 if begin else 1), len(stream), room):
            before = begin or stream[start - 1 : start]
            ids = before + stream[start : start + room]
            blocks.append(Tokens(ids, [False] * len(before) + [True] * (len(ids) - len(before)), text.file, text.line))
    return blocks


def keep_fitting(rows: list[Tokens], max_length: int) -> tuple[list[Tokens], Counter[str]]:
    """Rows that fit; the others are counted, never cut: a cut answer teaches a model to break off."""
    kept = [row for row in rows if len(row.ids) <= max_length and row.supervised]
    left_out: Counter[str] = Counter()
    too_long = sum(len(row.ids) > max_length for row in rows)
    if too_long:
        left_out[f"longer than max_length {max_length}"] = too_long
    if nothing := len(rows) - len(kept) - too_long:
        left_out["nothing to learn from"] = nothing
    return kept, left_out
