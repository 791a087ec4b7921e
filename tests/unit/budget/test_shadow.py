"""The autograd of tensors without contents, beside that of PyTorch."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from halfbyte.budget.allocator import Allocator
from halfbyte.budget.operations import activated, add, product_of
from halfbyte.budget.shadow import HALF, Node, Shadow, Tape
from recordings import Recorder

SIDE = 512  # x and all that is made of it: SIDE x SIDE in 16 bits
EACH = SIDE * SIDE * HALF


def trained(tape: Tape, name: str) -> Shadow:
    """A parameter's copy, whose gradient is wanted."""
    return tape.node(tape.new(SIDE * SIDE), [name], [], lambda tape, saved, gradient, about: [gradient])


def shadow_layer(tape: Tape, x: Shadow, weight: Shadow) -> Shadow:
    """silu(x) * (weight + x)"""
    return product_of(tape, activated(tape, x), add(tape, weight, x))


def torch_layer(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.silu(x) * (weight + x)


def kept_by_torch(recomputed: list[bool]) -> int:
    """Bytes that wait for the backward pass of as many layers, each storage once."""
    waiting: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        waiting[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, requires_grad=True)
    weights = [torch.randn(SIDE, SIDE, dtype=torch.bfloat16, requires_grad=True) for _ in recomputed]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = x
        for again, weight in zip(recomputed, weights):
            y = checkpoint(torch_layer, y, weight, use_reentrant=False) if again else torch_layer(y, weight)
    for given in (x, *weights):
        waiting.pop(given.data_ptr(), None)
    return sum(waiting.values())


def run(recomputed: list[bool], watch: Callable[[str, Allocator], None] = lambda when, allocator: None) -> tuple[Allocator, Tape]:
    """Forward and backward of as many layers."""
    allocator = Allocator()
    tape = Tape(allocator)
    x = trained(tape, "x")
    weights = [trained(tape, f"weight {number}") for number in range(len(recomputed))]
    watch("given", allocator)
    y = x
    for again, weight in zip(recomputed, weights):
        y = tape.checkpoint(lambda x, weight=weight: shadow_layer(tape, x, weight), y) if again else shadow_layer(tape, y, weight)
    watch("forward", allocator)
    del x, weights, again, weight
    node = y.node
    gradient = tape.new(y.elements)
    del y
    assert isinstance(node, Node)
    tape.backward(node, gradient)
    return allocator, tape


@pytest.mark.parametrize("recomputed", [[False, False], [True, True], [True, False], [False, True], [False, False, False]])
def test_forward_keeps_what_pytorch_keeps(recomputed):
    """Of a layer silu's input and both factors; of a recomputed one its input alone. What is given and the result are not counted."""
    seen: dict[str, int] = {}
    run(recomputed, lambda when, allocator: seen.setdefault(when, allocator.allocated))
    assert seen["forward"] - seen["given"] - EACH == kept_by_torch(recomputed)
    assert kept_by_torch([False] * len(recomputed)) == (3 * len(recomputed) - 1) * EACH


def test_everything_is_given_back_but_the_gradients_of_parameters():
    for recomputed in ([False] * 3, [True] * 3):
        allocator, tape = run(recomputed)
        assert sorted(tape.grads) == ["weight 0", "weight 1", "weight 2", "x"]
        tape.grads.clear()
        assert allocator.allocated == 0


def test_recomputing_takes_less_memory_and_more_work():
    kept, again = (run([recomputed] * 12)[0] for recomputed in (False, True))
    assert again.peak_allocated < 0.7 * kept.peak_allocated
    assert kept.taken < again.taken <= kept.taken + 12 * 3  # each layer's three operations once more, at most


def test_inputs_that_leave_come_back_one_layer_early():
    """While a layer is computed again, the input of the one before is fetched: two are there, whatever the number of layers."""
    found: dict[bool, list[int]] = {}
    for away in (False, True):
        allocator = Allocator()
        tape = Tape(allocator)
        live: list[int] = []
        y = trained(tape, "x")

        def layer(tape: Tape, live: list[int], x: Shadow) -> Shadow:
            live.append(tape.allocator.allocated // EACH)
            return activated(tape, activated(tape, x))

        for _ in range(5):
            y = tape.checkpoint(partial(layer, tape, live), y, away=away)
        assert y.node is not None
        node, gradient = y.node, tape.new(y.elements)
        del y
        tape.backward(node, gradient)
        del gradient
        found[away] = live[5:]
    assert [stays - leaves for stays, leaves in zip(found[False], found[True])] == [3, 2, 1, 0, 0]


def test_gradients_of_parameters_are_added_to_the_first():
    """What a second micro-batch finds stays where it lies; its own goes."""
    tape = Tape(Allocator())
    for _ in range(2):
        y = activated(tape, trained(tape, "x"))
        assert y.node is not None
        tape.backward(y.node, tape.new(y.elements))
        first = tape.grads.setdefault("first", tape.view(tape.grads["x"]))
    assert tape.grads["x"].storage is first.storage


def test_recomputation_stops_where_everything_is_there_again():
    """What follows the last thing that is kept is not computed a second time."""

    def layer(tape: Tape, x: Shadow) -> Shadow:
        kept = activated(tape, x)
        return add(tape, kept, kept)  # keeps nothing

    def computed(recomputed: bool) -> int:
        allocator = Allocator()
        tape = Tape(allocator)
        x = trained(tape, "x")
        y = tape.checkpoint(partial(layer, tape), x) if recomputed else layer(tape, x)
        assert y.node is not None
        tape.backward(y.node, tape.new(y.elements))
        return allocator.taken

    assert computed(True) == computed(False)  # silu's input is what the layer was given: nothing is computed again at all


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_that_meet_are_added_in_place_where_nobody_else_holds_the_first(shared):
    """As PyTorch's engine does: f(x, g(x)), where f's gradient for x may be somebody else's too."""
    held: list[Shadow] = []

    def of_f(tape: Tape, saved: list[Shadow], gradient: Shadow, about: None) -> list[Shadow | None]:
        for_x = tape.new(gradient.elements)
        if shared:
            held.append(tape.view(for_x))
        return [for_x, gradient]

    allocator = Recorder()
    tape = Tape(allocator)
    x = trained(tape, "x")
    inner = tape.node(tape.new(SIDE * SIDE), [x], [], lambda tape, saved, gradient, about: [tape.new(gradient.elements)])
    outer = tape.node(tape.new(SIDE * SIDE), [x, inner], [], of_f)
    assert outer.node is not None
    allocator.forget()
    tape.backward(outer.node, tape.new(SIDE * SIDE))
    assert len([size for size in allocator.events if size > 0]) == 3 + shared  # what comes in, of f, of g, and the sum
    assert allocator.written == 7 * EACH  # a sum is written either way


def test_nothing_is_kept_where_no_gradient_is_wanted():
    allocator = Allocator()
    tape = Tape(allocator)
    tape.recording = False
    x = trained(tape, "x")
    y = shadow_layer(tape, x, trained(tape, "weight"))
    assert y.node is None
    del x
    assert allocator.allocated == EACH
