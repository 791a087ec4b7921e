"""Shapes read from config.json, beside the models that transformers makes of them."""

import pytest

from halfbyte.budget.shape import read_shape
from halfbyte.errors import ModelError
from recordings import configs
from toys import make_model


def parameters_of(config: dict) -> int:
    """Of the model that transformers makes of it, without its memory."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**config))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "falcon"])
@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 3}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"hidden_size": 128}])
def test_parameters_of_toys_are_counted_exactly(kind, changes):
    model = make_model(kind, **changes)
    shape = read_shape(model.config.to_dict())
    assert shape.exact
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", configs())
def test_parameters_of_well_known_shapes_are_counted_exactly(name):
    shape = read_shape(configs()[name])
    assert shape.exact
    assert shape.parameters == parameters_of(configs()[name])


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"head_dim": 48}, {"num_key_value_heads": 2}])
def test_options_of_llama(changes):
    model = make_model("llama", **changes)
    assert read_shape(model.config.to_dict()).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{"bias": True}, {"multi_query": False}])
def test_options_of_falcon(changes):
    model = make_model("falcon", **changes)
    shape = read_shape(model.config.to_dict())
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "falcon"])
def test_linears_are_those_of_a_layer(kind):
    """Names and sizes, in the order in which they are computed; peft adapts what has such a name."""
    import torch

    model = make_model(kind)
    layer = (model.transformer.h if kind == "falcon" else model.model.layers)[0]
    found = {name.rsplit(".", 1)[-1]: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    linears = read_shape(model.config.to_dict()).linears
    assert {linear.name: (linear.outputs, linear.inputs, linear.bias) for linear in linears} == {
        name: (*module.weight.shape, module.bias is not None) for name, module in found.items()
    }


def test_mixtures_of_experts_are_refused():
    """One expert's size would be a plan for a quarter of the model, or less."""
    with pytest.raises(ModelError, match="mixture of 4 experts"):
        read_shape(make_model("mixtral").config.to_dict())


def test_a_config_with_nonsense_is_refused_in_one_line():
    with pytest.raises(ModelError, match="gives no num_attention_heads"):
        read_shape({**configs()["llama-8b"], "num_attention_heads": 0})


def test_unknown_families_are_not_exact():
    assert not read_shape({**configs()["llama-8b"], "model_type": "phi3"}).exact
    for changes in ({"new_decoder_architecture": True, "num_kv_heads": 8}, {"alibi": True}, {"parallel_attn": False}, {"multi_query": False}):
        assert not read_shape({**configs()["falcon-7b"], **changes}).exact


def test_language_part_of_a_model_with_more_senses():
    config = configs()["llama-8b"]
    assert read_shape({"model_type": "seeing", "text_config": config}) == read_shape(config)


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("name", ["llama-8b", "falcon-7b"])
def test_a_config_that_says_too_little_is_refused_in_one_line(name, missing):
    config = {key: value for key, value in configs()[name].items() if key != missing}
    with pytest.raises(ModelError) as caught:
        read_shape(config, "acme/base")
    assert caught.value.message == f"base: config.json of acme/base gives no {missing}"
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
