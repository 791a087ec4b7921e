"""What each kernel computes, in plain PyTorch: the definition that gpu.py is held against, and what runs where there is no GPU.

Every tensor is a matrix of rows, one for each token, whose rows may lie apart in memory (`stride(0)` is free, `stride(1)` is 1). Results are
written into tensors that the caller owns, because where they lie saves the next product a copy. 16-bit numbers are computed with in float32
and rounded once; float32 and float64 stay as they are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
"""Weights of NF4 that share a scale (QLoRA, arXiv 2305.14314, section 3)."""


def widened(x: Tensor) -> Tensor:
    """What is computed with: float32 for 16-bit numbers."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """x (T, D), weight (D,) -> out (T, D) = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = widened(x)
    out.copy_(wide * _inverse_rms(wide, eps) * widened(weight))


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, total: Tensor, out: Tensor) -> None:
    """total (T, D) = x + y, rounded to its type; out (T, D) = rms_norm(total)."""
    total.copy_(widened(x) + widened(y))
    rms_norm(total, weight, eps, out)


def rms_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, eps: float, carried: Tensor, d_x: Tensor, out: Tensor | None = None) -> None:
    """d_x (T, D) = carried + the gradient of rms_norm at x; the norm itself once more into `out`. d_x may be `carried`. No gradient of `weight`."""
    wide, g = widened(x), widened(d_out) * widened(weight)
    inverse = _inverse_rms(wide, eps)
    unit = wide * inverse
    if out is not None:
        out.copy_(unit * widened(weight))
    d_x.copy_(widened(carried) + inverse * (g - unit * (g * unit).mean(-1, keepdim=True)))


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    """x (T, D), weight and bias (D,) -> out (T, D) = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al., arXiv 1607.06450)."""
    unit, _ = _standardised(widened(x), eps)
    out.copy_(unit * widened(weight) + widened(bias))


def layer_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, carried: Tensor, d_x: Tensor, out: Tensor | None = None) -> None:
    """d_x (T, D) = carried + the gradient of layer_norm at x; the norm itself once more into `out`. d_x may be `carried`. No gradient of weight and bias."""
    unit, inverse = _standardised(widened(x), eps)
    g = widened(d_out) * widened(weight)
    if out is not None:
        out.copy_(unit * widened(weight) + widened(bias))
    d_x.copy_(widened(carried) + inverse * (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True)))


def _standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and variance 1, and what they were multiplied by, (T, 1)."""
    centred = x - x.mean(-1, keepdim=True)
    inverse = _inverse_rms(centred, eps)
    return centred * inverse, inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, out: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> None:
    """Rotary positions (Su et al., arXiv 2104.09864) on halves of each head: x, out (T, H * head_dim), cos and sin (T, head_dim / 2). out may be x.

    With `weight` (head_dim,) each head goes through rms_norm first, as in Qwen3.
    """
    heads = widened(x).unflatten(-1, (-1, head_dim))
    if weight is not None:
        heads = heads * _inverse_rms(heads, eps) * widened(weight)
    out.copy_(_turned(heads, cos, sin).flatten(-2))


def rotate_backward(
    d_out: Tensor, cos: Tensor, sin: Tensor, head_dim: int, d_x: Tensor, x: Tensor | None = None, weight: Tensor | None = None, eps: float = 0.0
) -> None:
    """d_x (T, H * head_dim). A rotation's gradient is rotated back; with `weight`, x is what `rotate` was given."""
    back = _turned(widened(d_out).unflatten(-1, (-1, head_dim)), cos, -sin)
    if x is not None and weight is not None:
        heads = widened(x).unflatten(-1, (-1, head_dim))
        inverse = _inverse_rms(heads, eps)
        unit, g = heads * inverse, back * widened(weight)
        back = inverse * (g - unit * (g * unit).mean(-1, keepdim=True))
    d_x.copy_(back.flatten(-2))


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads (T, H, D), cos and sin (T, D / 2)."""
    first, second = heads.chunk(2, -1)
    c, s = cos[:, None].to(heads.dtype), sin[:, None].to(heads.dtype)
    return torch.cat((first * c - second * s, second * c + first * s), -1)


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    """gate_up (T, 2F): the gate's half, then the other's -> out (T, F) = silu(gate) * up (Shazeer, arXiv 2002.05202)."""
    gate, up = widened(gate_up).chunk(2, -1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def swiglu_backward(gate_up: Tensor, d_out: Tensor) -> None:
    """Overwrites both: gate_up (T, 2F) with its gradient, d_out (T, F) with what swiglu gave, which the next product's adapter wants again."""
    gate, up = widened(gate_up).chunk(2, -1)
    g = widened(d_out)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out, d_up = silu * up, g * silu
    d_gate = g * up * sigmoid * (1 + gate * (1 - sigmoid))
    gate_up.copy_(torch.cat((d_gate, d_up), -1))
    d_out.copy_(out)


