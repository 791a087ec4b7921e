"""One training step of the plain path as a sequence of allocations: the model's forward, the loss, the backward, the optimizer.

The blocks are those of transformers (Llama's family and Falcon), with peft's adapters over bitsandbytes' layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halfbyte.budget.allocator import Memory
from halfbyte.budget.operations import (
    activated,
    adapted_linear,
    add,
    cast,
    expand,
    fused_attention,
    layer_norm,
    plain_attention,
    product_of,
    rms_norm,
    rotate,
    same,
    transposed,
)
from halfbyte.budget.shadow import BYTE, FLOAT, HALF, Node, Shadow, Tape
from halfbyte.budget.shape import BLOCK, NESTED_BLOCK, Linear, Shape
from halfbyte.recipe.plan import Placement

LONG = 8
"""Bytes of an id."""
CUBLAS_WORKSPACE = 32 * 2**20
"""PyTorch gives cuBLAS so much in each of two threads, forward and backward, and keeps it (on Hopper, measured; 8 MiB on older chips)."""
PAGED_FROM = 100_000
"""bitsandbytes pages the optimizer state of tensors of at least so many elements."""
BLOCKWISE_FROM = 4_096
"""bitsandbytes keeps the state of smaller tensors in float32."""

SLOTS = 2
"""Offloaded layers whose weights are on the GPU: the one that computes and the one on its way (model/offload.py)."""


@dataclass(frozen=True)
class Work:
    """What is trained, as far as memory and time depend on it."""

    shape: Shape
    rows: int
    """Of a micro-batch."""
    tokens: int
    """Of a row."""
    layers: tuple[Placement, ...]
    accumulation: int = 1
    packed: bool = False
    four_bit: bool = True
    double_quant: bool = True
    rank: int = 16
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that have an adapter; None: all of them."""
    dropout: bool = False
    optimizer: str = "adamw_torch"
    whole_weights: int = 0
    """Of modules that are trained whole (embedding, head)."""

    def rank_of(self, linear: Linear) -> int:
        return self.rank if self.targets is None or linear.name in self.targets else 0

    @property
    def tokens_per_batch(self) -> int:
        return self.rows * self.tokens

    @property
    def masked(self) -> bool:
        """Whether attention is given a mask; otherwise the kernel knows that it is causal."""
        beyond = self.shape.window is not None and self.tokens > self.shape.window
        return self.packed or beyond or self.shape.family == "falcon"

    @property
    def adapter_weights(self) -> int:
        return self.shape.layers * sum(self.rank_of(linear) * (linear.outputs + linear.inputs) for linear in self.shape.linears)


