"""What the kernels compute, once more and independently: plain definitions for autograd, and tensors that lie in memory as the fast path lays them."""

import torch
import torch.nn.functional as F
from torch import Tensor

UNTOUCHED = 7.0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """Each pair of a head's halves is a complex number, turned by another."""
    heads = x.unflatten(-1, (-1, head_dim))
    if weight is not None:
        heads = rms_norm(heads, weight, eps)
    first, second = heads.chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)[:, None]
    return torch.cat((turned.real, turned.imag), -1).flatten(-2)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(T,), 0 where there is no target."""
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def gradients(result: Tensor, d_out: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result, leaves, d_out)


def drawn(*shape: int, seed: int = 0, spread: float = 1.0, device: str = "cpu") -> Tensor:
    """float64 numbers that float32 and bfloat16 hold exactly, so that all precisions start from the same."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).bfloat16().double().to(device)


def apart(x: Tensor, dtype: torch.dtype, room: int = 5) -> Tensor:
    """The same numbers in rows that lie `room` numbers apart."""
    memory = torch.full((len(x), x.shape[1] + room), UNTOUCHED, dtype=dtype, device=x.device)
    memory[:, : x.shape[1]] = x
    return memory[:, : x.shape[1]]


def empty(rows: int, width: int, dtype: torch.dtype, room: int = 5, device: str = "cpu") -> Tensor:
    return apart(torch.full((rows, width), UNTOUCHED, device=device), dtype, room)


def between(x: Tensor) -> Tensor:
    """What lies between the rows."""
    return x.as_strided((len(x), x.stride(0) - x.shape[1]), x.stride(), x.storage_offset() + x.shape[1])


def error(ours: Tensor, truth: Tensor) -> float:
    """The largest difference, in parts of the largest number. What lies between rows must not be touched."""
    if ours.ndim == 2 and ours.stride(0) > ours.shape[1]:
        assert bool((between(ours) == UNTOUCHED).all())
    assert bool(torch.isfinite(ours).all())
    return float((ours.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)) if truth.numel() else 0.0
