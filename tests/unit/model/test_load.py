"""The base is loaded whole, in 4 bits where that was asked, and with nothing of the libraries left changed."""

import json

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.falcon import modeling_falcon

from halfbyte.errors import IntegrityError, ModelError
from halfbyte.model.base import find_base
from halfbyte.model.load import choose_quant, falcon_linears_are_linears, load_base, load_tokenizer, set_cpu_repacking, tokens_without_row
from halfbyte.recipe.schema import FP4, NF4
from toy_training import CPU, NONE, adapted, gradients, load_toy, logits, one_batch, random_rows, same

IDS = [[0, 5, 6, 7, 8, 9]]
REPACKS = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes repacks nothing")


def four_bit(model):
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# How much is in 4 bits


@pytest.mark.parametrize("kind", ["mistral", "llama", "qwen2", "qwen3", "falcon"])
def test_every_projection_is_in_4_bits(toy_base, kind):
    loaded = load_toy(toy_base(kind))
    assert loaded.share_4bit == 1.0
    assert len(four_bit(loaded.model)) == (8 if kind == "falcon" else 14)
    plain = load_toy(toy_base(kind), NONE)
    assert (plain.share_4bit, len(four_bit(plain.model))) == (0.0, 0)
    assert loaded.parameters == plain.parameters == sum(p.numel() for p in plain.model.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (logits(loaded.model, IDS) - logits(plain.model, IDS)).abs().max() > 0.01


def test_transformers_calls_falcon_4_bit_when_nothing_of_it_is(toy_base):
    """Trap T1, as transformers 5.23 has it. When this fails, falcon_linears_are_linears is no longer needed."""
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(toy_base("falcon"), quantization_config=options)
    assert model.is_loaded_in_4bit
    assert four_bit(model) == []


def test_falcon_in_4_bits_is_falcon(toy_base):
    """Built with nn.Linear, and without quantisation, it gives the logits of transformers' own class to the bit."""
    folder = toy_base("falcon")
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(own.transformer.h[0].mlp.dense_h_to_4h) is modeling_falcon.FalconLinear
    assert torch.equal(logits(load_toy(folder, NONE).model, IDS), logits(own, IDS))


def test_transformers_is_as_it_was_after_a_load(toy_base):
    own = modeling_falcon.FalconLinear
    load_toy(toy_base("falcon"))
    assert modeling_falcon.FalconLinear is own
    with falcon_linears_are_linears():
        assert modeling_falcon.FalconLinear is torch.nn.Linear
    assert modeling_falcon.FalconLinear is own
    with pytest.raises(ZeroDivisionError), falcon_linears_are_linears():
        1 / 0  # noqa: B018
    assert modeling_falcon.FalconLinear is own


def test_a_failed_load_leaves_transformers_as_it_was(toy_base):
    folder, own = toy_base("falcon"), modeling_falcon.FalconLinear
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_toy(changed_config(folder, hidden_size="wide"))
    assert modeling_falcon.FalconLinear is own


def test_experts_that_stay_out_of_4_bits_are_refused_with_the_share(toy_base):
    """Trap T2: transformers keeps a mixture's experts in 3-D tensors, where bitsandbytes does not look."""
    with pytest.raises(ModelError, match=r"only 11\.\d% of the decoder's projection weights are in 4 bits") as raised:
        load_toy(toy_base("mixtral"))
    assert "quant.kind=none" in raised.value.hint
    assert load_toy(toy_base("mixtral"), NONE).share_4bit == 0.0


# The kinds of quantisation


@pytest.mark.parametrize("quant", [NF4(), NF4(double_quant=False), FP4(kind="fp4"), FP4(kind="fp4", double_quant=False)], ids=str)
def test_the_kind_that_is_asked_for_is_what_runs(toy_base, quant):
    loaded = load_toy(toy_base(), quant)
    states = [module.weight.quant_state for module in four_bit(loaded.model)]
    assert {(state.quant_type, state.nested, state.blocksize) for state in states} == {(quant.kind, quant.double_quant, 64)}


def test_double_quantisation_takes_less_memory_and_the_count_says_so(toy_base):
    folder = toy_base()
    single, double = (load_toy(folder, NF4(double_quant=asked)).weight_bytes for asked in (False, True))
    weights = sum(module.weight.quant_state.shape.numel() for module in four_bit(load_toy(folder).model))
    blocks = weights // 64
    assert single - double == blocks * 4 - blocks - 4 * sum(-(-module.weight.quant_state.absmax.numel() // 256) for module in four_bit(load_toy(folder).model))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
@pytest.mark.parametrize("quant", [NF4(), NONE], ids=["nf4", "none"])
def test_what_is_not_quantised_has_the_type_of_the_plan(toy_base, quant, precision, dtype):
    """peft's prepare_model_for_kbit_training would make embedding and head float32, the largest tensors of a small model."""
    model = load_toy(toy_base("qwen2"), quant, precision).model
    assert model.get_input_embeddings().weight.dtype == dtype
    assert model.get_output_embeddings().weight.dtype == dtype
    assert {p.dtype for p in model.parameters()} == ({torch.uint8, dtype} if quant.kind == "nf4" else {dtype})
    assert {module.compute_dtype for module in four_bit(model)} <= {dtype}


def test_a_base_that_is_4_bit_already_is_loaded_as_it_is(toy_base, tmp_path):
    first = load_toy(toy_base(), NF4(double_quant=False), "bfloat16")
    first.model.save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    for asked in (NF4(), NONE):
        assert choose_quant(asked, base).value == "nf4"
        again = load_base(base, asked, "float32", CPU)
        assert again.share_4bit == 1.0
        for before, after in zip(four_bit(first.model), four_bit(again.model), strict=True):
            assert torch.equal(before.weight, after.weight)
            assert not after.weight.quant_state.nested
            assert after.compute_dtype == torch.float32
            assert after.support_avx512bf16_for_cpu is False
    assert "as it is" in choose_quant(NF4(), base).reason


# What does not load


@pytest.mark.parametrize("quant", [NF4(), NONE], ids=["nf4", "none"])
@pytest.mark.parametrize("change", [
    lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
    lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(100, 64)}),
], ids=["missing", "of another shape"])  # fmt: skip
def test_weights_that_are_not_all_there_are_refused(toy_base, quant, change):
    """Guards against transformers, which draws a missing matrix at random, and bitsandbytes, which takes one of any shape."""
    with pytest.raises(ModelError, match=r"missing or not of the shape.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_toy(rewrite(toy_base(), change), quant)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_cut_weights_are_refused(toy_base, size):
    file = toy_base() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(IntegrityError, match="corrupt at byte") as raised:
        load_toy(file.parent)
    assert "download" in raised.value.hint


def changed_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("changes", [{"model_type": "no-such"}, {"hidden_size": "wide"}])
def test_a_config_that_transformers_refuses_is_refused(toy_base, changes):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_toy(changed_config(toy_base(), **changes))


def test_code_that_comes_with_a_model_is_not_run_and_not_asked_about(toy_base, monkeypatch, tmp_path):
    """Left to itself transformers asks on the terminal and waits 15 seconds."""
    ran = tmp_path / "ran"
    folder = changed_config(
        toy_base(), model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    )
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError, match="needs its own code"):
        find_base(str(folder))
    assert not ran.exists()


def test_a_tokenizer_of_another_model_is_refused(toy_base):
    folder = changed_config(toy_base(), vocab_size=300)
    with pytest.raises(ModelError, match="tokenizer has 320 tokens, the model 300"):
        load_tokenizer(find_base(str(folder)))
    assert len(load_tokenizer(find_base(str(changed_config(folder, vocab_size=384))))) == 320


def with_mark(folder, word="<image_soft_token>", special=True, template=""):
    """The toy tokenizer with one more token than the model has rows."""
    file = folder / "tokenizer.json"
    kept = json.loads(file.read_text())
    kept["added_tokens"].append({**kept["added_tokens"][-1], "id": 320, "content": word, "special": special})
    file.write_text(json.dumps(kept))
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + template)
    return find_base(str(folder))


