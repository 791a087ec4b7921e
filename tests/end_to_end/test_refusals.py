"""What would go wrong quietly is refused by name: memory, another plan, another base, too little room."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from halfbyte import api
from halfbyte.errors import DataError, IntegrityError, Interrupted, MachineError, RecipeError
from halfbyte.generate.engine import Sampling
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import open_run, read_report
from toys import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def recipe(base, tmp_path):
    """A function: changes -> a checked recipe over twenty short pairs; two steps."""
    file = tmp_path / "talk.csv"
    file.write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(20)), encoding="utf-8")
    text = f"name: toy\nbase: {base}\ndata:\n  path: {file}\n  max_length: 64\ntrain:\n  max_steps: 2\nevaluate:\n  max_new_tokens: 4\n"
    return lambda *changes: parse_recipe(text, "toy.yaml", list(changes))


@pytest.fixture
def finished(recipe, tmp_path):
    return api.train(recipe(), tmp_path / "runs").path


def test_out_of_memory_is_the_machine_s_and_is_reported(recipe, tmp_path, monkeypatch):
    """Guards against the commonest failure of a 7B run being called our bug, with a traceback and no report."""

    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(api, "run_training", run_out)
    with pytest.raises(MachineError, match=r"out of memory .*2\.00 GiB\.$") as caught:
        api.train(recipe(), tmp_path / "runs")
    assert "gradient_accumulation_steps" in caught.value.hint
    assert read_report(tmp_path / "runs" / "toy")["status"] == "failed"


def test_any_other_failure_leaves_a_report(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "run_training", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        api.train(recipe(), tmp_path / "runs")
    assert read_report(tmp_path / "runs" / "toy")["status"] == "failed"


def test_ctrl_c_while_loading_is_an_interruption_that_can_be_resumed(recipe, tmp_path, monkeypatch):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "load_for", press)
        with pytest.raises(Interrupted):
            api.train(recipe(), tmp_path / "runs")
    run = tmp_path / "runs" / "toy"
    assert read_report(run)["status"] == "interrupted"
    api.resume(run)
    assert read_report(run)["status"] == "finished"


@pytest.mark.parametrize(("key", "value"), [("precision", "bfloat16"), ("optimizer", "paged_adamw_32bit"), ("total_steps", 7), ("warmup_steps", 2)])
def test_a_run_is_not_resumed_by_another_plan(recipe, tmp_path, monkeypatch, key, value):
    """Guards against a run begun in bfloat16 on a GPU and finished in float32, with a report that says bfloat16."""
    plan_here = api.plan

    def plan_elsewhere(*args, **kwargs):
        planned = plan_here(*args, **kwargs)
        return replace(planned, plan=replace(planned.plan, **{key: value}))

    with monkeypatch.context() as patch:
        patch.setattr(api, "plan", plan_elsewhere)
        patch.setattr(api, "run_training", lambda *args, **kwargs: (_ for _ in ()).throw(Interrupted("stopped")))
        with pytest.raises(Interrupted):
            api.train(recipe(), tmp_path / "runs")
    run = tmp_path / "runs" / "toy"
    with pytest.raises(MachineError, match=f"{key.replace('_', ' ')} {value} -> "):
        api.resume(run)


def test_an_adapter_of_another_base_is_no_start(recipe, finished, tmp_path_factory, tmp_path):
    """The shapes fit; only the base's files tell."""
    sister = make_base(tmp_path_factory.mktemp("sister"), seed=1)
    api.train(recipe(f"adapter.init_from={finished}"), tmp_path / "more")
    with pytest.raises(IntegrityError, match="is not the model that this run was trained on"):
        api.train(recipe(f"adapter.init_from={finished}", f"base={sister}"), tmp_path / "wrong")


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_rows_beyond_the_positions_of_the_base_are_refused(recipe, tmp_path, kind):
    """GPT-2 calls its length n_positions and ended in an IndexError."""
    folder = tmp_path / "base"
    if kind == "mistral":
        make_base(folder, max_position_embeddings=32)
    else:
        make_base(folder)
        config = json.loads((folder / "config.json").read_text())
        config["n_positions"] = 32
        del config["max_position_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"data\.max_length: 64 is beyond the 32 positions"):
        api.plan(recipe(f"base={folder}"))


def test_a_prompt_without_room_is_refused_before_any_is_answered(finished):
    tuned = api.open_tuned(finished)
    with pytest.raises(DataError, match=r"prompt 2 has \d+ tokens, room is 508 \(512 less 4 for the answer\)"):
        api.answer_all(tuned, ["who is number 3", "who " * 600], Sampling(4), batch_size=1, on_batch=lambda *_: pytest.fail("one was answered"))


def test_a_damaged_plan_is_not_our_bug(finished):
    (finished / "plan.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"plan\.json is damaged"):
        api.open_tuned(finished)


def test_a_run_that_is_being_written_is_left_alone(finished):
    """Guards against `--resume` beside a training: two writers, and a checkpoint that was promised and removed."""
    run = open_run(finished)
    with run.locked(), pytest.raises(DataError, match=r"is being written by process \d+"):
        api.evaluate(finished)
    api.evaluate(finished)


def test_an_adapter_with_a_flipped_bit_is_noticed(finished):
    weights = finished / "adapter" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-7] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(IntegrityError, match="is not what was written"):
        api.open_tuned(finished)


def test_a_run_without_an_adapter_says_that_it_is_not_finished(finished):
    shutil.rmtree(finished / "adapter")
    with pytest.raises(DataError, match="the run is not finished") as caught:
        api.open_tuned(finished)
    assert "--resume" in caught.value.hint
