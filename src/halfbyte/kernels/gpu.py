"""The functions of reference.py as Triton kernels: the same names, arguments and results, one launch each.

Each program takes one token's row, or a piece of it, reads it once and writes it once: these are bound by memory. Offsets of rows are 64-bit,
since T x 2F passes 2^31 at 75,000 tokens of a 7B shape.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbyte.kernels.reference import Beside

PIECE = 2048  # of a row that is longer than what a program should hold
ROOT_HALF = tl.constexpr(math.sqrt(0.5))
NORMAL = tl.constexpr(1 / math.sqrt(2 * math.pi))  # the height of a normal distribution


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    _norm(x, x, weight, eps, x, out, adds=False)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, total: Tensor, out: Tensor) -> None:
    _norm(x, y, weight, eps, total, out, adds=True)


def _norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, total: Tensor, out: Tensor, adds: bool) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _norm_kernel[(rows,)](
        x, x.stride(0), y, y.stride(0), weight, eps, total, total.stride(0), out, out.stride(0), width, ADDS=adds, BLOCK=block, num_warps=_warps(block)
    )


@triton.jit
def _norm_kernel(x, x_row, y, y_row, weight, eps, total, total_row, out, out_row, width, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + row * x_row + at, mask=there, other=0.0)
    wide = value.to(tl.float32)
    if ADDS:
        added = tl.load(y + row * y_row + at, mask=there, other=0.0).to(tl.float32)
        rounded = (wide + added).to(value.dtype)
        tl.store(total + row * total_row + at, rounded, mask=there)
        wide = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    gamma = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + at, (wide * inverse * gamma).to(value.dtype), mask=there)


def rms_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, eps: float, carried: Tensor, d_x: Tensor, out: Tensor | None = None) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    again = x if out is None else out
    _norm_backward_kernel[(rows,)](
        d_out, d_out.stride(0), x, x.stride(0), weight, eps, carried, carried.stride(0), d_x, d_x.stride(0), again, again.stride(0), width,
        AGAIN=out is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


@triton.jit
def _norm_backward_kernel(
    d_out, d_out_row, x, x_row, weight, eps, carried, carried_row, d_x, d_x_row, again, again_row, width, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + row * x_row + at, mask=there, other=0.0)
    gamma = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    g = tl.load(d_out + row * d_out_row + at, mask=there, other=0.0).to(tl.float32) * gamma
    kept = tl.load(carried + row * carried_row + at, mask=there, other=0.0).to(tl.float32)
    wide = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    unit = wide * inverse
    if AGAIN:
        tl.store(again + row * again_row + at, (unit * gamma).to(value.dtype), mask=there)
    slope = inverse * (g - unit * (tl.sum(g * unit, 0) / width))
    tl.store(d_x + row * d_x_row + at, (kept + slope).to(value.dtype), mask=there)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _layer_norm_kernel[(rows,)](x, x.stride(0), weight, bias, eps, out, out.stride(0), width, BLOCK=block, num_warps=_warps(block))


@triton.jit
def _standardised(wide, there, width, eps):
    centred = tl.where(there, wide - tl.sum(wide, 0) / width, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    return centred * inverse, inverse


@triton.jit
def _layer_norm_kernel(x, x_row, weight, bias, eps, out, out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + row * x_row + at, mask=there, other=0.0)
    gamma = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    beta = tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    unit, _ = _standardised(value.to(tl.float32), there, width, eps)
    tl.store(out + row * out_row + at, (unit * gamma + beta).to(value.dtype), mask=there)


def layer_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, carried: Tensor, d_x: Tensor, out: Tensor | None = None) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    again = x if out is None else out
    _layer_norm_backward_kernel[(rows,)](
        d_out, d_out.stride(0), x, x.stride(0), weight, bias, eps, carried, carried.stride(0), d_x, d_x.stride(0), again, again.stride(0), width,
        AGAIN=out is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


@triton.jit
def _layer_norm_backward_kernel(
    d_out, d_out_row, x, x_row, weight, bias, eps, carried, carried_row, d_x, d_x_row, again, again_row, width, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + row * x_row + at, mask=there, other=0.0)
    gamma = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    g = tl.load(d_out + row * d_out_row + at, mask=there, other=0.0).to(tl.float32) * gamma
    kept = tl.load(carried + row * carried_row + at, mask=there, other=0.0).to(tl.float32)
    unit, inverse = _standardised(value.to(tl.float32), there, width, eps)
    if AGAIN:
        beta = tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
        tl.store(again + row * again_row + at, (unit * gamma + beta).to(value.dtype), mask=there)
    slope = inverse * (g - tl.sum(g, 0) / width - unit * (tl.sum(g * unit, 0) / width))
    tl.store(d_x + row * d_x_row + at, (kept + slope).to(value.dtype), mask=there)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, out: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> None:
    _rotate(x, cos, sin, head_dim, out, x, weight, eps, back=False)


def rotate_backward(
    d_out: Tensor, cos: Tensor, sin: Tensor, head_dim: int, d_x: Tensor, x: Tensor | None = None, weight: Tensor | None = None, eps: float = 0.0
) -> None:
    _rotate(d_out, cos, sin, head_dim, d_x, d_out if x is None else x, None if x is None else weight, eps, back=True)


def _rotate(given: Tensor, cos: Tensor, sin: Tensor, head_dim: int, out: Tensor, x: Tensor, weight: Tensor | None, eps: float, back: bool) -> None:
    rows, half = len(given), head_dim // 2
    heads = given.shape[1] // head_dim
    _rotate_kernel[(rows,)](
        given, given.stride(0), cos, sin, out, out.stride(0), x, x.stride(0), cos if weight is None else weight, eps, heads, half,
        NORM=weight is not None, BACK=back, HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip


@triton.jit
def _rotate_kernel(
    given, given_row, cos, sin, out, out_row, x, x_row, weight, eps, heads, half,
    NORM: tl.constexpr, BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, HALF)[None, :]
    head = tl.arange(0, HEADS)[:, None]
    there = (head < heads) & (place < half)
    at = head * (2 * half) + place
    c = tl.load(cos + row * half + place, mask=place < half, other=0.0)
    s = tl.load(sin + row * half + place, mask=place < half, other=0.0)
    raw = tl.load(given + row * given_row + at, mask=there, other=0.0)
    first = raw.to(tl.float32)
    second = tl.load(given + row * given_row + at + half, mask=there, other=0.0).to(tl.float32)
    if NORM:
        gamma1 = tl.load(weight + place, mask=place < half, other=0.0).to(tl.float32)
        gamma2 = tl.load(weight + half + place, mask=place < half, other=0.0).to(tl.float32)
        x1 = tl.load(x + row * x_row + at, mask=there, other=0.0).to(tl.float32)
        x2 = tl.load(x + row * x_row + at + half, mask=there, other=0.0).to(tl.float32)
        inverse = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / (2 * half) + eps)[:, None]
        if not BACK:
            first, second = x1 * inverse * gamma1, x2 * inverse * gamma2
    if BACK:
        s = -s
    turned1, turned2 = first * c - second * s, second * c + first * s
    if NORM and BACK:
        g1, g2 = turned1 * gamma1, turned2 * gamma2
        u1, u2 = x1 * inverse, x2 * inverse
        shared = ((tl.sum(g1 * u1, 1) + tl.sum(g2 * u2, 1)) / (2 * half))[:, None]
        turned1, turned2 = inverse * (g1 - u1 * shared), inverse * (g2 - u2 * shared)
    tl.store(out + row * out_row + at, turned1.to(raw.dtype), mask=there)
    tl.store(out + row * out_row + at + half, turned2.to(raw.dtype), mask=there)


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    rows, width = out.shape
    _swiglu_kernel[(rows, triton.cdiv(width, PIECE))](gate_up, gate_up.stride(0), out, out.stride(0), width, BLOCK=PIECE, num_warps=8)


@triton.jit
def _swiglu_kernel(gate_up, gate_up_row, out, out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    raw = tl.load(gate_up + row * gate_up_row + at, mask=there, other=0.0)
    up = tl.load(gate_up + row * gate_up_row + width + at, mask=there, other=0.0).to(tl.float32)
    gate = raw.to(tl.float32)
    tl.store(out + row * out_row + at, (gate * tl.sigmoid(gate) * up).to(raw.dtype), mask=there)


def swiglu_backward(gate_up: Tensor, d_out: Tensor) -> None:
    rows, width = d_out.shape
    _swiglu_backward_kernel[(rows, triton.cdiv(width, PIECE))](gate_up, gate_up.stride(0), d_out, d_out.stride(0), width, BLOCK=PIECE, num_warps=8)


@triton.jit
def _swiglu_backward_kernel(gate_up, gate_up_row, d_out, d_out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    gate_at = gate_up + row * gate_up_row + at
    out_at = d_out + row * d_out_row + at
    raw = tl.load(gate_at, mask=there, other=0.0)
    gate = raw.to(tl.float32)
    up = tl.load(gate_at + width, mask=there, other=0.0).to(tl.float32)
    g = tl.load(out_at, mask=there, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(gate_at, (g * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(raw.dtype), mask=there)
    tl.store(gate_at + width, (g * silu).to(raw.dtype), mask=there)
    tl.store(out_at, (silu * up).to(raw.dtype), mask=there)


def gelu(x: Tensor, out: Tensor) -> None:
    rows, width = out.shape
    _gelu_kernel[(rows, triton.cdiv(width, PIECE))](x, x.stride(0), out, out.stride(0), width, BLOCK=PIECE, num_warps=8)


@triton.jit
def _gelu_kernel(x, x_row, out, out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    raw = tl.load(x + row * x_row + at, mask=there, other=0.0)
    wide = raw.to(tl.float32)
    tl.store(out + row * out_row + at, (wide * (0.5 + 0.5 * tl.erf(wide * ROOT_HALF))).to(raw.dtype), mask=there)


def gelu_backward(x: Tensor, d_out: Tensor) -> None:
    rows, width = d_out.shape
    _gelu_backward_kernel[(rows, triton.cdiv(width, PIECE))](x, x.stride(0), d_out, d_out.stride(0), width, BLOCK=PIECE, num_warps=8)


@triton.jit
def _gelu_backward_kernel(x, x_row, d_out, d_out_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    x_at = x + row * x_row + at
    out_at = d_out + row * d_out_row + at
    raw = tl.load(x_at, mask=there, other=0.0)
    g = tl.load(out_at, mask=there, other=0.0).to(tl.float32)
    wide = raw.to(tl.float32)
    below = 0.5 + 0.5 * tl.erf(wide * ROOT_HALF)
    density = tl.exp(-0.5 * wide * wide) * NORMAL
    tl.store(x_at, (g * (below + wide * density)).to(raw.dtype), mask=there)
    tl.store(out_at, (wide * below).to(raw.dtype), mask=there)


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor, losses: Tensor) -> None:
    rows, width = logits.shape
    _cross_entropy_kernel[(rows,)](logits, logits.stride(0), targets, scale, losses, WIDTH=width, BLOCK=min(8192, triton.next_power_of_2(width)), num_warps=16)


@triton.jit
def _cross_entropy_kernel(logits, logits_row, targets, scale, losses, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * logits_row
    target = tl.load(targets + row)
    largest = float("-inf")
    total = 0.0
    for piece in range(0, WIDTH, BLOCK):
        at = piece + tl.arange(0, BLOCK)
        value = tl.load(start + at, mask=at < WIDTH, other=float("-inf")).to(tl.float32)
        now = tl.maximum(largest, tl.max(value, 0))
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(value - now), 0)
        largest = now
    there = target >= 0
    wanted = tl.load(start + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(there, largest - wanted + tl.log(total), 0.0))
    weight = tl.where(there, tl.load(scale), 0.0)
    tl.debug_barrier()  # the target's logit is read before it is overwritten
    for piece in range(0, WIDTH, BLOCK):
        at = piece + tl.arange(0, BLOCK)
        raw = tl.load(start + at, mask=at < WIDTH, other=float("-inf"))
        gradient = tl.exp(raw.to(tl.float32) - largest) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(start + at, (gradient * weight).to(raw.dtype), mask=at < WIDTH)


def write_adapter(beside: Beside) -> None:
    a, b = beside.a, beside.b
    _nf4_kernel[(a.shape[0] + b.shape[0], triton.cdiv(a.shape[1], 64 * BLOCKS))](
        a, a, a, a, a, a, a, 0, b.shape[0], a.shape[1], 1, a, b, beside.below, beside.below.stride(0), beside.right, beside.right.stride(0), beside.scale,
        a.shape[0], WEIGHT=False, NESTED=False, BESIDE=True, BLOCKS=BLOCKS, RANK=triton.next_power_of_2(a.shape[0]), num_warps=4, **EXACTLY
    )  # fmt: skip


def dequantise_nf4(
    codes: Tensor, scales: Tensor, code: Tensor, out: Tensor, nested: tuple[Tensor, Tensor, Tensor, int] | None = None, beside: Beside | None = None
) -> None:
    rows, width = out.shape
    outer, code2, offset, size = nested if nested is not None else (code, code, code, 1)
    a, b, below, right, scale = (beside.a, beside.b, beside.below, beside.right, beside.scale) if beside is not None else (code, code, code, code, 1.0)
    rank = len(a) if beside is not None else 0
    _nf4_kernel[(rows + rank, triton.cdiv(width, 64 * BLOCKS))](
        codes.flatten().view(torch.int32), scales, code, outer, code2, offset, out, out.stride(0), rows, width, size, a, b, below, below.stride(0),
        right, right.stride(0), scale,
        rank, WEIGHT=True, NESTED=nested is not None, BESIDE=beside is not None, BLOCKS=BLOCKS, RANK=triton.next_power_of_2(max(rank, 1)), num_warps=4,
        **EXACTLY,
    )  # fmt: skip


BLOCKS = 32
"""Of 64 weights, that a program writes."""
EXACTLY: dict[str, Any] = {"enable_fp_fusion": False}
"""bitsandbytes multiplies, rounds, then adds the offset; a fused product would differ in the last digit."""


@triton.jit
def _nf4_kernel(
    codes, scales, code, outer, code2, offset, out, out_row, rows, width, size, a, b, below, below_row, right, right_row, scale, rank,
    WEIGHT: tl.constexpr, NESTED: tl.constexpr, BESIDE: tl.constexpr, BLOCKS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first_block = tl.program_id(1) * BLOCKS
    if row < rows:
        if WEIGHT:
            word = first_block * 8 + tl.arange(0, BLOCKS * 8)  # eight weights in 32 bits: four bytes, the first weight in the upper half of the first
            there = word * 8 < width
            number = row * (width // 64) + word // 8
            if NESTED:
                absmax = tl.load(code2 + tl.load(scales + number, mask=there, other=0).to(tl.int32))
                absmax = absmax * tl.load(outer + number // size, mask=there, other=0.0) + tl.load(offset)
            else:
                absmax = tl.load(scales + number, mask=there, other=0.0)
            eight = tl.load(codes + row * (width // 8) + word, mask=there, other=0)
            place = tl.arange(0, 8)[None, :]
            four_bits = (eight[:, None] >> ((place // 2) * 8 + 4 - (place % 2) * 4)) & 15
            value = tl.load(code + four_bits) * absmax[:, None]
            tl.store(out + row * out_row + word[:, None] * 8 + place, value.to(out.dtype.element_ty), mask=there[:, None])
        if BESIDE:  # noqa: SIM102 (decided when the kernel is compiled; the next when it runs)
            if first_block == 0:
                place_b = tl.arange(0, RANK)
                value_b = tl.load(b + row * rank + place_b, mask=place_b < rank, other=0.0)
                tl.store(right + row * right_row + place_b, (value_b * scale).to(right.dtype.element_ty), mask=place_b < rank)
    elif BESIDE:
        column = first_block * 64 + tl.arange(0, BLOCKS * 64)
        value_a = tl.load(a + (row - rows) * width + column, mask=column < width, other=0.0)
        tl.store(below + (row - rows) * below_row + column, value_a.to(below.dtype.element_ty), mask=column < width)


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
