"""One decoder layer of Falcon-7B's kind, forward and backward by hand: attention and MLP stand beside each other behind one norm.

                    +-> q, k, v -> rotary positions -> attention -> o ----+
    x -> norm ------+                                                     +-> + x
                    +-> what the MLP opens -> gelu -> down ---------------+

One product makes q, k, v and what the MLP opens, (T, N + R): the norm is read once, and one product gives its gradient, with nothing to add up. Kept are
(bytes a token and layer for the 7B shape, in 16 bits):

    all        x, that product's result, attention's result      64,668
    thin       x, q k v of it, attention's result                28,060
    attention  x, attention's result                             18,460
    input      x                                                  9,088

Neither `o` nor `down` is ever computed again. The backward pass writes the gradients over what the product gave: first over what the MLP opened, then
over q, k and v, so that it lies ready for the product back.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.fast.attention import attend, attend_backward
from halfbyte.fast.block import Rows, Saved
from halfbyte.fast.linear import Group, roomy
from halfbyte.fast.norms import LayerNorm

if TYPE_CHECKING:
    from halfbyte.fast.buffers import Buffers


@dataclass(frozen=True)
class FalconLayer:
    """What a layer computes with. `wide`: query_key_value and dense_h_to_4h; o: dense; down: dense_4h_to_h. All heads share one of keys and values."""

    norm: LayerNorm
    wide: Group
    o: Group
    down: Group
    heads: int
    head_dim: int
    scale: float

    window = None
    """Every token sees all before it."""

    @property
    def groups(self) -> tuple[Group, Group, Group]:
        return self.wide, self.o, self.down

    @property
    def spare(self) -> int:
        return max(self.o.spare, self.down.spare)

    @property
    def turned(self) -> int:
        """Columns of q and k."""
        return (self.heads + 1) * self.head_dim

    @property
    def narrow(self) -> int:
        """Columns of q, k and v."""
        return (self.heads + 2) * self.head_dim

    def forward(self, x: Tensor, rows: Rows, keep: str, buffers: "Buffers", ops: ModuleType) -> tuple[Tensor, Saved]:
        saved = Saved(x)
        _widen(self, saved, rows, buffers, ops)
        wide, attention = saved.wide, saved.attention
        assert wide is not None
        assert attention is not None
        inner = roomy(len(x), self.down.inputs, self.down.spare, x)
        ops.gelu(wide[:, self.narrow : self.wide.outputs], inner[:, : self.down.inputs])
        out = torch.empty_like(x)
        saved.low["o"] = self.o.forward(attention, buffers.of(self.o), out)
        saved.low["down"] = self.down.forward(inner, buffers.of(self.down), out, onto=True)
        out += x
        if keep == "all":
            return out, saved
        if keep == "thin":
            low = {name: saved.low[name] for name in ("o", "down")}
            return out, Saved(x, attention, saved.kept, qkv=wide[:, : self.narrow].contiguous(), low=low)
        return out, Saved(x, attention, saved.kept) if keep == "attention" else Saved(x)

    def backward(self, d_out: Tensor, saved: Saved, rows: Rows, spare: int | None, buffers: "Buffers", ops: ModuleType) -> Tensor | None:
        x = saved.x
        tokens, width = x.shape
        if saved.wide is None:
            _widen(self, saved, rows, buffers, ops)
        wide, attention, kept = saved.wide, saved.attention, saved.kept
        assert wide is not None
        assert attention is not None
        assert kept is not None

        inner = roomy(tokens, self.down.inputs, 0, x)  # its gradient first, then itself
        low = self.down.backward(d_out[:, : width + self.down.spare], buffers.of(self.down), inner)
        ops.gelu_backward(wide[:, self.narrow : self.wide.outputs], inner)
        low_x = saved.low["down"] if "down" in saved.low else self.down.low(inner, buffers.of(self.down))
        self.down.gradients(inner, low_x, d_out[:, :width], low)
        del inner

        d_attention = torch.empty_like(attention)
        low = self.o.backward(d_out[:, : width + self.o.spare], buffers.of(self.o), d_attention)
        low_x = saved.low["o"] if "o" in saved.low else self.o.low(attention, buffers.of(self.o))
        self.o.gradients(attention, low_x, d_out[:, :width], low)

        q, k, v = _heads(self, wide if saved.qkv is None else saved.qkv)
        shaped = attention.unflatten(1, (self.heads, -1))
        dq, dk, dv = attend_backward(d_attention.unflatten(1, (self.heads, -1)), q, k, v, shaped, kept, rows.documents, None, self.scale)
        q_width = self.heads * self.head_dim
        for gradient, here in ((dq, slice(0, q_width)), (dk, slice(q_width, self.turned))):
            ops.rotate_backward(gradient.flatten(1), rows.cos, rows.sin, self.head_dim, wide[:, here])
        wide[:, self.turned : self.narrow].copy_(dv.flatten(1))
        del q, k, v, shaped, gradient, dq, dk, dv, d_attention, attention, kept
        saved.qkv = saved.attention = saved.kept = None

        normed = torch.empty_like(x)
        d_normed = None if spare is None else torch.empty_like(x)
        low = self.wide.backward(wide, buffers.of(self.wide), d_normed)
        d_x = None
        if spare is None or d_normed is None:
            self.norm.forward(x, normed, ops)
        else:
            d_x = roomy(tokens, width, spare, x)
            self.norm.backward(d_normed, x, d_out[:, :width], d_x[:, :width], ops, normed)
        self.wide.gradients(normed, saved.low["wide"], wide[:, : self.wide.outputs], low)
        return d_x


def _widen(layer: FalconLayer, saved: Saved, rows: Rows, buffers: "Buffers", ops: ModuleType) -> None:
    """Fills in `wide`, (T, N + R), R spare columns for its gradient's adapter part, and attention's result. What is there is taken."""
    x = saved.x
    tokens, width = x.shape
    normed = roomy(tokens, width, layer.wide.spare, x)
    layer.norm.forward(x, normed[:, :width], ops)
    wide = roomy(tokens, layer.wide.outputs, layer.wide.spare, x)
    saved.wide = wide
    if saved.qkv is not None:
        saved.low["wide"] = layer.wide.forward_one(1, normed, buffers.of(layer.wide), wide[:, layer.narrow : layer.wide.outputs])
        return
    saved.low["wide"] = layer.wide.forward(normed, buffers.of(layer.wide), wide[:, : layer.wide.outputs])
    del normed
    ops.rotate(wide[:, : layer.turned], rows.cos, rows.sin, layer.head_dim, wide[:, : layer.turned])
    if saved.attention is None:
        result, saved.kept = attend(*_heads(layer, wide), rows.documents, None, layer.scale)
        saved.attention = result.flatten(1)


def _heads(layer: FalconLayer, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (T, H, head_dim), k and v (T, 1, head_dim), as views."""
    parts = qkv[:, : layer.heads * layer.head_dim], qkv[:, layer.heads * layer.head_dim : layer.turned], qkv[:, layer.turned : layer.narrow]
    q, k, v = (part.unflatten(1, (-1, layer.head_dim)) for part in parts)
    return q, k, v
