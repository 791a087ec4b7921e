"""FastDecoder against autograd through transformers and peft, in float64: every block it knows, every set that it keeps, every kind of row."""

import pytest
import torch

from halfbyte.budget import fast_sizes
from halfbyte.data.batches import IGNORE
from halfbyte.fast import decoder
from halfbyte.fast.block import KEEP
from halfbyte.fast.decoder import FastDecoder
from tolerances import FAST_EXACT, FAST_FLOAT32
from toy_fast import FALCON_LINEARS, LINEARS, adapted, batch_of, by_autograd, by_hand, farthest, four_bit, redraw, trained

PADDED = batch_of([[23], [9], [17]])
PACKED = batch_of([[5, 18], [9], [1, 1, 14, 1]], packed=True)
WITHOUT_LABELS = batch_of([[9], [12]])
WITHOUT_LABELS.labels[0] = IGNORE
SCALE = 0.1
ROPE = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
}  # fmt: skip


def check(model, batches=(PADDED, PACKED), tolerance=FAST_EXACT, **how):
    loss, expected = by_autograd(model, batches, SCALE)
    ours, gradients = by_hand(model, batches, SCALE, **how)
    assert ours == pytest.approx(loss, rel=tolerance)
    assert farthest(gradients, expected) < tolerance


BLOCKS = {
    "llama": ("llama", {}),
    "as many heads of keys": ("llama", {"num_key_value_heads": 4}),
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "wide heads": ("llama", {"head_dim": 32}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied head": ("llama", {"tie_word_embeddings": True}),
    **{f"{kind} positions": ("llama", {"rope_parameters": rope}) for kind, rope in ROPE.items()},
    "eager attention": ("llama", {"attn_implementation": "eager"}),
    "fewer layers than there are": ("llama", {"num_hidden_layers": 1}),
    "mistral": ("mistral", {}),
    "a window shorter than the rows": ("mistral", {"sliding_window": 6}),
    "a window longer than the rows": ("mistral", {"sliding_window": 64}),
    "a window of two tokens": ("mistral", {"sliding_window": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2, a window that is not used": ("qwen2", {"sliding_window": 6}),
    "qwen2, one layer with a window": ("qwen2", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3, layers of two kinds": ("qwen3", {"sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3, narrow heads": ("qwen3", {"head_dim": 8, "num_attention_heads": 8, "attention_bias": True}),
    "falcon": ("falcon", {}),
    "falcon, a head of its own": ("falcon", {"tie_word_embeddings": False}),
    "falcon, an odd number of wide heads": ("falcon", {"hidden_size": 192, "num_attention_heads": 3, "ffn_hidden_size": 320}),
    "falcon, one head": ("falcon", {"num_attention_heads": 1, "ffn_hidden_size": None}),
    "falcon, eager attention": ("falcon", {"attn_implementation": "eager"}),
    "falcon, one layer": ("falcon", {"num_hidden_layers": 1, "layer_norm_epsilon": 0.1}),
    **{f"falcon, {kind} positions": ("falcon", {"rope_parameters": rope}) for kind, rope in ROPE.items()},
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_as_autograd_has_it(block):
    kind, changes = BLOCKS[block]
    check(adapted(kind, **changes))


def test_layers_that_the_config_leaves_out_are_left_out():
    model = adapted("llama", lora={"layers_to_transform": [0]})
    model.config.num_hidden_layers = 1
    check(model)


ADAPTERS = {
    "on queries and values": (("q_proj", "v_proj"), {}),
    "on the last product alone": (("down_proj",), {}),
    "on attention's output and gates": (("o_proj", "gate_proj"), {}),
    "on one layer": (LINEARS, {"layers_to_transform": [1]}),
    "on other modules in each layer": (r".*(0\.self_attn\.k_proj|1\.self_attn\.v_proj|1\.mlp\.up_proj)", {}),
    "of rank 1": (LINEARS, {"r": 1}),
    "of different ranks": (LINEARS, {"rank_pattern": {"v_proj": 3, "0.self_attn.q_proj": 9, "up_proj": 1}, "alpha_pattern": {"k_proj": 11}}),
    "of more than 64 ranks together": (LINEARS, {"r": 30}),
    "stabilised": (LINEARS, {"use_rslora": True}),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("keep", ["all", "input"])
def test_every_adapter_as_autograd_has_it(adapter, keep):
    targets, lora = ADAPTERS[adapter]
    check(adapted("qwen3", targets, lora), keep=[keep] * 2)


FALCON_ADAPTERS = {
    "on queries, keys and values": (("query_key_value",), {}),
    "on attention's output": (("dense",), {}),
    "on the MLP's first product": (("dense_h_to_4h",), {}),
    "on the last product alone": (("dense_4h_to_h",), {}),
    "on one layer": (FALCON_LINEARS, {"layers_to_transform": [1]}),
    "on other modules in each layer": (r".*(0\.self_attention\.query_key_value|1\.self_attention\.dense|1\.mlp\.dense_4h_to_h)", {}),
    "of different ranks": (
        FALCON_LINEARS,
        {"rank_pattern": {"query_key_value": 3, "0.mlp.dense_h_to_4h": 9, "dense_4h_to_h": 1}, "alpha_pattern": {"dense": 11}},
    ),
    "of more than 64 ranks": (FALCON_LINEARS, {"rank_pattern": {"dense_h_to_4h": 62, "self_attention.dense": 65}}),
    "stabilised": (FALCON_LINEARS, {"use_rslora": True}),
}


@pytest.mark.parametrize("adapter", FALCON_ADAPTERS)
@pytest.mark.parametrize("keep", KEEP)
def test_every_adapter_of_falcon_as_autograd_has_it(adapter, keep):
    targets, lora = FALCON_ADAPTERS[adapter]
    check(adapted("falcon", targets, lora), keep=[keep] * 2)


HOW = {
    **{keep: {"keep": [keep] * 3} for keep in KEEP},
    "mixed": {"keep": ["thin", "attention", "input"]},
    "tight": {"tight": True},
    "tight and mixed": {"keep": ["input", "all", "attention"], "tight": True},
    "resident": {"resident": (0, 2)},
    "one resident, others tight": {"keep": ["all", "thin", "input"], "resident": (1,), "tight": True},
    **{f"{keep}, parked": {"keep": [keep] * 3, "parked": (0, 1, 2)} for keep in KEEP},
    "some parked": {"keep": ["all", "input", "attention"], "parked": (0, 2), "resident": (2,), "tight": True},
}


SOME = {
    "llama": (r".*(q_proj|k_proj|v_proj|o_proj|down_proj|[02]\.mlp\.(gate|up)_proj)", {"1.self_attn.v_proj": 3}),
    "falcon": (r".*(dense|dense_4h_to_h|[02]\.(self_attention\.query_key_value|mlp\.dense_h_to_4h))", {"2.self_attention.query_key_value": 3}),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["mistral", "qwen3", "falcon"])
def test_whatever_is_kept_the_gradient_is_the_same(kind, how):
    """The rank of one module differs, and one layer has no adapter on gate and up, so buffers change their layout."""
    targets, ranks = SOME["falcon" if kind == "falcon" else "llama"]
    check(adapted(kind, targets, {"rank_pattern": ranks}, num_hidden_layers=3), **HOW[how])


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("targets", [LINEARS, ("q_proj", "o_proj", "up_proj")], ids=["", "on some"])
@pytest.mark.parametrize("tight", [False, True], ids=["", "tight"])
def test_an_mlp_may_take_its_tokens_in_pieces(monkeypatch, keep, targets, tight):
    """The last piece is shorter than the others."""
    monkeypatch.setattr(decoder, "tokens_at_once", lambda _, tight: 9 if tight else 20)
    monkeypatch.setattr(fast_sizes, "ALIGNED", 4)
    check(adapted("qwen2", targets, num_hidden_layers=3), keep=[keep] * 3, tight=tight, parked=(1,))


ROWS = {
    "one row": [batch_of([[23]])],
    "rows of one length": [batch_of([[11], [11], [11]])],
    "one token": [batch_of([[1]]), batch_of([[7]])],
    "packed in one row": [batch_of([[3, 1, 1, 9]], packed=True)],
    "packed and padded": [batch_of([[4, 6], [3], [1, 1]], packed=True)],
    "packed documents of one length": [batch_of([[5, 5], [5]], packed=True)],
    "all tokens supervised": [batch_of([[9], [12]], share=1.1)],
    "a row without a label": [WITHOUT_LABELS],
    "no label at all, then some": [batch_of([[9], [12]], share=0.0), batch_of([[8]])],
    "three micro-batches": [batch_of([[9], [12]]), batch_of([[30]], seed=4), batch_of([[2, 6], [8]], packed=True, seed=5)],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "changes"), [("mistral", {"sliding_window": 4}), ("falcon", {})])
def test_every_kind_of_row_as_autograd_has_it(kind, changes, rows):
    check(adapted(kind, **changes), ROWS[rows], keep=["thin", "attention"])


def test_without_any_label_loss_and_gradient_are_zero():
    loss, gradients = by_hand(adapted("llama"), [batch_of([[9]], share=0.0)], SCALE)
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


def test_gradients_that_stand_already_are_added_to():
    """Somebody else's (clipped, scaled by an optimizer), zeroed ones and missing ones, in any mix, before each micro-batch."""
    model = adapted("llama")
    _, expected = by_autograd(model, [PADDED], SCALE)
    decoder = FastDecoder(model, torch.float64)
    before = {name: torch.randn_like(parameter) for name, parameter in trained(model).items()}
    for number, (name, parameter) in enumerate(trained(model).items()):
        parameter.grad = before[name].clone() if number % 3 else None
    decoder.accumulate(PADDED, SCALE)
    own = {name: expected[name] + (before[name] if number % 3 else 0) for number, name in enumerate(expected)}
    assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, own) < FAST_EXACT
    for number, parameter in enumerate(trained(model).values()):
        if number % 2:
            parameter.grad = None
        else:
            parameter.grad.zero_()
    decoder.accumulate(PADDED, SCALE)
    assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, expected) < FAST_EXACT
    model.zero_grad(set_to_none=True)
    decoder.accumulate(PADDED, SCALE)
    assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, expected) < FAST_EXACT


@pytest.mark.parametrize("how", [{}, {"resident": (0, 1)}, {"tight": True, "keep": ["input", "thin"], "parked": (0, 1)}])
@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_adapters_that_change_between_steps_are_seen(kind, how):
    model = adapted(kind)
    decoder = FastDecoder(model, torch.float64, **how)
    for seed, batch in enumerate([PADDED, PACKED, PADDED]):
        redraw(model, seed)
        _, expected = by_autograd(model, [batch], SCALE)
        decoder.accumulate(batch, SCALE)
        assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, expected) < FAST_EXACT
        model.zero_grad(set_to_none=seed == 0)


@pytest.mark.parametrize("kind", ["qwen2", "falcon"])
def test_the_model_is_left_as_it_was(kind):
    model = adapted(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_hand(model, [PADDED, PACKED], SCALE, keep=["input", "all"])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == list(trained(model))


@pytest.mark.parametrize("changes", [{}, {"double_quant": False}, {"storage": torch.bfloat16}], ids=["nested", "not nested", "bytes stored as bfloat16"])
@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_weights_in_4_bits_in_float32(kind, changes):
    """bitsandbytes' own product with its own dequantised weights is the plain path."""
    model = four_bit(kind, **changes)
    check(model, tolerance=FAST_FLOAT32, keep=["all", "input"], resident=(0,))


@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_weights_in_16_bits_are_computed_with_as_they_are(kind):
    """Adapters in float32 over a bfloat16 base: at most twice as far from float32 as the plain path is."""
    model = adapted(kind, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())
    _, truth = by_autograd(model, [PADDED, PACKED], SCALE)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    _, plain = by_autograd(model, [PADDED, PACKED], SCALE, torch.bfloat16)
    _, ours = by_hand(model, [PADDED, PACKED], SCALE)
    assert 0 < farthest(ours, truth) <= 2 * farthest(plain, truth)
