"""The plan of a recipe from its config alone: what it chooses, what it names where nothing fits, how long it takes, what it refuses."""

import json
import os
import subprocess
import sys
import time

import pytest

from halfbyte.budget.forecast import Forecast, ask, make_forecast, read_bytes, refuse, target_of
from halfbyte.budget.shape import read_shape
from halfbyte.errors import MachineError, ModelError, RecipeError
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import Recipe
from recordings import configs

TEXT = "name: x\nbase: acme/base\ndata:\n  path: a.txt\n  kind: text\n  max_length: 2048\ntrain:\n  batch_size: 1\n  gradient_accumulation_steps: 4\n"


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(TEXT, "x.yaml", list(overrides)).recipe


def forecast(name: str, gpu: str, *overrides: str) -> Forecast:
    return make_forecast(recipe(*overrides), configs()[name], target_of(gpu))


@pytest.mark.parametrize(("name", "gpu"), [("mistral-7b", "24GB"), ("llama-70b", "80GB"), ("llama-1b", "RTX 3060"), ("falcon-7b", "H200")])
def test_a_forecast_chooses_what_fits_and_prices_every_phase(name, gpu):
    found = forecast(name, gpu)
    assert found.choice is not None
    assert found.choice.peak_bytes <= found.target.budget_bytes
    assert found.choice.work.rows * found.choice.accumulation == 4
    assert [phase.name for phase in found.phases] == ["load", "step", "evaluate", "generate", "merge"]
    assert found.predicted_bytes == max(phase.peak_bytes for phase in found.phases[:4])
    assert found.change is None
    assert all(phase.peak_bytes <= found.target.budget_bytes for phase in found.phases if phase.name in ("step", "evaluate", "generate"))


NOTHING_FITS = [
    ("llama-8b", "8GB", ["data.max_length=8192", "train.batch_size=1", "train.gradient_accumulation_steps=1"], "data.max_length"),
    ("mistral-7b", "12GB", ["train.gradient_checkpointing=false"], "train.gradient_checkpointing"),
    ("mistral-7b", "14GB", ["adapter.r=256", "train.optimizer=adamw_torch", "data.max_length=512"], "train.optimizer"),
    ("mistral-7b", "3.8GB", ["data.max_length=1024", "adapter.r=64", "train.optimizer=adamw_8bit", "train.gradient_accumulation_steps=1"], "adapter.r"),
    ("qwen2-7b", "4.9GB", ["quant.kind=none", "data.max_length=256"], "quant.kind"),
    ("mistral-7b", "6GB", ["data.max_length=8192", "train.gradient_checkpointing=false"], "train.gradient_checkpointing=true data.max_length"),
]


@pytest.mark.parametrize(("name", "gpu", "overrides", "key"), NOTHING_FITS)
def test_the_cheapest_change_is_then_seen_to_fit(name, gpu, overrides, key):
    before = forecast(name, gpu, *overrides)
    assert before.choice is None
    assert before.change is not None
    assert before.change.keys.startswith(f"{key}=")
    after = forecast(name, gpu, *overrides, *before.change.keys.split())
    assert after.choice is not None
    assert after.choice.peak_bytes <= after.target.budget_bytes
    assert after.choice.step_seconds <= before.change.step_seconds * 1.02  # computed in the leanest way, and no slower than was said


def test_row_lengths_that_are_named_are_nearly_the_longest_that_fit():
    overrides = ["data.max_length=8192", "train.batch_size=1", "train.gradient_accumulation_steps=1"]
    change = forecast("llama-8b", "8GB", *overrides).change
    assert change is not None
    tokens = int(change.keys.partition("=")[2])
    longer = forecast("llama-8b", "8GB", *overrides, f"data.max_length={int(tokens * 1.15)}").choice
    assert longer is not None
    assert longer.tight  # only by handing memory back
    assert forecast("llama-8b", "8GB", *overrides, f"data.max_length={int(tokens * 1.6)}").choice is None


