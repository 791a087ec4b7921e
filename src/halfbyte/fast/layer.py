"""One decoder layer of the Llama family, forward and backward by hand: what is kept, what is computed again and what is written over are in sight.

    x -> norm -> q, k, v -> rotary positions -> attention -> o -> + x = middle -> norm -> gate, up -> silu(gate) * up -> down -> + middle

Of each layer the forward pass keeps one of three sets (recipe.plan.Placement names them; bytes a token and layer for a 7B shape):

    all      x, q k v, attention's result, middle, gate and up      94,560    no product is computed again
    thin     the same without gate and up                           37,216    gate and up are
    input    x                                                        8,192    all but `down`, whose result nobody needs

The backward pass writes gradients over what it has used up: gate and up become their own gradients, and the gradient of `down`'s input becomes
that input again. tests/unit/fast holds each set against autograd in float64.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.fast.attention import Documents, Kept, attend, attend_backward
from halfbyte.fast.linear import Group, roomy

if TYPE_CHECKING:
    from halfbyte.fast.buffers import Buffers

KEEP = ("all", "thin", "input")


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Layer:
    """What a layer computes with: groups of linear layers and norms of the loaded model, and its numbers."""

    input_norm: Norm
    middle_norm: Norm
    qkv: Group
    o: Group
    gate_up: Group
    down: Group
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass
class Saved:
    """Of one layer and micro-batch; None for what is computed again."""

    x: Tensor | None
    qkv: Tensor | None = None
    turned: Tensor | None = None
    """q and k after their norms and positions, where they have norms; else they stand in qkv."""
    attention: Tensor | None = None
    kept: Kept | None = None
    middle: Tensor | None = None
    gate_up: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """What all layers share of a micro-batch of T tokens: cos and sin (T, head_dim / 2) of the positions, float32, and the documents."""

    cos: Tensor
    sin: Tensor
    documents: Documents


def forward(layer: Layer, x: Tensor, rows: Rows, keep: str, buffers: "Buffers", ops: ModuleType) -> tuple[Tensor, Saved]:
    """x (T, D) -> (T, D)."""
    saved = _attention_half(layer, x, rows, buffers, ops)
    assert saved.middle is not None
    gate_up = _gate_up(layer, saved.middle, buffers, ops)
    tokens, hidden = len(x), layer.down.inputs
    inner = roomy(tokens, hidden, layer.down.spare, x)
    ops.swiglu(gate_up[:, : layer.gate_up.outputs], inner[:, :hidden])
    out = torch.empty_like(saved.middle)
    layer.down.forward(inner, buffers.of(layer.down), out)
    out += saved.middle
    if keep == "all":
        saved.gate_up = gate_up
    return out, saved if keep != "input" else Saved(x)


def _attention_half(layer: Layer, x: Tensor, rows: Rows, buffers: "Buffers", ops: ModuleType) -> Saved:
    """Everything up to `middle`."""
    tokens, width = x.shape
    normed = roomy(tokens, width, layer.qkv.spare, x)
    ops.rms_norm(x, layer.input_norm.weight, layer.input_norm.eps, normed[:, :width])
    qkv = roomy(tokens, layer.qkv.outputs, 0, x)
    layer.qkv.forward(normed, buffers.of(layer.qkv), qkv)
    turned = _turn(layer, qkv, rows, ops)
    q, k, v = _heads(layer, qkv, turned)
    result, kept = attend(q, k, v, rows.documents, layer.window, layer.scale)
    attention = result.flatten(1)
    added = torch.empty_like(x)
    layer.o.forward(attention, buffers.of(layer.o), added)
    return Saved(x, qkv, turned, attention, kept, added.add_(x))


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


def _gate_up(layer: Layer, middle: Tensor, buffers: "Buffers", ops: ModuleType) -> Tensor:
    """(T, 2F + R): R spare columns for its gradient's adapter part."""
    tokens, width = middle.shape
    normed = roomy(tokens, width, layer.gate_up.spare, middle)
    ops.rms_norm(middle, layer.middle_norm.weight, layer.middle_norm.eps, normed[:, :width])
    gate_up = roomy(tokens, layer.gate_up.outputs, layer.gate_up.spare, middle)
    layer.gate_up.forward(normed, buffers.of(layer.gate_up), gate_up[:, : layer.gate_up.outputs])
    return gate_up


