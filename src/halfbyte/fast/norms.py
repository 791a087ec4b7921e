"""The norms of the loaded model, which are frozen: their weights, and which kernel computes with them."""

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from torch import Tensor


class Norm(Protocol):
    def forward(self, x: Tensor, out: Tensor, ops: ModuleType) -> None:
        """x (T, D) -> out (T, D)."""

    def backward(self, d_out: Tensor, x: Tensor, carried: Tensor, d_x: Tensor, ops: ModuleType, out: Tensor | None = None) -> None:
        """d_x (T, D) = carried + the gradient at x; the norm itself once more into `out`."""


@dataclass(frozen=True)
class RmsNorm:
    weight: Tensor
    eps: float

    def forward(self, x: Tensor, out: Tensor, ops: ModuleType) -> None:
        ops.rms_norm(x, self.weight, self.eps, out)

    def backward(self, d_out: Tensor, x: Tensor, carried: Tensor, d_x: Tensor, ops: ModuleType, out: Tensor | None = None) -> None:
        ops.rms_norm_backward(d_out, x, self.weight, self.eps, carried, d_x, out)


@dataclass(frozen=True)
class LayerNorm:
    weight: Tensor
    bias: Tensor
    eps: float

    def forward(self, x: Tensor, out: Tensor, ops: ModuleType) -> None:
        ops.layer_norm(x, self.weight, self.bias, self.eps, out)

    def backward(self, d_out: Tensor, x: Tensor, carried: Tensor, d_x: Tensor, ops: ModuleType, out: Tensor | None = None) -> None:
        ops.layer_norm_backward(d_out, x, self.weight, self.bias, self.eps, carried, d_x, out)
