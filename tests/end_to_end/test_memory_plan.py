"""A run whose memory is planned, from plan to report, on a computer that says it has a GPU: everything but the GPU itself is real."""

import json

import pytest

from halfbyte import api
from halfbyte.api import memory
from halfbyte.budget.history import recall
from halfbyte.errors import MachineError
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.plan import Machine
from halfbyte.runs.folder import read_report
from toys import make_base

GPU = "NVIDIA H200"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function: changes -> a checked recipe; the machine has a GPU of 2 GB, whose work the CPU does."""
    import torch

    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(api, "look_at_machine", lambda: Machine("cuda", GPU, 2, (9, 0), 2_000_000_000))
    monkeypatch.setattr(memory, "torch_device", lambda machine: torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 2_000_000_000)
    monkeypatch.setattr(memory, "driver_bytes", lambda: 800_000_000)
    monkeypatch.setattr(memory, "others_bytes", lambda: 0)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 1_000_000_000)
    monkeypatch.setattr(memory, "begin_phase", lambda device: None)
    monkeypatch.setattr("halfbyte.train.loop.peak_bytes", lambda device: 1_300_000_000)
    base = make_base(tmp_path / "base")
    file = tmp_path / "talk.csv"
    file.write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i} of the old lamp\n" for i in range(40)), encoding="utf-8")
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {file}\n  max_length: 64\n  near_duplicates: ignore\ntrain:\n  max_steps: 6\n  batch_size: 4\n"
        "  precision: float32\nevaluate:\n  max_new_tokens: 4\n"
    )
    return lambda *changes: parse_recipe(text, "toy.yaml", list(changes))


def events(run, kind):
    return [event for event in map(json.loads, run.events.read_text().splitlines()) if event["event"] == kind]


def test_the_plan_chooses_and_the_run_is_computed_so(recipe, tmp_path):
    run = api.train(recipe(), tmp_path / "runs")
    plan, report = run.read_plan(), read_report(run.path)
    assert plan["computing"]["micro_batch_size"] == 4
    assert {layer["activations"] for layer in plan["computing"]["layers"]} == {"kept"}
    assert plan["memory"]["gpu"] == GPU
    assert (plan["memory"]["chosen"]["rows"], plan["memory"]["chosen"]["told"]) == (4, "activations kept, weights of all layers kept in 16 bits")
    assert plan["memory"]["chosen"]["fits"]
    assert plan["memory"]["chosen"] in plan["memory"]["considered"]
    assert [phase["name"] for phase in plan["memory"]["phases"]] == ["load", "step", "evaluate", "generate", "merge"]
    assert [event["phase"] for event in events(run, "memory")] == ["load", "proofs", "train", "evaluate"]
    assert report["memory"]["predicted_bytes"] == plan["predicted_bytes"] > 800_000_000
    assert report["memory"]["measured_bytes"] == 1_300_000_000  # the most that any event tells
    assert report["time"]["predicted_step_seconds"] > 0
    assert report["status"] == "finished"


def test_what_a_run_took_is_kept_for_the_next_plan(recipe, tmp_path):
    before = api.plan(recipe())
    api.train(recipe(), tmp_path / "runs")
    kept = recall(GPU).runs
    assert len(kept) == 1
    assert kept[0].measured_bytes == 200_000_000  # 1 GB less the driver's part
    after = api.plan(recipe())
    assert before.forecast.target.rates_from == "steps measured on an H200"
    assert "1 run" in after.forecast.target.rates_from
    # This computer is no H200; the next plan knows.
    assert after.forecast.target.rates != before.forecast.target.rates


def test_a_driver_that_cannot_be_told_from_others_teaches_nothing(recipe, tmp_path, monkeypatch):
    """As much as is counted at most: another program is there, and the next plans would leave room for it in vain."""
    monkeypatch.setattr(memory, "driver_bytes", lambda: memory.MOST_DRIVER_BYTES)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: memory.MOST_DRIVER_BYTES + 200_000_000)
    api.train(recipe(), tmp_path / "runs")
    assert [(run.driver_bytes, run.measured_bytes) for run in recall(GPU).runs] == [(0, 200_000_000)]


@pytest.mark.parametrize("layers", ["weights away", "recomputed"])
def test_another_way_of_computing_gives_the_same_losses(recipe, tmp_path, monkeypatch, layers):
    """The plan may choose as it likes: what is trained is the same."""
    from dataclasses import replace

    from halfbyte.recipe.plan import Placement

    whole = api.train(recipe(), tmp_path / "whole")
    placement = Placement("cpu", "cpu") if layers == "weights away" else Placement("4bit", "recomputed")
    original = memory.plan_memory

    def other(*args):
        found = original(*args)
        return replace(found, computing=replace(found.computing, micro_batch_size=1, gradient_accumulation_steps=4, layers=(placement,) * 2))

    monkeypatch.setattr(api, "plan_memory", other)
    parts = api.train(recipe(), tmp_path / "parts")
    assert parts.read_plan()["computing"]["layers"][0]["weights"] == placement.weights
    losses = [[event["loss"] for event in events(run, "step")] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert api.evaluate(parts.path) == parts


def test_a_run_that_does_not_fit_names_the_cheapest_change(recipe):
    with pytest.raises(MachineError, match=r"does not fit into 900 MB") as caught:
        api.plan(recipe("memory_budget=900MB"))
    assert caught.value.hint
    assert "Traceback" not in caught.value.hint


def test_a_budget_is_kept_where_memory_cannot_be_planned_and_said_to_mean_nothing_on_a_cpu(recipe, monkeypatch):
    from halfbyte.errors import ModelError

    def no_shape(config, name):
        raise ModelError("says too little", hint="")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "read_shape", no_shape)
        planned = api.plan(recipe("memory_budget=1500MB"))
        assert planned.plan.computing.limit_bytes == 600_000_000
        assert api.plan(recipe()).plan.computing.limit_bytes is None
    monkeypatch.setattr(api, "look_at_machine", lambda: Machine("cpu", "CPU", 2, None, 2_000_000_000))
    assert any("nothing is limited here" in note for note in api.plan(recipe("memory_budget=1500MB")).plan.notes)


def test_what_was_on_the_gpu_before_is_not_learned_as_the_runs(recipe, tmp_path, monkeypatch):
    """Guards against every later plan being raised because a notebook still held another model."""
    monkeypatch.setattr(memory, "held_bytes", lambda device: 150_000_000)
    api.train(recipe(), tmp_path / "runs")
    assert recall(GPU).runs[0].measured_bytes == 50_000_000  # 1 GB less the driver's part and what was there before


def test_a_run_that_ran_out_is_kept_for_the_next_plan(recipe, tmp_path, monkeypatch):
    """However early: the first steps are where it usually happens."""
    import torch

    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(api, "run_training", run_out)
        patch.setattr(memory, "peak_bytes", lambda device: 1_100_000_000)
        with pytest.raises(MachineError, match="out of memory"):
            api.train(recipe(), tmp_path / "runs")
    assert [run.ran_out for run in recall(GPU).runs] == [True]
    assert api.plan(recipe()).forecast.target.memory_factor > 1


def test_layers_that_are_away_need_room_elsewhere(recipe, monkeypatch):
    """Guards against a plan that fits the GPU and fills the computer instead."""
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 1000)
    assert not any("computer's memory" in note for note in api.plan(recipe()).plan.notes)
    monkeypatch.setattr(memory, "host_bytes", lambda work: {"weights": 2_000_000})
    assert any("need 2 MB of the computer's memory, which has 1 kB" in note for note in api.plan(recipe()).plan.notes)


def test_a_resumed_run_keeps_its_optimizer(recipe, tmp_path, monkeypatch):
    """Runs begun before the planner had paged AdamW as the default on GPUs: their saved state is of that kind."""
    from halfbyte.errors import Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(api, "run_training", lambda *args, **kwargs: (_ for _ in ()).throw(Interrupted("stopped")))
        with pytest.raises(Interrupted):
            api.train(recipe("train.optimizer=adamw_8bit"), tmp_path / "runs")
    run = tmp_path / "runs" / "toy"
    kept = run / "plan.json"
    kept.write_text(kept.read_text(encoding="utf-8").replace("the recipe asks for it", "chosen then"), encoding="utf-8")
    seen = []

    def stop(model, rows, plan, *args, **kwargs):
        seen.append(plan.optimizer)
        seen.extend(decision.reason for decision in plan.decisions if decision.name == "optimizer")
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(api, "run_training", stop)
        with pytest.raises(Interrupted):
            api.resume(run)
    assert seen == ["adamw_8bit", "chosen then"]


def test_without_a_gpu_the_next_plan_knows_what_the_last_run_took(tmp_path, monkeypatch):
    """Memory put right, and a time, which only runs can tell there."""
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "talk.csv"
    file.write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i} of the old lamp\n" for i in range(40)), encoding="utf-8")
    data = f"data:\n  path: {file}\n  max_length: 64\n  near_duplicates: ignore\n"
    text = f"name: toy\nbase: {make_base(tmp_path / 'base')}\n{data}train:\n  max_steps: 6\nevaluate:\n  max_new_tokens: 4\n"
    loaded = parse_recipe(text, "toy.yaml", [])
    first = api.plan(loaded).plan
    run = api.train(loaded, tmp_path / "runs")
    second = api.plan(loaded).plan
    measured, seconds = read_report(run.path)["memory"]["measured_bytes"], read_report(run.path)["time"]["measured_step_seconds"]
    assert first.computing.predicted_step_seconds is None
    assert second.computing.predicted_bytes == pytest.approx(measured, rel=0.1)
    assert 0.2 * seconds < second.computing.predicted_step_seconds < 5 * seconds
    assert any("by the plan" in decision.reason for decision in second.decisions)
