"""One decoder layer of the Llama family, forward and backward by hand: what is kept, what is computed again and what is written over are in sight.

    x -> norm -> q, k, v -> rotary positions -> attention -> o -> + x = middle -> norm -> gate, up -> silu(gate) * up -> down -> + middle

Of each layer the forward pass keeps one of four sets (bytes a token and layer for a 7B shape, in 16 bits):

    all        x, q k v, attention's result, middle, gate and up      95,072    nothing large is computed again
    thin       the same without gate and up                           37,600    gate and up are
    attention  x, attention's result                                  16,640    all but attention and `down`, whose result nobody needs
    input      x                                                       8,320    all but `down`

The backward pass writes gradients over what it has used up: gate and up become their own gradients, the gradient of `down`'s input becomes
that input again, and one tensor carries the gradient from layer to layer. tests/unit/fast holds each set against autograd in float64.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.budget.fast_sizes import pieces
from halfbyte.fast.attention import attend, attend_backward
from halfbyte.fast.block import Rows, Saved
from halfbyte.fast.linear import Group, roomy
from halfbyte.fast.norms import RmsNorm

if TYPE_CHECKING:
    from halfbyte.fast.buffers import Buffers


@dataclass(frozen=True)
class Layer:
    """What a layer computes with: groups of linear layers and norms of the loaded model, and its numbers."""

    input_norm: RmsNorm
    middle_norm: RmsNorm
    qkv: Group
    o: Group
    gate_up: Group
    down: Group
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    q_norm: RmsNorm | None = None
    k_norm: RmsNorm | None = None

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def spare(self) -> int:
        return self.down.spare

    def forward(self, x: Tensor, rows: Rows, keep: str, buffers: "Buffers", ops: ModuleType) -> tuple[Tensor, Saved]:
        saved, normed = _attention_half(self, Saved(x), rows, buffers, ops)
        middle = saved.middle
        assert middle is not None
        stays = keep in ("all", "thin")
        out = torch.empty_like(middle) if stays else middle
        low = []
        for here in pieces(len(x), None if keep == "all" else rows.at_once):
            gate_up = _gate_up(self, saved, normed[here], buffers)
            inner = roomy(len(gate_up), self.down.inputs, self.down.spare, x)
            ops.swiglu(gate_up[:, : self.gate_up.outputs], inner[:, : self.down.inputs])
            low.append(self.down.forward(inner, buffers.of(self.down), out[here], onto=not stays))
            if keep == "all":
                saved.gate_up = gate_up
            del gate_up, inner
        saved.low["down"] = low[0] if len(low) == 1 else torch.cat(low)
        if stays:
            out += middle
            if keep == "thin":
                del saved.low["gate_up"]
            return out, saved
        known = {"down": saved.low["down"]}
        return out, Saved(x, saved.attention, saved.kept, low=known) if keep == "attention" else Saved(x, low=known)

    def backward(self, d_out: Tensor, saved: Saved, rows: Rows, spare: int | None, buffers: "Buffers", ops: ModuleType) -> Tensor | None:
        x = saved.x
        tokens, width = x.shape
        normed = None
        if saved.middle is None:
            saved, normed = _attention_half(self, saved, rows, buffers, ops)
        d_middle = _mlp_backward(self, d_out, saved, normed, rows, buffers, ops)
        assert saved.qkv is not None
        assert saved.attention is not None
        assert saved.kept is not None
        del normed

        d_attention = torch.empty_like(saved.attention)
        low = self.o.backward(d_middle, buffers.of(self.o), d_attention)
        self.o.gradients(saved.attention, saved.low["o"], d_middle[:, :width], low)

        q, k, v = _heads(self, saved.qkv, saved.turned)
        shaped = saved.attention.unflatten(1, (self.heads, -1))
        grads = attend_backward(d_attention.unflatten(1, (self.heads, -1)), q, k, v, shaped, saved.kept, rows.documents, self.window, self.scale)
        d_qkv = roomy(tokens, self.qkv.outputs, self.qkv.spare, x)
        _turn_backward(self, *grads, saved.qkv, rows, d_qkv, ops)
        del q, k, v, shaped, grads, d_attention
        saved.qkv = saved.turned = saved.attention = saved.kept = None

        normed = torch.empty_like(x)
        d_normed = None if spare is None else torch.empty_like(x)
        low = self.qkv.backward(d_qkv, buffers.of(self.qkv), d_normed)
        d_x = None
        if spare is None or d_normed is None:
            self.input_norm.forward(x, normed, ops)
        else:
            d_x = _in_place(d_middle, width, spare)
            self.input_norm.backward(d_normed, x, d_middle[:, :width], d_x[:, :width], ops, normed)
        self.qkv.gradients(normed, saved.low["qkv"], d_qkv[:, : self.qkv.outputs], low)
        return d_x


def _in_place(gradient: Tensor, width: int, spare: int) -> Tensor:
    """Where a norm's backward pass writes, (T, width + spare): over the gradient that it carries on, if that has the room."""
    return gradient if gradient.shape[1] == width + spare else roomy(len(gradient), width, spare, gradient)


