"""A training step's loss and gradients without autograd: every layer forward, the head, every layer backward.

    ids -> embedding -> layers, each keeping what it is told -> head: loss and its gradient -> layers in reverse -> gradients of the adapters

Rows are laid end to end without their padding, so nothing is computed for tokens that are not there. The model's own modules are read, not
called, but for the embedding and the positions. What is computed is what the plain path computes, to rounding (tests/unit/fast).
"""

from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn

from halfbyte.budget.fast_sizes import FEW, LARGE, tokens_at_once
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.fast.adopt import Adopted, adopt
from halfbyte.fast.attention import Documents
from halfbyte.fast.block import Rows, Saved
from halfbyte.fast.buffers import Buffers
from halfbyte.fast.fp8 import Fp8Buffers, in_fp8
from halfbyte.fast.gradients import Gradients
from halfbyte.fast.head import loss_and_gradient
from halfbyte.fast.parking import Shelf
from halfbyte.fast.recorded import Recorder


class FastDecoder:
    """Of one model with its adapter. Raises Unfit (adopt.py).

    keep: for each layer one of block.KEEP, all of them `all` when none is given; parked: layers whose kept tensors wait in the computer's memory;
    resident: layers whose weights stay in 16 bits; tight: one piece of memory for all other weights, fewer tokens at once in an MLP and in the head;
    record: micro-batches of a shape that comes again are recorded as a CUDA graph; fp8: the frozen products are in 8 bits (fp8.py).
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, keep: Sequence[str] | None = None, parked: Collection[int] = (), resident: Collection[int] = (),
        tight: bool = False, record: bool = False, fp8: bool = False,
    ) -> None:  # fmt: skip
        self.parts: Adopted = in_fp8(adopt(model, dtype)) if fp8 else adopt(model, dtype)
        layers = self.parts.layers
        self.keep = tuple(keep or ["all"] * len(layers))
        self.parked = frozenset(parked)
        assert len(self.keep) == len(layers)
        self.device = self.parts.embedding.weight.device
        self.ops = ops_for(self.device)
        groups = [group for layer in layers for group in layer.groups]
        stay = [group for number in sorted(resident) for group in layers[number].groups]
        self.buffers = Fp8Buffers(dtype, self.device, groups, stay, tight) if fp8 else Buffers(dtype, self.device, self.ops, stay, groups if tight else None)
        self.gradients = Gradients(groups)
        self.tight = tight
        self.shelf = Shelf(self.device)
        self.recorder = Recorder(self.shelf.memory) if record and self.device.type == "cuda" else None

    @torch.no_grad()
    def accumulate(self, batch: Batch, scale: float) -> Tensor:
        """Adds `scale` times the gradient of the batch's summed loss to that of each adapter; returns scale * the summed loss, ()."""
        ids, places, targets, positions, lengths = flatten(batch)
        documents = Documents.of(lengths, self.device)
        if self.recorder is not None:
            places, targets = filled_up(places, targets)
        scaled = torch.tensor(scale, dtype=torch.float64 if self.parts.dtype == torch.float64 else torch.float32)
        given = tuple(one.to(self.device, non_blocking=True) for one in (ids, places, targets, positions, scaled))
        self.gradients.begin()
        self.buffers.forget()
        run = partial(self._run, documents)
        if self.recorder is None:
            return run(*given)
        adapters = tuple(matrix.data_ptr() for matrix in self.gradients.parameters)  # somebody may have put others in their place (parameter.data)
        return self.recorder.run((lengths, adapters), run, given)

    def _run(self, documents: Documents, ids: Tensor, places: Tensor, targets: Tensor, positions: Tensor, scale: Tensor) -> Tensor:
        """Tensors on the device, no gradient of autograd's, and nothing that waits for the GPU."""
        layers = self.parts.layers
        self.buffers.begin()
        x = self.parts.embedding(ids).to(self.parts.dtype)
        rows = Rows(*self._rotary(positions), documents, tokens_at_once(len(x), self.tight))
        kept: list[Saved | None] = []
        for number, (layer, keep) in enumerate(zip(layers, self.keep, strict=True)):
            x, saved = layer.forward(x, rows, keep, self.buffers, self.ops)
            kept.append(self._park(number, saved) if number in self.parked else saved)
            del saved
        loss, d_x = loss_and_gradient(self.parts.head, x, places, targets, scale, layers[-1].spare, self.ops, self.tight)
        del x
        gradient: Tensor | None = d_x
        del d_x
        for number in reversed(range(len(layers))):
            assert gradient is not None
            found = kept.pop()
            assert found is not None
            if number in self.parked:
                self._unpark(number, found)
            if number - 1 in self.parked:
                self.shelf.fetch(number - 1)
            gradient = layers[number].backward(gradient, found, rows, layers[number - 1].spare if number else None, self.buffers, self.ops)
            del found
        return loss * scale

    def _park(self, number: int, saved: Saved) -> Saved:
        """What is large goes; attention's sums, a 60th of it, stay."""
        names = [name for name in LARGE if getattr(saved, name) is not None]
        low = sorted(saved.low)
        self.shelf.put(number, [getattr(saved, name) for name in names] + [saved.low[name] for name in low])
        empty = saved.x.new_empty(0)
        return Saved(**dict.fromkeys(names, empty), kept=saved.kept, low=dict.fromkeys(low, empty))

    def _unpark(self, number: int, saved: Saved) -> None:
        back = iter(self.shelf.take(number))
        for name in LARGE:
            if getattr(saved, name) is not None:
                setattr(saved, name, next(back))
        for name in sorted(saved.low):
            saved.low[name] = next(back)

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


def filled_up(places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both (S,), with targets of none at the end, so that few lengths are met."""
    missing = -len(places) % FEW
    return torch.cat((places, places.new_zeros(missing))), torch.cat((targets, targets.new_full((missing,), -1)))


def ops_for(device: torch.device) -> ModuleType:
    """The kernels of a device: Triton's on a GPU, plain PyTorch elsewhere."""
    if device.type == "cuda":
        from halfbyte.kernels import gpu

        return gpu
    from halfbyte.kernels import reference

    return reference
