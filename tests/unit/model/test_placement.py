"""Placements put into force: where the tensors lie afterwards, when they are copied, what is refused."""

import gc
import random
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn

from halfbyte.errors import ModelError
from halfbyte.model import offload
from halfbyte.model.adapter import add_adapter
from halfbyte.model.offload import OffloadedWeights, WaitingInput, WaitingInputs
from halfbyte.model.placement import keep_in_16bit, limit_memory, place_layers
from halfbyte.recipe.plan import Placement
from halfbyte.recipe.schema import Adapter
from halfbyte.train.step import batch_logits
from toy_training import CPU, NONE, gradients, load_toy, one_batch, random_rows, same, stir
from toys import make_model

LAYERS = 5
PLAIN, AWAY = [Placement()] * LAYERS, [Placement("cpu", "cpu")] * LAYERS


@pytest.fixture
def adapted(toy_base):
    """A function: changes -> a quantised toy of five layers with an adapter."""

    def make(kind: str = "mistral", **changes) -> nn.Module:
        return stir(add_adapter(load_toy(toy_base(kind, num_hidden_layers=LAYERS, **changes)).model, Adapter(r=4, alpha=8), 0)[0])

    return make


def layers_of(model: nn.Module) -> nn.ModuleList:
    return model.get_base_model().model.layers


def storages(layer: nn.Module, trained: bool) -> set[int]:
    """Where the tensors of a layer lie, the scales of 4-bit weights included."""
    found = []
    for parameter in layer.parameters():
        if parameter.requires_grad == trained:
            found.append(parameter)
            if type(parameter).__name__ == "Params4bit":
                found += [parameter.quant_state.absmax, parameter.quant_state.state2.absmax]
    return {tensor.untyped_storage().data_ptr() for tensor in found}


def test_two_buffers_hold_the_frozen_tensors_of_all_offloaded_layers(adapted):
    """Each layer's in one of them, by turns; what is trained lies apart, and so do the layers that stay."""
    model = adapted("qwen2")
    places = [Placement("cpu", "recomputed"), Placement(), *[Placement("cpu", "recomputed")] * 3]
    place_layers(model, places, CPU)
    slots = [storages(layer, trained=False) for layer in layers_of(model)]
    assert [len(slot) for slot in slots] == [1, 7 * 3 + 3 + 2, 1, 1, 1]  # the layer that stays: 7 projections with two kinds of scales, 3 biases, 2 norms
    assert slots[0] == slots[3]
    assert slots[2] == slots[4] != slots[0]
    assert not any(storages(layer, trained=True) & (slots[0] | slots[2]) for layer in layers_of(model))


def test_a_home_is_as_long_as_the_frozen_bytes_of_its_layer():
    """Each tensor begins at a multiple of 256 bytes, as a GPU's allocator would place it."""
    layer = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 70)).requires_grad_(False)
    layer[0].weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    weights = OffloadedWeights([layer], CPU)
    assert [len(home) for home in weights.homes] == [256 + 1536 + 512]  # bias 5, weight 70 x 5, bias 70, of 4 bytes
    assert [len(slot) for slot in weights.slots] == [256 + 1536 + 512]
    weights.fetch(0, offload.UP)
    assert all(torch.equal(parameter, before[name]) for name, parameter in layer.named_parameters())


def test_a_bias_of_another_type_stays_a_view_when_the_layer_has_run(adapted):
    """bitsandbytes would put a converted copy in its place, which no fetch reaches: the next layer's bias would be used."""
    model = adapted("qwen2")
    for layer in layers_of(model):
        projection = layer.self_attn.q_proj.base_layer
        projection.bias.data = projection.bias.data.bfloat16()
    place_layers(model, AWAY, CPU)
    before = [storages(layer, trained=False) for layer in layers_of(model)]
    gradients(model, [one_batch(random_rows([9]))])
    assert [storages(layer, trained=False) for layer in layers_of(model)] == before


