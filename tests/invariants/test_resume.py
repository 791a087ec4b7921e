"""An interrupted run that is resumed ends as the one that was not interrupted: losses, rates, adapter and optimizer, to the bit."""

import random
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from halfbyte.data.batches import epoch_steps
from halfbyte.errors import IntegrityError
from halfbyte.recipe.schema import Adapter, Train
from halfbyte.train.checkpoint import load_checkpoint, newest_checkpoint
from toy_training import Course, random_rows, run_toy, same, toy_plan, trained_tensors

ROWS = random_rows([9, 22, 14, 30, 6, 17, 25, 12, 19, 8, 11])
TOTAL = 9


@dataclass(frozen=True)
class Kind:
    """One way to train. 11 rows: 6 steps an epoch at batch size 2, 3 with accumulation 2."""

    adapter: Adapter
    section: Train
    precision: str = "float32"
    checkpointing: bool = False


KINDS = {
    "plain": Kind(Adapter(r=4), Train(learning_rate=2e-2, batch_size=2)),
    "dropout": Kind(Adapter(r=4, dropout=0.1), Train(learning_rate=2e-2, batch_size=2)),
    "accumulation": Kind(Adapter(r=4, dropout=0.1), Train(learning_rate=2e-2, batch_size=2, gradient_accumulation_steps=2, weight_decay=0.1)),
    "float16, recomputed": Kind(Adapter(r=4, dropout=0.1), Train(learning_rate=2e-2, batch_size=2), "float16", True),
    "dora, whole head": Kind(Adapter(kind="dora", r=4, dropout=0.1, modules_to_save=["lm_head"]), Train(learning_rate=2e-3, batch_size=2)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from toys import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    """kind -> its course without interruption, made once."""
    made: dict[str, Course] = {}

    def course(name: str) -> Course:
        if name not in made:
            made[name] = go(name, base, tmp_path_factory.mktemp("straight"))
        return made[name]

    return course


def go(name, base, path, **how) -> Course:
    kind = KINDS[name]
    plan = toy_plan(len(ROWS), kind.section, TOTAL, eval_steps=4, precision=kind.precision, checkpointing=kind.checkpointing)
    course = run_toy(base, path, ROWS, kind.section, plan, adapter=kind.adapter, **how)
    course.last = load_checkpoint(newest_checkpoint(path)[0])
    return course


def told(course: Course):
    return course.told("step", "step", "rows", "loss", "learning_rate", "grad_norm", "tokens", "epoch"), course.told("validation", "step", "loss", "best")


@pytest.mark.parametrize(("name", "stop"), [
    *(("plain", step) for step in range(1, TOTAL)), ("dropout", 3), ("dropout", 4), ("dropout", 6), ("dropout", 7),
    ("accumulation", 2), ("accumulation", 3), ("accumulation", 5), ("float16, recomputed", 5), ("dora, whole head", 5),
])  # fmt: skip
def test_interrupted_and_resumed_is_the_same_run(base, straight, tmp_path, name, stop):
    """Step 6 ends the first epoch of `plain`, step 3 that of `accumulation`; steps 4 and 8 validate."""
    whole = straight(name)
    first = go(name, base, tmp_path, stop_after=stop)
    assert first.outcome is None
    assert first.told("step", "step") == list(range(1, stop + 1))
    assert first.told("interrupted", "step") == [stop]
    torch.rand(17)  # another process has drawn other numbers
    random.random(), np.random.rand()
    path, passed_over = newest_checkpoint(tmp_path)
    assert (path.name, passed_over) == (f"step-{stop}", [])
    second = go(name, base, tmp_path, resume_from=path)
    assert second.told("resume", "step") == [stop]
    steps, validations = (before + after for before, after in zip(told(first), told(second), strict=True))
    assert (steps, validations) == told(whole)
    assert same(trained_tensors(second.model), trained_tensors(whole.model))
    assert (second.outcome.steps, second.outcome.best_step) == (whole.outcome.steps, whole.outcome.best_step)
    assert second.last.optimizer["param_groups"] == whole.last.optimizer["param_groups"]
    for number, state in whole.last.optimizer["state"].items():
        assert same(second.last.optimizer["state"][number], state)
    assert second.last.state["random"] == whole.last.state["random"]
    assert second.last.state["scaler"] == whole.last.state["scaler"]


def test_interrupted_again_and_again(base, straight, tmp_path):
    """One step at a time, each in a process of its own as far as the loop can tell."""
    losses, path = [], None
    for step in range(1, TOTAL + 1):
        course = go("dropout", base, tmp_path, stop_after=step, resume_from=path)
        losses += course.told("step", "loss")
        path, _ = newest_checkpoint(tmp_path)
    assert losses == straight("dropout").told("step", "loss")
    assert same(trained_tensors(course.model), trained_tensors(straight("dropout").model))


def test_resuming_from_an_older_checkpoint_repeats_what_was_lost(base, straight, tmp_path):
    """The newest is damaged: it is passed over, said, and not counted among the ones that are kept."""
    go("dropout", base, tmp_path, stop_after=6)
    (tmp_path / "step-6" / "optimizer.safetensors").write_bytes(b"damaged")
    path, passed_over = newest_checkpoint(tmp_path)
    assert path.name == "step-4"
    assert "step-6/optimizer.safetensors is not what was saved" in passed_over[0]
    second = go("dropout", base, tmp_path, resume_from=path)
    assert second.told("step", "loss") == straight("dropout").told("step", "loss")[4:]
    assert same(trained_tensors(second.model), trained_tensors(straight("dropout").model))
    assert newest_checkpoint(tmp_path)[1] == []


def test_a_broken_later_checkpoint_does_not_push_out_the_new_ones(base, tmp_path):
    """Guards against a prune that kept a broken step-6 as the newest and removed the whole step-5 just saved."""
    kind = KINDS["plain"]
    section = kind.section.model_copy(update={"keep_checkpoints": 1})
    plan = toy_plan(len(ROWS), section, TOTAL, eval_steps=4)
    run_toy(base, tmp_path, ROWS, section, plan, stop_after=6, validate=None)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-4", "step-6"]
    (tmp_path / "step-6" / "state.json").unlink()
    run_toy(base, tmp_path, ROWS, section, plan, stop_after=5, resume_from=tmp_path / "step-4", validate=None)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-5", [])


def test_a_finished_run_that_is_resumed_trains_nothing(base, straight, tmp_path):
    go("plain", base, tmp_path)
    again = go("plain", base, tmp_path, resume_from=newest_checkpoint(tmp_path)[0])
    assert (again.told("step", "step"), again.told("validation", "step")) == ([], [])
    assert (again.outcome.steps, again.outcome.stopped) == (TOTAL, "finished")
    assert same(trained_tensors(again.model), trained_tensors(straight("plain").model))


def test_a_checkpoint_of_another_run_is_refused(base, tmp_path):
    """Whole, of the same shapes, and not ours."""
    go("plain", base, tmp_path, stop_after=3, run_id="mine")
    assert newest_checkpoint(tmp_path, "mine") == (tmp_path / "step-3", [])
    path, passed_over = newest_checkpoint(tmp_path, "yours")
    assert path is None
    assert "was saved by another run" in passed_over[0]
    with pytest.raises(IntegrityError, match="was saved by another run"):
        go("plain", base, tmp_path, resume_from=tmp_path / "step-3", run_id="yours")


def test_the_best_checkpoint_is_taken_from_this_run_alone(base, tmp_path):
    """Guards against a stranger's adapter that would be put in as the best one after the last step."""

    def with_best_at_4(path, **how):
        losses = iter([1.0, 0.5, 0.9] if "resume_from" not in how else [0.9])
        return go("plain", base, path, validate=lambda: (next(losses), 1), **how)

    for name in ("mine", "yours"):
        with_best_at_4(tmp_path / name, stop_after=8, run_id=name)
    kept = with_best_at_4(tmp_path / "mine", resume_from=tmp_path / "mine" / "step-8", run_id="mine")
    assert (kept.outcome.best_step, kept.told("note", "message")) == (4, [])
    shutil.rmtree(tmp_path / "mine" / "step-4")
    shutil.copytree(tmp_path / "yours" / "step-4", tmp_path / "mine" / "step-4")
    second = with_best_at_4(tmp_path / "mine", resume_from=tmp_path / "mine" / "step-8", run_id="mine")
    assert second.outcome.best_step is None
    assert "step-4 was saved by another run: the adapter of the last step is kept" in second.told("note", "message")[0]


def test_rows_of_a_resumed_epoch_are_those_that_were_left():
    """The order is of the seed and the epoch alone."""
    epochs = [[batch.ids.tolist() for step in epoch_steps(ROWS, 2, 2, 2, seed=5, epoch=epoch) for batch in step] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
