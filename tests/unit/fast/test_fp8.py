"""FastDecoder with its frozen products in 8 bits: how far from exact each part of a product is, and that the step around them is the one without FP8."""

import copy

import pytest
import torch

from halfbyte.fast.adopt import Unfit, adopt
from halfbyte.fast.decoder import FastDecoder
from halfbyte.fast.fp8 import Fp8Buffers, in_fp8
from tolerances import FAST_FLOAT32, FP8_ADAPTER, FP8_FROZEN, FP8_GRADIENT
from toy_fast import LINEARS, adapted, batch_of, by_hand, farthest, four_bit, redraw, trained

PADDED = batch_of([[23], [9], [17]])
PACKED = batch_of([[5, 18], [9], [1, 1, 14, 1]], packed=True)
SCALE = 0.1
WIDE = {"hidden_size": 256, "intermediate_size": 512}


def distance(ours, truth):
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


def apart(ours, truth):
    """Of all gradients together."""
    return distance(torch.cat([one.flatten() for one in ours.values()]), torch.cat([truth[name].flatten() for name in ours]))


def group_of(model, dtype=torch.float32):
    """The opened MLP's group of the first layer, with its buffers."""
    parts = in_fp8(adopt(model, dtype))
    group = parts.layers[0].gate_up
    groups = [one for layer in parts.layers for one in layer.groups]
    return group, Fp8Buffers(dtype, torch.device("cpu"), groups)


def weights(group):
    """W (N, K), and what the adapters add to it, (N, K), float64."""
    frozen = torch.cat([layer.module.weight.double() for layer in group.layers])
    return frozen, torch.cat([layer.lora.scale * layer.lora.b.double() @ layer.lora.a.double() for layer in group.layers])


def without_b(group, values=None):
    """Sets B to zero, or to `values`; returns what it was."""
    before = [layer.lora.b.detach().clone() for layer in group.layers]
    for number, layer in enumerate(group.layers):
        layer.lora.b.data.copy_(torch.zeros_like(before[number]) if values is None else values[number])
    return before


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.05], ids=["tiny adapter", "", "large adapter"])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_the_adapters_part_has_8_bits_and_the_frozen_part_4(size, back):
    """The same with B zero is the frozen part alone, as long as the rows' scales are the same: each has one large number. The difference is the adapter's."""
    model = adapted("mistral", dtype=torch.float32, **WIDE)
    group, buffers = group_of(model)
    for layer in group.layers:
        layer.lora.a.data.uniform_(-(layer.inputs**-0.5), layer.inputs**-0.5)
        layer.lora.b.data.normal_(std=size)
    given = torch.randn(64, group.outputs if back else group.inputs)
    given[:, 3] = 100.0
    frozen, added = (one if back else one.T for one in weights(group))
    found = []
    before = without_b(group)
    for values in (None, before):
        without_b(group, values)
        buffers.forget()
        buffers.begin()
        out = torch.empty(64, group.inputs if back else group.outputs)
        (group.backward if back else group.forward)(given, buffers.of(group), out)
        found.append(out)
    alone, together = found
    assert 0.01 < distance(alone, given.double() @ frozen) < FP8_FROZEN
    if size == 1e-3:
        assert distance(together.double() - alone.double(), given.double() @ added) < FP8_ADAPTER
    assert distance(together, given.double() @ (frozen + added)) < FP8_FROZEN


