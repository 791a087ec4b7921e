"""A training step's loss and gradients without autograd: every layer forward, the head, every layer backward.

    ids -> embedding -> layers, each keeping what it is told -> head: loss and its gradient -> layers in reverse -> gradients of the adapters

Rows are laid end to end without their padding, so nothing is computed for tokens that are not there. The model's own modules are read, not
called, but for the embedding and the positions. What is computed is what the plain path computes, to rounding (tests/unit/fast).
"""

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.fast.adopt import Adopted, adopt
from halfbyte.fast.attention import Documents
from halfbyte.fast.buffers import Buffers
from halfbyte.fast.head import loss_and_gradient
from halfbyte.fast.layer import Rows, Saved, backward, forward


class FastDecoder:
    """Of one model with its adapter. `keep`: for each layer one of layer.KEEP; all of them `all` when none is given. Raises Unfit (adopt.py)."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, keep: Sequence[str] | None = None) -> None:
        self.parts: Adopted = adopt(model, dtype)
        self.keep = tuple(keep or ["all"] * len(self.parts.layers))
        assert len(self.keep) == len(self.parts.layers)
        self.device = self.parts.embedding.weight.device
        self.ops = ops_for(self.device)
        self.buffers = Buffers(dtype, self.device, self.ops)

    @torch.no_grad()
    def accumulate(self, batch: Batch, scale: float) -> Tensor:
        """Adds `scale` times the gradient of the batch's summed loss to that of each adapter; returns scale * the summed loss, ()."""
        ids, places, targets, positions, lengths = flatten(batch)
        documents = Documents.of(lengths, self.device)
        move = [one.to(self.device, non_blocking=True) for one in (ids, places, targets, positions)]
        ids, places, targets, positions = move
        x = self.parts.embedding(ids).to(self.parts.dtype)
        cos, sin = self._rotary(positions)
        rows = Rows(cos, sin, documents)
        layers = self.parts.layers
        self.buffers.forget()
        kept: list[Saved] = []
        for layer, keep in zip(layers, self.keep, strict=True):
            x, saved = forward(layer, x, rows, keep, self.buffers, self.ops)
            kept.append(saved)
        loss, d_x = loss_and_gradient(self.parts.head, x, places, targets, scale, layers[-1].down.spare, self.ops)
        del x
        gradient: Tensor | None = d_x
        for index in reversed(range(len(layers))):
            assert gradient is not None
            gradient = backward(layers[index], gradient, kept.pop(), rows, index == 0, self.buffers, self.ops)
        return loss * scale

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (T, head_dim / 2) by the model's own module, in float32 at least."""
        wide = torch.float64 if self.parts.dtype == torch.float64 else torch.float32
        cos, sin = self.parts.rotary(torch.empty(0, dtype=wide, device=self.device), positions[None])
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def flatten(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """A batch on the CPU -> ids (T,), places (S,) of the tokens whose successor is supervised, that successor (S,), positions (T,), document lengths."""
    ids = torch.cat([row[:length] for row, length in zip(batch.ids, batch.lengths, strict=True)])
    # The label of a place is its successor's; a row's last place has none.
    shifted = [torch.cat((row[1:length], row.new_full((1,), IGNORE))) for row, length in zip(batch.labels, batch.lengths, strict=True)]
    labels = torch.cat(shifted)
    lengths: list[int] = []
    if batch.positions is None or batch.documents is None:
        lengths = list(batch.lengths)
        positions = torch.cat([torch.arange(length) for length in lengths])
    else:
        positions = torch.cat([row[:length] for row, length in zip(batch.positions, batch.lengths, strict=True)])
        for row, length in zip(batch.documents, batch.lengths, strict=True):
            borders = [0, *((row[1:length] != row[: length - 1]).nonzero()[:, 0] + 1).tolist(), length]
            lengths += [end - start for start, end in pairwise(borders)]
    places = (labels != IGNORE).nonzero()[:, 0]
    return ids, places, labels[places], positions, tuple(lengths)


def ops_for(device: torch.device) -> ModuleType:
    """The kernels of a device: Triton's on a GPU, plain PyTorch elsewhere."""
    if device.type == "cuda":
        from halfbyte.kernels import gpu

        return gpu
    from halfbyte.kernels import reference

    return reference
