"""One optimizer step on one screen. Every trained token weighs the same, however the rows were split into micro-batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.errors import TrainingError
from halfbyte.model.isolation import model_inputs
from halfbyte.model.precision import compute_in


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the supervised tokens of the step. skipped: the update was left out (float16 overflow)."""

    loss: float
    grad_norm: float
    supervised: int
    tokens: int
    skipped: bool


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (B, T, V), labels (B, T) -> sum over labelled tokens of -log p(label | what stands before it), ()."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def batch_logits(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """(B, T, V), as training and evaluation alike see them."""
    with compute_in(batch.ids.device, dtype):
        return model(**model_inputs(model, batch.ids, batch.positions, batch.documents)).logits


Accumulate = Callable[[Batch, float], Tensor]
"""Adds `scale` times the gradient of a batch's summed loss to that of each adapter, and returns scale * the summed loss, ()."""


def plain_way(model: nn.Module, dtype: torch.dtype, scaler: torch.amp.GradScaler) -> Accumulate:
    """Through the model as it was loaded, and autograd. train/ways.py has the other way."""
    device = next(model.parameters()).device

    def accumulate(batch: Batch, scale: float) -> Tensor:
        batch = batch.to(device)
        loss = summed_loss(batch_logits(model, batch, dtype), batch.labels) * scale
        scaler.scale(loss).backward()
        return loss.detach()

    return accumulate


def train_step(
    model: nn.Module,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    accumulate: Accumulate | None = None,
) -> StepResult:
    """Loss summed over the supervised tokens of all micro-batches and divided by their count; `accumulate` is the plain way where none is given.

    Raises TrainingError before the update when the loss, or in bfloat16 and float32 a gradient, is not finite.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    supervised = sum(batch.supervised for batch in batches)
    total = torch.zeros((), device=device)
    accumulate = accumulate or plain_way(model, dtype, scaler)
    for batch in batches:
        total += accumulate(batch, 1 / supervised if supervised else math.nan)
    loss_value = float(total)
    if not math.isfinite(loss_value):
        raise TrainingError(f"the loss is {loss_value} before the update", hint="lower train.learning_rate, or look for damaged rows in the data")
    scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(trained, max_norm))
    overflow = not math.isfinite(norm)
    if overflow and not scaler.is_enabled():
        raise TrainingError(f"the gradient is {norm} before the update, with a loss of {loss_value:.3f}", hint="lower train.learning_rate")
    scaler.step(optimizer)  # leaves the update out when a gradient overflowed
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_value, norm, supervised, sum(batch.tokens for batch in batches), skipped=overflow)
