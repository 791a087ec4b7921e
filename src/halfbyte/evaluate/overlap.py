"""Style or recital? The stretches of answers that stand word for word in the training text.

All ids of the training rows count, prompts too: what the model read it could recite. Rows are read once, a batch at a time, so memory
does not grow with them. In a batch every window of L ids gets a fingerprint of 64 bits, made of the fingerprints of two shorter windows
that together cover it (the naming of Karp, Miller and Rosenberg 1972). If a stretch of L ids is shared, so is one of L - 1: the longest
is found by doubling and then halving a step, from the longest known so far; most batches need one look at each length. What is found is
compared id by id, so nothing is claimed that is not there; were two of the 10^13 pairs of windows in a look alike by chance (1 in 10^6),
a shared stretch might be told too short.

A stretch never runs over the end of a row. Blocks of a book are rows: what crosses the border of two counts as its longer part, and was
never seen as a whole in training either. Comparing ids, not letters, misses a word that was cut into tokens otherwise; the first word of
an answer is the usual case.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from halfbyte.data.pack import PackedRows
from halfbyte.data.store import StoredRows
from halfbyte.data.tokens import Tokens

# Ids of training rows that are looked at together: a megabyte, which the processor keeps near, for the fingerprints of each length. Half and double are slower.
BATCH_IDS = 1 << 17
# Between two rows. No answer holds it.
BORDER = -1
# Words in a row that are more than a common phrase.
LONG_WORDS = 8
# Odd numbers with about as many ones as zeros (2^64 divided by the golden ratio, and by the square root of 2).
GOLDEN, ROOT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xB504F333F9DE6485)


@dataclass(frozen=True)
class Overlap:
    tokens: int
    """0 where the answer and the training text share no id."""
    start: int
    """Where in the answer."""
    row: int
    """A training row that holds it; -1 for none."""


@dataclass(frozen=True)
class Recital:
    longest_words: int
    """Whole words, between blanks: a text without blanks is one word, however long."""
    shared: str
    line: str
    """file:line of a training row that holds it."""
    share_over_8: float
    """Of all tokens of the answers: how many lie in a shared stretch of 8 words or more."""


def longest_overlaps(answers: Sequence[Sequence[int]], rows: Sequence[Tokens]) -> list[Overlap]:
    """Of each answer the longest stretch of ids that stands in one training row."""
    ids, begins, ends = _flat(answers)
    lengths, places, found_in = _search(ids, begins, ends, np.zeros_like(begins), rows)
    starts = np.where(lengths > 0, places - begins, 0)
    return [Overlap(*found) for found in zip(lengths.tolist(), starts.tolist(), found_in.tolist())]


def recitals(answers: dict[str, Sequence[Sequence[int]]], rows: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase) -> dict[str, Recital]:
    """Of each list of answers (base, tuned); the training rows are read once for all of them.

    An answer is asked for its longest stretch, and each eight words in it whether they stand in training as they are: a token lies in a shared stretch of eight
    words or more if, and only if, it lies in such eight.
    """
    rows = rows.rows if isinstance(rows, PackedRows) else rows  # a document knows its line, and nothing runs from one into the next
    every = [answer for several in answers.values() for answer in several]
    ids, begins, ends = _flat(every)
    words = [_words(answer, tokenizer) for answer in every]
    spans = np.array([
        (begin + first[0], begin + last[1]) for begin, of_answer in zip(begins.tolist(), words) for first, last in zip(of_answer, of_answer[LONG_WORDS - 1 :])
    ], np.int64).reshape(-1, 2)  # fmt: skip
    least = np.append(np.zeros_like(begins), spans[:, 1] - spans[:, 0] - 1)  # a span is asked for as a whole
    lengths, places, found_in = _search(ids, np.append(begins, spans[:, 0]), np.append(ends, spans[:, 1]), least, rows)
    inside = np.zeros(len(ids), bool)
    for begin, end in spans[found_in[len(every) :] >= 0].tolist():
        inside[begin:end] = True
    told, first = {}, 0
    for name, several in answers.items():
        last = first + len(several)
        best = Recital(0, "", "", 0.0)
        for number in range(first, last):
            start = int(places[number] - begins[number])
            whole = [word for word in words[number] if start <= word[0] and word[1] <= start + lengths[number]]
            if len(whole) > best.longest_words:
                row = rows[int(found_in[number])]
                best = Recital(len(whole), tokenizer.decode(every[number][whole[0][0] : whole[-1][1]]).strip(), f"{row.file}:{row.line}", 0.0)
        own = inside[begins[first] : ends[last - 1]] if several else inside[:0]
        told[name] = replace(best, share_over_8=float(own.mean()) if len(own) else 0.0)
        first = last
    return told


def _words(answer: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Where each word begins and ends in the ids; tokens of nothing but blanks may stand between two.

    Each token is decoded behind the two before it, because many tokenizers take off the blank with which a text begins.
    """
    words: list[tuple[int, int]] = []
    begin = None
    for place in range(len(answer)):
        before = tokenizer.decode(answer[max(0, place - 2) : place])
        own = tokenizer.decode(answer[max(0, place - 2) : place + 1])[len(before) :]
        apart = begin is None or own[:1].isspace() or before[-1:].isspace()
        if begin is not None and apart and own:
            words.append((begin, place))
        if apart and own:
            begin = place if own.strip() else None
    return [*words, (begin, len(answer))] if begin is not None else words


