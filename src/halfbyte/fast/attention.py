"""Causal attention within documents, forward and backward, with the kernel that is fastest for their shape.

q (T, H, D), k and v (T, H_kv, D): documents stand one behind the other, and a token sees those of its own document that are not behind it and,
with a window, not further back than that. Documents of one length on Hopper go through cuDNN, twice as fast there as FlashAttention 2
(docs/performance.md); others through FlashAttention 2 with the borders of the documents (Dao, arXiv 2307.08691); without a GPU it is computed as defined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import TrainingError
from halfbyte.kernels.reference import widened

aten: Any = torch.ops.aten
HOPPER = (9, 0)
CUDNN_HEAD = 128
"""Wider heads have no backward pass there."""


@dataclass(frozen=True)
class Documents:
    """Lengths in tokens, in order; `borders` (documents + 1,) int32 on the device: where each begins, and the end."""

    lengths: tuple[int, ...]
    borders: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Documents":
        return cls(tuple(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def alike(self) -> bool:
        return len(set(self.lengths)) == 1


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs beside q, k, v and the result."""

    kernel: str
    tensors: tuple[Any, ...]


def kernel_for(documents: Documents, window: int | None, head_dim: int, device: torch.device) -> str:
    """`defined`, `cudnn` or `flash`."""
    if device.type != "cuda":
        return "defined"
    unwindowed = window is None or window >= documents.longest
    dense = documents.alike and unwindowed and head_dim <= CUDNN_HEAD
    return "cudnn" if dense and torch.cuda.get_device_capability(device) == HOPPER else "flash"


def check_offsets(documents: Documents, width: int) -> None:
    """FlashAttention 2's backward pass counts (T + 128 for each document) x `width` in 32 bits, and reads elsewhere beyond. Raises TrainingError."""
    tokens, count = sum(documents.lengths), len(documents.lengths)
    if (tokens + 128 * count) * width >= 2**31:
        seen = f"{tokens:,} tokens in {count:,} documents at a time are more than the attention kernel can count"
        raise TrainingError(seen, hint="halve train.batch_size and double train.gradient_accumulation_steps: the step stays the same")


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float) -> tuple[Tensor, Kept]:
    """-> (T, H, D) in whole rows, and what `attend_backward` wants."""
    kernel = kernel_for(documents, window, q.shape[-1], q.device)
    if kernel == "cudnn":
        rows = len(documents.lengths)
        out, *kept = aten._scaled_dot_product_cudnn_attention(
            _by_head(q, rows), _by_head(k, rows), _by_head(v, rows), None, True, 0.0, True, False, scale=scale
        )
        return out.transpose(1, 2).reshape(q.shape), Kept(kernel, tuple(kept[:7]))
    if kernel == "flash":
        check_offsets(documents, q.shape[1] * q.shape[2])
        out, *kept = aten._flash_attention_forward(
            q, k, v, documents.borders, documents.borders, documents.longest, documents.longest, 0.0, True, False,
            scale=scale, window_size_left=_left(window), window_size_right=_right(window),
        )  # fmt: skip
        return out, Kept(kernel, tuple(kept[:3]))
    return _attend(q, k, v, documents, window, scale), Kept(kernel, ())


def attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, kept: Kept, documents: Documents, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of q, k and v, each in their shape."""
    longest, borders = documents.longest, documents.borders
    if kept.kernel == "cudnn":
        lse, _, _, _, _, seed, offset = kept.tensors
        rows = len(documents.lengths)
        dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(
            *(_by_head(one, rows) for one in (d_out, q, k, v, out)), lse, seed, offset, None, None, None,
            longest, longest, 0.0, True, scale=scale,
        )  # fmt: skip
        return dq.transpose(1, 2).reshape(q.shape), dk.transpose(1, 2).reshape(k.shape), dv.transpose(1, 2).reshape(v.shape)
    if kept.kernel == "flash":
        lse, state, unused = kept.tensors
        dq, dk, dv = aten._flash_attention_backward(
            d_out, q, k, v, out, lse, borders, borders, longest, longest, 0.0, True, state, unused,
            scale=scale, window_size_left=_left(window), window_size_right=_right(window),
        )  # fmt: skip
        return dq, dk, dv
    return _attend_backward(d_out, q, k, v, out, documents, window, scale)


def _by_head(x: Tensor, rows: int) -> Tensor:
    """(B * S, H, D) -> (B, H, S, D), a view."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)


def _left(window: int | None) -> int | None:
    """A window of W tokens holds the token itself and W - 1 before it."""
    return None if window is None else window - 1


def _right(window: int | None) -> int | None:
    return None if window is None else 0


# As defined: a document at a time, all of its scores in memory; 16-bit numbers are computed with in float32.


def _attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, scale: float) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for here in _spans(documents):
        weights = _weights(widened(q[here]), widened(k[here]), window, scale)
        out[here] = torch.einsum("hts,shd->thd", weights, _shared(widened(v[here]), q)).to(out.dtype)
    return out


def _attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, documents: Documents, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (q, k, v))
    for here in _spans(documents):
        here_q, here_k, here_v, g = widened(q[here]), widened(k[here]), widened(v[here]), widened(d_out[here])
        weights = _weights(here_q, here_k, window, scale)
        d_weights = torch.einsum("thd,shd->hts", g, _shared(here_v, q))
        d_scores = weights * (d_weights - (g * widened(out[here])).sum(-1).T[..., None]) * scale
        dq[here] = torch.einsum("hts,shd->thd", d_scores, _shared(here_k, q)).to(dq.dtype)
        dk[here] = _summed(torch.einsum("hts,thd->shd", d_scores, here_q), k).to(dk.dtype)
        dv[here] = _summed(torch.einsum("hts,thd->shd", weights, g), v).to(dv.dtype)
    return dq, dk, dv


def _spans(documents: Documents) -> list[slice]:
    ends = list(accumulate(documents.lengths))
    return [slice(end - length, end) for end, length in zip(ends, documents.lengths, strict=True)]


def _weights(q: Tensor, k: Tensor, window: int | None, scale: float) -> Tensor:
    """(H, T, T), each row sums to 1."""
    scores = torch.einsum("thd,shd->hts", q, _shared(k, q)) * scale
    length = len(q)
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        seen &= torch.ones_like(seen).triu(1 - window)
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def _shared(kv: Tensor, q: Tensor) -> Tensor:
    """(S, H_kv, D) -> (S, H, D): neighbouring query heads share one of keys and values (Ainslie et al., arXiv 2305.13245)."""
    return kv.repeat_interleave(q.shape[1] // kv.shape[1], 1)


def _summed(gradient: Tensor, kv: Tensor) -> Tensor:
    """(S, H, D) -> (S, H_kv, D)."""
    return gradient.unflatten(1, (kv.shape[1], -1)).sum(2)
