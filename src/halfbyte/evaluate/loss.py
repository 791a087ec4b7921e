"""Perplexity: exp of the summed loss over the summed tokens, in eval mode.

Not the mean of batch means and not the mean of exponentials: both depend on how rows fall into batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from halfbyte.data.batches import Batch
from halfbyte.train.step import batch_logits, summed_loss


@dataclass(frozen=True)
class Loss:
    """Mean over `tokens` supervised tokens, in nats; NaN when there are none."""

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.inf if self.mean > 700 else math.exp(self.mean)


@torch.no_grad()
def measure_loss(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype) -> Loss:
    """Every labelled token once. The model is in eval mode inside and back in its own mode afterwards."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    try:
        for batch in batches:
            batch = batch.to(device)
            total += summed_loss(batch_logits(model, batch, dtype), batch.labels).double()
            tokens += batch.supervised
    finally:
        model.train(was_training)
    return Loss(float(total) / tokens if tokens else math.nan, tokens)