@pytest.mark.parametrize(("name", "gpu"), [("mistral-7b", "4GB"), ("llama-8b", "3GB"), ("llama-70b", "8GB")])
def test_a_refusal_is_one_line_and_a_hint(name, gpu):
    overrides = ["data.max_length=8192", "train.gradient_accumulation_steps=1"]
    found = forecast(name, gpu, *overrides)
    error = refuse(found, recipe(*overrides))
    assert isinstance(error, MachineError)
    assert error.message.startswith(f"acme/base does not fit into {gpu[0]} GB: the smallest way takes ")
    assert "\n" not in error.message + error.hint
    assert (found.change.keys in error.hint) if found.change else ("use a smaller base or a larger GPU" in error.hint)


@pytest.mark.parametrize(("name", "gpu"), [("mistral-7b", "24GB"), ("mistral-7b", "8GB"), ("llama-70b", "80GB"), ("llama-70b", "8GB")])
def test_a_forecast_takes_no_time(name, gpu):
    """A second is promised (benchmarks/plan_speed.py measures the command); machines that test are slower, and do more than this."""
    began = time.process_time()
    forecast(name, gpu)
    seconds = time.process_time() - began
    print(f"{name} on {gpu}: {seconds:.2f} s")
    assert seconds < 2


def test_no_torch_and_no_transformers_are_imported():
    program = "import sys, halfbyte.budget.forecast; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_optimizer_state_may_leave_where_it_is_left_to_the_plan():
    """With a large adapter the state decides: paged, where the recipe says nothing; refused, where it asks for what cannot leave."""
    overrides = ["adapter.r=256", "data.max_length=256", "train.gradient_accumulation_steps=1"]
    free, fixed = forecast("mistral-7b", "13GB", *overrides), forecast("mistral-7b", "13GB", *overrides, "train.optimizer=adamw_torch")
    asked = forecast("mistral-7b", "13GB", *overrides, "train.optimizer=paged_adamw_32bit")
    assert asked.choice == free.choice  # asked for by a recipe, or by a run that is resumed: its state may leave as well
    assert free.choice is not None
    assert free.choice.work.optimizer == "paged_adamw_32bit"
    assert fixed.choice is None
    assert forecast("mistral-7b", "24GB", *overrides).choice.work.optimizer == "adamw_torch"


# What a recipe and a config ask for


def test_what_is_asked():
    asked = ask(recipe("adapter.r=32", "adapter.dropout=0.1", "train.optimizer=adamw_8bit", "train.gradient_checkpointing=true"), configs()["mistral-7b"])
    work = asked.work
    assert (work.rank, work.dropout, work.optimizer, work.tokens, work.four_bit, work.double_quant) == (32, True, "adamw_8bit", 2048, True, True)
    assert (asked.effective_rows, asked.checkpointing, asked.optimizer_is_free) == (4, True, False)
    assert work.shape == read_shape(configs()["mistral-7b"])
    assert ask(recipe(), configs()["mistral-7b"], tokens=300).work.tokens == 300
    assert not ask(recipe("quant.kind=none"), configs()["mistral-7b"]).work.four_bit
    assert not ask(recipe("quant.double_quant=false"), configs()["mistral-7b"]).work.double_quant


def test_a_base_that_is_quantised_already_stays_so():
    config = configs()["mistral-7b"] | {"quantization_config": {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}}
    work = ask(recipe("quant.kind=none"), config).work
    assert (work.four_bit, work.double_quant) == (True, False)


def test_targets_are_matched_by_their_last_word():
    work = ask(recipe("adapter.target_modules=[self_attn.q_proj, down_proj, nothing]"), configs()["mistral-7b"]).work
    assert work.targets == ("q_proj", "down_proj")


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_targets_that_are_no_projections_of_the_shape_are_not_priced_and_said(family):
    """lm_head, or the names of a family that is taken for Llama's: without any known one a step without an adapter was simulated, and failed."""
    config = configs()["mistral-7b"] | {"model_type": family}
    found = make_forecast(recipe("adapter.target_modules=[lm_head, self_attn.qkv_proj]"), config, target_of("24GB"))
    assert found.choice is not None
    assert found.choice.work.targets is None
    assert any("lm_head, self_attn.qkv_proj is not priced" in note for note in found.notes)
    assert not any("not priced" in note for note in forecast("mistral-7b", "24GB", "adapter.target_modules=[self_attn.q_proj]").notes)


