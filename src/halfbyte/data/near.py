"""Near-duplicate texts among millions, in bounded memory: MinHash signatures in temporary files, found again by bands.

How alike two texts are is the Jaccard index of their sets of 5-character shingles (`jaccard`, the definition). Here it is estimated:

    text -> normalised -> hash of every shingle -> the least hash under each of 128 permutations        (Broder 1997)
    the least hashes of 5 permutations together are a key, 25 keys a text; texts that share a key are candidates
    8 bits of each least hash are the text's sketch; candidates whose sketches agree often enough are near-duplicates   (Li and Koenig 2010)

At Jaccard J two texts share a key with probability 1 - (1 - J^5)^25: 99.995 % at 0.8. Two sketches agree in a place with probability
p = J + (1 - J) / 256, so their share of agreement has the standard error sqrt(p (1 - p) / 128): 0.035 at J = 0.8. The cut-off lies three
of them below what 0.8 gives (0.694), which keeps 99.87 % of the pairs of exactly 0.8, more of those above, and of pairs at 0.5 seven in a million.

Why not datasketch: its index keeps dictionaries of sets in memory, 9 KB a text, where this keeps 228 bytes on disk and at most some 60 in memory; and it
hashes one shingle at a time in Python, 1 ms for a text of 1 KB, where this takes 45 us (benchmarks/near_duplicates.py, one core of an AMD EPYC, November
2026). Nothing is mapped into memory, because mapped pages count as resident.
"""

import math
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from halfbyte.errors import DataError

SHINGLE = 5
PERMUTATIONS = 128
BANDS, KEY_ROWS = 25, 5
ALIKE = 0.8
"""Pairs at or above this Jaccard index are to be found."""
_EXPECTED = ALIKE + (1 - ALIKE) / 256
LEAST_AGREEMENT = math.ceil(PERMUTATIONS * (_EXPECTED - 3 * math.sqrt(_EXPECTED * (1 - _EXPECTED) / PERMUTATIONS)))
"""Places of 128 in which two sketches must agree: 89."""
WINDOW = 4
"""Neighbours in a bucket that each text is compared with."""
BYTES_A_TEXT = PERMUTATIONS + 4 * BANDS
TEXTS_AT_ONCE = 4096
CHARACTERS_AT_ONCE = 1 << 15  # hashes of a batch and their permutation stay in a core's second-level cache
ROWS_AT_ONCE = 1 << 15  # 4 MB of sketches
EDGES_AT_ONCE = 1 << 18


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (Appleby), in place: (N,) uint32 whose every bit depends on every bit of the input."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        numbers ^= numbers >> np.uint32(shift)
        numbers *= np.uint32(factor)
    return numbers


_SHINGLE_FACTORS, _FACTORS, _OFFSETS, _KEY_FACTORS = np.split(
    _mixed(np.arange(1, 1 + SHINGLE + 2 * PERMUTATIONS + KEY_ROWS, dtype=np.uint32)), np.cumsum([SHINGLE, PERMUTATIONS, PERMUTATIONS])
)
_FACTORS |= np.uint32(1)  # multiplying by an odd number permutes the 32-bit numbers
_KEY_FACTORS |= np.uint32(1)


def normalise(text: str) -> str:
    """What is compared: compatible forms made one (NFKC), lower case, runs of blanks as one."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def jaccard(a: str, b: str) -> float:
    """The definition: shared 5-character shingles over all shingles of two texts. A shorter text is its own only shingle."""
    first, second = ({text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1))} for text in (normalise(a), normalise(b)))
    return len(first & second) / len(first | second)


def _batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Text numbers and normalised pieces, of bounded size together. A long text comes in pieces that overlap, so that no shingle is lost."""
    owners: list[int] = []
    pieces: list[str] = []
    size = 0
    for owner, raw in enumerate(texts):
        text = normalise(raw).ljust(SHINGLE, "\0")
        for start in range(0, len(text) - SHINGLE + 1, CHARACTERS_AT_ONCE):
            pieces.append(text[start : start + CHARACTERS_AT_ONCE + SHINGLE - 1])
            owners.append(owner)
            size += len(pieces[-1])
            if size >= CHARACTERS_AT_ONCE:
                yield owners, pieces
                owners, pieces, size = [], [], 0
    if pieces:
        yield owners, pieces


