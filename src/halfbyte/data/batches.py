"""Rows -> Batches: padded tensors, in an order that only the seed and the epoch decide."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.data.tokens import Tokens

IGNORE = -100  # the label that torch's cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Padded on the right. No attention mask is needed: a causal model never looks right, and padding has no label."""

    ids: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, IGNORE where a token is not trained
    tokens: int  # without padding

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), self.tokens)

    @property
    def supervised(self) -> int:
        """Labels that count once each is compared with the logits one place before it."""
        return int((self.labels[:, 1:] != IGNORE).sum())


def make_batch(rows: list[Tokens], pad_id: int) -> Batch:
    """Labels follow position, never the id: an end mark keeps its label even where pad and end mark share an id."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        kept = torch.tensor([token if trained else IGNORE for token, trained in zip(row.ids, row.trained, strict=True)])
        labels[index, : len(row.ids)] = kept
    labels[:, 0] = IGNORE
    return Batch(ids, labels, sum(len(row.ids) for row in rows))


def in_order(rows: list[Tokens], batch_size: int, pad_id: int) -> list[Batch]:
    """For evaluation: every row once, in file order."""
    return [make_batch(rows[start : start + batch_size], pad_id) for start in range(0, len(rows), batch_size)]


def epoch_steps(rows: list[Tokens], batch_size: int, accumulation: int, pad_id: int, seed: int, epoch: int) -> Iterator[list[Batch]]:
    """One epoch: every row once, in a new order; each item is the micro-batches of one optimizer step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    shuffled = [rows[index] for index in order]
    per_step = batch_size * accumulation
    for start in range(0, len(shuffled), per_step):
        yield in_order(shuffled[start : start + per_step], batch_size, pad_id)
