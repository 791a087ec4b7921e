"""What is said of a machine and of a recipe: every line has its figure, every illness its mend, and nothing secret is shown."""

import errno
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from halfbyte.checks import doctor, golden, kernels
from halfbyte.checks.doctor import Check, check_build, check_environment, check_folder, check_version
from halfbyte.checks.golden import Compared
from halfbyte.checks.recipes import RULES, examine_recipe
from halfbyte.checks.versions import FLOORS, HOLES, TESTED, numbers
from halfbyte.recipe.load import load_recipe_alone, parse_recipe

ROOT = Path(__file__).parent.parent.parent.parent
CPU = torch.device("cpu")


def halfbyte(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "halfbyte", "doctor", *words], capture_output=True, text=True, check=False, timeout=240,
                          env={**os.environ, **environment})  # fmt: skip


# Versions


def test_the_tested_versions_are_those_of_the_project():
    """The package cannot read constraints.txt and pyproject.toml where it is installed."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {name.lower().replace("-", "_"): version for name, version in pins.items()}
    assert {name: pinned[name] for name in TESTED} == TESTED
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in wanted)
    assert {name: floors[name] for name in FLOORS} == FLOORS
    assert set(TESTED) == set(FLOORS)
    assert all(numbers(FLOORS[name]) >= numbers(safe) for name, (safe, _) in HOLES.items())


@pytest.mark.parametrize(("package", "found", "verdict", "words"), [
    ("torch", "2.13.0+cpu", "ok", "2.13.0+cpu"), ("torch", "2.11.0", "ok", "tested with 2.13.0"), ("torch", "2.14.1", "note", "newer than the tested"),
    ("torch", "2.10.0", "problem", "older than 2.11"), ("torch", "2.9.1", "problem", "CVE-2025-32434"), ("torch", None, "problem", "not installed"),
    ("transformers", "5.2.0", "problem", "CVE-2026-4372"), ("jinja2", "3.1.5", "problem", "CVE-2025-27516"), ("pyarrow", "14.0.0", "problem", "CVE-2023-47248"),
    ("numpy", "2.4.6", "ok", "2.4.6"),
])  # fmt: skip
def test_a_version_is_held_against_what_was_tested(package, found, verdict, words):
    check = check_version(package, found)
    assert check.verdict == verdict
    assert words in check.figure
    assert (verdict == "ok") == (not check.mend)


def test_versions_are_compared_as_numbers():
    assert numbers("2.10.0") == numbers("2.10")
    assert numbers("2.9") < numbers("2.10") < numbers("2.10.1+cu128")


# GPU and driver, as values: there is no GPU where the tests run


@pytest.mark.parametrize(("cuda", "usable", "driver", "knows", "verdict", "words"), [
    (None, False, None, None, "note", "no GPU found"),
    (None, False, "570.86", None, "problem", "NVIDIA's driver 570.86 is here"),
    ("13.0", False, "535.10", "12.2", "problem", "cannot use the driver 535.10, which knows CUDA 12.2"),
    ("12.8", False, None, None, "note", "no GPU found"),
    ("12.8", True, "570.86", "12.8", "ok", "driver 570.86"),
    ("12.8", True, "570.86", "12.4", "note", "the driver knows CUDA 12.4"),
])  # fmt: skip
def test_the_build_is_held_against_the_driver(cuda, usable, driver, knows, verdict, words):
    check = check_build(cuda, usable, driver, knows)
    assert check.verdict == verdict
    assert words in check.figure


def test_the_driver_is_found_where_it_says_so(tmp_path, monkeypatch):
    file = tmp_path / "version"
    monkeypatch.setattr(doctor, "DRIVER", file)
    assert doctor.driver_version() is None
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    assert doctor.driver_version() == "570.86.15"


def test_a_product_in_bfloat16_is_compared(monkeypatch):
    assert doctor.check_bfloat16(torch, CPU).verdict == "ok"
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: torch.mm(one, other) * (1.02 if one.dtype == torch.bfloat16 else 1))
    assert doctor.check_bfloat16(torch, CPU).verdict == "problem"


# Folders, environment


def test_a_folder_that_is_not_there_yet_is_tried_above(tmp_path):
    (check,) = check_folder("runs folder", tmp_path / "a" / "b")
    assert check.verdict in ("ok", "note")
    assert "GB free" in check.figure
    assert not list(tmp_path.iterdir()), "the doctor leaves nothing"


@pytest.mark.parametrize("what", ["fsync", "rename"])
def test_a_disk_that_fails_is_told(tmp_path, monkeypatch, what):
    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path if what == "rename" else os, what, fail)
    (check,) = check_folder("runs folder", tmp_path)
    assert (check.verdict, "Read-only file system" in check.figure) == ("problem", True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "verdict"), [(50e9, "ok"), (5e9, "note"), (5e8, "problem")])
def test_room_on_the_disk_is_judged(tmp_path, monkeypatch, free, verdict):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free})())
    monkeypatch.setattr(doctor, "SLOW_SYNC_SECONDS", math.inf)
    (check,) = check_folder("runs folder", tmp_path)
    assert check.verdict == verdict


def test_nothing_secret_of_the_environment_is_shown():
    """SECURITY 3.4: tokens and the passwords in the addresses of proxies."""
    proxy = "http://me:word@proxy"
    given = {"HF_TOKEN": "hf_secret", "HTTPS_PROXY": proxy, "https_proxy": proxy, "WANDB_API_KEY": "abc", "HF_HUB_OFFLINE": "1", "PATH": "/secret/place"}
    (check,) = check_environment(given)
    assert check.figure == "HF_HUB_OFFLINE=1, HF_TOKEN is set, WANDB_API_KEY is set, HTTPS_PROXY is set"
    assert check.verdict == "note"
    assert "HF_HUB_OFFLINE" in check.mend
    (quiet,) = check_environment({})
    assert quiet.verdict == "ok"


# Kernels


def test_the_levels_are_those_of_bitsandbytes():
    from bitsandbytes.functional import get_4bit_type

    assert max(abs(ours - float(theirs)) for ours, theirs in zip(kernels.nf4_levels(), get_4bit_type("nf4", device="cpu"), strict=True)) < 1e-6


def test_the_kernels_here_are_right_and_wrong_ones_are_found(monkeypatch):
    import bitsandbytes.functional as functional

    assert kernels.check_kernels(CPU).right
    right = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda *given, **words: right(*given, **words).roll(1, 0))
    wrong = kernels.check_kernels(CPU)
    assert not wrong.right
    assert doctor.check_four_bits(CPU).verdict == "problem"


def test_a_bitsandbytes_that_cannot_be_loaded_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check = doctor.check_four_bits(CPU)
    assert check.verdict == "problem"
    assert "bitsandbytes" in check.figure


# The golden curve


def compared(*ours: float) -> Compared:
    return Compared(list(ours), [3.0, 2.0, 1.0], "float32", 1e-3)


def test_a_curve_is_the_same_within_its_tolerance():
    assert compared(3.0, 2.0005, 1.0).same
    assert compared(3.0, 2.0005, 1.0).parts_at == 0
    off = compared(3.0, 2.01, 1.5)
    assert (off.same, off.parts_at) == (False, 2)
    broken = compared(3.0, math.nan, math.nan)
    assert (broken.same, broken.farthest, broken.parts_at) == (False, math.inf, 2)


def test_the_tolerances_are_those_that_were_measured():
    """Wide enough for every honest variant, narrow enough for every fault (benchmarks/golden_curve.py)."""
    raw = json.loads((ROOT / "benchmarks" / "results" / "golden_curve.json").read_text())
    kept = json.loads(golden.CURVE.read_text())
    assert kept["losses"] == raw["losses"]["1 thread"]
    assert kept["tolerance"] == raw["tolerance"]
    assert len(kept["losses"]) == golden.STEPS
    assert not raw["faults_unseen"]["float32"]
    made = kept["made_with"]
    assert (made["steps"], made["rows_a_step"], made["row_tokens"], made["seed"], made["learning_rate"]) == (
        golden.STEPS, golden.ROWS_A_STEP, golden.ROW_TOKENS, golden.SEED, golden.LEARNING_RATE,
    )  # fmt: skip


@pytest.mark.slow
def test_the_golden_curve_comes_out_here_and_a_fault_does_not():
    assert golden.compare_with_golden().same

    def freeze(model):
        for name, parameter in model.named_parameters():
            if ".layers.0." in name:
                parameter.requires_grad_(False)

    kept = json.loads(golden.CURVE.read_text())
    spoiled = Compared(golden.train_losses(CPU, "float32", change=freeze), kept["losses"], "float32", kept["tolerance"]["float32"])
    assert not spoiled.same


def test_a_curve_that_is_off_and_one_that_does_not_run_are_problems(monkeypatch):
    monkeypatch.setattr(golden, "compare_with_golden", lambda _: compared(3.0, 2.5, 1.0))
    assert "from step 2 on" in doctor.check_curve().figure
    assert doctor.check_curve().verdict == "problem"

    def fail(_):
        raise RuntimeError("no kernel\nand much more")

    monkeypatch.setattr(golden, "compare_with_golden", fail)
    assert doctor.check_curve() == Check("golden curve", "does not run: no kernel", "problem", "see the lines above; halfbyte quickstart shows where it fails")


# All of it


def test_every_check_has_its_figure_and_every_verdict_but_ok_its_mend():
    told: list[Check] = []
    checks = doctor.doctor(told.append, curve=False)
    assert told == checks
    assert {"Python", "torch", "processor", "memory", "runs folder", "cache folder", "open files", "environment", "PyTorch build",
            "4-bit kernels on the CPU"} <= {check.name for check in checks}  # fmt: skip
    for check in checks:
        assert check.figure
        assert (check.verdict == "ok") == (not check.mend), check


@pytest.mark.slow
def test_the_command_tells_a_healthy_machine(tmp_path):
    done = halfbyte("--json", "--runs", str(tmp_path / "runs"), HF_TOKEN="hf_secretsecretsecret")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["healthy"]
    assert found["checks"][-1]["name"] == "golden curve"
    assert "hf_secret" not in done.stdout + done.stderr


def test_a_machine_with_a_problem_leaves_with_3(tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    from halfbyte.cli.main import app

    monkeypatch.setattr(doctor, "doctor", lambda listener, runs, on_step: [Check("disk", "full", "problem", "free some")])
    for words in ([], ["--json"]):
        assert CliRunner().invoke(app, ["doctor", *words]).exit_code == 3


# Recipes

CLEAN = """
name: clean
base: mistralai/Mistral-7B-v0.1
data: {kind: prompt_response, path: rows.csv, prompt_column: a, response_column: b, licence: MIT}
"""
LEDGER = {"records_read": 1000, "bins": {"trained": 800, "validation": 80, "test": 120}, "left_out": [], "train_rows": 800, "test_rows": 120,
          "truncation": {"longest_row": 600}}  # fmt: skip
TEXT = ["data={kind: text, path: a.txt, licence: MIT}"]
UNWISE = {
    "no-test-rows": (["data.test_share=0"], {}),
    "no-validation": (["data.validation_share=0"], {}),
    "one-file-on-two-sides": (["data.test_path=rows.csv"], {}),
    "learning-rate-high": (["train.learning_rate=5e-3"], {}),
    "learning-rate-low": (["train.learning_rate=1e-6"], {}),
    "many-passes": (["train.max_steps=880", "train.batch_size=64"], {"train_rows": 172 * 4}),
    "few-steps-a-pass": (["train.batch_size=16"], {"train_rows": 50}),
    "no-licence": (["data.licence=null"], {}),
    "template-ends-in-a-blank": (["data.prompt_template=Q: {prompt} A: "], {}),
    "prompts-in-the-loss": (["data.loss=all"], {}),
    "max-length-cuts": ([], {"left_out": [{"reason": "the answer does not fit into max_length 512", "count": 3}]}),
    "few-test-rows": ([], {"test_rows": 9}),
    "another-template-than-the-model-s": (["base=mistralai/Mistral-7B-Instruct-v0.2", "data.prompt_template=Q: {prompt}\n"], {}),
    "few-modules": (["adapter.target_modules=[q_proj, v_proj]"], {}),
    "fp4": (["quant.kind=fp4"], {}),
    "copies-on-two-sides": (["data.keep_duplicates=true"], {}),
    "endless-answers": (["evaluate.max_new_tokens=20000"], {}),
    "odd-scale": (["adapter.r=8", "adapter.alpha=128"], {}),
    "much-dropout": (["adapter.dropout=0.5"], {}),
    "much-weight-decay": (["train.weight_decay=0.5"], {}),
    "float16": (["train.precision=float16"], {}),
}
UNWISE_TEXT = {
    "prompt-ends-in-a-blank": "evaluate.prompts=['It was ']", "plain-text-on-an-instruct-model": "base=google/gemma-2-2b-it", "no-gap": "data.gap=0",
    "boilerplate-kept": "data.keep_boilerplate=true",
}  # fmt: skip
CLEAN_TEXT = CLEAN.replace("kind: prompt_response, path: rows.csv, prompt_column: a, response_column: b", "kind: text, path: a.txt")


def test_nothing_is_said_of_a_wise_recipe():
    for text in (CLEAN, CLEAN_TEXT):
        assert not examine_recipe(parse_recipe(text, "r.yaml", []).recipe, text, LEDGER)


@pytest.mark.parametrize("rule", UNWISE)
def test_what_is_unwise_in_a_recipe_is_named(rule):
    words, ledger = UNWISE[rule]
    found = examine_recipe(parse_recipe(CLEAN, "r.yaml", words).recipe, CLEAN, {**LEDGER, **ledger})
    assert [one.rule for one in found] == [rule]
    assert found[0].seen


@pytest.mark.parametrize("rule", UNWISE_TEXT)
def test_what_is_unwise_in_a_recipe_of_text_is_named(rule):
    found = examine_recipe(parse_recipe(CLEAN_TEXT, "r.yaml", [UNWISE_TEXT[rule]]).recipe, CLEAN_TEXT, LEDGER)
    assert [one.rule for one in found] == [rule]


def test_every_rule_on_recipes_is_tried():
    assert {one.name for one in RULES} == set(UNWISE) | set(UNWISE_TEXT)


def test_the_line_is_that_of_the_key_that_stands_there():
    text = CLEAN + "train:\n  max_steps: 900\n  batch_size: 16\n"
    (found,) = examine_recipe(parse_recipe(text, "r.yaml", []).recipe, text, {**LEDGER, "train_rows": 800})
    assert (found.rule, found.key, found.line) == ("many-passes", "train.max_steps", 6)


def test_the_recipes_of_the_project_are_wise():
    """Of the samples no licence is stated, since they are the project's own; wikitext-mistral repeats what project E did, on purpose."""
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        loaded = load_recipe_alone(file)
        found = {one.rule for one in examine_recipe(loaded.recipe, loaded.text)}
        assert found <= ({"no-licence"} if "src/halfbyte/samples" in loaded.text else set()) | (
            {"plain-text-on-an-instruct-model"} if file.stem == "wikitext-mistral" else set()
        )