def _shingle_hashes(pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all shingles of all pieces (N,) uint32, and where those of each piece begin."""
    # A lone surrogate is not text, but it stands in files; it is a number like any other here.
    points = np.frombuffer("".join(pieces).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array([len(piece) for piece in pieces])
    inside = np.ones(len(points), bool)  # False where a shingle would run into the next piece
    for back in range(1, SHINGLE):
        inside[np.cumsum(lengths) - back] = False
    count = len(points) - SHINGLE + 1
    hashes = np.zeros(count, np.uint32)
    for place, factor in enumerate(_SHINGLE_FACTORS):
        hashes += points[place : place + count] * factor
    shingles = lengths - SHINGLE + 1
    return _mixed(hashes[inside[:count]]), np.cumsum(shingles) - shingles


def least_hashes(texts: Sequence[str]) -> np.ndarray:
    """MinHash: the least hash of every text under each permutation, (len(texts), PERMUTATIONS) uint32."""
    least = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    for owners, pieces in _batches(texts):
        hashes, starts = _shingle_hashes(pieces)
        permuted = np.empty_like(hashes)
        found = np.empty((PERMUTATIONS, len(pieces)), np.uint32)
        for row, factor, offset in zip(found, _FACTORS, _OFFSETS, strict=True):
            np.multiply(hashes, factor, out=permuted)
            np.add(permuted, offset, out=permuted)
            np.minimum.reduceat(permuted, starts, out=row)
        least[owners] = np.minimum(least[owners], found.T)  # a batch holds an owner once
    return least


class Signatures:
    """The signatures of a growing list of texts, in unnamed files that vanish when they are closed. Append many texts at a time: it is faster."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` takes 228 bytes a text; by default the system's folder for temporary files, which on some machines is memory."""
        self._folder = folder
        self._count = 0
        self._files = ExitStack()
        # One file for each band's keys: a band is read whole, and nothing else with it.
        *self._keys, self._sketches = [self._files.enter_context(tempfile.TemporaryFile(buffering=0, dir=folder)) for _ in range(BANDS + 1)]  # noqa: SIM115

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "Signatures":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()

    def append(self, texts: Sequence[str]) -> None:
        """Texts are numbered as they come, from 0."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            least = least_hashes(texts[start : start + TEXTS_AT_ONCE])
            keys = _mixed((least[:, : BANDS * KEY_ROWS].reshape(-1, BANDS, KEY_ROWS) * _KEY_FACTORS).sum(axis=2, dtype=np.uint32))
            # The top bits of a least hash are mostly zero: multiplied by 2^32 over the golden ratio, every bit counts towards the eight that are kept.
            sketches = ((least * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)
            try:
                for file, column in zip(self._keys, keys.T, strict=True):
                    _write(file, column)
                _write(self._sketches, sketches)
            except OSError as error:
                place = self._folder or tempfile.gettempdir()
                raise DataError(
                    f"{place}: cannot keep the signature of text {self._count + 1:,}, by which near-duplicates are found: {error}",
                    hint=f"free space there, or name a folder with {BYTES_A_TEXT} bytes for every text in TMPDIR",
                ) from error
            self._count += len(least)

    def pairs(self) -> np.ndarray:
        """Edges (P, 2) int64, i < j, between texts whose sketches agree; they connect each cluster, without naming every pair of it."""
        parents = np.arange(self._count)
        found = [np.empty((0, 2), np.int64)]
        for band in range(BANDS):
            for rows, buckets in self._candidates(band, parents):
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    part = slice(start, start + ROWS_AT_ONCE + WINDOW)
                    found += self._verified(rows[part], buckets[part], parents)
            _flatten(parents)
        return np.concatenate(found)

    def _candidates(self, band: int, parents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Texts that share this band's key with another, bucket by bucket, and their keys. In a bucket those that also share the next key are neighbours."""
        keys, next_keys = self._column(band), self._column((band + 1) % BANDS)
        for quarter in range(4):  # so that sorting takes a quarter of the memory
            rows = np.flatnonzero(keys >> np.uint32(30) == quarter)
            both = keys[rows].astype(np.uint64) << np.uint64(32) | next_keys[rows]
            order = np.argsort(both, kind="stable")  # the other kind leaves ties as the chip likes, and the split would differ by machine
            rows, both = rows[order], both[order]
            buckets = keys[rows]
            same = np.flatnonzero(buckets[1:] == buckets[:-1])
            shared = np.zeros(len(rows), bool)
            shared[same] = shared[same + 1] = True
            rows, both, buckets = rows[shared], both[shared], buckets[shared]
            # Copies that are joined already are one candidate, else a thousand of them would hide a text from its like.
            roots = _roots(parents, rows)
            fresh = np.ones(len(rows), bool)
            fresh[1:] = (both[1:] != both[:-1]) | (roots[1:] != roots[:-1])
            yield rows[fresh], buckets[fresh]

    def _verified(self, rows: np.ndarray, buckets: np.ndarray, parents: np.ndarray) -> list[np.ndarray]:
        """Edges between candidates at most WINDOW apart that are alike and not yet connected; connects them in `parents`."""
        roots = _roots(parents, rows)
        pairs = [(np.flatnonzero((buckets[apart:] == buckets[:-apart]) & (roots[apart:] != roots[:-apart])), apart) for apart in range(1, WINDOW + 1)]
        needed = np.zeros(len(rows), bool)
        for left, apart in pairs:
            needed[left] = needed[left + apart] = True
        sketches, place = self._read_sketches(rows[needed]), np.cumsum(needed) - 1
        found = []
        for left, apart in pairs:
            left = left[_roots(parents, rows[left]) != _roots(parents, rows[left + apart])]  # not connected since
            agreement = np.count_nonzero(sketches[place[left]] == sketches[place[left + apart]], axis=1)
            left = left[agreement >= LEAST_AGREEMENT]
            edges = np.sort(np.stack([rows[left], rows[left + apart]], axis=1), axis=1)
            _join(parents, edges)
            found.append(edges)
        return found

    def _column(self, band: int) -> np.ndarray:
        self._keys[band].seek(0)
        return np.fromfile(self._keys[band], np.uint32)  # and stands at the end again

    def _read_sketches(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), PERMUTATIONS) uint8."""
        descriptor = self._sketches.fileno()
        read = b"".join([os.pread(descriptor, PERMUTATIONS, row * PERMUTATIONS) for row in rows.tolist()])
        return np.frombuffer(read, np.uint8).reshape(-1, PERMUTATIONS)


def _write(file: IO[bytes], array: np.ndarray) -> None:
    """Not array.tofile, which says nothing of a full disk when what is written is small."""
    rest = memoryview(array.tobytes())
    while rest:
        rest = rest[file.write(rest) :]  # a disk that fills up takes a part, and raises at the next


def equal_keys(keys: np.ndarray) -> np.ndarray:
    """keys (N,) uint64, 0 for none -> edges (P, 2) that join the items of equal keys, each with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
    return np.stack([order[equal], order[equal + 1]], axis=1)


