"""What the kernels of fp8.py compute, in plain PyTorch: numbers in 8 bits (E4M3: 4 of exponent, 3 of mantissa, up to 448) with scales beside them.

A row of activations has one scale, a weight has one for all, so that a product's result is that of the 8-bit numbers times one number a row. What must
be more exact than 4 bits, the adapter's part, goes through the same product as sums of two 8-bit numbers, hi + lo, about 8 bits together:

    (hi + lo) (b_hi + b_lo) = hi b_hi + hi b_lo + lo b_hi, and lo b_lo, which is below what is kept

so a row carries [hi | hi | lo] beside its own numbers, and a weight [b_hi | b_lo | b_hi].
"""

import torch
from torch import Tensor

from halfbyte.kernels.reference import BLOCK, widened

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST = 1e-30
"""What a row's largest number is taken for where it is smaller, so that 448 divided by it is a number."""


def rounded(x: Tensor) -> Tensor:
    """To the nearest 8-bit number; what is larger than the largest becomes that."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """hi and lo of x in float32, both 8-bit."""
    hi = rounded(x)
    return hi, rounded(x - hi.to(x.dtype))


def quantise_rows(x: Tensor, low: Tensor, rank: int, factor: Tensor, weight_scale: Tensor, out: Tensor, scales: Tensor) -> None:
    """x (T, K) and the first `rank` columns of low, times factor () -> out (T, K + E) 8-bit: [x | hi | hi | lo | 0]; scales (T, 1) float32 of the product.

    Both share a row's scale, which is as large as the larger of them asks for. `weight_scale` () is that of the weight that it will be multiplied with.
    """
    wide, thin = widened(x).float(), widened(low[:, :rank]).float() * factor
    largest = torch.maximum(wide.abs().amax(-1, keepdim=True), thin.abs().amax(-1, keepdim=True)) if rank else wide.abs().amax(-1, keepdim=True)
    largest = largest.clamp(min=SMALLEST)
    inverse = LARGEST / largest
    hi, lo = split(thin * inverse)
    width, at = x.shape[1], x.shape[1] + 3 * rank
    out[:, :width] = rounded(wide * inverse)
    out[:, width:at] = torch.cat((hi.float(), hi.float(), lo.float()), 1).to(E4M3)
    out[:, at:] = 0.0
    scales.copy_(largest / LARGEST * weight_scale)


def product(x: Tensor, scales: Tensor, weight: Tensor, out: Tensor) -> None:
    """x (T, C) and weight (N, C), 8-bit; scales (T, 1) -> out (T, N)."""
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    out.copy_((x.to(wide) @ weight.to(wide).T) * scales)


def dequantise_nf4(
    codes: Tensor, scales: Tensor, code: Tensor, out: Tensor, weight_scale: Tensor, nested: tuple[Tensor, Tensor, Tensor, int] | None = None,
    transposed: bool = False,
) -> None:  # fmt: skip
    """As reference.dequantise_nf4, into 8 bits: out (n, K), or (K, n) where `transposed`, in units of weight_scale ()."""
    flat = codes.flatten().long()
    absmax = absmax_of(scales, nested) / weight_scale
    values = rounded(torch.stack((code[flat >> 4], code[flat & 15]), -1).view(-1, BLOCK) * absmax[:, None])
    out.copy_(values.view(out.T.shape).T if transposed else values.view(out.shape))


def absmax_of(scales: Tensor, nested: tuple[Tensor, Tensor, Tensor, int] | None) -> Tensor:
    """(n * K / 64,) float32, the largest number of each block, out of 8 bits where `nested`."""
    if nested is None:
        return scales
    outer, code2, offset, size = nested
    return code2[scales.long()] * outer[torch.arange(len(scales), device=scales.device) // size] + offset


def write_weight(weight: Tensor, out: Tensor, weight_scale: Tensor, transposed: bool = False) -> None:
    """weight (n, K) of any type -> out (n, K) 8-bit, or (K, n)."""
    values = rounded(weight.float() / weight_scale)
    out.copy_(values.T if transposed else values)


def write_factors(pairs: Tensor, scale: float, unit: Tensor, out: Tensor, apart: int, thin: Tensor, thin_scale: float, out_thin: Tensor) -> None:
    """An adapter's two matrices, float32, for one way. The one that stands beside the weight: pairs (n, r), whose rows may be columns of what is stored,
    times `scale`, in units of unit () -> out (n, 3 * apart) 8-bit, of which r columns are written at 0 (hi), apart (lo) and 2 * apart (hi). The other,
    thin (m, k) times thin_scale -> out_thin (m, k), in 16 bits."""
    r = pairs.shape[1]
    hi, lo = split(pairs.float() * scale / unit)
    for third, value in enumerate((hi, lo, hi)):
        out[:, third * apart : third * apart + r] = value
    out_thin.copy_(thin * thin_scale)