def test_an_adapter_that_is_gone_on_from_keeps_its_rank_and_modules(tmp_path):
    """The recipe's own were counted: r 16 for what trained with r 128."""
    start = f"adapter.init_from={tmp_path}"
    without = forecast("mistral-7b", "80GB", start)
    (tmp_path / "adapter").mkdir()
    saved = tmp_path / "adapter" / "adapter_config.json"
    saved.write_text(json.dumps({"r": 128, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1, "modules_to_save": None}))
    work = forecast("mistral-7b", "80GB", start).choice.work
    assert (work.rank, work.targets, work.dropout, work.whole_weights) == (128, ("q_proj", "down_proj"), True, 0)
    saved.write_text(json.dumps({"r": 64, "target_modules": "all-linear", "lora_dropout": 0.0, "modules_to_save": None}))
    refused = forecast("mistral-7b", "3.8GB", start, *NOTHING_FITS[3][2])
    assert refused.choice is None
    assert refused.change is None or "adapter.r" not in refused.change.keys  # it would not be obeyed
    for damaged in ("{", "[]", '{"r": null}'):
        saved.write_text(damaged)
        assert forecast("mistral-7b", "80GB", start) == without


def test_rows_beyond_the_attentions_window_have_a_mask():
    """Mistral 7B v0.1 sees 4,096 tokens: the mask of longer rows was not counted."""
    config = configs()["mistral-7b"]
    peaks = {}
    for tokens in (2048, 8192):
        for window in (None, 4096):
            asked = recipe(f"data.max_length={tokens}", "train.gradient_checkpointing=true", "train.fast_path=off")
            found = make_forecast(asked, config | {"sliding_window": window}, target_of("80GB"))
            peaks[tokens, window] = found.choice.peak_bytes
            assert any("window of 4,096 tokens" in note for note in found.notes) == ((tokens, window) == (8192, 4096))
    assert peaks[2048, 4096] == peaks[2048, None]
    assert peaks[8192, 4096] > peaks[8192, None] + 8192 * 8192
    assert read_shape(config | {"sliding_window": 4096, "use_sliding_window": False}).window is None


def test_what_is_not_priced_exactly_is_said():
    assert any("phi3" in note for note in make_forecast(recipe(), configs()["llama-8b"] | {"model_type": "phi3"}, target_of("80GB")).notes)
    assert any("float32" in note for note in forecast("mistral-7b", "80GB", "train.precision=float32").notes)
    assert any("DoRA" in note for note in forecast("mistral-7b", "80GB", "adapter.kind=dora").notes)
    assert forecast("mistral-7b", "80GB").notes == []
    whole = forecast("mistral-7b", "24GB", "adapter.modules_to_save=[lm_head]")
    assert any("trained whole" in note for note in whole.notes)
    # The weight, its gradient and both moments in float32, and a copy in 16 bits: in the peak of every way.
    smallest = [min(choice.peak_bytes for choice in one.considered) for one in (forecast("mistral-7b", "24GB"), whole)]
    assert smallest[1] - smallest[0] == pytest.approx(18 * 32000 * 4096, rel=0.05)


def test_a_config_that_says_too_little_is_refused():
    with pytest.raises(ModelError, match="gives no hidden_size"):
        make_forecast(recipe(), {"model_type": "llama"}, target_of("24GB"))


