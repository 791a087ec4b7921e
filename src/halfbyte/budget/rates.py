"""How long a step takes: arithmetic and memory traffic of the GPU on one side, what the processor needs to launch it all on the other.

The two run beside each other, so a step takes about as long as the longer one. Operations are counted from the shape, bytes written and launches
by the simulation (step.py). The rates were fitted to steps measured on an H200 (benchmarks/plan_accuracy.py, its calibration part); for other
GPUs they are scaled by the datasheets' rates until runs there have been measured (history.py).
"""

import re
from dataclasses import dataclass, replace

from halfbyte.budget.shadow import FLOAT, HALF
from halfbyte.budget.step import Work, layer_bytes

SHARPNESS = 6.0
"""Of the passage from one side to the other: (gpu^6 + host^6)^(1/6)."""


@dataclass(frozen=True)
class Rates:
    """Of one GPU and the processor beside it."""

    product_flops: float = 740e12
    """Matrix products in bfloat16, a second; 736e12 were measured on an H200 over the shapes of a 7B model."""
    attention_flops: float = 450e12
    """Fused attention."""
    scores_flops: float = 44e12
    """Attention that computes its scores in float32."""
    seconds_per_byte: float = 0.718e-12
    """For each byte that is written: reading what it is made of included."""
    seconds_per_launch: float = 18.2e-6
    seconds_per_recomputed: float = 0.357e-3
    """What checkpointing adds on the processor for each linear layer that is recomputed."""
    seconds_per_quantised: float = 0.175e-3
    """What bitsandbytes adds on the processor for each product with a 4-bit matrix."""
    copy_bytes: float = 55e9
    """From the computer's pinned memory to the GPU, a second."""


@dataclass(frozen=True)
class Gpu:
    """From the datasheet: dense 16-bit tensor arithmetic with sums in 32 bits, memory bandwidth; memory as a program sees it, which error correction
    makes less on some."""

    name: str
    memory_gb: float
    tera_flops: float
    terabytes_per_second: float
    copy_gigabytes: float = 25.0

    @property
    def is_old(self) -> bool:
        """Before compute capability 8.0: no bfloat16, and PyTorch's fused attention is another."""
        return self.name in ("T4", "V100")

    @property
    def has_fp8(self) -> bool:
        """Compute capability 8.9 or more: products of 8-bit numbers."""
        return not self.is_old and not self.name.startswith(("RTX 30", "A10", "A6000"))


H200 = Gpu("H200", 141, 989, 4.8, 55)
GPUS = (
    Gpu("T4", 15.6, 65, 0.32, 12), Gpu("V100", 16, 125, 0.9, 12), Gpu("RTX 3060", 12, 26, 0.36), Gpu("RTX 3080", 10, 60, 0.76), Gpu("RTX 3090", 24, 71, 0.94),
    Gpu("RTX 4060", 8, 30, 0.27, 12), Gpu("RTX 4060 Ti", 16, 44, 0.29, 12), Gpu("RTX 4070", 12, 58, 0.5), Gpu("RTX 4080", 16, 97, 0.72),
    Gpu("RTX 4090", 24, 165, 1.01), Gpu("RTX 5080", 16, 113, 0.96, 50), Gpu("RTX 5090", 32, 210, 1.79, 50),
    Gpu("A10G", 23.5, 70, 0.6), Gpu("L4", 23.5, 121, 0.3), Gpu("A6000", 48, 155, 0.77),
    Gpu("L40S", 47.5, 362, 0.86), Gpu("A100", 40, 312, 1.56), Gpu("A100 80GB", 80, 312, 2.04), Gpu("H100 PCIe", 80, 756, 2.0, 50),
    Gpu("H100", 80, 989, 3.35, 50), H200, Gpu("B200", 180, 2250, 8.0, 50),
)  # fmt: skip


NOISE = re.compile(r"nvidia|geforce|tesla|quadro|ada|sxm\d?|hbm\d?e?|\d+gb|nvl|[\s\-_]")
"""Of names as shops and drivers write them."""


def known_gpu(words: str) -> Gpu | None:
    """The GPU that `words` name and nothing beside it: `NVIDIA H100 80GB HBM3`, `rtx4090`, `4090`; not `RTX 4070 Ti`, which is another one."""
    size = re.search(r"(\d+)\s*gb", words.lower())
    for named in (_short(words), _short(words).replace("pcie", "")):  # the card alone has a name of its own for H100 only
        fitting = [gpu for gpu in GPUS if _short(gpu.name) == named and (size is None or abs(gpu.memory_gb - int(size[1])) <= 1)]
        if fitting:
            return fitting[0]
    return None


