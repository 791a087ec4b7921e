"""How long a step of the fast path takes: its products, attention and memory traffic, counted from the shape, at the rates of a GPU.

What runs on the GPU is counted as fast/layer.py does it. The processor launches some forty kernels a layer, which is longer than they take where rows
are short, and nothing where they are recorded. Copies of what is parked run beside; what of them does not fit beside it is waited for.
"""

from dataclasses import dataclass

from halfbyte.budget.fast import KEEP, FastWork, Group, groups_of
from halfbyte.budget.rates import SHARPNESS, Rates
from halfbyte.budget.shadow import FLOAT, HALF

# Beside the rates of rates.py, which are those of the plain path: fitted to steps on an H200 (benchmarks/fast_plan_accuracy.py).
PRODUCTS = 0.90
"""Of its rate of products."""
DENSE, VARLEN = 1.25, 0.75
"""Of its rate of attention: cuDNN where documents are alike, FlashAttention 2 elsewhere."""
LAUNCH_SECONDS = 62e-6
"""Of Python and PyTorch together."""
FORWARD, BACKWARD, AGAIN = 26, 34, {"all": 0, "thin": 3, "attention": 8, "input": 9}
"""Launches of a layer."""
OF_STEP = 120
"""Launches of embedding, head, clipping and the optimizer."""
SCALED_BYTES = 2.6
"""Bytes read and written for a weight that comes out of 4 bits."""


@dataclass(frozen=True)
class FastEffort:
    """Of one optimizer step."""

    product_flops: float
    dense_flops: float
    varlen_flops: float
    moved_bytes: float
    launches: float
    copied_bytes: float


def fast_effort(given: FastWork, parked_bytes: int, accumulation: int = 1) -> FastEffort:
    """parked_bytes: of what is parked in a micro-batch."""
    shape, tokens = given.work.shape, given.tokens
    width, feed = shape.width, shape.linears[6].inputs
    qkv, o, gate_up, down = groups_of(given.work)
    attended, turned = shape.heads * shape.head_width, 2 * (shape.heads + shape.key_heads) * shape.head_width

    def product(*groups: Group) -> float:
        return 2.0 * tokens * sum((group.outputs + group.spare) * (group.inputs + group.spare) for group in (qkv, o, gate_up, down) if group in groups)

    seen = sum(length * min(length, shape.window or length) for length in given.lengths)
    scores = 2.0 * seen * attended
    first_half = 2 * width + width + turned + attended + 2 * width + 4 * width
    gates = width
    forward = first_half + gates + 3 * feed + feed + 3 * width
    backward = (feed + 2 * width) + 6 * feed + (width + 4 * feed) + 5 * width + attended + 2 * width + turned + 2 * qkv.outputs + width + 5 * width
    flops = moved = launches = attention = 0.0
    scaled = 0.0
    weights = [float(group.size) for group in (qkv, o, gate_up, down)]
    for number, layer in enumerate(given.work.layers):
        keep = KEEP[layer.activations]
        flops += 2 * product(qkv, o, gate_up, down) - (product(qkv) if number == 0 else 0.0)
        moved += forward + backward
        again = {"all": 0.0, "thin": product(gate_up), "attention": product(qkv, o, gate_up), "input": product(qkv, o, gate_up)}[keep]
        flops += again
        moved += {"all": 0, "thin": gates + 2 * width, "attention": first_half + gates, "input": first_half + gates}[keep]
        attention += scores * (4.5 if keep == "input" else 3.5)
        launches += FORWARD + BACKWARD + AGAIN[keep]
        if layer.weights != "16bit":
            scaled += 2 * sum(weights) if not given.tight else 2 * sum(weights) + (weights[2] if keep != "all" else 0)
    head = 4.0 * given.places * shape.vocabulary * width
    logits = given.places * shape.vocabulary * 4
    bytes_moved = HALF * (tokens * moved + logits) + scaled * SCALED_BYTES * (1 if given.work.four_bit else 1.6)
    trained = given.work.adapter_weights * FLOAT
    times = accumulation
    dense = given.kernel == "cudnn"
    return FastEffort(
        (flops + head) * times, attention * times if dense else 0.0, 0.0 if dense else attention * times, bytes_moved * times + 12 * trained,
        ((launches if not given.record else 10) * times + OF_STEP), 2.0 * parked_bytes * times,
    )  # fmt: skip


def fast_seconds(effort: FastEffort, rates: Rates) -> float:
    """Of one optimizer step."""
    gpu = (
        effort.product_flops / (rates.product_flops * PRODUCTS) + effort.dense_flops / (rates.attention_flops * DENSE)
        + effort.varlen_flops / (rates.attention_flops * VARLEN) + effort.moved_bytes * rates.seconds_per_byte / 2
    )  # fmt: skip
    host = effort.launches * LAUNCH_SECONDS
    copies = effort.copied_bytes / rates.copy_bytes / 2
    return float((gpu**SHARPNESS + host**SHARPNESS + copies**SHARPNESS) ** (1 / SHARPNESS))