# Amounts and names


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("24GB", 24 * 10**9), ("24 GB", 24 * 10**9), ("24gb", 24 * 10**9), ("7.5GB", 7_500_000_000), ("16GiB", 16 * 2**30), ("500MB", 5 * 10**8),
        ("512MiB", 2**29), ("0.141TB", 141 * 10**9), ("1_000kB", 10**6), ("12345678901B", 12345678901),
    ],
)  # fmt: skip
def test_amounts_of_memory(text, amount):
    assert read_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "GB", "24", "24G", "0GB", "-4GB", "24GBs", "24 g b", "1.2.3GB", "nan", "1e9"])
def test_what_is_no_amount_is_refused_in_one_line(text):
    with pytest.raises(RecipeError) as caught:
        read_bytes(text)
    assert caught.value.message == f"memory_budget: {text!r} is no amount of memory"
    assert "24GB" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "name", "budget"),
    [("24GB", "24GB", 24 * 10**9), ("RTX 4090", "RTX 4090", 24 * 10**9), ("NVIDIA H200", "H200", 141 * 10**9), ("a100 80gb", "A100 80GB", 80 * 10**9)],
)
def test_targets(words, name, budget):
    target = target_of(words)
    assert (target.name, target.budget_bytes) == (name, budget)
    assert target.rates_from.startswith("steps measured on an " if name == "H200" else "datasheet of the ")
    assert target.bounds.budget_bytes == budget


def test_old_gpus_get_a_word_of_warning():
    """Their attention was never recorded."""
    found = {name: make_forecast(recipe(), configs()["qwen2-0.5b"], target_of(name)).notes for name in ("T4", "L4")}
    assert [any("before compute capability 8.0" in note for note in notes) for notes in found.values()] == [True, False]


def test_unknown_gpus_are_refused_with_those_that_are_known():
    with pytest.raises(RecipeError) as caught:
        target_of("Voodoo 3")
    assert "Voodoo 3" in caught.value.message
    assert "RTX 4090" in caught.value.hint


# FP8


def test_fp8_is_the_fast_path_priced_with_its_own_buffers_and_products():
    words = ("train.batch_size=4", "train.gradient_accumulation_steps=1", "train.fast_path=on")
    without, fp8 = (forecast("mistral-7b", "H200", *words, *more).choice for more in ((), ("train.compute=fp8",)))
    assert without is not None
    assert fp8 is not None
    assert (fp8.path, fp8.fp8, without.fp8) == ("fast", True, False)
    assert "fast path in FP8" in fp8.told()
    assert "16 bits" not in fp8.told()
    assert "kept in 8 bits, both ways" in fp8.told()
    assert fp8.step_seconds < 0.8 * without.step_seconds
    less, more = (max(one.peak_bytes for one in forecast("mistral-7b", "RTX 4090", *words, *key).considered) for key in ((), ("train.compute=fp8",)))
    assert less < more  # where everything is kept


@pytest.mark.parametrize(
    ("gpu", "words", "reason"),
    [
        ("A100", (), "8-bit products need a GPU of compute capability 8.9 or more"),
        ("RTX 3090", (), "8-bit products need a GPU of compute capability 8.9 or more"),
        ("H100", ("train.fast_path=off",), "it is of the fast path, which is not taken: train.fast_path is off"),
        ("H100", ("train.precision=float16",), "it is beside bfloat16, and this computes in float16"),
        ("H100", ("adapter.dropout=0.1",), "it is of the fast path, which is not taken: the adapter has dropout"),
    ],
)
def test_where_fp8_cannot_be_it_is_refused_by_name(gpu, words, reason):
    with pytest.raises(ModelError, match=f"train.compute is fp8, and it cannot be taken: {reason}") as refused:
        forecast("mistral-7b", gpu, "train.compute=fp8", *words)
    assert "train.compute" in refused.value.hint


def test_which_gpus_have_8_bit_products():
    assert all(target_of(name).has_fp8 for name in ("RTX 4090", "L4", "L40S", "H100", "H200", "B200", "RTX 5090"))
    assert not any(target_of(name).has_fp8 for name in ("T4", "V100", "RTX 3060", "RTX 3090", "A10G", "A6000", "A100", "A100 80GB"))