def gelu(x: Tensor, out: Tensor) -> None:
    """x, out (T, F): x times the share of a normal distribution that is below x, with erf and not tanh (Hendrycks and Gimpel, arXiv 1606.08415)."""
    wide = widened(x)
    out.copy_(wide * _below(wide))


def gelu_backward(x: Tensor, d_out: Tensor) -> None:
    """Overwrites both (T, F): x with its gradient, d_out with what gelu gave, which the next product's adapter wants again."""
    wide, g = widened(x), widened(d_out)
    below = _below(wide)
    density = torch.exp(-0.5 * wide.square()) / math.sqrt(2 * math.pi)
    slope, out = g * (below + wide * density), wide * below
    x.copy_(slope)
    d_out.copy_(out)


def _below(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor, losses: Tensor) -> None:
    """losses (T,) = log sum exp(logits) - logits[target], unscaled; logits (T, V) are overwritten with their gradient times `scale`, ().

    A target below 0 is none: its loss and its gradient are 0.
    """
    there = targets >= 0
    place = targets.clamp(min=0)[:, None]
    log_probability = widened(logits).log_softmax(-1)
    losses.copy_(torch.where(there, -log_probability.gather(-1, place)[:, 0], 0.0))
    gradient = log_probability.exp()
    gradient.scatter_add_(-1, place, gradient.new_full((len(targets), 1), -1.0))
    logits.copy_(gradient * scale * there[:, None])


@dataclass(frozen=True)
class Beside:
    """An adapter that is written beside and below its weight: A (r, K), B (n, r), where they go, and what B is multiplied by."""

    a: Tensor
    b: Tensor
    below: Tensor
    right: Tensor
    scale: float


def write_adapter(beside: Beside) -> None:
    """below (r, K) = A, right (n, r) = scale * B, each rounded once."""
    beside.below.copy_(beside.a)
    beside.right.copy_(beside.b * beside.scale)


def dequantise_nf4(
    codes: Tensor, scales: Tensor, code: Tensor, out: Tensor, nested: tuple[Tensor, Tensor, Tensor, int] | None = None, beside: Beside | None = None
) -> None:
    """codes (n * K / 2) uint8, the first of two weights in the upper half -> out (n, K) = code[4 bits] * scale of its block; then write_adapter.

    scales (n * K / 64): float32, or with `nested` = (scales2, code2, offset, size) uint8 that stand for code2[scale] * scales2[place // size] + offset.
    """
    if nested is not None:
        outer, code2, offset, size = nested
        places = torch.arange(len(scales), device=scales.device) // size
        scales = code2[scales.long()] * outer[places] + offset
    flat = codes.flatten().long()
    values = torch.stack((code[flat >> 4], code[flat & 15]), -1).view(-1, BLOCK) * scales[:, None]
    out.copy_(values.view(out.shape))
    if beside is not None:
        write_adapter(beside)
