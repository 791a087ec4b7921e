"""The adapter: its scale, its type, its seed; what is refused; and that what is saved is what answers after a load."""

import json
import math
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from halfbyte.errors import IntegrityError, ModelError
from halfbyte.model.adapter import ADAPTER_FILES, adapter_folder, adapter_state, add_adapter, load_adapter, save_adapter, set_adapter_state, without_adapter
from halfbyte.recipe.schema import NF4, Adapter
from toy_training import CPU, NONE, adapted, gradients, load_toy, logits, one_batch, random_rows, same, stir, trained_tensors

IDS = [[0, 5, 6, 7, 8, 9, 42]]
LORA = Adapter(r=4, alpha=8)


def saved(model, folder):
    save_adapter(model, folder, "toy")
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / ADAPTER_FILES[0])
    save_file(change(tensors), folder / ADAPTER_FILES[0], metadata={"format": "pt"})
    return folder


# Scale, type and seed


@pytest.mark.parametrize(("kind", "scale"), [("lora", 32 / 16), ("rslora", 32 / math.sqrt(16)), ("dora", 32 / 16)])
def test_the_scale_is_that_of_the_paper(toy_base, kind, scale):
    """Read from the modules themselves, and for lora and rslora from what they add to a layer's output."""
    model = adapted(toy_base(), Adapter(kind=kind, r=16, alpha=32), stirred=True)
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")]
    assert len(layers) == 14
    assert {layer.scaling["default"] for layer in layers} == {scale}
    assert all(layer.use_dora["default"] == (kind == "dora") for layer in layers)
    if kind != "dora":
        x = torch.randn(3, layers[0].in_features, generator=torch.Generator().manual_seed(1))
        a, b = layers[0].lora_A["default"].weight, layers[0].lora_B["default"].weight
        with torch.no_grad():
            added = layers[0](x) - layers[0].base_layer(x)
            torch.testing.assert_close(added, scale * (x @ a.T) @ b.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_what_is_trained_is_float32_before_and_after_a_save(toy_base, tmp_path, kind, precision):
    folder = toy_base()
    section = Adapter(kind=kind, r=4, modules_to_save=["lm_head"])
    model = adapted(folder, section, precision=precision, stirred=True)
    assert {tensor.dtype for tensor in trained_tensors(model).values()} == {torch.float32}
    assert not any("base_layer" in name for name in trained_tensors(model))
    before = logits(model, IDS, precision)
    saved(model, tmp_path)
    loaded = load_adapter(load_toy(folder, precision=precision).model, str(tmp_path))
    kept = {name: parameter for name, parameter in loaded.named_parameters() if "lora_" in name or "modules_to_save" in name}
    assert kept.keys() == trained_tensors(model).keys()
    assert {parameter.dtype for parameter in kept.values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded, IDS, precision), before)


def test_a_new_adapter_changes_nothing(toy_base):
    folder = toy_base()
    assert torch.equal(logits(adapted(folder), IDS), logits(load_toy(folder).model, IDS))


def test_the_seed_alone_decides_a_new_adapter(toy_base):
    """peft draws lora_A when it wraps the model: without a seed there, the same recipe gave a different adapter each time."""
    folder = toy_base()
    first = trained_tensors(adapted(folder, seed=3))
    torch.rand(1000)
    state = torch.get_rng_state()
    again = trained_tensors(adapted(folder, seed=3))
    assert torch.equal(torch.get_rng_state(), state)  # and nothing is drawn from the caller's stream
    assert same(first, again)
    other = trained_tensors(adapted(folder, seed=4))
    matrices = [name for name in first if "lora_A" in name]
    assert len(matrices) == 14
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


# What is refused


