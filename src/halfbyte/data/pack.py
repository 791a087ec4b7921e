"""Tokens -> rows of at most max_length: a text is cut into blocks, a pair stays whole or is left out.

Each block of a text begins with the begin mark (where the base has one) and the text ends with the end
mark, so that a model tuned on tales still knows how to stop.
"""

from collections import Counter

from halfbyte.data.tokens import Tokens


def cut_blocks(texts: list[Tokens], begin: list[int], end: int | None, max_length: int) -> list[Tokens]:
    """Each text -> blocks of at most max_length ids; a block's begin mark is not trained, every other id is."""
    blocks = []
    room = max_length - len(begin)
    for text in texts:
        stream = text.ids[len(begin) :] if begin and text.ids[: len(begin)] == begin else text.ids
        stream = stream + ([end] if end is not None else [])
        for start in range(0, len(stream), room):
            ids = begin + stream[start : start + room]
            if len(ids) > 1:
                blocks.append(Tokens(ids, [False] * max(1, len(begin)) + [True] * (len(ids) - max(1, len(begin))), text.file, text.line))
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
