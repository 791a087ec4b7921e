"""How long a step of the fast path takes: its products, attention and memory traffic, counted from the shape, at the rates of a GPU.

What runs on the GPU is counted as fast/layer.py and falcon.py do it. The processor launches some forty kernels a layer, which is longer than they take
where rows are short, and nothing where they are recorded. Copies of what is parked run beside; what of them does not fit beside it is waited for.
"""

from dataclasses import dataclass

from halfbyte.budget.fast import KEEP
from halfbyte.budget.fast_sizes import pieces, tokens_at_once
from halfbyte.budget.fast_work import FastWork, Group, groups_of
from halfbyte.budget.rates import SHARPNESS, Rates
from halfbyte.budget.shadow import FLOAT, HALF

# Beside the rates of rates.py, which are those of the plain path: fitted to steps on an H200 (benchmarks/fast_plan_accuracy.py).
PRODUCTS = 0.90
"""Of its rate of products."""
DENSE, VARLEN = 1.25, 0.75
"""Of its rate of attention: cuDNN where documents are alike, FlashAttention 2 elsewhere."""
FP8_PRODUCTS = 1.9
"""How much faster the frozen products of a layer are in 8 bits (sums of all seven groups and ways of a 7B shape at 8,192 tokens: 9.16 and 4.82 ms)."""
FP8_ROWS = 1.5
"""Elements of 16 bits that are read and written for an element that is rounded to 8."""
FP8_LAUNCHES = 14
"""Further ones of a layer: rows are rounded, thin products and factors stand alone."""
LAUNCH_SECONDS = 62e-6
"""Of Python and PyTorch together."""
FORWARD, BACKWARD, AGAIN = 26, 31, {"all": 0, "thin": 3, "attention": 8, "input": 9}
"""Launches of a layer."""
FALCON_LAUNCHES, FALCON_AGAIN = 43, {"all": 0, "thin": 4, "attention": 5, "input": 7}
"""The same, by the count of its operations."""
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
    each = (_of_falcon if shape.family == "falcon" else _of_llama)(given)
    seen = sum(length * min(length, shape.window or length) for length in given.lengths)
    scores = 2.0 * seen * shape.heads * shape.head_width
    further = len(pieces(tokens, tokens_at_once(tokens, tight=True))) - 1 if shape.family != "falcon" else 0  # whose MLP takes all
    flops = moved = launches = attention = scaled = 0.0
    for number, layer in enumerate(given.work.layers):
        keep = KEEP[layer.activations]
        flops += 2 * each.products - (each.first_product if number == 0 else 0.0) + each.again[keep]
        moved += each.moved + each.moved_again[keep]
        attention += scores * (4.5 if keep == "input" else 3.5)
        launches += each.launches + each.launches_again[keep]
        if layer.weights != "16bit":
            scaled += 2 * each.weights + (each.weights_again(further) if given.tight and keep != "all" else 0.0)
    if given.fp8:
        flops /= FP8_PRODUCTS
        moved += FP8_ROWS * len(given.work.layers) * sum(group.inputs + group.outputs for group in groups_of(given.work))
        launches += FP8_LAUNCHES * len(given.work.layers)
    head = 4.0 * given.places * shape.vocabulary * shape.width
    logits = given.places * shape.vocabulary * 4
    bytes_moved = HALF * (tokens * moved + logits) + scaled * SCALED_BYTES * (1 if given.work.four_bit else 1.6)
    trained = given.work.adapter_weights * FLOAT
    times = accumulation
    dense = given.kernel == "cudnn"
    return FastEffort(
        (flops + head) * times, attention * times if dense else 0.0, 0.0 if dense else attention * times, bytes_moved * times + 12 * trained,
        ((launches if not given.record else 10) * times + OF_STEP), 2.0 * parked_bytes * times,
    )  # fmt: skip


@dataclass(frozen=True)
class LayerEffort:
    """Of one layer and micro-batch. What is computed again is by what is kept."""

    products: float
    """FLOPs of a forward pass."""
    first_product: float
    """Of it, what the first layer leaves out on its way back, for nobody trains its input."""
    moved: float
    """Elements a token, both ways."""
    launches: float
    weights: float
    opening_weights: float
    """Of them, what opens the MLP: once more into one piece of memory for all where it is opened again."""
    closing_weights: float
    again: dict[str, float]
    moved_again: dict[str, float]
    launches_again: dict[str, int]

    def weights_again(self, further: int) -> float:
        """Where all weights share one piece of memory and the MLP takes its tokens in so many further pieces, it is written for each, both ways."""
        return self.opening_weights + further * (3 * self.opening_weights + 2 * self.closing_weights)


def _product(given: FastWork, *groups: Group) -> float:
    return 2.0 * given.tokens * sum((group.outputs + group.spare) * (group.inputs + group.spare) for group in groups)


def _of_llama(given: FastWork) -> LayerEffort:
    shape, width = given.work.shape, given.work.shape.width
    qkv, o, gate_up, down = groups = groups_of(given.work)
    feed, attended, turned = down.inputs, shape.heads * shape.head_width, 2 * (shape.heads + shape.key_heads) * shape.head_width
    first_half = 2 * width + width + turned + attended + 2 * width + 4 * width
    forward = first_half + width + 3 * feed + feed + 3 * width
    backward = (feed + 2 * width) + 6 * feed + (width + 4 * feed) + 5 * width + attended + 2 * width + turned + 2 * qkv.outputs + width + 5 * width
    recomputed, whole = _product(given, qkv, o, gate_up), first_half + width
    return LayerEffort(
        _product(given, *groups), _product(given, qkv), forward + backward, FORWARD + BACKWARD, sum(group.size for group in groups), gate_up.size, down.size,
        {"all": 0.0, "thin": _product(given, gate_up), "attention": recomputed, "input": recomputed},
        {"all": 0, "thin": 3 * width, "attention": whole, "input": whole}, AGAIN,
    )  # fmt: skip


def _of_falcon(given: FastWork) -> LayerEffort:
    """fast/falcon.py. Counted in the same way."""
    shape, width = given.work.shape, given.work.shape.width
    wide, _, down = groups = groups_of(given.work)
    feed, attended, turned = down.inputs, shape.heads * shape.head_width, 2 * (shape.heads + 1) * shape.head_width
    forward = 2 * width + width + turned + attended + 2 * width + 2 * feed + feed + width + 3 * width
    backward = (feed + 2 * width) + 4 * feed + attended + 2 * width + turned + 2 * wide.outputs + width + 5 * width
    opened = _product(given, wide) * feed / wide.outputs
    return LayerEffort(
        _product(given, *groups), _product(given, wide), forward + backward, FALCON_LAUNCHES, sum(group.size for group in groups), wide.size, 0.0,
        {"all": 0.0, "thin": opened, "attention": _product(given, wide), "input": _product(given, wide)},
        {"all": 0, "thin": 3 * width, "attention": 3 * width + turned, "input": 3 * width + turned}, FALCON_AGAIN,
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
