"""`halfbyte plan --gpu`: the answer of a bare config.json, as a person reads it and as a program does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from halfbyte.budget import history
from halfbyte.budget.choose import price
from halfbyte.budget.forecast import Forecast, make_forecast, target_of
from halfbyte.budget.history import remember, taken_by
from halfbyte.budget.phases import host_bytes
from halfbyte.cli.plans import forecast_as_json, reason_of, show_forecast
from halfbyte.cli.screen import Screen
from halfbyte.recipe.load import load_recipe
from halfbyte.recipe.schema import Recipe

# Of a 3B model: small enough to be simulated in a moment.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 6, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
RECIPE = "base: ./base\ndata:\n  kind: text\n  path: not-there.txt\n  max_length: 1024\ntrain:\n  batch_size: 4\n"
# Of a process that may not import what takes seconds.
GUARDED = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "numpy", "pyarrow"}:
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
sys.argv = ["halfbyte", *sys.argv[1:]]
runpy.run_module("halfbyte", run_name="__main__")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*words: str, columns: int = 120) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", GUARDED, "plan", *words], env=env, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


def as_json(*words: str) -> dict[str, Any]:
    done = plan("r.yaml", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def forecast(gpu: str, place: Path, *overrides: str) -> tuple[Forecast, Recipe]:
    (place / "not-there.txt").write_text("there")
    recipe = load_recipe(place / "r.yaml", list(overrides)).recipe
    return make_forecast(recipe, CONFIG, target_of(gpu)), recipe


def shown(found: Forecast, width: int = 120, terminal: bool = False) -> str:
    console = Console(record=True, width=width, force_terminal=terminal, file=StringIO())
    show_forecast(console, found)
    return console.export_text()


# The command


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_needs_a_config_alone(place, columns):
    """Neither weights, data, GPU nor torch, in a process where torch cannot be imported."""
    done = plan("r.yaml", "--gpu", "12GB", columns=columns)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.split("\n")
    assert lines[0] == "Plan of r for 12.0 GB"
    assert max(map(len, lines)) <= columns
    assert sum(line.rstrip().endswith("chosen") for line in lines) == 1
    for words in (
        "Ways to compute a step of 4 rows of 1,024 tokens",
        "Chosen: ",
        "Peak of each phase, of 12.0 GB",
        "datasheet of the RTX 4070, not measured on one",
    ):
        assert words in done.stdout
    assert "rows are taken as full, 1,024 tokens (data.max_length): the data are not read" in " ".join(done.stdout.split())


def test_a_gpu_may_be_named(place):
    assert plan("r.yaml", "--gpu", "rtx 4090").stdout.startswith("Plan of r for RTX 4090, 24.0 GB\n")
    done = plan("r.yaml", "--gpu", "Voodoo 2")
    assert done.returncode == 2
    assert "no GPU is known as 'Voodoo 2'" in done.stderr


def test_rows_beyond_the_positions_of_the_base_are_refused(place):
    config = {**CONFIG, "max_position_embeddings": 1000}
    (place / "base/config.json").write_text(json.dumps(config))
    done = plan("r.yaml", "--gpu", "12GB")
    assert done.returncode == 2
    assert "data.max_length: 1024 is beyond the 1000 positions of ./base" in " ".join(done.stderr.split())
    assert plan("r.yaml", "data.max_length=1000", "--gpu", "12GB").returncode == 0


def test_what_does_not_fit_is_shown_and_refused_with_the_mend(place):
    done = plan("r.yaml", "--gpu", "3GB")
    assert done.returncode == 3
    assert "GB over" in done.stdout
    assert "chosen" not in done.stdout.lower()
    assert "Peak of each phase" not in done.stdout
    first, hint = done.stderr.strip().split("\n")
    assert "does not fit into 3 GB" in first
    change = hint.removeprefix("hint: the cheapest change that fits: ").split(" ")[0]
    assert as_json(change, "--gpu", "3GB")["fits"]
    again = plan("r.yaml", "--gpu", "3GB", "--json")
    assert again.returncode == 3
    refused = json.loads(again.stdout)
    assert (refused["fits"], refused["chosen"], refused["predicted_bytes"], refused["change"]["keys"]) == (False, None, None, change)


def test_the_plan_for_programs(place):
    found = as_json("--gpu", "12GB", "train.gradient_accumulation_steps=2")
    assert found["recipe"] == "r"
    assert found["budget_bytes"] == 12 * 10**9
    assert found["chosen"] in found["considered"]
    assert found["chosen"]["rows"] * found["chosen"]["accumulation"] == 8
    assert found["predicted_bytes"] == max(phase["peak_bytes"] for phase in found["phases"] if phase["name"] != "merge") <= 12 * 10**9
    assert found["predicted_step_seconds"] == min(one["step_seconds"] for one in found["considered"] if one["fits"])
    assert found["chosen"]["tokens_per_second"] == pytest.approx(8 * 1024 / found["predicted_step_seconds"])


def test_the_budget_of_the_recipe_holds_where_it_is_smaller(place):
    found = as_json("--gpu", "RTX 4090", "memory_budget=6GB")
    assert found["budget_bytes"] == 6 * 10**9
    assert "memory_budget 6GB of the recipe is what may be used" in found["notes"]
    assert as_json("--gpu", "6GB", "memory_budget=9GB")["budget_bytes"] == 6 * 10**9


def test_held_out_files_need_not_be_there_either(place):
    (place / "r.yaml").write_text(RECIPE.replace("max_length", "test_path: nor-this.txt\n  validation_path: 'nor: this'\n  max_length"))
    assert as_json("--gpu", "12GB")["fits"]


def test_a_slip_in_the_recipe_is_told_as_always(place):
    done = plan("r.yaml", "--gpu", "12GB", "train.batchsize=3")
    assert done.returncode == 2
    assert done.stderr.startswith("train.batchsize: no such key")
    assert "there is no folder" in plan("r.yaml", "base=./nowhere", "--gpu", "12GB").stderr


def test_what_was_measured_here_is_used(place, monkeypatch):
    """The plan of a GPU by its name knows the runs on one in this machine."""
    before = as_json("--gpu", "RTX 4090")
    found, _ = forecast("RTX 4090", place)
    assert found.choice is not None
    choice = price(found.choice.work, found.choice.way, found.target.bounds)
    for _ in range(3):
        remember("NVIDIA GeForce RTX 4090", taken_by(choice, found.target, 10**9, 10**9, 2 * choice.step_seconds))
    after = as_json("--gpu", "RTX 4090")
    assert after["rates_from"] == "measured on this machine: 3 runs"
    assert after["driver_bytes"] == 10**9
    assert after["predicted_step_seconds"] == pytest.approx(2 * before["predicted_step_seconds"], rel=0.01)
    assert "Times: measured on this machine: 3 runs." in plan("r.yaml", "--gpu", "RTX 4090").stdout
    other = taken_by(choice, found.target, 10**9, 10**9, 2 * choice.step_seconds)
    remember("RTX 4090", replace(other, shape="falcon 32 x 4544", measured_bytes=2 * other.predicted_bytes))
    assert as_json("--gpu", "RTX 4090")["chosen"]["peak_bytes"] == after["chosen"]["peak_bytes"]  # memory learns from the same family alone
    next((place / "cache" / "machines").glob("*.json")).write_text("{")
    assert any("cannot be read" in note for note in as_json("--gpu", "RTX 4090")["notes"])
    assert history.recall("H200").runs == []


# What is shown


def test_every_way_is_a_line_with_its_figures(place):
    found, recipe = forecast("12GB", place)
    lines = [line.split("  ") for line in shown(found).split("\n\n")[0].split("\n")[2:]]
    assert len(lines) == len(found.considered)
    for choice in found.considered:
        words = f"{choice.way.rows} x {choice.accumulation}"
        mine = [" ".join(line) for line in lines if line[0].strip() == words and f"{choice.peak_bytes / 1e9:,.1f}" in "  ".join(line)]
        assert any(f"{choice.tokens_per_second:,.0f}" in line for line in mine), choice
    assert forecast_as_json(found, recipe)["rates_from"] == "datasheet of the RTX 4070"


@pytest.mark.parametrize(("gpu", "words"), [
    ("80GB", "and nothing larger is clearly faster"), ("4GB", "GB and takes "),
])  # fmt: skip
def test_the_reason_says_what_more_memory_would_bring(place, gpu, words):
    found, _ = forecast(gpu, place)
    assert words in reason_of(found)
    assert reason_of(replace(found, choice=None)) == ""


def test_the_only_way_that_fits_is_called_so(place):
    found, _ = forecast("12GB", place)
    assert found.choice is not None
    alone = replace(found, considered=[found.choice, *(replace(one, fits=False) for one in found.considered if one != found.choice)])
    assert "; nothing else fits" in reason_of(alone)


@pytest.mark.parametrize(("terminal", "full", "empty"), [(True, "\u2588", "\u2591"), (False, "#", ".")])
def test_bars_are_as_long_as_their_share(place, terminal, full, empty):
    found, _ = forecast("12GB", place)
    taken = {"half": 6, "whole": 12, "over": 15}
    phases = [replace(found.phases[0], name=name, peak_bytes=gigabytes * 10**9, told="") for name, gigabytes in taken.items()]
    text = shown(replace(found, phases=phases), terminal=terminal)
    lines = {name: next(line.split("GB")[0].replace(".0", "") for line in text.split("\n") if line.startswith(f"{name} ")) for name in taken}
    assert (lines["half"].count(full), lines["half"].count(empty)) == (12, 12)
    assert (lines["whole"].count(full), lines["over"].count(full), lines["over"].count(empty)) == (24, 24, 0)
    assert "3.0 GB over" in text


def test_layers_that_are_away_are_counted_in_the_computers_memory(place):
    found, _ = forecast("4GB", place, "train.fast_path=off")
    assert found.choice is not None
    work, layers = found.choice.work, 6
    assert found.choice.way.away >= 2
    host = host_bytes(work)
    weights = sum(linear.weights for linear in work.shape.linears)
    away = found.choice.way.away
    assert 0.51 * weights * away <= host["weights"] <= 2 * 0.52 * weights * away
    assert host["inputs of layers"] >= layers * work.tokens_per_batch * 3072 * 2 * found.choice.way.inputs_away
    text = shown(found)
    assert "Computer's memory: " in text
    assert "Weights away: " in text
    roomy, _ = forecast("80GB", place)
    assert "Computer's memory" not in shown(roomy)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_plan_with_data_shows_it_below_the_decisions(place, weighed):
    """`plan` shows all that was weighed; `train` what was decided."""
    found, recipe = forecast("12GB", place)
    ledger = {"records_read": 4, "bins": {}, "left_out": [], "train_rows": 4, "validation_rows": 0, "test_rows": 0, "augmented": 0}
    planned = SimpleNamespace(
        recipe=recipe, plan=SimpleNamespace(decisions=[], notes=["one note"]), forecast=found, prepared=SimpleNamespace(ledger=ledger)
    )  # fmt: skip
    console = Console(record=True, width=100, file=StringIO())
    Screen(console).show_plan(planned, weighed=weighed)
    text = console.export_text()
    assert ("Ways to compute a step" in text) == weighed
    assert text.index("one note") < text.index("4 rows read")
    planned.forecast = None
    Screen(console).show_plan(planned, weighed=True)
    assert "Ways to compute" not in console.export_text()
