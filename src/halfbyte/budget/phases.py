"""What each phase of a run takes at most on the GPU: load, step, evaluate, generate, merge."""

from dataclasses import dataclass, replace
from functools import lru_cache

from halfbyte.budget.allocator import Allocator
from halfbyte.budget.choose import Bounds, Choice
from halfbyte.budget.shadow import FLOAT, HALF, Tape
from halfbyte.budget.step import CUBLAS_WORKSPACE, Work, layer_bytes, look, paged_bytes, place_adapter, place_base
from halfbyte.runs.words import size

MOST_LOGITS = 2**27
"""Of one batch that is evaluated: 512 MiB in float32, which is a row of 1,024 tokens with the largest vocabularies, or 32 of 512 with one of 8,192."""
AT_ONCE = 4
"""Matrices that transformers reads ahead of quantising while it loads."""


@dataclass(frozen=True)
class Phase:
    """peak_bytes: of the whole GPU, driver included. `told`: what of it depends on."""

    name: str
    peak_bytes: int
    told: str


def phases_of(choice: Choice, bounds: Bounds, evaluate_rows: int, new_tokens: int, evaluate_tokens: int = 0) -> list[Phase]:
    """In the order in which a run meets them. evaluate_tokens: of the longest row that is evaluated, where it is longer than the trained ones."""
    work, standing = choice.loaded, choice.standing_bytes
    seen = _seen(choice, evaluate_tokens)
    rows = f"{evaluate_rows} row{'s' * (evaluate_rows != 1)} at a time"
    on_gpu = loads_on_gpu(work, bounds)
    read = ("read and quantised" if work.four_bit else "read") + ("" if on_gpu else " in the computer's memory,")
    generating = standing + generating_bytes(seen, evaluate_rows, new_tokens)
    load = max(placed_bytes(work), load_bytes(work) if on_gpu else 0)
    return [
        Phase("load", bounds.whole(load), f"weights are {read} one matrix after another"),
        Phase("step", choice.peak_bytes, f"{work.rows} x {work.accumulation} rows of {work.tokens:,} tokens, {choice.told()}"),
        Phase("evaluate", bounds.whole(standing + looking_bytes(seen, evaluate_rows)), f"{rows}, nothing kept"),
        Phase("generate", bounds.whole(generating), f"{rows}, a cache for {seen.tokens + new_tokens:,} tokens each"),
        Phase("merge", bounds.whole(merging_bytes(work)), f"into 16 bits, one matrix after another; the result is {size(2 * work.shape.parameters)}"),
    ]  # fmt: skip


def _seen(choice: Choice, evaluate_tokens: int) -> Work:
    return replace(choice.loaded, tokens=max(choice.work.tokens, evaluate_tokens))


def load_bytes(work: Work) -> int:
    """The whole base, before any layer is put elsewhere, and the matrices in 16 bits that are quantised meanwhile."""
    whole = placed_bytes(replace(work, layers=tuple(replace(layer, weights="4bit") for layer in work.layers)))
    return whole + (AT_ONCE * max(linear.weights for linear in work.shape.linears) * HALF if work.four_bit else 0)


def placed_bytes(work: Work, adapter: bool = False) -> int:
    """The base as it lies in the end, and the adapter where asked."""
    allocator = Allocator()
    held = [*place_base(work, allocator), *(place_adapter(work, allocator) if adapter else [])]
    total = allocator.allocated
    for block in held:
        allocator.free(block)
    return total


def loads_on_gpu(work: Work, bounds: Bounds) -> bool:
    """Whether the whole base fits while it is loaded; otherwise it is loaded and quantised in the computer's memory, which takes longer."""
    return bounds.whole(load_bytes(work)) <= bounds.budget_bytes


@lru_cache(maxsize=64)
def looking_bytes(work: Work, rows: int, labelled: int | None = None) -> int:
    """Of evaluation, `rows` at a time but no more than MOST_LOGITS allows; `labelled`: of a row's tokens, all of them when not given."""
    seen = replace(work, rows=max(1, min(rows, MOST_LOGITS // (work.tokens * work.shape.vocabulary))))
    allocator = Allocator()
    held = [*place_base(seen, allocator), *place_adapter(seen, allocator), *(allocator.malloc(CUBLAS_WORKSPACE) for _ in range(2))]
    look(seen, Tape(allocator), labelled or work.tokens)
    total = allocator.reserved
    for block in held:
        allocator.free(block)
    return total


def generating_bytes(work: Work, rows: int, new_tokens: int) -> int:
    """Prompts of a row's length are read at once; then keys and values of every layer are kept, and grow by copying one layer's after another."""
    shape = work.shape
    cache = 2 * shape.layers * rows * (work.tokens + new_tokens) * shape.key_heads * shape.head_width * HALF
    scores = rows * shape.vocabulary * (HALF + 2 * FLOAT)
    ends = shape.vocabulary * shape.width * HALF * (1 if shape.tied else 2)  # embedding and head, without the logits of whole prompts
    without_ends = looking_bytes(replace(work, shape=replace(shape, vocabulary=1)), rows, 1)
    return without_ends + ends + cache + cache // shape.layers + scores


def merging_bytes(work: Work) -> int:
    """The base in 4 bits, the adapter, and of the largest matrix the 16-bit weight, its float32 sum and the product of A and B."""
    return placed_bytes(work, adapter=True) + max(linear.weights for linear in work.shape.linears) * (HALF + 2 * FLOAT)


def evaluation_fits(choice: Choice, bounds: Bounds, rows: int, new_tokens: int, evaluate_tokens: int = 0) -> bool:
    seen = _seen(choice, evaluate_tokens)
    taken = max(looking_bytes(seen, rows), generating_bytes(seen, rows, new_tokens))
    return bounds.whole(choice.standing_bytes + taken) <= bounds.budget_bytes


def rows_that_fit(choice: Choice, bounds: Bounds, wanted: int, new_tokens: int, evaluate_tokens: int = 0) -> int:
    """Of evaluation and generation: as many as wanted, halved until they fit; one at least."""
    rows = max(1, wanted)
    while rows > 1 and not evaluation_fits(choice, bounds, rows, new_tokens, evaluate_tokens):
        rows //= 2
    return rows


def host_bytes(work: Work) -> dict[str, int]:
    """What a step keeps in the computer's memory: weights and inputs of layers that are away, optimizer state that may have to leave the GPU."""
    inputs = work.tokens_per_batch * work.shape.width * (FLOAT if work.shape.family == "falcon" else HALF)
    return {
        "weights": _pinned(layer_bytes(work)) * sum(placed.weights == "cpu" for placed in work.layers),
        "inputs of layers": _pinned(inputs) * sum(placed.activations == "cpu" for placed in work.layers),
        "optimizer, where the GPU runs short": paged_bytes(work),
    }


def _pinned(taken: int) -> int:
    """PyTorch hands out pinned memory in powers of two."""
    return 1 << (taken - 1).bit_length()