@pytest.mark.parametrize("wanted", ["q_projj", "layers.9.self_attn.q_proj", "proj", "input_layernorm", "embed_tokens", "mlp"])
def test_a_target_that_is_no_linear_layer_is_refused_with_the_names_there_are(toy_base, wanted):
    """The other name matches, so that peft alone would train without a word about this one."""
    with pytest.raises(ModelError, match=f"'{wanted}' matches 0 linear layers") as raised:
        adapted(toy_base(), Adapter(target_modules=["q_proj", wanted]))
    assert raised.value.hint == "this model has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def test_targets_that_match_are_the_ones_trained(toy_base):
    model = adapted(toy_base(), Adapter(r=4, target_modules=["q_proj", "layers.1.mlp.up_proj"]))
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in trained_tensors(model)}
    assert layers == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"}


@pytest.mark.parametrize(("wanted", "words"), [
    ("lm_hed", "matches 0 modules"), ("q_proj", "in 4 bits and cannot be trained whole"), ("norm", "also ends model.layers.0.input_layernorm"),
])  # fmt: skip
def test_a_whole_module_that_cannot_be_trained_is_refused(toy_base, wanted, words):
    with pytest.raises(ModelError, match=words):
        adapted(toy_base(), Adapter(modules_to_save=[wanted]))


@pytest.mark.parametrize("kind", ["mistral", "falcon"])
@pytest.mark.parametrize("which", ["head", "embedding"])
def test_a_whole_module_of_a_tied_pair_is_refused(toy_base, kind, which):
    folder = toy_base(kind, tie_word_embeddings=True)
    wanted = "lm_head" if which == "head" else {"mistral": "embed_tokens", "falcon": "word_embeddings"}[kind]
    with pytest.raises(ModelError, match=f"'{wanted}' shares its weight") as raised:
        adapted(folder, Adapter(modules_to_save=[wanted]))
    assert "target_modules" in raised.value.hint
    adapted(folder, Adapter(modules_to_save=["model.norm" if kind == "mistral" else "ln_f"]))


# Whole modules and the head


@pytest.mark.parametrize(("section", "tied"), [
    (Adapter(r=4, target_modules=["q_proj", "lm_head"]), False),
    (Adapter(r=4, target_modules=["q_proj", "lm_head"]), True),
    (Adapter(r=4, modules_to_save=["lm_head", "embed_tokens"]), False),
], ids=["target lm_head", "target lm_head, tied", "whole embedding and head"])  # fmt: skip
def test_head_and_embedding_train_save_and_reload(toy_base, tmp_path, section, tied):
    folder = toy_base(tie_word_embeddings=tied)
    model = adapted(folder, section)
    base = logits(model, IDS)
    before = trained_tensors(model)
    assert any("lm_head" in name for name in before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # lora_A gets a gradient once lora_B is not 0
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients(model, [one_batch(random_rows([12, 9]))]).values(), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in trained_tensors(model).items())
    assert {tensor.dtype for tensor in trained_tensors(model).values()} == {torch.float32}
    with without_adapter(model):
        assert torch.equal(logits(model, IDS), base)
    tuned = logits(model, IDS)
    assert not torch.equal(tuned, base)
    loaded = load_adapter(load_toy(folder).model, str(saved(model, tmp_path)))
    assert torch.equal(logits(loaded, IDS), tuned)


# Going on from a saved adapter


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_going_on_from_a_saved_adapter(toy_base, tmp_path, kind):
    folder = toy_base()
    model = adapted(folder, Adapter(kind=kind, r=4, alpha=8), stirred=True)
    saved(model, tmp_path / "run" / "adapter")
    on, decision = add_adapter(load_toy(folder).model, Adapter(r=64, init_from=str(tmp_path / "run")), seed=5)
    assert "r 4 and alpha 8" in decision.reason
    assert torch.equal(logits(on, IDS), logits(model, IDS))
    assert same(trained_tensors(on), trained_tensors(model))
    seen = gradients(on, [one_batch(random_rows([12, 9]))])
    assert all(gradient.abs().sum() > 0 for gradient in seen.values())
    assert seen.keys() == trained_tensors(model).keys()
    again = load_adapter(load_toy(folder).model, str(saved(stir(on), tmp_path / "second")))
    assert torch.equal(logits(again, IDS), logits(on, IDS))


# Save and load

PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
torch.set_num_threads(1)
work = json.load(open(sys.argv[1]))
def base(double_quant):
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(work["base"], quantization_config=options, dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
out = {}
with torch.no_grad():
    out["base"] = base(True)(input_ids=torch.tensor(work["ids"])).logits
    for name, folder in work["adapters"].items():
        out[name] = PeftModel.from_pretrained(base(True), folder).eval()(input_ids=torch.tensor(work["ids"])).logits
save_file(out, work["out"])
"""


def test_plain_peft_in_a_fresh_process_answers_as_the_trained_model(toy_base, tmp_path):
    """Save -> new process, without halfbyte -> load: to the bit what the model gave in memory, and not what the base gives."""
    sections = {
        "lora": LORA, "rslora": Adapter(kind="rslora", r=4), "dora": Adapter(kind="dora", r=4), "few": Adapter(r=2, target_modules=["v_proj", "down_proj"]),
        "head": Adapter(r=4, target_modules=["q_proj", "lm_head"]), "whole": Adapter(r=4, modules_to_save=["lm_head", "embed_tokens"]),
    }  # fmt: skip
    folder, threads = toy_base(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        in_memory = {}
        for name, section in sections.items():
            model = adapted(folder, section, stirred=True)
            in_memory[name] = logits(model, IDS)
            saved(model, tmp_path / name)
        work = {"base": str(folder), "ids": IDS, "adapters": {name: str(tmp_path / name) for name in sections}, "out": str(tmp_path / "out.safetensors")}
        (tmp_path / "work.json").write_text(json.dumps(work))
        done = subprocess.run([sys.executable, "-c", PLAIN_PEFT, str(tmp_path / "work.json")], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found = load_file(tmp_path / "out.safetensors")
        assert torch.equal(found["base"], logits(load_toy(folder).model, IDS))
        for name, expected in in_memory.items():
            assert torch.equal(found[name], expected), name
            assert (found[name] - found["base"]).abs().max() > 1e-3, name
            assert torch.equal(logits(load_adapter(load_toy(folder).model, str(tmp_path / name)), IDS), expected), name
    finally:
        torch.set_num_threads(threads)


def test_the_saved_config_names_the_base_and_holds_no_path_of_ours(toy_base, tmp_path):
    saved(adapted(toy_base()), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "toy"
    assert (config["r"], config["lora_alpha"], config["peft_type"], config["task_type"], config["bias"]) == (4, 8, "LORA", "CAUSAL_LM", "none")


def test_an_adapter_is_found_in_its_run_or_in_its_folder(toy_base, tmp_path):
    saved(adapted(toy_base()), tmp_path / "run" / "adapter")
    assert adapter_folder(str(tmp_path / "run")) == adapter_folder(str(tmp_path / "run" / "adapter")) == tmp_path / "run" / "adapter"


@pytest.mark.parametrize("gone", [*ADAPTER_FILES, "everything"])
def test_missing_files_are_refused(toy_base, tmp_path, gone):
    saved(adapted(toy_base()), tmp_path)
    for name in ADAPTER_FILES if gone == "everything" else [gone]:
        (tmp_path / name).unlink()
    for use in (lambda: load_adapter(load_toy(toy_base()).model, str(tmp_path)), lambda: adapted(toy_base(), Adapter(init_from=str(tmp_path)))):
        with pytest.raises(ModelError, match="no adapter there"):
            use()


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: {name: tensor for name, tensor in t.items() if "layers.1." not in name}, "14 tensors .* are missing"),
    (lambda t: {name.replace("base_model.model.", "base_model.model.inner."): tensor for name, tensor in t.items()}, "are missing"),
    (lambda t: t | {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)}, "1 tensors .* no place"),
    (lambda t: t | {next(iter(t)): torch.full_like(next(iter(t.values())), float("nan"))}, "NaN"),
    (lambda t: {name: tensor[:2].contiguous() if "lora_A" in name else tensor for name, tensor in t.items()}, "says r 4, but .* of rank 2"),
], ids=["half missing", "renamed", "one too many", "NaN", "another rank"])  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(toy_base, tmp_path, change, words):
    """peft warns at most, and answers as the base would, or with NaN."""
    rewrite(saved(adapted(toy_base(), stirred=True), tmp_path), change)
    with pytest.raises(ModelError, match=words):
        load_adapter(load_toy(toy_base()).model, str(tmp_path))


def test_peft_alone_would_load_half_an_adapter(toy_base, tmp_path):
    """Why load_adapter does not use PeftModel.from_pretrained. When this fails, peft refuses by itself."""
    rewrite(saved(adapted(toy_base(), stirred=True), tmp_path), lambda t: {name: tensor for name, tensor in t.items() if "layers.1." not in name})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(load_toy(toy_base()).model, str(tmp_path))


@pytest.mark.parametrize("modules", [["lm_head"], []])
def test_a_base_of_another_shape_is_refused(toy_base, tmp_path, modules):
    saved(adapted(toy_base(), Adapter(r=4, modules_to_save=modules)), tmp_path)
    with pytest.raises(ModelError, match="does not fit this base"):
        load_adapter(load_toy(toy_base("llama", hidden_size=96, num_attention_heads=3)).model, str(tmp_path))


def test_a_whole_module_that_the_file_lacks_is_refused(toy_base, tmp_path):
    rewrite(saved(adapted(toy_base(), Adapter(r=4, modules_to_save=["lm_head"])), tmp_path), lambda t: {n: v for n, v in t.items() if "lm_head" not in n})
    with pytest.raises(ModelError, match="does not fit this base"):
        load_adapter(load_toy(toy_base()).model, str(tmp_path))


def test_a_cut_file_and_another_kind_of_adapter_are_refused(toy_base, tmp_path):
    folder = saved(adapted(toy_base()), tmp_path)
    whole = (folder / ADAPTER_FILES[0]).read_bytes()
    (folder / ADAPTER_FILES[0]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="corrupt at byte"):
        load_adapter(load_toy(toy_base()).model, str(folder))
    (folder / ADAPTER_FILES[0]).write_bytes(whole)
    config = json.loads((folder / ADAPTER_FILES[1]).read_text())
    for text, words in (("{", "not JSON"), (json.dumps({**config, "peft_type": "IA3"}), "adapter of kind")):
        (folder / ADAPTER_FILES[1]).write_text(text)
        with pytest.raises(ModelError, match=words):
            load_adapter(load_toy(toy_base()).model, str(folder))


# State as the optimizer sees it


def test_adapter_state_comes_back_and_must_fit(toy_base):
    folder = toy_base()
    model = adapted(folder, stirred=True)
    state = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    fresh = adapted(folder, seed=9)
    set_adapter_state(fresh, state)
    assert same(trained_tensors(fresh), state)
    name = next(iter(state))
    with pytest.raises(ModelError, match=f"1 names differ, the first is {name}"):
        set_adapter_state(fresh, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ModelError, match="here"):
        set_adapter_state(fresh, state | {name: torch.zeros(1, 1)})


def test_without_the_adapter_the_model_is_the_base(toy_base):
    folder = toy_base()
    model = adapted(folder, Adapter(r=4, modules_to_save=["lm_head"]), stirred=True)
    tuned, base = logits(model, IDS), logits(load_toy(folder).model, IDS)
    with without_adapter(model):
        assert torch.equal(logits(model, IDS), base)
    with pytest.raises(IndexError), without_adapter(model):
        logits(model, [[100_000]])
    assert torch.equal(logits(model, IDS), tuned)
    assert not torch.equal(tuned, base)


def test_without_quantisation_the_adapter_is_the_same_adapter(toy_base, tmp_path):
    folder = toy_base()
    model = adapted(folder, quant=NONE, stirred=True)
    loaded = load_adapter(load_toy(folder, NONE).model, str(saved(model, tmp_path)))
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    assert isinstance(model.get_base_model().lm_head, nn.Linear)
    assert next(model.parameters()).device == CPU
    assert not torch.equal(logits(model, IDS), logits(adapted(folder, quant=NF4(), stirred=True), IDS))
