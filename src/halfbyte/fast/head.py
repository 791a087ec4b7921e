"""Final norm, head and cross-entropy over the supervised rows alone, a piece at a time, with the gradient in the same pass.

Logits of T tokens and V words never exist at once: each piece is turned into its own gradient where it lies (kernels/reference.py,
cross_entropy), so the head costs two products of the supervised rows and nothing is computed again.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from halfbyte.budget.fast_sizes import rows_at_a_time
from halfbyte.fast.norms import Norm


@dataclass(frozen=True)
class Head:
    norm: Norm
    weight: Tensor  # (V, D)


def loss_and_gradient(
    head: Head, x: Tensor, places: Tensor, targets: Tensor, scale: Tensor, spare: int, ops: ModuleType, tight: bool = False
) -> tuple[Tensor, Tensor]:
    """x (T, D), places (S,) of the rows that are supervised and their targets (S,), below 0 for none
    -> sum of the losses, and scale * its gradient (T, D + spare)."""
    tokens, width = x.shape
    d_x = torch.zeros(tokens, width + spare, dtype=x.dtype, device=x.device)
    total = torch.zeros((), dtype=torch.float32 if x.dtype != torch.float64 else x.dtype, device=x.device)
    piece = rows_at_a_time(len(head.weight), tight)
    for here, target in zip(places.split(piece), targets.split(piece), strict=True):
        rows = x[here]
        normed = torch.empty_like(rows)
        head.norm.forward(rows, normed, ops)
        logits = normed @ head.weight.T
        losses = torch.empty(len(here), dtype=total.dtype, device=x.device)
        ops.cross_entropy(logits, target, scale, losses)
        total += losses.sum()
        d_normed = torch.mm(logits, head.weight, out=normed)
        head.norm.backward(d_normed, rows, torch.zeros_like(rows), d_normed, ops)
        d_x[:, :width].index_add_(0, here, d_normed)  # places that stand for nothing come more than once, with zeros
        del rows, normed, logits, losses, d_normed  # before the next piece has its own
    return total, d_x
