"""Rows -> Batches: padded tensors, in an order that only the seed and the epoch decide, and the fingerprint of what they train."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte.data.tokens import Tokens

IGNORE = -100  # the label that torch's cross_entropy leaves out
# Steps whose rows are sorted by length together. 10,000 rows as long as answers are (log-normal, sigma 0.9), 4 a batch: 52 % padding
# shuffled, 1.4 % sorted in windows of this size; of a million rows 1.3 %.
WINDOW = 256


@dataclass(frozen=True)
class Batch:
    """Padded on the right. No attention mask is needed: a causal model never looks right, and padding has no label.

    A packed row holds documents that must not see each other: `positions` counts from 0 in each, `documents` numbers them.
    """

    ids: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, IGNORE where a token is not trained
    lengths: tuple[int, ...]  # (B,) without padding
    positions: Tensor | None = None  # (B, T) int64, 0 in padding; None where no row is packed
    documents: Tensor | None = None  # (B, T) int64, -1 in padding; None where no row is packed
    origins: tuple[str, ...] = ()  # (B,) file:line of each row, of the first document of a packed one

    def part(self, rows: slice) -> "Batch":
        """Some of its rows, as wide as before."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if value is not None})

    def to(self, device: torch.device) -> "Batch":
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Labels that count once each is compared with the logits one place before it."""
        return int((self.labels[:, 1:] != IGNORE).sum())


def make_batch(rows: Sequence[Tokens], pad_id: int) -> Batch:
    """Labels follow position, never the id: an end mark keeps its label even where pad and end mark share an id."""
    lengths = tuple(len(row.ids) for row in rows)
    shape = (len(rows), max(lengths))
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORE)
    for index, row in enumerate(rows):
        ids[index, : lengths[index]] = torch.tensor(row.ids)
        labels[index, : lengths[index]] = torch.tensor(_labels(row))
    origins = tuple(f"{row.file}:{row.line}" for row in rows)
    if not any(len(row.documents) > 1 for row in rows):
        return Batch(ids, labels, lengths, origins=origins)
    positions, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for index, row in enumerate(rows):
        for number, (start, end) in enumerate(_documents(row)):
            positions[index, start:end] = torch.arange(end - start)
            documents[index, start:end] = number
    return Batch(ids, labels, lengths, positions, documents, origins)


def row_lengths(rows: Sequence[Tokens]) -> np.ndarray:
    """(N,) int64. Rows on disk know their lengths; a list is counted."""
    known = getattr(rows, "lengths", None)
    return known if known is not None else np.array([len(row.ids) for row in rows], np.int64)


# Orders


@dataclass(frozen=True)
class InOrder(Sequence[Batch]):
    """Every row once, in the order of the rows. A batch is made when it is asked for, so that millions of rows fit."""

    rows: Sequence[Tokens]
    batch_size: int
    pad_id: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self.batch_size
        return make_batch(self.rows[start : start + self.batch_size], self.pad_id)


def in_order(rows: Sequence[Tokens], batch_size: int, pad_id: int) -> Sequence[Batch]:
    """For evaluation: every row once, in file order, as often as it is asked for."""
    return InOrder(rows, batch_size, pad_id)


def epoch_steps(rows: Sequence[Tokens], batch_size: int, accumulation: int, pad_id: int, seed: int, epoch: int, done: int = 0) -> Iterator[list[Batch]]:
    """One epoch: every row once, in a new order; each item is the micro-batches of one optimizer step. `done` steps are passed over.

    Which rows meet in a step depends on their number, seed and epoch, not on how a step is split into micro-batches.
    """
    per_step = batch_size * accumulation
    order = _epoch_order(row_lengths(rows), per_step, torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    for start in range(done * per_step, len(order), per_step):
        chosen = [rows[index] for index in order[start : start + per_step].tolist()]
        yield list(in_order(chosen, batch_size, pad_id))


def _epoch_order(lengths: np.ndarray, per_step: int, generator: torch.Generator) -> np.ndarray:
    """Rows of a step have about one length, so that little is padded: shuffled, sorted in windows, cut into steps, the steps shuffled.

    At least four windows an epoch: in one alone, the same rows would meet in every epoch. The last, smaller step is drawn
    before anything is sorted, so that any row may fall into it.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).numpy()
    steps = len(shuffled) // per_step
    window = per_step * max(1, min(WINDOW, steps // 4))
    whole, last = np.split(shuffled, [steps * per_step])
    windows = [*np.split(whole, range(window, len(whole), window)), last]
    *by_length, last = [rows[np.argsort(lengths[rows], kind="stable")] for rows in windows]
    mixed = torch.randperm(steps, generator=generator).numpy()
    return np.concatenate([np.concatenate(by_length).reshape(steps, per_step)[mixed].ravel(), last])


# What trains


@dataclass
class LabelSum:
    """Fingerprint of documents and what is trained in them, whatever their order and their rows: a sum of hashes.

    (Bellare and Micciancio, A new paradigm for collision-free hashing: incrementality at reduced cost, 1997.)
    """

    documents: int = 0
    total: int = 0

    @property
    def hex(self) -> str:
        return f"{self.total % 2**128:032x}"

    def add(self, ids: np.ndarray, labels: np.ndarray) -> None:
        """One document: ids (T,) and labels (T,), the first of them IGNORE."""
        digest = sha256(ids.astype("<i8").tobytes() + labels.astype("<i8").tobytes()).digest()
        self.total += int.from_bytes(digest, "big")
        self.documents += 1

    def add_row(self, row: Tokens) -> None:
        """Before it is batched."""
        ids, labels = np.array(row.ids, np.int64), np.array(_labels(row), np.int64)
        for start, end in _documents(row):
            self.add(ids[start:end], labels[start:end])

    def add_batch(self, batch: Batch) -> None:
        """From the tensors that train: packed rows apart, and padding off, unless it has a label, which is counted as what it is."""
        ids, labels = batch.ids.numpy(), batch.labels.numpy()
        for row, length in enumerate(batch.lengths):
            if (labels[row, length:] != IGNORE).any():
                self.add(ids[row, length:], labels[row, length:])
            numbers = np.zeros(length) if batch.documents is None else batch.documents[row, :length].numpy()
            borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), length]
            for start, end in pairwise(borders):
                self.add(ids[row, start:end], labels[row, start:end])


def rows_digest(batches: Iterable[Batch]) -> str:
    """16 letters that tell which rows train in a step, in which order and with which labels, however they are split into micro-batches."""
    seen = sha256()
    for batch in batches:
        for ids, labels, length in zip(batch.ids.numpy(), batch.labels.numpy(), batch.lengths, strict=True):
            seen.update(length.to_bytes(8, "little") + ids[:length].astype("<i8").tobytes() + labels[:length].astype("<i8").tobytes())
    return seen.hexdigest()[:16]


def labels_hash(rows: Iterable[Tokens]) -> str:
    """The fingerprint of what these rows will train, before they are batched."""
    seen = LabelSum()
    for row in rows:
        seen.add_row(row)
    return seen.hex


def _documents(row: Tokens) -> list[tuple[int, int]]:
    """Where each document of a row begins and ends."""
    return list(pairwise(accumulate(row.documents or (len(row.ids),), initial=0)))


def _labels(row: Tokens) -> list[int]:
    """The first id of a document has no label: nothing stands before it that could predict it."""
    labels = [token if trained else IGNORE for token, trained in zip(row.ids, row.trained, strict=True)]
    for start, _ in _documents(row):
        labels[start] = IGNORE
    return labels
