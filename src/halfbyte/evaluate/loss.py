"""Loss, row by row and in eval mode; perplexity is exp of the summed loss over the summed tokens.

Not the mean of batch means and not the mean of exponentials: both depend on how rows fall into batches (docs/perplexity.md).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfbyte.budget.phases import MOST_LOGITS
from halfbyte.data.batches import IGNORE, Batch, make_batch, row_lengths
from halfbyte.data.tokens import Tokens
from halfbyte.model.room import AtATime
from halfbyte.train.step import batch_logits, summed_loss


@dataclass(frozen=True)
class Loss:
    """Mean over `tokens` supervised tokens, in nats; NaN when there are none."""

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.inf if self.mean > 700 else math.exp(self.mean)


@dataclass(frozen=True)
class RowLosses:
    """Of each row, in the order of the rows: the loss summed over its supervised tokens, in nats, and how many these are."""

    loss: np.ndarray  # (N,) float64
    tokens: np.ndarray  # (N,) int64

    @property
    def total(self) -> Loss:
        tokens = int(self.tokens.sum())
        return Loss(float(self.loss.sum()) / tokens if tokens else math.nan, tokens)


@torch.no_grad()
def row_losses(
    model: nn.Module, rows: Sequence[Tokens], dtype: torch.dtype, batch_size: int, pad_id: int, progress: Callable[[int, int], None] | None = None,
    at_a_time: AtATime | None = None,
) -> RowLosses:  # fmt: skip
    """Every supervised token once, in eval mode. `progress` hears how many rows are done, and of how many.

    Rows of like length are computed together, the longest first, so that little is padded and what does not fit into memory
    fails at once. A batch has at most `batch_size` rows and, unless it is a single one, MOST_LOGITS logits; fewer once memory has run out,
    which `at_a_time` tells and keeps.
    """
    device = next(model.parameters()).device
    loss, tokens = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    most_tokens = MOST_LOGITS // model.config.get_text_config().vocab_size
    done = 0

    def look(members: list[int]) -> None:
        nonlocal done
        batch = make_batch([rows[index] for index in members], pad_id).to(device)
        loss[members] = _summed_by_row(batch_logits(model, batch, dtype), batch.labels).cpu().numpy()
        tokens[members] = (batch.labels[:, 1:] != IGNORE).sum(1).cpu().numpy()
        done += len(members)
        if progress:
            progress(done, len(rows))

    at_a_time = at_a_time or AtATime(batch_size)
    with evaluating(model):
        for members in _by_length(row_lengths(rows), batch_size, most_tokens):
            at_a_time.each(members.tolist(), look)
    return RowLosses(loss, tokens)


def perplexity_scores(losses: RowLosses) -> np.ndarray:
    """(N, 2) float64: nats and tokens of each row; summed over rows, exp(nats / tokens) is the perplexity."""
    return np.stack([losses.loss, losses.tokens.astype(np.float64)], axis=1)


@torch.no_grad()
def measure_loss(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, at_a_time: AtATime | None = None) -> Loss:
    """Every labelled token of the batches once, in eval mode; in parts of a batch once memory has run out, which `at_a_time` keeps."""
    device = next(model.parameters()).device
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    at_a_time = at_a_time or AtATime(max((len(batch.ids) for batch in batches[:1]), default=1))
    with evaluating(model):
        for batch in batches:

            def look(rows: range, batch: Batch = batch) -> None:
                nonlocal total, tokens
                part = (batch if len(rows) == len(batch.ids) else batch.part(slice(rows.start, rows.stop))).to(device)
                total += summed_loss(batch_logits(model, part, dtype), part.labels).double()
                tokens += part.supervised

            at_a_time.each(range(len(batch.ids)), look)
    return Loss(float(total) / tokens if tokens else math.nan, tokens)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside and back in its own mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _by_length(lengths: np.ndarray, batch_size: int, most_tokens: int) -> Iterator[np.ndarray]:
    """Indices of the rows of each batch, the longest rows first; padded, a batch of several rows has at most `most_tokens` tokens."""
    longest_first = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(longest_first):
        size = max(1, min(batch_size, most_tokens // max(1, int(lengths[longest_first[start]]))))
        yield longest_first[start : start + size]
        start += size


def _summed_by_row(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (B, T, V), labels (B, T) -> (B,) float64. Row by row and only where there is a label, so that one row at a time is held in float32."""
    wanted = labels[:, 1:] != IGNORE
    return torch.stack([
        F.cross_entropy(logits[row, :-1][wanted[row]].float(), labels[row, 1:][wanted[row]], reduction="none").double().sum() for row in range(len(labels))
    ])  # fmt: skip