BLOCKS = {
    "llama": lambda: adapted("llama", dtype=torch.float32, **WIDE),
    "biases": lambda: adapted("qwen2", dtype=torch.float32, **WIDE),
    "norms of heads": lambda: adapted("qwen3", dtype=torch.float32, **WIDE),
    "4 bits": lambda: four_bit("mistral", **WIDE),
    "4 bits, not nested": lambda: four_bit("mistral", double_quant=False, **WIDE),
    "some adapters": lambda: adapted("llama", ("q_proj", "down_proj"), dtype=torch.float32, **WIDE),
    "of more than 42 ranks together": lambda: adapted("llama", LINEARS, {"r": 30}, dtype=torch.float32, **WIDE),
    "of different ranks": lambda: adapted(
        "llama", LINEARS, {"rank_pattern": {"v_proj": 3, "0.self_attn.q_proj": 49, "up_proj": 1}}, dtype=torch.float32, **WIDE
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_near_those_without(block):
    model = BLOCKS[block]()
    loss, expected = by_hand(model, [PADDED, PACKED], SCALE)
    found, gradients = by_hand(model, [PADDED, PACKED], SCALE, fp8=True)
    assert found == pytest.approx(loss, rel=0.01)
    assert found != loss
    assert 0.001 < apart(gradients, expected) < FP8_GRADIENT


HOW = {
    "thin": {"keep": ["thin"] * 3},
    "attention": {"keep": ["attention"] * 3},
    "input": {"keep": ["input"] * 3},
    "tight": {"tight": True},
    "tight and mixed": {"keep": ["input", "all", "attention"], "tight": True},
    "resident": {"resident": (0, 2)},
    "one resident, others tight": {"keep": ["all", "thin", "input"], "resident": (1,), "tight": True},
    "some parked": {"keep": ["all", "input", "attention"], "parked": (0, 2), "resident": (2,), "tight": True},
}


@pytest.mark.parametrize("how", HOW)
def test_whatever_is_kept_the_gradient_is_the_same(how):
    """The layers' layouts differ, and one group has no adapter: buffers are used one after the other with other patterns."""
    targets = r".*(q_proj|k_proj|v_proj|o_proj|down_proj|[02]\.mlp\.(gate|up)_proj)"
    model = adapted("qwen3", targets, {"rank_pattern": {"1.self_attn.v_proj": 3}}, dtype=torch.float32, num_hidden_layers=3)
    loss, expected = by_hand(model, [PADDED, PACKED], SCALE, fp8=True)
    found, gradients = by_hand(model, [PADDED, PACKED], SCALE, fp8=True, **HOW[how])
    assert found == pytest.approx(loss, rel=1e-6)
    assert farthest(gradients, expected) < FAST_FLOAT32


@pytest.mark.parametrize("how", [{}, {"resident": (0, 1)}, {"tight": True, "keep": ["input", "thin"]}])
def test_adapters_that_change_between_steps_are_seen(how):
    """Far larger ones too: their units change."""
    model = adapted("mistral", dtype=torch.float32)
    decoder = FastDecoder(model, torch.float32, fp8=True, **how)
    for seed, size in enumerate((0.01, 30.0, 1.0)):
        redraw(model, seed)
        for name, parameter in trained(model).items():
            if "lora_B" in name:
                parameter.data.mul_(size)
        _, expected = by_hand(copy.deepcopy(model), [PADDED], SCALE, fp8=True)
        decoder.accumulate(PADDED, SCALE)
        assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, expected) < FAST_FLOAT32
        model.zero_grad(set_to_none=True)


def test_nothing_more_is_kept_for_the_backward_pass():
    model = adapted("llama", dtype=torch.float32)
    kept = {}
    for fp8 in (False, True):
        decoder = FastDecoder(model, torch.float32, fp8=fp8)
        layer = type(decoder.parts.layers[0])
        own, kept[fp8] = layer.forward, []

        def spied(*given, own=own, into=kept[fp8]):
            out, saved = own(*given)
            tensors = [saved.x, saved.attention, saved.qkv, saved.middle, saved.gate_up, *saved.low.values()]
            into.append(sum(one.untyped_storage().nbytes() for one in tensors))
            return out, saved

        try:
            layer.forward = spied
            decoder.accumulate(PADDED, SCALE)
        finally:
            layer.forward = own
        model.zero_grad()
    assert kept[True]
    assert all(ours <= theirs for ours, theirs in zip(kept[True], kept[False], strict=True))


def test_a_falcon_is_refused_by_name():
    with pytest.raises(Unfit, match="FP8 is for the Llama family's layers"):
        FastDecoder(adapted("falcon"), torch.float64, fp8=True)


def test_an_adapter_that_is_still_zero_takes_nothing_from_the_rows():
    """As in a first step: neither their precision, nor, in the gradient of B, what it learns from."""
    model = adapted("llama", dtype=torch.float32, **WIDE)
    group, buffers = group_of(model)
    without_b(group)
    buffers.forget()
    buffers.begin()
    given, out = torch.randn(64, group.inputs), torch.empty(64, group.outputs)
    group.forward(given, buffers.of(group), out)
    assert distance(out, given.double() @ weights(group)[0].T) < FP8_FROZEN
