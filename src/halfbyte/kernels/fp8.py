"""The functions of fp8_reference.py as Triton kernels and PyTorch's 8-bit product: the same names, arguments and results.

Numbers that stand on the device for each group (scales, units) lie one behind the other, so kernels are not compiled once more for how they are aligned.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbyte.kernels.fp8_reference import LARGEST, SMALLEST
from halfbyte.kernels.gpu import EXACTLY

WHOLE = 16384
"""Rows up to this wide are held by their program; longer ones are read twice, the second time out of a cache."""
TILE_ROWS, TILE_BLOCKS = 128, 2
"""Of a weight that is turned over: rows, and blocks of 64 columns, that a program writes."""
ROW_BLOCKS = 32
FACTOR_ROWS, THIN = 64, 2048
SOME_ROWS = 512
FAST_SUMS = True
"""Sums inside a product stay in the tensor cores' own precision, which is 5 to 15 % faster."""
_MOST, _LEAST = tl.constexpr(LARGEST), tl.constexpr(SMALLEST)
_GRAIN = tl.constexpr(1.5 * 2**14)  # numbers of float32 near it are 2**-9 apart


def quantise_rows(x: Tensor, low: Tensor, rank: int, factor: Tensor, weight_scale: Tensor, out: Tensor, scales: Tensor) -> None:
    rows, width = x.shape
    extra = out.shape[1] - width
    block = min(WHOLE, triton.next_power_of_2(width))
    _quantise_rows_kernel[(rows,)](
        x, x.stride(0), low, low.stride(0), factor, weight_scale, out, out.stride(0), scales, WIDTH=width, RANK=rank, EXTRA=extra, BLOCK=block,
        LOW=triton.next_power_of_2(max(extra, 1)), num_warps=max(4, min(16, block // 512)),
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["factor", "weight_scale"])
def _quantise_rows_kernel(
    x, x_row, low, low_row, factor, weight_scale, out, out_row, scales,
    WIDTH: tl.constexpr, RANK: tl.constexpr, EXTRA: tl.constexpr, BLOCK: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    first = tl.load(x + row * x_row + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    most = tl.abs(first)
    for piece in tl.static_range(BLOCK, WIDTH, BLOCK):
        most = tl.maximum(most, tl.abs(tl.load(x + row * x_row + piece + at, mask=piece + at < WIDTH, other=0.0).to(tl.float32)))
    largest = tl.max(most, 0)
    if RANK > 0:
        column = tl.arange(0, LOW)
        third = column // RANK
        thin = tl.load(low + row * low_row + column % RANK, mask=third < 3, other=0.0).to(tl.float32) * tl.load(factor)
        largest = tl.maximum(largest, tl.max(tl.abs(thin), 0))
    largest = tl.maximum(largest, _LEAST)
    inverse = _MOST / largest
    start = out + row * out_row
    tl.store(start + at, _rounded(first * inverse, out), mask=at < WIDTH)
    for piece in tl.static_range(BLOCK, WIDTH, BLOCK):
        more = tl.load(x + row * x_row + piece + at, mask=piece + at < WIDTH, other=0.0).to(tl.float32)
        tl.store(start + piece + at, _rounded(more * inverse, out), mask=piece + at < WIDTH)
    if RANK > 0:
        scaled = thin * inverse
        hi = _nearest(scaled)
        tl.store(start + WIDTH + column, _rounded(tl.where(third == 2, scaled - hi, hi), out), mask=column < EXTRA)  # beyond the thirds they are 0
    tl.store(scales + row, largest / _MOST * tl.load(weight_scale))


@triton.jit
def _within(value):
    return tl.minimum(tl.maximum(value, -_MOST, propagate_nan=tl.PropagateNan.ALL), _MOST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rounded(value, out):
    return _within(value).to(out.dtype.element_ty)


@triton.jit
def _nearest(value):
    """The 8-bit number next to it, as float32. By arithmetic: ptxas (12.8, for sm_90) takes the wrong register for half of what is packed into 8 bits and
    unpacked again."""
    value = _within(value)
    bits = value.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)  # 3 bits of mantissa, halves to the even one
    small = (value + _GRAIN) - _GRAIN  # below 2**-6 numbers are 2**-9 apart
    return tl.where(tl.abs(value) < 0.015625, small, normal)


def product(x: Tensor, scales: Tensor, weight: Tensor, out: Tensor) -> None:
    ones = _ones(len(weight), out.device)
    if out.is_contiguous():
        torch._scaled_mm(x, weight.T, scale_a=scales, scale_b=ones, out_dtype=out.dtype, use_fast_accum=FAST_SUMS, out=out)
    else:
        out.copy_(torch._scaled_mm(x, weight.T, scale_a=scales, scale_b=ones, out_dtype=out.dtype, use_fast_accum=FAST_SUMS))


_ONES: dict[tuple[int, torch.device], Tensor] = {}


def _ones(width: int, device: torch.device) -> Tensor:
    """(1, N): the weight's scale is in the rows' already. Made before anything is recorded, for every shape is met once before."""
    if (width, device) not in _ONES:
        _ONES[width, device] = torch.ones(1, width, device=device)
    return _ONES[width, device]


def dequantise_nf4(
    codes: Tensor, scales: Tensor, code: Tensor, out: Tensor, weight_scale: Tensor, nested: tuple[Tensor, Tensor, Tensor, int] | None = None,
    transposed: bool = False,
) -> None:  # fmt: skip
    width, rows = out.shape if transposed else out.T.shape
    outer, code2, offset, size = nested if nested is not None else (code, code, code, 1)
    tile, blocks = (TILE_ROWS, TILE_BLOCKS) if transposed else (1, ROW_BLOCKS)
    _nf4_kernel[(triton.cdiv(rows, tile), triton.cdiv(width, 64 * blocks))](
        codes.flatten().view(torch.int32), scales, code, outer, code2, offset, weight_scale, out, out.stride(0), rows, width, size,
        NESTED=nested is not None, TRANSPOSED=transposed, ROWS=tile, BLOCKS=blocks, num_warps=8 if transposed else 4, **EXACTLY,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["weight_scale"])
def _nf4_kernel(
    codes, scales, code, outer, code2, offset, weight_scale, out, out_row, rows, width, size,
    NESTED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """ROWS x 64 BLOCKS weights. Eight weights are 32 bits: four bytes, the first weight in the upper half of the first."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    word = (tl.program_id(1) * BLOCKS * 8 + tl.arange(0, BLOCKS * 8))[None, :]
    there = (row < rows) & (word * 8 < width)
    number = row * (width // 64) + word // 8
    if NESTED:
        absmax = tl.load(code2 + tl.load(scales + number, mask=there, other=0).to(tl.int32))
        absmax = absmax * tl.load(outer + number // size, mask=there, other=0.0) + tl.load(offset)
    else:
        absmax = tl.load(scales + number, mask=there, other=0.0)
    eight = tl.load(codes + row * (width // 8) + word, mask=there, other=0)
    absmax = absmax / tl.load(weight_scale)
    place = tl.arange(0, 8)[None, None, :]
    four_bits = (eight[:, :, None] >> ((place // 2) * 8 + 4 - (place % 2) * 4)) & 15
    value = _rounded(tl.load(code + four_bits) * absmax[:, :, None], out)
    column = word[:, :, None] * 8 + place
    if TRANSPOSED:
        tl.store(out + column.to(tl.int64) * out_row + row[:, :, None], value, mask=there[:, :, None])
    else:
        tl.store(out + row[:, :, None] * out_row + column, value, mask=there[:, :, None])


def write_weight(weight: Tensor, out: Tensor, weight_scale: Tensor, transposed: bool = False) -> None:
    """A weight in 16 bits comes seldom: plain PyTorch, some rows at a time, for it works in float32."""
    from halfbyte.kernels import fp8_reference

    for start in range(0, len(weight), SOME_ROWS):
        here = slice(start, start + SOME_ROWS)
        fp8_reference.write_weight(weight[here], out[:, here] if transposed else out[here], weight_scale, transposed)


def write_factors(pairs: Tensor, scale: float, unit: Tensor, out: Tensor, apart: int, thin: Tensor, thin_scale: float, out_thin: Tensor) -> None:
    (rows, rank), (thin_rows, thin_width) = pairs.shape, thin.shape
    of_pairs = triton.cdiv(rows, FACTOR_ROWS)
    _factors_kernel[(of_pairs + triton.cdiv(thin_rows * thin_width, THIN),)](
        pairs, pairs.stride(0), pairs.stride(1), scale, unit, out, out.stride(0), apart, rows, rank, of_pairs,
        thin, thin_scale, out_thin, out_thin.stride(0), thin_rows * thin_width, thin_width,
        ROWS=FACTOR_ROWS, RANK=triton.next_power_of_2(rank), THIN=THIN, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["unit"])
def _factors_kernel(
    pairs, pairs_row, pairs_column, scale, unit, out, out_row, apart, rows, rank, of_pairs, thin, thin_scale, out_thin, thin_row, thin_size, thin_width,
    ROWS: tl.constexpr, RANK: tl.constexpr, THIN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < of_pairs:
        row = (program * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        column = tl.arange(0, RANK)[None, :]
        there = (row < rows) & (column < rank)
        value = tl.load(pairs + row * pairs_row + column * pairs_column, mask=there, other=0.0) * scale / tl.load(unit)
        nearest = _nearest(value)
        hi, lo = _rounded(nearest, out), _rounded(value - nearest, out)
        start = out + row * out_row + column
        tl.store(start, hi, mask=there)
        tl.store(start + apart, lo, mask=there)
        tl.store(start + 2 * apart, hi, mask=there)
    else:
        number = (program - of_pairs) * THIN + tl.arange(0, THIN)
        other = tl.load(thin + number, mask=number < thin_size, other=0.0) * thin_scale
        at = (number // thin_width).to(tl.int64) * thin_row + number % thin_width
        tl.store(out_thin + at, other.to(out_thin.dtype.element_ty), mask=number < thin_size)