def _short(name: str) -> str:
    return NOISE.sub("", name.lower()).removeprefix("rtx")


def typical_gpu(memory_gb: float) -> Gpu:
    """A GPU with about this much memory, where only that is known: the fastest of the smallest kind that has it."""
    enough = [gpu for gpu in GPUS if gpu.memory_gb >= memory_gb * 0.98] or [max(GPUS, key=lambda gpu: gpu.memory_gb)]
    smallest = min(gpu.memory_gb for gpu in enough)
    return max((gpu for gpu in enough if gpu.memory_gb == smallest), key=lambda gpu: gpu.tera_flops)


def origin_of(gpu: Gpu) -> str:
    """Of its rates, in words."""
    return f"steps measured on an {gpu.name}" if gpu is H200 else f"datasheet of the {gpu.name}"


def rates_of(gpu: Gpu) -> Rates:
    """Scaled from the H200 by the datasheets."""
    arithmetic, traffic = gpu.tera_flops / H200.tera_flops, gpu.terabytes_per_second / H200.terabytes_per_second
    rates = Rates()
    return replace(
        rates, product_flops=rates.product_flops * arithmetic, attention_flops=rates.attention_flops * arithmetic, scores_flops=rates.scores_flops * traffic,
        seconds_per_byte=rates.seconds_per_byte / traffic, copy_bytes=gpu.copy_gigabytes * 1e9,
    )  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """Of one optimizer step."""

    product_flops: float
    attention_flops: float
    scores_flops: float
    written_bytes: float
    launches: float
    recomputed: float
    """Linear layers that are computed a second time."""
    quantised: float
    """Products with a 4-bit matrix."""
    copied_bytes: float
    """Between the computer and the GPU."""


def effort_of(work: Work, launches: float, written_bytes: float) -> Effort:
    """Counts operations: 2 for a weight and a token in each product, 4 for a pair of tokens, a head and its width, half of them masked.

    Backward: the gradient of the input alone for frozen weights, both gradients for adapters, 2.5 times the forward for attention.
    """
    shape, layers = work.shape, work.shape.layers
    tokens = work.tokens_per_batch
    again = sum(layer.activations != "kept" for layer in work.layers)
    weights = shape.linear_weights / layers
    adapter = sum(work.rank_of(linear) * (linear.inputs + linear.outputs) for linear in shape.linears)
    head = shape.vocabulary * shape.width
    products = 2 * tokens * (weights * (2 * layers + again) + adapter * (3 * layers + again) + 2 * head)
    square = shape.family == "falcon"
    pairs = work.tokens * (1.0 if work.masked else 0.5)  # what a fused causal kernel leaves out
    attention = 4 * tokens * pairs * shape.heads * shape.head_width * (3.5 * layers + again)
    quantised = sum(2 + (layer.activations != "kept") for layer in work.layers if work.four_bit and layer.weights != "16bit") * len(shape.linears)
    moved = layer_bytes(work) * 2 * sum(layer.weights == "cpu" for layer in work.layers)
    inputs = 2 * tokens * shape.width * (FLOAT if square else HALF) * sum(layer.activations == "cpu" for layer in work.layers)
    times = work.accumulation
    return Effort(
        products * times, 0.0 if square else attention * times, attention * times if square else 0.0, written_bytes, launches,
        again * len(shape.linears) * times, quantised * times, (moved + inputs) * times,
    )  # fmt: skip


def step_seconds(effort: Effort, rates: Rates) -> float:
    """Of one optimizer step. Copies run beside the arithmetic; what of them does not fit beside it is waited for."""
    gpu = (
        effort.product_flops / rates.product_flops + effort.attention_flops / rates.attention_flops + effort.scores_flops / rates.scores_flops
        + effort.written_bytes * rates.seconds_per_byte
    )  # fmt: skip
    host = effort.launches * rates.seconds_per_launch + effort.recomputed * rates.seconds_per_recomputed + effort.quantised * rates.seconds_per_quantised
    copies = effort.copied_bytes / rates.copy_bytes
    return float((gpu**SHARPNESS + host**SHARPNESS + copies**SHARPNESS) ** (1 / SHARPNESS))