def _attention_half(layer: Layer, saved: Saved, rows: Rows, buffers: "Buffers", ops: ModuleType) -> tuple[Saved, Tensor]:
    """Everything up to `middle`, and its norm (T, D + R). Attention's result is taken where it is there."""
    x = saved.x
    tokens, width = x.shape
    low = dict(saved.low)
    normed = roomy(tokens, width, layer.qkv.spare, x)
    layer.input_norm.forward(x, normed[:, :width], ops)
    qkv = roomy(tokens, layer.qkv.outputs, 0, x)
    low["qkv"] = layer.qkv.forward(normed, buffers.of(layer.qkv), qkv)
    del normed
    turned = _turn(layer, qkv, rows, ops)
    attention, kept = saved.attention, saved.kept
    if attention is None or kept is None:
        q, k, v = _heads(layer, qkv, turned)
        result, kept = attend(q, k, v, rows.documents, layer.window, layer.scale)
        attention = result.flatten(1)
    added = torch.empty_like(x)
    low["o"] = layer.o.forward(attention, buffers.of(layer.o), added)
    normed = roomy(tokens, width, layer.gate_up.spare, x)
    ops.add_rms_norm(x, added, layer.middle_norm.weight, layer.middle_norm.eps, added, normed[:, :width])
    return Saved(x, attention, kept, qkv, turned, added, low=low), normed


def _turn(layer: Layer, qkv: Tensor, rows: Rows, ops: ModuleType) -> Tensor | None:
    """Rotary positions in place; where q and k have norms, into a new tensor (T, (H + H_kv) * head_dim), because those need what went in."""
    q_width, qk_width = layer.heads * layer.head_dim, (layer.heads + layer.kv_heads) * layer.head_dim
    if layer.q_norm is None or layer.k_norm is None:
        ops.rotate(qkv[:, :qk_width], rows.cos, rows.sin, layer.head_dim, qkv[:, :qk_width])
        return None
    turned = roomy(len(qkv), qk_width, 0, qkv)
    for norm, here in ((layer.q_norm, slice(0, q_width)), (layer.k_norm, slice(q_width, qk_width))):
        ops.rotate(qkv[:, here], rows.cos, rows.sin, layer.head_dim, turned[:, here], norm.weight, norm.eps)
    return turned


def _heads(layer: Layer, qkv: Tensor, turned: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q (T, H, head_dim), k and v (T, H_kv, head_dim), as views."""
    q_width, qk_width = layer.heads * layer.head_dim, (layer.heads + layer.kv_heads) * layer.head_dim
    qk = qkv if turned is None else turned
    parts = qk[:, :q_width], qk[:, q_width:qk_width], qkv[:, qk_width:]
    q, k, v = (part.unflatten(1, (-1, layer.head_dim)) for part in parts)
    return q, k, v


def _gate_up(layer: Layer, saved: Saved, normed: Tensor, buffers: "Buffers") -> Tensor:
    """normed (T, D + R) -> (T, 2F + R): R spare columns for its gradient's adapter part."""
    gate_up = roomy(len(normed), layer.gate_up.outputs, layer.gate_up.spare, normed)
    saved.low["gate_up"] = layer.gate_up.forward(normed, buffers.of(layer.gate_up), gate_up[:, : layer.gate_up.outputs])
    return gate_up


def _mlp_backward(layer: Layer, d_out: Tensor, saved: Saved, normed: Tensor | None, rows: Rows, buffers: "Buffers", ops: ModuleType) -> Tensor:
    """-> the gradient of `middle`, (T, D + o.spare). `normed`: the norm of `middle` (T, D + R), where it was just computed."""
    middle = saved.middle
    assert middle is not None
    width = middle.shape[1]
    kept, saved.gate_up = saved.gate_up, None
    d_middle = None
    for here in pieces(len(middle), None if kept is not None else rows.at_once):
        was, gate_up = None if normed is None else normed[here], kept
        if gate_up is None:
            if was is None:
                was = roomy(len(middle[here]), width, layer.gate_up.spare, middle)
                layer.middle_norm.forward(middle[here], was[:, :width], ops)
            gate_up = _gate_up(layer, saved, was, buffers)
        kept = None
        inner = roomy(len(gate_up), layer.down.inputs, 0, middle)  # its gradient first, then itself
        low = layer.down.backward(d_out[here], buffers.of(layer.down), inner)
        ops.swiglu_backward(gate_up[:, : layer.gate_up.outputs], inner)
        layer.down.gradients(inner, saved.low["down"][here], d_out[here, :width], low)
        del inner
        again = torch.empty_like(middle[here]) if was is None else None
        d_normed = torch.empty_like(middle[here])
        low = layer.gate_up.backward(gate_up, buffers.of(layer.gate_up), d_normed)
        if d_middle is None:
            d_middle = _in_place(d_out, width, layer.o.spare)
        layer.middle_norm.backward(d_normed, middle[here], d_out[here, :width], d_middle[here, :width], ops, again)
        x = again if was is None else was[:, :width]
        assert x is not None
        layer.gate_up.gradients(x, saved.low["gate_up"], gate_up[:, : layer.gate_up.outputs], low)
        del was, gate_up, low, again, d_normed, x
    assert d_middle is not None
    return d_middle


def _turn_backward(layer: Layer, dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, rows: Rows, d_qkv: Tensor, ops: ModuleType) -> None:
    """Gradients of q, k and v after their positions -> d_qkv (T, N + R)."""
    q_width, qk_width = layer.heads * layer.head_dim, (layer.heads + layer.kv_heads) * layer.head_dim
    for gradient, norm, here in ((dq, layer.q_norm, slice(0, q_width)), (dk, layer.k_norm, slice(q_width, qk_width))):
        given = (qkv[:, here], norm.weight, norm.eps) if norm is not None else ()
        ops.rotate_backward(gradient.flatten(1), rows.cos, rows.sin, layer.head_dim, d_qkv[:, here], *given)
    d_qkv[:, qk_width : layer.qkv.outputs].copy_(dv.flatten(1))