def backward(layer: Layer, d_out: Tensor, saved: Saved, rows: Rows, first: bool, buffers: "Buffers", ops: ModuleType) -> Tensor | None:
    """d_out (T, D + down.spare) -> the gradient of x in the same form, or None of the `first` layer, whose input nobody trains. Uses up `saved`."""
    x = saved.x
    assert x is not None
    if saved.middle is None:
        saved = _attention_half(layer, x, rows, buffers, ops)
    assert saved.middle is not None and saved.qkv is not None and saved.attention is not None and saved.kept is not None
    tokens, width = x.shape
    d_middle = _mlp_backward(layer, d_out, saved, buffers, ops)

    d_attention = torch.empty_like(saved.attention)
    low = layer.o.backward(d_middle, buffers.of(layer.o), d_attention)
    low_o = _low(layer.o, saved.attention, buffers)
    layer.o.gradients(saved.attention, low_o, d_middle[:, :width], low)

    q, k, v = _heads(layer, saved.qkv, saved.turned)
    shaped = saved.attention.unflatten(1, (layer.heads, -1))
    grads = attend_backward(d_attention.unflatten(1, (layer.heads, -1)), q, k, v, shaped, saved.kept, rows.documents, layer.window, layer.scale)
    d_qkv = roomy(tokens, layer.qkv.outputs, layer.qkv.spare, x)
    _turn_backward(layer, *grads, saved.qkv, rows, d_qkv, ops)
    del q, k, v, shaped, grads, d_attention
    saved.qkv = saved.turned = saved.attention = saved.kept = None

    normed = torch.empty_like(x)
    d_normed = None if first else torch.empty_like(x)
    low = layer.qkv.backward(d_qkv, buffers.of(layer.qkv), d_normed)
    d_x = None
    if d_normed is None:
        ops.rms_norm(x, layer.input_norm.weight, layer.input_norm.eps, normed)
    else:
        d_x = roomy(tokens, width, layer.down.spare, x)
        ops.rms_norm_backward(d_normed, x, layer.input_norm.weight, layer.input_norm.eps, d_middle[:, :width], d_x[:, :width], normed)
    layer.qkv.gradients(normed, _low(layer.qkv, normed, buffers), d_qkv[:, : layer.qkv.outputs], low)
    return d_x


def _mlp_backward(layer: Layer, d_out: Tensor, saved: Saved, buffers: "Buffers", ops: ModuleType) -> Tensor:
    """-> the gradient of `middle`, (T, D + o.spare)."""
    middle = saved.middle
    assert middle is not None
    tokens, width = middle.shape
    gate_up = saved.gate_up if saved.gate_up is not None else _gate_up(layer, middle, buffers, ops)
    saved.gate_up = None
    inner = roomy(tokens, layer.down.inputs, 0, middle)  # its gradient first, then itself
    low = layer.down.backward(d_out, buffers.of(layer.down), inner)
    ops.swiglu_backward(gate_up[:, : layer.gate_up.outputs], inner)
    layer.down.gradients(inner, _low(layer.down, inner, buffers), d_out[:, :width], low)
    del inner
    d_normed, normed = torch.empty_like(middle), torch.empty_like(middle)
    low = layer.gate_up.backward(gate_up, buffers.of(layer.gate_up), d_normed)
    d_middle = roomy(tokens, width, layer.o.spare, middle)
    ops.rms_norm_backward(d_normed, middle, layer.middle_norm.weight, layer.middle_norm.eps, d_out[:, :width], d_middle[:, :width], normed)
    layer.gate_up.gradients(normed, _low(layer.gate_up, normed, buffers), gate_up[:, : layer.gate_up.outputs], low)
    return d_middle


def _low(group: Group, x: Tensor, buffers: "Buffers") -> Tensor:
    """x A', (T, R), once more: 64 columns are sooner computed than kept."""
    return x @ buffers.of(group)[group.outputs :, : group.inputs].T


def _turn_backward(layer: Layer, dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, rows: Rows, d_qkv: Tensor, ops: ModuleType) -> None:
    """Gradients of q, k and v after their positions -> d_qkv (T, N + R)."""
    q_width, qk_width = layer.heads * layer.head_dim, (layer.heads + layer.kv_heads) * layer.head_dim
    for gradient, norm, here in ((dq, layer.q_norm, slice(0, q_width)), (dk, layer.k_norm, slice(q_width, qk_width))):
        given = (qkv[:, here], norm.weight, norm.eps) if norm is not None else ()
        ops.rotate_backward(gradient.flatten(1), rows.cos, rows.sin, layer.head_dim, d_qkv[:, here], *given)
    d_qkv[:, qk_width : layer.qkv.outputs].copy_(dv.flatten(1))