def test_a_mark_beyond_the_embedding_that_no_text_becomes_is_passed_over(toy_base):
    """Gemma 3's smallest model has 262,144 rows, and an image token with id 262,144."""
    tokenizer = load_tokenizer(with_mark(toy_base()))
    assert len(tokenizer) == 321
    assert tokens_without_row(tokenizer, 320) == ["<image_soft_token>"]
    assert tokens_without_row(tokenizer, 384) == []


@pytest.mark.parametrize("given", [{"special": False}, {"template": "{{ '<image_soft_token>' }}"}], ids=["found in text", "in the chat template"])
def test_a_mark_beyond_the_embedding_that_can_occur_is_refused(toy_base, given):
    with pytest.raises(ModelError, match="tokenizer has 321 tokens, the model 320"):
        load_tokenizer(with_mark(toy_base(), **given))


@pytest.mark.parametrize("text", [None, "{"])
def test_a_folder_without_a_tokenizer_is_refused(toy_base, text):
    folder = toy_base()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    if text:
        (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="no tokenizer that can be loaded"):
        load_tokenizer(find_base(str(folder)))


# Repacking on a CPU with AVX512-BF16 (trap T3)


def test_repacking_is_off_after_every_load(toy_base, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    layers = four_bit(load_toy(toy_base()).model)
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@REPACKS
@pytest.mark.parametrize("double_quant", [True, False])
def test_an_evaluation_leaves_the_gradients_as_they_were(toy_base, double_quant):
    model = adapted(toy_base(), quant=NF4(double_quant=double_quant), stirred=True)
    batch = one_batch(random_rows([12, 9]))
    before = gradients(model, [batch])
    logits(model, IDS)
    assert same(gradients(model, [batch]), before)


@REPACKS
def test_with_repacking_on_an_evaluation_breaks_the_gradients(toy_base):
    """The trap itself, so that the test above can fail. When this fails, bitsandbytes has mended it."""
    model = adapted(toy_base(), stirred=True)
    batch = one_batch(random_rows([12, 9]))
    before = gradients(model, [batch])
    assert set_cpu_repacking(model, on=True) == 14
    logits(model, IDS)
    after = gradients(model, [batch])
    name = next(name for name in before if "layers.0" in name and "lora_A" in name)
    assert torch.nn.functional.cosine_similarity(before[name].flatten(), after[name].flatten(), dim=0) < 0.99


@REPACKS
def test_repacking_is_left_off_for_layers_of_a_shape_it_cannot_take(toy_base):
    """An out size that is no multiple of 32, or an in size that is no multiple of 64, would fail in the first evaluation."""
    model = load_toy(toy_base("mistral", intermediate_size=112)).model
    assert set_cpu_repacking(model, on=True) == 8  # not the three of the MLP
    assert logits(model, IDS).isfinite().all()