def _flat(answers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ids, and where each answer begins and ends in them."""
    ends = np.cumsum([len(answer) for answer in answers], dtype=np.int64)
    ids = np.array([token for answer in answers for token in answer], np.int64)
    return ids, np.append(0, ends)[:-1], ends


def _search(ids: np.ndarray, begins: np.ndarray, ends: np.ndarray, least: np.ndarray, rows: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The longest stretch of each text ids[begin:end], (Q,) each, if it is longer than `least` -> its length, where in `ids` it begins, and its row (or -1)."""
    longest, places, found_in = least.copy(), begins.copy(), np.full(len(begins), -1)
    asked = Fingerprints(ids)
    for batch, first_ids, first_row in _batches(rows):
        trained = Fingerprints(batch)
        step, shortest_missed = np.ones_like(longest), ends - begins + 1
        while (open_texts := np.flatnonzero(longest + 1 < shortest_missed)).size:
            tried = np.minimum(longest + step, (longest + shortest_missed) // 2)
            for length in np.unique(tried[open_texts]).tolist():
                texts = open_texts[tried[open_texts] == length]
                where, place = _first_shared(asked, trained, begins[texts], ends[texts], length)
                found, missed = texts[where >= 0], texts[where < 0]
                longest[found], places[found] = length, where[where >= 0]
                found_in[found] = first_row + np.searchsorted(first_ids, place[where >= 0], side="right") - 1
                step[found] *= 2
                shortest_missed[missed] = length
        if (longest == ends - begins).all():
            break
    return np.where(found_in >= 0, longest, 0), places, found_in


def _first_shared(asked: "Fingerprints", trained: "Fingerprints", begins: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each text the first window of `length` ids that stands in the batch: where it begins in the answers and in the batch, or -1."""
    where, place = np.full(len(begins), -1), np.full(len(begins), -1)
    counts = ends - begins - length + 1
    text = np.repeat(np.arange(len(begins)), counts)  # (W,) of each window its text,
    window = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts) + begins[text]  # (W,) and where it begins
    prints = asked.of(length)[window]
    candidates = trained.candidates(length, prints)
    if not len(candidates):
        return where, place
    names, first = np.unique(trained.of(length)[candidates], return_index=True)
    match = np.minimum(np.searchsorted(names, prints), len(names) - 1)
    hits = np.flatnonzero(names[match] == prints)
    texts, earliest = np.unique(text[hits], return_index=True)
    mine, theirs = window[hits[earliest]], candidates[first[match[hits[earliest]]]]
    offsets = np.arange(length)
    same = (asked.ids[mine[:, None] + offsets] == trained.ids[theirs[:, None] + offsets]).all(axis=1)  # (texts, length) compared
    where[texts[same]], place[texts[same]] = mine[same], theirs[same]
    return where, place


class Fingerprints:
    """Of all windows of ids (n,), 64 bits each. Those of 1, 2, 4, ... ids are kept, for they make those of every other length."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        self.doubled = [_mix(ids.astype(np.uint64) * ROOT)]

    def of(self, length: int) -> np.ndarray:
        """(n - length + 1,) uint64: a window is named by its first and its last 2^k ids, which overlap or touch."""
        power = length.bit_length() - 1
        while len(self.doubled) <= power:
            half, last = 1 << (len(self.doubled) - 1), self.doubled[-1]
            self.doubled.append(_mix(last[:-half] * GOLDEN + last[half:]))
        rest = length - (1 << power)
        whole = self.doubled[power]
        return _mix(whole[:-rest] * ROOT + whole[rest:]) if rest else whole

    def candidates(self, length: int, prints: np.ndarray) -> np.ndarray:
        """Where windows begin that may have one of these fingerprints: a table of first bits, small enough for the cache, says no to most."""
        if len(self.ids) < length or not len(prints):
            return np.zeros(0, np.int64)
        bits = max(16, (8 * len(prints)).bit_length())
        table = np.zeros(1 << bits, bool)
        shift = np.uint64(64 - bits)
        table[(prints >> shift).view(np.int64)] = True
        return np.flatnonzero(table[(self.of(length) >> shift).view(np.int64)])


def _mix(prints: np.ndarray) -> np.ndarray:
    """Brings the upper half into the lower, which products alone never do; without it, repetitive texts share fingerprints (Thue and Morse's)."""
    prints ^= prints >> np.uint64(32)
    return prints


def _batches(rows: Sequence[Tokens]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Ids of some rows, BORDER before each of them; where the ids of each row begin; and the number of the first."""
    held: list[np.ndarray] = []
    size = first = 0
    for number, ids in enumerate(_row_ids(rows)):
        held += [np.array([BORDER]), ids]
        size += 1 + len(ids)
        if size >= BATCH_IDS or number == len(rows) - 1:
            ends = np.cumsum([len(piece) for piece in held])
            yield np.concatenate(held, dtype=np.int64), ends[::2], first
            held, size, first = [], 0, number + 1


def _row_ids(rows: Sequence[Tokens]) -> Iterator[np.ndarray]:
    """Straight from the mapped file where there is one: making lists of its rows takes longer than all that is done with them here."""
    if not isinstance(rows, StoredRows):
        yield from (np.array(row.ids, np.int64) for row in rows)
        return
    for batch in rows.batches:
        yield from (batch.ids[start:end] for start, end in pairwise(batch.offsets.tolist()))
