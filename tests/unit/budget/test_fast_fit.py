"""The cheap look at recipe and config says what fast/adopt.py would say of the loaded model."""

import pytest
import torch

from halfbyte.budget.fast_fit import FAMILY, ROPES, why_plain
from halfbyte.fast import adopt
from halfbyte.recipe.load import parse_recipe
from toy_fast import adapted

FALCONS: list[tuple[dict, str]] = [
    ({"new_decoder_architecture": True, "num_kv_heads": 2}, "new architecture"),
    ({"alibi": True}, "alibi"),
    ({"multi_query": False}, "has its own keys and values"),
    ({"parallel_attn": False}, "behind its attention"),
    ({"num_ln_in_parallel_attn": 2}, "has 2 norms"),
    ({"bias": True}, "have biases"),
    ({"activation": "gelu_new"}, "activation is gelu_new, not gelu"),
    ({"activation": "relu"}, "activation is relu, not gelu"),
    ({"hidden_dropout": 0.1}, "each layer's result out"),
    ({"attention_dropout": 0.1}, "drops attention out"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of kind dynamic"),
    ({"ffn_hidden_size": 96}, "96 inputs, not a multiple of 64"),
]
"""What else goes by that name."""
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 256, "vocab_size": 99,
    "hidden_act": "silu",
}  # fmt: skip


def why(*words: str, config: dict | None = None, **given) -> str | None:
    recipe = parse_recipe("name: toy\ndata:\n  path: a.csv\n", "toy.yaml", list(words)).recipe
    return why_plain(recipe, {**LLAMA, **(config or {})}, **given)


def test_the_families_are_those_of_the_blocks():
    assert tuple(adopt.FAMILY) == FAMILY
    assert adopt.ROPES == ROPES


@pytest.mark.parametrize(
    "words", [[], ["adapter.kind=rslora"], ["quant.kind=none"], ["train.optimizer=adamw_8bit"], ["adapter.target_modules=[q_proj, layers.0.mlp.up_proj]"]]
)
def test_nothing_speaks_against_it(words):
    assert why(*words) is None


@pytest.mark.parametrize(("words", "config", "reason"), [
    (["train.fast_path=off"], {}, "train.fast_path is off"),
    (["adapter.kind=dora"], {}, "DoRA"),
    (["adapter.dropout=0.1"], {}, "has dropout"),
    (["adapter.modules_to_save=[embed_tokens]"], {}, "embed_tokens is trained whole"),
    (["adapter.target_modules=[q_proj, lm_head]"], {}, "lm_head has an adapter"),
    (["quant.kind=fp4"], {}, "is in fp4"),
    ([], {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "is in fp4"),
    ([], {"quantization_config": {"quant_method": "gptq"}}, "is in gptq"),
    ([], {"model_type": "gemma3n"}, "of type gemma3n"),
    ([], {"hidden_act": "gelu"}, "is gelu"),
    ([], {"attention_dropout": 0.1}, "drops attention out"),
    ([], {"pretraining_tp": 2}, "pretraining_tp"),
    ([], {"rope_scaling": {"type": "dynamic"}}, "kind dynamic"),
    ([], {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
    ([], {"head_dim": 12}, "12 wide"),
    ([], {"head_dim": 512}, "512 wide"),
    ([], {"intermediate_size": 100}, "100 inputs"),
])  # fmt: skip
def test_what_speaks_against_it_is_said(words, config, reason):
    assert reason in (why(*words, config=config) or "")


def test_machine_and_precision():
    assert why(on_gpu=False) is not None
    assert why("train.fast_path=on", on_gpu=False, precision="float32") is None
    assert "16 bits" in (why(precision="float32") or "")
    assert "loss scaling" in (why("train.fast_path=on", precision="float16", on_gpu=False) or "")
    assert "8.0" in (why(is_old=True) or "")
    assert why("quant.kind=nf4", config={"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}) is None


FALCON = {"model_type": "falcon", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99, "hidden_act": None}


def test_falcon_is_taken_on_a_cpu_where_it_is_asked_for():
    on = ["train.fast_path=on", "train.precision=float32"]
    assert why(*on, config=FALCON, on_gpu=False, precision="float32") is None
    assert why(*on, "adapter.target_modules=[query_key_value, dense]", config=FALCON, on_gpu=False, precision="float32") is None
    assert why(*on, "adapter.target_modules=[q_proj]", config=FALCON, on_gpu=False, precision="float32") == "q_proj has an adapter"


def test_falcon_is_taken_on_a_gpu():
    assert why(config=FALCON) is None
    assert "alibi" in (why(config={**FALCON, "alibi": True}) or "")


@pytest.mark.parametrize(("changes", "words"), FALCONS, ids=[words for _, words in FALCONS])
def test_another_falcon_is_refused_in_the_words_of_the_blocks(changes, words):
    config = {**FALCON, **changes}
    assert words in (why("train.fast_path=on", config=config, on_gpu=False, precision="float32") or "")
    with pytest.raises(adopt.Unfit) as refusal:
        adopt.adopt(adapted("falcon", **changes), torch.float64)
    assert words in str(refusal.value)
