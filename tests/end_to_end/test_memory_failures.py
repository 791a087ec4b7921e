"""Memory that runs out in a whole run: it goes on in less, is told, kept in the report and by a resume; or it ends with exit code 3 and what would fit."""

import random

import pytest
import torch

from halfbyte import api
from halfbyte.errors import MachineError, OutOfMemory
from halfbyte.evaluate import loss as loss_module
from halfbyte.generate import engine
from halfbyte.generate.engine import Sampling
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import read_report
from halfbyte.train import loop
from toys import WORDS, make_base

REFUSED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A function: changes -> a checked recipe over 24 short pairs; four steps of four rows."""
    folder = tmp_path_factory.mktemp("memory")
    base = make_base(folder / "base")
    rows = [" ".join(random.Random(number).sample(WORDS.split(), 9)) for number in range(24)]
    (folder / "talk.csv").write_text("prompt,response\n" + "".join(f'"{row}","the old man, {number}"\n' for number, row in enumerate(rows)), encoding="utf-8")
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {folder / 'talk.csv'}\n  max_length: 64\nadapter:\n  r: 4\n"
        "train:\n  max_steps: 4\n  batch_size: 4\n  eval_steps: 2\nevaluate:\n  max_new_tokens: 4\n"
    )
    return lambda *changes: parse_recipe(text, "toy.yaml", list(changes))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    return api.train(recipe(), tmp_path_factory.mktemp("whole")).path


def refuse_beyond(patch: pytest.MonkeyPatch, owner, name: str, rows: int, count) -> list[int]:
    """`owner.name` has room for so many rows; `count` takes its arguments and says how many it is given. Returns how many were refused, each time."""
    ask, refused = getattr(owner, name), []

    def limited(*given, **named):
        if count(*given) > rows:
            refused.append(count(*given))
            raise torch.OutOfMemoryError(REFUSED)
        return ask(*given, **named)

    patch.setattr(owner, name, limited)
    return refused


def curve(run):
    return read_report(run)["curves"]["loss"]


def test_training_goes_on_in_less_and_a_resume_keeps_it(recipe, whole, tmp_path, monkeypatch):
    heard = []
    with monkeypatch.context() as patch:
        refuse_beyond(patch, loop, "train_step", 2, lambda _, batches, *rest: len(batches[0].ids))
        patch.setattr(api, "_measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(api.Interrupted):
            api.train(recipe("train.gradient_checkpointing=false"), tmp_path, heard.append)
    run = tmp_path / "toy"
    changes = [event for event in heard if event["event"] == "memory_change"]
    assert [(event["step"], event["micro_batch_size"], event["gradient_accumulation_steps"]) for event in changes] == [(1, 2, 2)]
    report = read_report(run)
    assert report["memory"]["changes"][0]["message"] == changes[0]["message"]
    assert changes[0]["message"] in report["notes"]
    assert changes[0]["message"] in (run / "report.md").read_text(encoding="utf-8")
    assert [loss for _, loss in curve(run)] == pytest.approx([loss for _, loss in curve(whole)], rel=1e-4)
    planned = []
    api.resume(run, on_plan=lambda plan, _: planned.append(plan.plan))
    assert (planned[0].computing.micro_batch_size, planned[0].computing.gradient_accumulation_steps) == (2, 2)
    assert planned[0].notes[-1].startswith("memory ran out in this run, so it goes on as it ended: 2 rows at a time, 2 times a step")
    assert read_report(run)["status"] == "finished"


def test_validating_measuring_and_answering_go_on_with_fewer_rows(recipe, whole, tmp_path, monkeypatch):
    """The figures are those of the run that had room."""
    heard = []
    with monkeypatch.context() as patch:
        looked = refuse_beyond(patch, loss_module, "batch_logits", 1, lambda _, batch, *rest: len(batch.ids))
        answered = refuse_beyond(patch, engine, "_decode", 2, lambda _, prompts, *rest: len(prompts))
        run = api.train(recipe(), tmp_path, heard.append).path
    assert 0 < len(looked) + len(answered) < 12, "it was tried again and again"
    phases = [event["phase"] for event in heard if event["event"] == "memory_change"]
    assert phases.count("validate") == 1
    assert 0 < phases.count("evaluate") < 8
    mine, theirs = read_report(run), read_report(whole)
    assert mine["perplexity"]["tuned"] == pytest.approx(theirs["perplexity"]["tuned"], rel=1e-5)
    assert [row["loss"] for row in mine["validation"]] == pytest.approx([row["loss"] for row in theirs["validation"]], rel=1e-5)
    assert [(one["prompt"], one["tuned"]) for one in mine["generations"]] == [(one["prompt"], one["tuned"]) for one in theirs["generations"]]
    assert any("memory ran out with" in note and "figures may differ in their last digits" in note for note in mine["notes"])


def test_answers_to_a_file_go_on_with_fewer_at_a_time(whole, monkeypatch):
    tuned, told = api.open_tuned(whole, fast_cpu=False), []
    prompts = [f"who is number {number}" for number in range(5)]
    before = api.answer_all(tuned, prompts, Sampling(4), batch_size=4)
    with monkeypatch.context() as patch:
        refused = refuse_beyond(patch, engine, "_decode", 1, lambda _, prompts, *rest: len(prompts))
        assert api.answer_all(tuned, prompts, Sampling(4), batch_size=4, tell=told.append) == before
    assert refused == [4, 2]
    assert len(told) == 2
    with monkeypatch.context() as patch:
        refuse_beyond(patch, engine, "_decode", 0, lambda _, prompts, *rest: len(prompts))
        with pytest.raises(OutOfMemory, match="out of memory while answering: CUDA out of memory") as caught:
            api.answer_all(tuned, prompts, Sampling(4), batch_size=1)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("place", "error", "said"), [
    ("load_for", torch.OutOfMemoryError(REFUSED), "out of memory while loading: CUDA out of memory"), ("load_for", MemoryError(), "while loading: MemoryError"),
    ("_measure", torch.OutOfMemoryError(REFUSED), "out of memory while measuring: "),
])  # fmt: skip
def test_what_cannot_be_computed_in_less_is_the_machine_s(recipe, tmp_path, monkeypatch, place, error, said):
    monkeypatch.setattr(api, place, lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(MachineError, match=said) as caught:
        api.train(recipe(), tmp_path)
    assert ("halfbyte evaluate" if place == "_measure" else "gradient_accumulation_steps") in caught.value.hint
    assert read_report(tmp_path / "toy")["status"] == "failed"