def place_base(work: Work, allocator: Memory) -> list[Any]:
    """The frozen weights that stay on the GPU, in the order in which a layer is loaded. Returns what must be kept alive."""
    shape, held = work.shape, []

    def hold(size: int) -> None:
        held.append(allocator.malloc(size))

    hold(shape.vocabulary * shape.width * HALF)
    largest = 0
    for layer in work.layers:
        if layer.weights == "cpu":
            largest = layer_bytes(work)
            for _ in shape.linears:  # codebooks and offsets stay
                hold(16 * FLOAT)
                hold(256 * FLOAT)
                hold(FLOAT)
            continue
        for linear in shape.linears:
            if work.four_bit and layer.weights == "4bit":
                hold(linear.weights // 2)
                hold(linear.weights // BLOCK * (BYTE if work.double_quant else FLOAT))
                hold(16 * FLOAT)
                if work.double_quant:
                    hold(-(-linear.weights // BLOCK // NESTED_BLOCK) * FLOAT)
                    hold(256 * FLOAT)
                    hold(FLOAT)
            else:
                hold(linear.weights * HALF)
            if linear.bias:
                hold(linear.outputs * HALF)
        for _ in range(2):
            hold(shape.width * HALF)
    for _ in range(SLOTS if largest else 0):
        hold(largest)
    hold(shape.width * HALF)
    if not shape.tied:
        hold(shape.vocabulary * shape.width * HALF)
    return held


def four_bit_bytes(linear: Linear, double_quant: bool) -> int:
    """NF4 or FP4: half a byte a weight, a scale for 64 of them, in 8 bits with a float32 scale for 256 of those."""
    blocks = linear.weights // BLOCK
    return linear.weights // 2 + (blocks + -(-blocks // NESTED_BLOCK) * FLOAT if double_quant else blocks * FLOAT)


def layer_bytes(work: Work) -> int:
    """The frozen matrices of a layer, as they are loaded."""
    return sum(four_bit_bytes(linear, work.double_quant) if work.four_bit else linear.weights * HALF for linear in work.shape.linears)


def place_adapter(work: Work, allocator: Memory) -> list[Any]:
    """A and B of every linear layer that has an adapter, in float32. Of modules trained whole: weight, gradient, both moments, and the 16-bit copy."""
    whole = allocator.malloc(work.whole_weights * (4 * FLOAT + HALF))
    return [*(allocator.malloc(size * FLOAT) for *_, size in adapter_matrices(work)), whole]


def adapter_matrices(work: Work) -> list[tuple[int, Linear, str, int]]:
    """Layer, linear layer, A or B, and elements of each trained matrix, in the order of the model's parameters."""
    found = []
    for number in range(work.shape.layers):
        for linear in work.shape.linears:
            rank = work.rank_of(linear)
            found += [(number, linear, "A", rank * linear.inputs), (number, linear, "B", rank * linear.outputs)] if rank else []
    return found


def place_optimizer(work: Work, allocator: Memory) -> list[Any]:
    """Both moments of every trained tensor; paged ones lie outside PyTorch's memory."""
    held = []
    for *_, size in adapter_matrices(work):
        eight_bit = "8bit" in work.optimizer and size >= BLOCKWISE_FROM
        for _ in range(2):
            if not (work.optimizer.startswith("paged") and size >= PAGED_FROM):
                held.append(allocator.malloc(size * (BYTE if eight_bit else FLOAT)))
        for _ in range(2 if eight_bit else 0):  # scales of blocks of 256
            held.append(allocator.malloc(-(-size // 256) * FLOAT))
    return held


def paged_bytes(work: Work) -> int:
    """Optimizer state in managed memory: on the GPU while there is room, beside what PyTorch reserves."""
    if not work.optimizer.startswith("paged"):
        return 0
    each = BYTE if "8bit" in work.optimizer else FLOAT
    return sum(2 * size * each for *_, size in adapter_matrices(work) if size >= PAGED_FROM)


def run_step(work: Work, allocator: Memory) -> None:
    """An optimizer step as all but the first are, on an allocator that holds the base and the adapter: the last of its micro-batches.

    It finds the optimizer's state, and the gradients of the micro-batches before, to which its own are added in place.
    """
    held = [*place_optimizer(work, allocator), *(allocator.malloc(CUBLAS_WORKSPACE) for _ in range(2))]
    tape = Tape(allocator)
    if work.accumulation > 1:
        for number, linear, part, size in adapter_matrices(work):
            tape.grads[f"{number}.{linear.name}.{part}"] = tape.new(size, FLOAT)
    allocator.taken = allocator.written = 0
    micro_batch(work, tape)
    tape.grads.clear()
    for block in held:
        allocator.free(block)


def micro_batch(work: Work, tape: Tape) -> None:
    """Forward, loss and backward of rows x tokens."""
    batch = work.tokens_per_batch
    ids, labels = tape.new(batch, LONG), tape.new(batch, LONG)
    positions = [tape.new(batch, LONG), tape.new(batch, LONG)] if work.packed else []
    node, itemsize, logits = forward(work, tape)
    rows = batch - work.rows  # the last token of a row predicts nothing
    wide = tape.new(rows * work.shape.vocabulary, FLOAT)
    targets = tape.new(rows, LONG)
    likely = tape.new(rows * work.shape.vocabulary, FLOAT)
    del wide, logits
    of_loss = tape.new(rows * work.shape.vocabulary, FLOAT)
    of_wide = tape.new(rows * work.shape.vocabulary, FLOAT)
    del of_loss, likely, targets
    narrow = tape.new(rows * work.shape.vocabulary, HALF)
    del of_wide
    of_logits = tape.new(batch * work.shape.vocabulary, HALF)
    del narrow
    narrow = tape.new(batch * work.shape.width, HALF)
    del of_logits
    gradient = narrow if itemsize == HALF else tape.new(narrow.elements, itemsize)
    del narrow
    tape.newest = None
    buffer = [gradient]
    del gradient
    tape.backward(node, buffer.pop())
    del ids, labels, positions


def look(work: Work, tape: Tape, labelled: int) -> None:
    """What evaluation does with rows x tokens: no gradients, and the loss of one row at a time, over its `labelled` tokens, in float32."""
    tape.recording = False
    ids, labels = tape.new(work.tokens_per_batch, LONG), tape.new(work.tokens_per_batch, LONG)
    last, logits = _model(work, tape)
    del last
    chosen = tape.new(labelled * work.shape.vocabulary, HALF)
    wide = tape.new(labelled * work.shape.vocabulary, FLOAT)
    likely = tape.new(labelled * work.shape.vocabulary, FLOAT)
    del chosen, wide, likely, logits, ids, labels


def forward(work: Work, tape: Tape) -> tuple[Node, int, Shadow]:
    """Where the backward begins, at the normalised hidden state, the size of its elements, and the logits (rows x tokens x vocabulary)."""
    last, logits = _model(work, tape)
    if last.node is None:
        raise ValueError("nothing is trained")
    return last.node, last.itemsize, logits


def _model(work: Work, tape: Tape) -> tuple[Shadow, Shadow]:
    """The last hidden state and the logits."""
    shape, batch = work.shape, work.tokens_per_batch
    embedded = tape.new(batch * shape.width, HALF)  # kept by the model until its forward ends
    hidden = embedded
    positions = work.tokens * (work.rows if work.packed else 1) * shape.head_width
    angles = [tape.new(positions, FLOAT) for _ in range(3)]
    turns = [tape.new(positions, HALF), tape.new(positions, HALF)]
    del angles
    square = work.rows * work.tokens * work.tokens
    mask = [tape.new(square, BYTE)] if work.masked else []
    block = falcon_block if shape.family == "falcon" else llama_block
    for number, layer in enumerate(work.layers):
        run = _of_layer(block, work, tape, number, mask)
        if layer.activations == "kept" or not tape.recording:
            hidden = run(hidden)
        else:
            hidden = tape.checkpoint(run, hidden, away=layer.activations == "cpu")
    last = layer_norm(tape, hidden, shape.width) if shape.family == "falcon" else rms_norm(tape, hidden, shape.width)
    del hidden, embedded, mask, turns
    narrow = cast(tape, tape.view(last), HALF)
    logits = tape.new(batch * shape.vocabulary, HALF)
    del narrow
    tape.casts.clear()
    return last, logits


def _of_layer(block: Callable[..., Shadow], work: Work, tape: Tape, number: int, mask: list[Shadow]) -> Callable[[Shadow], Shadow]:
    return lambda hidden: block(work, tape, number, hidden, mask)


def llama_block(work: Work, tape: Tape, number: int, hidden: Shadow, mask: list[Shadow]) -> Shadow:
    """Llama, Mistral, Qwen2 and Qwen3."""
    x = rms_norm(tape, hidden, work.shape.width)
    x = _llama_attention(work, tape, number, x, mask)
    hidden = add(tape, hidden, x)
    del x
    x = rms_norm(tape, hidden, work.shape.width)
    x = _llama_feed_forward(work, tape, number, x)
    return add(tape, hidden, x)


def _llama_attention(work: Work, tape: Tape, number: int, x: Shadow, mask: list[Shadow]) -> Shadow:
    shape = work.shape
    query, key, value, output = shape.linears[:4]
    q = transposed(tape, _linear(work, tape, number, x, query))
    if shape.norms_of_heads:
        q = rms_norm(tape, q, shape.head_width)
    k = transposed(tape, _linear(work, tape, number, x, key))
    if shape.norms_of_heads:
        k = rms_norm(tape, k, shape.head_width)
    v = _linear(work, tape, number, x, value)
    repeats = shape.heads // shape.key_heads
    repeated = bool(mask) and repeats > 1
    if repeated:
        v = transposed(tape, v)
    turned_q = rotate(tape, q)
    turned_k = rotate(tape, k)
    del q, k
    many_k, many_v = (expand(tape, turned_k, repeats), expand(tape, v, repeats)) if repeated else (turned_k, v)
    added = [tape.new(mask[0].elements, HALF)] if mask else []
    mixed = fused_attention(tape, turned_q, many_k, many_v, shape.head_width, added)
    del many_k, many_v, added
    result = _linear(work, tape, number, mixed, output)
    del mixed, turned_q, turned_k, v  # in the order in which the real variables go
    return result


def _llama_feed_forward(work: Work, tape: Tape, number: int, x: Shadow) -> Shadow:
    gate, up, down = work.shape.linears[4:]
    opened = activated(tape, _linear(work, tape, number, x, gate))
    inner = product_of(tape, opened, _linear(work, tape, number, x, up))
    del opened
    return _linear(work, tape, number, inner, down)


def _linear(work: Work, tape: Tape, number: int, x: Shadow, linear: Linear) -> Shadow:
    quantised = work.four_bit and work.layers[number].weights != "16bit"
    return adapted_linear(tape, x, linear, work.rank_of(linear), work.dropout, quantised, not work.four_bit, f"{number}.{linear.name}")


def falcon_block(work: Work, tape: Tape, number: int, hidden: Shadow, mask: list[Shadow]) -> Shadow:
    """Attention and feed-forward part beside each other, on one norm, whose float32 goes on from layer to layer."""
    shape = work.shape
    inner, outer = shape.linears[2:]
    x = layer_norm(tape, hidden, shape.width)
    attended = _falcon_attention(work, tape, number, x, mask)
    opened = activated(tape, _linear(work, tape, number, x, inner))
    result = _linear(work, tape, number, opened, outer)
    del opened
    joined = tape.node(tape.view(result), [result, attended], [], _falcon_join, attended.itemsize)
    return add(tape, hidden, joined)


def _falcon_join(tape: Tape, saved: list[Shadow], gradient: Shadow, itemsize: int) -> list[Shadow | None]:
    """The attention's output is added in place."""
    return [tape.view(gradient), tape.new(gradient.elements, itemsize)]


def _falcon_attention(work: Work, tape: Tape, number: int, x: Shadow, mask: list[Shadow]) -> Shadow:
    shape = work.shape
    fused = _linear(work, tape, number, x, shape.linears[0])
    batch = work.tokens_per_batch
    few = batch * shape.head_width * shape.key_heads
    q = tape.view(fused)
    q.elements = batch * shape.heads * shape.head_width
    q = tape.node(q, [fused], [], _slice_backward, fused.elements)
    k = tape.node(tape.new(few, fused.itemsize), [fused], [], _index_backward, fused.elements)
    v = tape.node(tape.new(few, fused.itemsize), [fused], [], _index_backward, fused.elements)
    turned_q = rotate(tape, q)
    turned_k = rotate(tape, k)
    q, k = turned_q, turned_k
    del turned_q, turned_k
    narrow = [cast(tape, one, HALF) for one in (k, v, q)]
    added = tape.new(mask[0].elements, HALF)
    mixed = plain_attention(tape, narrow[2], narrow[0], narrow[1], shape.head_width, work.tokens, added)
    del added, narrow
    copy = tape.node(tape.new(mixed.elements, HALF), [mixed], [], same)
    del mixed
    return _linear(work, tape, number, copy, shape.linears[1])


def _index_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, elements: int) -> list[Shadow | None]:
    zeros = tape.new(elements, gradient.itemsize)
    tape.allocator.write(elements * gradient.itemsize)  # filled in place
    return [zeros]


def _slice_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, elements: int) -> list[Shadow | None]:
    return [tape.new(elements, gradient.itemsize)]