class Schedule:
    """Stands for copies beside the computation: each runs when it is asked for, or as late as the reader's waiting allows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: float):
        self.draw, self.late, self.copies = random.Random(0), late, 0
        self.queues: dict[object, list[tuple[Tensor, Tensor]]] = {}
        monkeypatch.setattr(offload.CopyStream, "copy", lambda stream, source, target: self.copy(stream, source, target))
        monkeypatch.setattr(offload, "wait_for", lambda copied: self.run(*copied) if copied is not None else None)

    def copy(self, stream: object, source: Tensor, target: Tensor) -> tuple[object, int]:
        queue = self.queues.setdefault(stream, [])
        queue.append((source, target))
        self.copies += 1
        if self.draw.random() >= self.late:
            self.run(stream, len(queue))
        return stream, len(queue)

    def run(self, stream: object, until: int) -> None:
        """What a stream was given runs in order."""
        queue = self.queues[stream]
        for index in range(until):
            source, target = queue[index]
            if source is not target:
                target.copy_(source)
                queue[index] = (target, target)


@pytest.mark.parametrize("late", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("places", [AWAY, [Placement("cpu", "cpu"), *[Placement("4bit", "cpu")] * 2, *[Placement("cpu", "recomputed")] * 2]])
def test_no_layer_sees_a_copy_half_done(adapted, monkeypatch, late, places):
    """However early or late the copies run that nobody waits for, three steps have the gradients of a model that stays."""
    batches = [one_batch(random_rows([9, 14])), one_batch(random_rows([7], seed=1))]
    expected = gradients(adapted(), batches)
    Schedule(monkeypatch, late)
    model = adapted()
    place_layers(model, places, CPU)
    for _ in range(3):
        assert same(gradients(model, batches), expected)


def test_each_layer_is_copied_once_up_and_once_down_but_for_the_two_at_the_turns(adapted, monkeypatch):
    model, batch = adapted(), one_batch(random_rows([9]))
    place_layers(model, [Placement("cpu", "recomputed")] * LAYERS, CPU)
    gradients(model, [batch])
    schedule = Schedule(monkeypatch, late=0.0)
    gradients(model, [batch])
    assert schedule.copies == 2 * (LAYERS - 2)


def test_layers_are_fetched_upwards_and_then_downwards(adapted, monkeypatch):
    """Only layers that are not kept run twice; in use, offloaded ones are fetched once."""
    fetched: list[tuple[int, int]] = []
    original = OffloadedWeights.fetch
    monkeypatch.setattr(OffloadedWeights, "fetch", lambda weights, *call: fetched.append(call) or original(weights, *call))
    model, ran = adapted(), [0] * LAYERS
    place_layers(model, [Placement("cpu", "recomputed"), Placement(), Placement("cpu", "cpu"), Placement("4bit", "cpu"), Placement("cpu", "recomputed")], CPU)

    def counter(index: int):
        return lambda module, inputs: ran.__setitem__(index, ran[index] + 1)

    for index, layer in enumerate(layers_of(model)):
        layer.mlp.register_forward_pre_hook(counter(index))
    gradients(model, [one_batch(random_rows([9]))])
    assert fetched == [(0, 1), (1, 1), (2, 1), (2, -1), (1, -1), (0, -1)]
    assert ran == [2, 1, 2, 2, 2]
    fetched.clear()
    model.eval()(input_ids=torch.tensor([[5, 6]]))
    assert fetched == [(0, 1), (1, 1), (2, 1)]


def test_the_next_layer_is_on_its_way_while_one_computes():
    layers = [nn.Linear(2, 2).requires_grad_(False) for _ in range(4)]
    weights = OffloadedWeights(layers, CPU)
    held = []
    for index, direction in [(0, 1), (1, 1), (2, 1), (3, 1), (3, -1), (2, -1), (1, -1), (0, -1), (0, 1)]:
        weights.fetch(index, direction)
        held.append(tuple(weights.holds))
    assert held == [(0, 1), (2, 1), (2, 3), (2, 3), (2, 3), (2, 1), (0, 1), (0, 1), (0, 1)]


def test_an_input_keeps_its_place_on_the_device_until_it_has_left(monkeypatch):
    schedule, inputs, tensors = Schedule(monkeypatch, late=1.0), WaitingInputs(CPU), torch.randn(3, 1, 2, 4)
    first, second, third = (inputs.send(tensor) for tensor in tensors)
    assert torch.equal(first.home, tensors[0])
    assert torch.equal(second.home, tensors[1])
    assert [waiting.on_device is None for waiting in (first, second, third)] == [True, True, False]
    assert all(torch.equal(inputs.take(waiting), tensor) for waiting, tensor in zip((third, second, first), tensors.flip(0), strict=True))
    assert schedule.copies == 3 + 2


@pytest.mark.parametrize(("activations", "stays"), [("cpu", [False] * (LAYERS - 1) + [True]), ("recomputed", [True] * LAYERS)])
def test_the_inputs_of_layers_leave_the_device(adapted, activations, stays):
    """After the forward pass only the topmost is still there, not to come back; after the backward pass nothing is kept anywhere."""
    model = adapted().train()
    place_layers(model, [Placement("4bit", activations)] * LAYERS, CPU)
    given: list[ReferenceType] = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda layer, inputs: given.append(ref(inputs[0].untyped_storage())))
    loss = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.sum()
    assert [storage() is not None for storage in given] == stays
    loss.backward()
    del loss
    gc.collect()
    assert not any(storage() for storage in given)
    assert not [thing for thing in gc.get_objects() if type(thing) is WaitingInput]


def test_a_second_backward_pass_and_one_that_was_broken_off(adapted):
    model = adapted()
    place_layers(model, AWAY, CPU)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.tensor([[5, 6, 7, 8]])

    def broken(gradient: Tensor) -> None:
        raise RuntimeError("broken off")

    loss = model(input_ids=ids).logits.square().sum()
    first, second = (torch.autograd.grad(loss, trained, retain_graph=True) for _ in range(2))
    hook = layers_of(model)[2].mlp.up_proj.lora_A["default"].weight.register_hook(broken)
    with pytest.raises(RuntimeError, match="broken off"):
        model(input_ids=ids).logits.square().sum().backward()
    hook.remove()
    third = torch.autograd.grad(model(input_ids=ids).logits.square().sum(), trained)
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("saved_as", [torch.float16, torch.bfloat16])
def test_layers_dequantised_are_plain_linear_layers_of_the_same_product(toy_base, saved_as):
    """Also when the file was quantised from weights of another type: nothing is rounded to that on the way."""
    folder = toy_base("qwen2", num_hidden_layers=LAYERS)
    base, kept = (load_toy(folder, precision="bfloat16").model for _ in range(2))
    for parameter in (*base.parameters(), *kept.parameters()):
        if type(parameter).__name__ == "Params4bit":
            parameter.quant_state.dtype = saved_as
    keep_in_16bit(base, [Placement("16bit"), *PLAIN[1:]], torch.bfloat16)
    linears = [path for path, module in kept.model.layers[0].named_modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 7
    for path in linears:
        module, other = (model.model.layers[0].get_submodule(path) for model in (base, kept))
        assert (type(module), module.weight.dtype, module.weight.requires_grad) == (nn.Linear, torch.bfloat16, False)
        x = torch.randn(3, module.in_features).bfloat16()
        assert torch.equal(module(x), other(x))
    assert {type(module).__name__ for module in base.model.layers[1].modules() if isinstance(module, nn.Linear)} == {"Linear4bit"}


def test_the_adapter_over_a_dequantised_layer_copies_no_input(toy_base):
    """On a CPU peft does so over layers in 4 bits, and everywhere over plain ones unless told: a fifth more is kept for the backward pass here."""
    folder = toy_base()

    def kept_bytes(placement: Placement) -> int:
        base = load_toy(folder, precision="bfloat16").model
        keep_in_16bit(base, [placement] * 2, torch.bfloat16)
        model, _ = add_adapter(base, Adapter(r=4, alpha=8), 0)
        place_layers(model.train(), [placement] * 2, CPU)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            loss = batch_logits(model, one_batch(random_rows([50])), torch.bfloat16).sum()
        assert loss.requires_grad
        sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        return sum(size for place, size in sizes.items() if place not in weights)

    assert kept_bytes(Placement("16bit")) < 0.9 * kept_bytes(Placement())


def test_a_base_without_4_bits_has_nothing_to_dequantise(toy_base):
    base = load_toy(toy_base(), NONE).model
    before = list(base.parameters())
    keep_in_16bit(base, [Placement("16bit")] * 2, torch.float32)
    assert all(one is other for one, other in zip(base.parameters(), before, strict=True))


def test_offloaded_but_not_recomputed_is_our_own_bug():
    with pytest.raises(AssertionError, match="recomputes"):
        place_layers(make_model(), [Placement(), Placement("cpu", "kept")], CPU)


def test_layers_that_cannot_be_recomputed_are_refused():
    model = make_model()
    layers = model.model.layers
    layers[1] = nn.Sequential(layers[1])
    with pytest.raises(ModelError, match="Sequential cannot be recomputed") as caught:
        place_layers(model, [Placement("4bit", "recomputed")] * 2, CPU)
    assert "gradient_checkpointing" in caught.value.hint
    place_layers(model, [Placement("4bit", "recomputed"), Placement()], CPU)


def test_a_limit_without_a_gpu_does_nothing():
    with limit_memory(CPU, 1):
        assert torch.zeros(1000).sum() == 0