def connected(count: int, *edges: np.ndarray) -> np.ndarray:
    """(count,) int64: for every item the smallest one that edges (P, 2) lead to."""
    parents = np.arange(count)
    for some in edges:
        for start in range(0, len(some), EDGES_AT_ONCE):
            _join(parents, some[start : start + EDGES_AT_ONCE])
    _flatten(parents)
    return parents


def _flatten(parents: np.ndarray) -> None:
    """Every item's parent becomes its root."""
    for start in range(0, len(parents), EDGES_AT_ONCE):
        part = slice(start, start + EDGES_AT_ONCE)
        parents[part] = _roots(parents, parents[part])


def _roots(parents: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Follows every item to the end of its chain. A parent is smaller than its child; a root is its own."""
    found = parents[items]
    while True:
        further = parents[found]
        if np.array_equal(further, found):
            return found
        found = further


def _join(parents: np.ndarray, edges: np.ndarray) -> None:
    """Hangs each root below the least root that an edge leads to, until no edge leads from one tree to another.

    Two rounds at least halve the roots that have an edge left: a root that none of its neighbours is smaller than is kept, and takes in at
    least one of them in this round or meets a smaller one in the next. So the rounds are few, however long the chains.
    """
    a, b = _roots(parents, edges[:, 0]), _roots(parents, edges[:, 1])
    while True:
        apart = a != b
        a, b = a[apart], b[apart]
        if not len(a):
            return
        low, high = np.minimum(a, b), np.maximum(a, b)
        np.minimum.at(parents, high, low)
        while True:  # pointer jumping: each time the way to the root is half as long
            further = parents[parents[high]]
            if np.array_equal(further, parents[high]):
                break
            parents[high] = further
        a, b = parents[low], parents[high]
