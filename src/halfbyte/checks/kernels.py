"""Do the 4-bit kernels compute what the paper says? A small matrix through bitsandbytes, on a device, against a definition of NF4 in plain arithmetic."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

# Of bitsandbytes' create_normal_map: where the outermost quantile lies (arXiv 2305.14314, appendix E).
OUTERMOST = 0.9677083
BLOCK = 64
ROWS, COLUMNS = 64, 128


@dataclass(frozen=True)
class KernelError:
    """Largest differences from the definition, relative to the largest value of what is compared."""

    dequantised: float
    product: float
    gradient: float

    @property
    def right(self) -> bool:
        # float32 and float16 products of 128 terms differ by less than 2e-3; a wrong level, block or sign by 5e-2 and more.
        return self.dequantised < 1e-5 and self.product < 5e-3 and self.gradient < 5e-3

    def __str__(self) -> str:
        return f"dequantised within {self.dequantised:.0e}, product {self.product:.0e}, gradient {self.gradient:.0e} of the definition"


def nf4_levels() -> list[float]:
    """16 quantiles of the normal distribution, zero among them, scaled to [-1, 1]."""
    quantile = NormalDist().inv_cdf

    def between(count: int) -> list[float]:
        return [quantile(OUTERMOST + (0.5 - OUTERMOST) * step / (count - 1)) for step in range(count - 1)]

    levels = sorted([*between(9), *(-value for value in between(8)), 0.0])
    return [level / levels[-1] for level in levels]


def check_kernels(device: Any) -> KernelError:
    """Raises what importing or calling bitsandbytes raises."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    levels = torch.tensor(nf4_levels())
    scales = weight.view(-1, BLOCK).abs().amax(1, keepdim=True)
    nearest = (weight.view(-1, BLOCK, 1) / scales[..., None] - levels).abs().argmin(-1)
    wanted = (levels[nearest] * scales).view(ROWS, COLUMNS)

    layer = Linear4bit(COLUMNS, ROWS, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    layer = layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # repacked layers have no gradient (model/load.py)
    from bitsandbytes.functional import dequantize_4bit

    kept = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
    inputs = torch.randn(8, COLUMNS, generator=generator).to(device).requires_grad_()
    outputs = layer(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    plain = inputs.detach().cpu().double() @ wanted.double().T
    gradient = wanted.double().sum(0).expand(8, -1)
    return KernelError(_apart(kept, wanted), _apart(outputs.detach().cpu(), plain), _apart(inputs.grad.cpu(), gradient))


def _apart(one: Any, other: Any) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())