def test_the_command_reads_a_recipe_with_its_data(tmp_path):
    rows = "".join(f"question {number} about a thing,answer {number} that says something\n" for number in range(40))
    (tmp_path / "rows.csv").write_text("a,b\n" + rows)
    (tmp_path / "r.yaml").write_text(
        CLEAN.replace("mistralai/Mistral-7B-v0.1", "embedded").replace("rows.csv", str(tmp_path / "rows.csv")) + "train:\n  batch_size: 16\n"
    )
    done = halfbyte("--recipe", str(tmp_path / "r.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["rule"] for one in found["findings"]} == {"few-steps-a-pass", "few-test-rows"}
    assert found["findings"][0]["where"] == f"{tmp_path / 'r.yaml'}:6"
    (tmp_path / "rows.csv").unlink()
    without = halfbyte("--recipe", str(tmp_path / "r.yaml"))
    assert "the data are not here" in without.stdout
    assert "0 faults, 0 notes" in without.stdout


@pytest.mark.parametrize(("words", "said"), [
    (["rows.csv"], "neither a recipe (.yaml) nor a script"), (["a.yaml", "b.py"], "at a time"), (["--recipe", "nowhere.yaml"], "no such recipe file"),
    (["--notebook", "nowhere.ipynb"], "no such file"),
])  # fmt: skip
def test_what_cannot_be_examined_is_refused(words, said):
    done = halfbyte(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
