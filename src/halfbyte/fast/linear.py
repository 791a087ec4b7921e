"""Frozen linear layers that share an input, with their adapters, as one matrix product each way.

A group is q, k and v, or gate and up, or one layer alone. Before its products its weights are written into one buffer, out of 4 bits, with the
adapters beside and below them (PERFORMANCE in docs/performance.md has the figures; the idea is an augmented contraction):

                K          R
          +-----------+--------+
        N |     W     |   sB   |      forward    y  = [x | x A'] [W | sB]'           one product, contraction K + R
          +-----------+--------+      backward   dx = [dy | dy sB] [W over A]        one product, contraction N + R
        R |     A     |        |
          +-----------+--------+

So the adapter's part is added inside the product's accumulator, before anything is rounded, and neither y nor dx is read and written again.
Each adapter has its own columns of sB and rows of A; the rest is zero. R is a multiple of 64, which the products want. The tensors that go in
have R spare columns (`roomy`), which is where x A' and dy sB are put.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.budget.fast_sizes import thin_columns
from halfbyte.kernels.reference import Beside


@dataclass(frozen=True)
class Lora:
    """A (r, K) and B (n, r), trained, and what their product is multiplied by."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float


@dataclass(frozen=True)
class Frozen:
    """One linear layer: its module holds the weight (n, k), in 4 bits or as it is."""

    module: nn.Module
    lora: Lora | None
    outputs: int
    inputs: int

    def write(self, out: Tensor, beside: Beside | None, ops: ModuleType) -> None:
        """The weight into out (n, k), in its type, and the adapter where `beside` says."""
        weight: Any = self.module.weight
        state = getattr(weight, "quant_state", None)
        if state is not None:
            nested = (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if state.nested else None
            codes = weight.data.view(torch.uint8)  # bitsandbytes may store the same bytes as another type (quant_storage)
            ops.dequantise_nf4(codes, state.absmax, state.code, out, nested, beside)
            return
        out.copy_(weight)
        if beside is not None:
            ops.write_adapter(beside)


class Group:
    """Layers with one input, in the order of their outputs."""

    def __init__(self, layers: Sequence[Frozen]) -> None:
        self.layers = tuple(layers)
        self.inputs = layers[0].inputs
        self.outputs = sum(layer.outputs for layer in layers)
        self.rank = sum(layer.lora.a.shape[0] for layer in layers if layer.lora)
        self.spare = thin_columns(self.rank)
        self.starts = [sum(layer.outputs for layer in layers[:index]) for index in range(len(layers))]
        self.places = [sum(layer.lora.a.shape[0] for layer in layers[:index] if layer.lora) for index in range(len(layers))]
        biases: list[Any] = [layer.module.bias for layer in layers]
        self.bias = any(bias is not None for bias in biases)
        self.a_gradient: Tensor | None = None
        """(rank, K), of all A together, where gradients are added up in one piece of memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the buffer."""
        return self.outputs + self.spare, self.inputs + self.spare

    def matrices(self) -> list[nn.Parameter]:
        """The adapters', in order: all A, then all B."""
        adapters = [layer.lora for layer in self.layers if layer.lora]
        return [lora.a for lora in adapters] + [lora.b for lora in adapters]

    @property
    def pattern(self) -> tuple[Any, ...]:
        """Which columns of sB and rows of A are written; the rest of the buffer must be zero."""
        return tuple((start, place, layer.lora.a.shape[0]) for layer, start, place in self._placed() if layer.lora)

    def _placed(self) -> Iterator[tuple[Frozen, int, int]]:
        return zip(self.layers, self.starts, self.places, strict=True)

    def write(self, buffer: Tensor, ops: ModuleType, weights: bool = True) -> None:
        """Weights and adapters, or adapters alone, as they are now. What is outside of the pattern is left."""
        right, below = buffer[: self.outputs, self.inputs :], buffer[self.outputs :, : self.inputs]
        for layer, start, place in self._placed():
            beside = None
            if layer.lora is not None:
                rows, columns = slice(start, start + layer.outputs), slice(place, place + layer.lora.a.shape[0])
                a, b = layer.lora.a.detach().contiguous(), layer.lora.b.detach().contiguous()
                beside = Beside(a, b, below[columns], right[rows, columns], layer.lora.scale)
            if weights:
                layer.write(buffer[start : start + layer.outputs, : self.inputs], beside, ops)
            elif beside is not None:
                ops.write_adapter(beside)

    def forward(self, x: Tensor, buffer: Tensor, out: Tensor, onto: bool = False) -> Tensor:
        """x (T, K + R), of which the last R are filled here, or (T, K) -> out (T, N), or added to it; returns x A', (T, R), on its own."""
        weights, below = buffer[: self.outputs], buffer[self.outputs :, : self.inputs]
        here = x[:, : self.inputs]
        low = here @ below.T
        if x.shape[1] == self.inputs + self.spare:
            x[:, self.inputs :].copy_(low)
            _into(out, x, weights, onto)
        else:  # a tensor that somebody else made, without room: the adapter's part is added in a second product
            _into(out, here, weights[:, : self.inputs], onto)
            out.addmm_(low, weights[:, self.inputs :].T)
        self.add_bias(out)
        return low

    def add_bias(self, out: Tensor) -> None:
        """To out (T, N), where some of the layers have one."""
        for layer, start, _ in self._placed() if self.bias else ():
            bias: Any = layer.module.bias
            if bias is not None:
                out[:, start : start + layer.outputs] += bias

    def forward_one(self, number: int, x: Tensor, buffer: Tensor, out: Tensor) -> Tensor:
        """Of one of the layers alone: x (T, K + R), of which the last R are filled here -> out (T, n); returns x A', (T, R), of all."""
        assert not self.bias
        low = x[:, : self.inputs] @ buffer[self.outputs :, : self.inputs].T
        x[:, self.inputs :].copy_(low)
        start = self.starts[number]
        torch.mm(x, buffer[start : start + self.layers[number].outputs].T, out=out)
        return low

    def low(self, x: Tensor, buffer: Tensor) -> Tensor:
        """x A', (T, R), once more."""
        return x @ buffer[self.outputs :, : self.inputs].T

    def backward(self, d_out: Tensor, buffer: Tensor, d_x: Tensor | None) -> Tensor:
        """d_out (T, N + R), of which the last R are filled here -> d_x (T, K); returns dy sB, (T, R)."""
        low = d_out[:, self.outputs :]
        if self.spare:
            torch.mm(d_out[:, : self.outputs], buffer[: self.outputs, self.inputs :], out=low)
        if d_x is not None:
            torch.mm(d_out, buffer[:, : self.inputs], out=d_x)
        return low

    def gradients(self, x: Tensor, low_x: Tensor, d_out: Tensor, low_d: Tensor) -> None:
        """Adds to each adapter's gradient, which must be there (gradients.py): x (T, K), low_x = x A' and low_d = dy sB (T, R), d_out (T, N)."""
        if not self.rank:
            return
        assert self.a_gradient is not None
        _add_product(self.a_gradient, low_d[:, : self.rank].T, x)
        for layer, start, place in self._placed():
            if layer.lora is not None:
                assert layer.lora.b.grad is not None
                here = d_out[:, start : start + layer.outputs].T
                _add_product(layer.lora.b.grad, here, low_x[:, place : place + layer.lora.a.shape[0]], layer.lora.scale)


def roomy(rows: int, width: int, spare: int, like: Tensor) -> Tensor:
    """(T, width + spare), not filled."""
    return torch.empty(rows, width + spare, dtype=like.dtype, device=like.device)


def _into(out: Tensor, x: Tensor, weights: Tensor, onto: bool) -> None:
    if onto:
        out.addmm_(x, weights.T)
    else:
        torch.mm(x, weights.T, out=out)


def _add_product(into: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """In float32 where the factors are in 16 bits: a gradient is a sum over thousands of tokens."""
    if left.is_cuda and left.dtype != into.dtype:
        torch.addmm(into, left, right, out_dtype=into.dtype, alpha=scale, out=into)
    elif left.dtype != into.dtype:
        into.add_(left @ right, alpha=scale)
    else:
        into.addmm_(left, right, alpha=scale)
