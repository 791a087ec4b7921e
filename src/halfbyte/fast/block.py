"""What a decoder layer is to the step, whatever its family: layer.py has Llama's, falcon.py Falcon's."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from halfbyte.fast.attention import Documents, Kept
from halfbyte.fast.linear import Group

if TYPE_CHECKING:
    from halfbyte.fast.buffers import Buffers

KEEP = ("all", "thin", "attention", "input")
"""What the forward pass keeps of a layer for the backward pass: nothing large is computed again; what the MLP opens is; all but attention is; all is."""


@dataclass
class Saved:
    """Of one layer and micro-batch; None for what is computed again, and for what this kind of layer has not."""

    x: Tensor
    attention: Tensor | None = None
    kept: Kept | None = None
    qkv: Tensor | None = None
    turned: Tensor | None = None
    """q and k after their norms and positions, where they have norms; else they stand in qkv."""
    middle: Tensor | None = None
    gate_up: Tensor | None = None
    wide: Tensor | None = None
    """q, k, v and what the MLP opens, where one product makes them."""
    low: dict[str, Tensor] = field(default_factory=dict)
    """x A' of the groups by name, (T, R)."""


@dataclass(frozen=True)
class Rows:
    """What all layers share of a micro-batch of T tokens: cos and sin (T, head_dim / 2) of the positions, float32, and the documents."""

    cos: Tensor
    sin: Tensor
    documents: Documents
    at_once: int
    """Tokens that go through an MLP together, where what it opens is not kept: products gain nothing from more, and the largest tensors of all stay small."""


class Block(Protocol):
    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order in which the forward pass asks for their weights."""

    @property
    def spare(self) -> int:
        """Columns that the gradient of the result must have room for, beyond its width."""

    def forward(self, x: Tensor, rows: Rows, keep: str, buffers: "Buffers", ops: ModuleType) -> tuple[Tensor, Saved]:
        """x (T, D) -> (T, D), and what `keep`, one of KEEP, says."""

    def backward(self, d_out: Tensor, saved: Saved, rows: Rows, spare: int | None, buffers: "Buffers", ops: ModuleType) -> Tensor | None:
        """d_out (T, D + own spare) -> the gradient of x with room for the layer before, (T, D + spare). Uses up `saved`, adds to the adapters' gradients.

        With None, of the first layer, there is none: nobody trains its input.
        """
