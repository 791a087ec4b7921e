"""What single operations keep for the backward pass; whole steps are compared with recordings in test_step.py."""

from collections.abc import Callable

import pytest

from halfbyte.budget.operations import activated, adapted_linear, add, cast, fused_attention, layer_norm, plain_attention, product_of, rms_norm, rotate
from halfbyte.budget.shadow import BYTE, FLOAT, HALF, Shadow, Tape
from halfbyte.budget.shape import Linear
from recordings import Recorder

ROWS, WIDTH = 2048, 1024
MANY = ROWS * WIDTH


def trace(operation: Callable[[Tape, Shadow], Shadow], size: int = HALF) -> tuple[int, int, list[int]]:
    """Bytes kept between forward and backward beside input and result, the highest of the forward over the input, and what the backward asks for."""
    allocator = Recorder()
    tape = Tape(allocator)
    x = tape.node(tape.new(MANY, size), ["x"], [], lambda tape, saved, gradient, about: [gradient])
    before = allocator.forget()
    result = operation(tape, x)
    highest = allocator.peak_allocated - before
    elements, itemsize = result.elements, result.itemsize
    kept = allocator.allocated - before - (0 if result.storage is x.storage else elements * itemsize)
    node = result.node
    del x, result
    assert node is not None
    gradient = [tape.new(elements, itemsize)]
    allocator.forget()
    tape.backward(node, gradient.pop())
    assert tape.grads["x"].elements == MANY
    assert tape.grads["x"].itemsize == size
    asked = [event for event in allocator.events if event > 0]
    tape.grads.clear()
    tape.casts.clear()
    assert allocator.allocated == 0
    return kept, highest, asked


def test_rms_norm_keeps_the_wide_input_and_a_scale_a_row():
    kept, highest, _ = trace(lambda tape, x: rms_norm(tape, x, WIDTH))
    assert kept == MANY * FLOAT + ROWS * FLOAT
    assert highest >= MANY * (FLOAT + FLOAT + HALF)


def test_layer_norm_keeps_the_input_itself_where_it_is_wide_already():
    parameters = 2 * WIDTH * FLOAT + 2 * ROWS * FLOAT
    assert trace(lambda tape, x: layer_norm(tape, x, WIDTH), FLOAT)[0] == parameters
    assert trace(lambda tape, x: layer_norm(tape, x, WIDTH), HALF)[0] == parameters + MANY * FLOAT


@pytest.mark.parametrize(
    ("operation", "kept"),
    [
        (lambda tape, x: cast(tape, x, FLOAT), 0),
        (lambda tape, x: add(tape, x, x), 0),
        (rotate, 0),
        (activated, 0),
        (lambda tape, x: product_of(tape, x, x), 0),
        (lambda tape, x: product_of(tape, x, activated(tape, x)), MANY * HALF),
    ],
)
def test_small_operations(operation, kept):
    assert trace(operation)[0] == kept


LINEAR = Linear("q_proj", 512, WIDTH)
RANK = 16


def adapter_kept(dropout: bool = False) -> int:
    """Both matrices in 16 bits and x A; with dropout also the mask and what it left."""
    return RANK * (LINEAR.inputs + LINEAR.outputs) * HALF + ROWS * RANK * HALF + (MANY * (BYTE + HALF) if dropout else 0)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapted_layer_keeps_no_weight(dropout, quantised):
    kept, _, asked = trace(lambda tape, x: adapted_linear(tape, x, LINEAR, RANK, dropout, quantised, False, "q"))
    assert kept == adapter_kept(dropout)
    assert (LINEAR.weights * HALF in asked) == quantised  # dequantised for each product


def test_a_layer_without_adapter_keeps_nothing():
    assert trace(lambda tape, x: adapted_linear(tape, x, LINEAR, 0, False, True, False, "q"))[0] == 0


def test_widened_inputs_are_kept_once_more():
    assert trace(lambda tape, x: adapted_linear(tape, x, LINEAR, RANK, False, False, True, "q"))[0] == adapter_kept() + MANY * HALF


def test_fused_attention_keeps_no_scores():
    head = 64

    def attend(tape: Tape, x: Shadow) -> Shadow:
        return fused_attention(tape, x, x, x, head, [])

    kept, _, asked = trace(attend)
    assert kept == MANY // head * FLOAT
    assert max(asked) == MANY * FLOAT + MANY // head * FLOAT + 512  # sums in float32; keys and values are not repeated, there are as many


def test_plain_attention_keeps_the_whole_square():
    """One key head for all query heads: Falcon."""
    head, tokens = 64, 512

    def attend(tape: Tape, x: Shadow) -> Shadow:
        key = tape.new(MANY * head // WIDTH)
        return plain_attention(tape, x, key, key, head, tokens, tape.new(1))

    kept, highest, _ = trace(attend)
    scores = ROWS // tokens * (WIDTH // head) * tokens * tokens
    assert kept >= scores * FLOAT
    assert kept == scores * FLOAT + 3 * MANY * FLOAT  # and queries, keys and values, each as wide as the queries
    assert highest >= 2 * scores * FLOAT


def test_nothing_is_computed_for_what_wants_no_gradient():
    """The sum of a frozen input and a trained one, in different precisions."""
    allocator = Recorder()
    tape = Tape(allocator)
    trained = tape.node(tape.new(MANY, FLOAT), ["x"], [], lambda tape, saved, gradient, about: [gradient])
    total = add(tape, tape.new(MANY, HALF), trained)
    assert total.node is not None
    gradient = tape.new(MANY, FLOAT)
    allocator.forget()
    tape.backward(total.node, gradient)
    assert not [event for event in allocator.events if event > 0]
