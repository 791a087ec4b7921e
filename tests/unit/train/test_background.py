"""A checkpoint that is written beside the steps: it is of its own step, one at a time, told by the thread that trains, and no end goes before it.

The writing thread is held where a test wants it, so that what has to happen meanwhile has happened.
"""

import threading

import pytest
import torch

from halfbyte.errors import MachineError, TrainingError
from halfbyte.recipe.schema import Adapter, Train
from halfbyte.runs import disk
from halfbyte.train import loop
from halfbyte.train.checkpoint import FILES, Checkpoint, load_checkpoint, newest_checkpoint
from halfbyte.train.keeper import BEST, LATEST, Keeper, read_pointer
from toy_disk import Counted, full
from toy_training import random_rows, run_toy, same, toy_plan, trained_tensors

PATIENCE = 20
"""Seconds that a thread is held at most."""
ROWS = random_rows([9, 22, 14, 30, 6, 17, 25, 12, 19, 8, 11])
SECTION = Train(learning_rate=2e-2, batch_size=2, keep_checkpoints=5)
PLAN = toy_plan(len(ROWS), SECTION, 9, eval_steps=4)
DROPOUT = Adapter(r=4, dropout=0.1)


class Held:
    """A function of `disk` that waits, for the files whose path has `part`, until it may go on; who called it is noted."""

    def __init__(self, monkeypatch, name, part=""):
        self.real, self.part = getattr(disk, name), part
        self.reached, self.may_go, self.threads = threading.Event(), threading.Event(), set()
        monkeypatch.setattr(disk, name, self)

    def __call__(self, file, *more):
        if self.part in str(file):
            self.threads.add(threading.get_ident())
            self.reached.set()
            assert self.may_go.wait(PATIENCE), "nobody let it go on"
        return self.real(file, *more)


class Told(list):
    """What was said, and that the thread of the test said it."""

    def __init__(self):
        self.main = threading.get_ident()

    def append(self, said):
        assert threading.get_ident() == self.main
        super().append(said)


def content(weight, number=0):
    moments = {0: {"exp_avg": weight * 2}}
    return Checkpoint({"weight": weight}, {"state": moments, "param_groups": [{"lr": 0.1}]}, {"made": number})


def keeper_in(folder, keep=1, said=None, saved=None):
    return Keeper(folder, keep, (Told() if said is None else said).append, background=True, on_saved=None if saved is None else saved.append)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_what_is_saved_is_of_its_step(tmp_path, monkeypatch):
    """The weights, the moments and the rest are changed before a byte is written."""
    held, saved = Held(monkeypatch, "write_new", ".tmp-"), Told()
    weight, state = torch.arange(4.0), {"random": [1, 2]}
    with keeper_in(tmp_path, saved=saved) as keeper:
        made = Checkpoint({"weight": weight}, {"state": {0: {"exp_avg": weight}}, "param_groups": [{"lr": 0.1}]}, state)
        assert keeper.save(1, lambda: made, None) is None
        assert held.reached.wait(PATIENCE)
        weight.fill_(9)
        state["random"][0] = 9
        made.optimizer["param_groups"][0]["lr"] = 9
        assert keeper.settle(waiting=False) is None
        assert (steps(tmp_path), read_pointer(tmp_path, LATEST), saved) == ([], None, [])
        held.may_go.set()
        assert keeper.settle() == tmp_path / "step-1"
    found = load_checkpoint(tmp_path / "step-1")
    assert found.adapter["weight"].tolist() == found.optimizer["state"][0]["exp_avg"].tolist() == [0, 1, 2, 3]
    assert (found.state["random"], found.optimizer["param_groups"]) == ([1, 2], [{"lr": 0.1}])
    assert [(one.step, one.path.name, 0 < one.waited <= one.seconds) for one in saved] == [(1, "step-1", True)]
    assert keeper.saved_step == 1
    assert threading.get_ident() not in held.threads


def test_nothing_is_pointed_to_or_removed_before_it_was_read_back(tmp_path, monkeypatch):
    with keeper_in(tmp_path) as keeper:
        keeper.save(1, lambda: content(torch.ones(3)), 1)
        keeper.settle()
        held = Held(monkeypatch, "holds")
        keeper.save(2, lambda: content(torch.ones(3)), 2)
        assert held.reached.wait(PATIENCE)
        assert keeper.settle(waiting=False) is None
        assert (read_pointer(tmp_path, LATEST), read_pointer(tmp_path, BEST)) == ("step-1", "step-1")
        assert (tmp_path / "step-1").is_dir()
        held.may_go.set()
    assert (read_pointer(tmp_path, LATEST), read_pointer(tmp_path, BEST), steps(tmp_path)) == ("step-2", "step-2", [2])


def test_a_better_step_that_came_meanwhile_pushes_nothing_out(tmp_path, monkeypatch):
    """Step 2 is settled when 3, which is better, is about to be saved: best is still 1, and a kill then must leave it there."""
    with keeper_in(tmp_path) as keeper:
        keeper.save(1, lambda: content(torch.ones(3)), 1)
        keeper.save(2, lambda: content(torch.ones(3)), 1)
        keeper.settle()
        held = Held(monkeypatch, "write_new", "step-3")
        keeper.save(3, lambda: content(torch.ones(3)), 3)
        assert held.reached.wait(PATIENCE)
        assert (steps(tmp_path), read_pointer(tmp_path, BEST)) == ([1, 2], "step-1")
        held.may_go.set()
    assert (steps(tmp_path), read_pointer(tmp_path, BEST)) == ([3], "step-3")


def test_one_at_a_time_in_their_order(tmp_path, monkeypatch):
    saved, held = Told(), Held(monkeypatch, "write_new", "step-1")
    with keeper_in(tmp_path, keep=5, saved=saved) as keeper:
        keeper.save(1, lambda: content(torch.ones(3)), None)
        threading.Timer(0.2, held.may_go.set).start()
        keeper.save(2, lambda: content(torch.ones(3)), None)
        assert held.may_go.is_set()
        assert [one.step for one in saved] == [1]
        keeper.save(3, lambda: content(torch.ones(3)), None)
    assert [one.step for one in saved] == [1, 2, 3]


def test_a_full_disk_is_told_backed_off_from_and_survived(tmp_path, monkeypatch):
    """In the thread; told by the one that trains. The best that could not be saved is kept as it was at its step."""
    said, weight = Told(), torch.ones(3)
    with keeper_in(tmp_path, said=said) as keeper:
        keeper.save(1, lambda: content(weight), 1)
        keeper.settle()
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", Counted(3, full))
            keeper.save(2, lambda: content(weight * 2), 2)
            weight.fill_(7)
            assert keeper.settle() is None
        assert "step-2: cannot be saved: disk full: needs " in said[0]
        assert said[0].endswith(f"it is tried again at the next interval. The last whole checkpoint is {tmp_path / 'step-1'}")
        assert keeper.unsaved_best["weight"].tolist() == [2, 2, 2]
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", Counted(3, full))
            keeper.save(3, lambda: content(weight), 2)
            keeper.settle()
        assert "tried again in 2 intervals" in said[1]
        assert keeper.unsaved_best["weight"].tolist() == [2, 2, 2]
        keeper.save(4, lambda: content(weight), 4)  # not yet tried again, but it is the best
        assert keeper.settle() is None
        weight.fill_(8)
        assert keeper.unsaved_best["weight"].tolist() == [7, 7, 7]
        keeper.save(5, lambda: content(weight), 5)
        assert keeper.settle() == tmp_path / "step-5"
        assert keeper.unsaved_best == {}
    assert (read_pointer(tmp_path, BEST), [path for path in tmp_path.glob(".*")], len(said)) == ("step-5", [], 2)


def test_at_the_end_a_failure_ends_the_run(tmp_path, monkeypatch):
    said = Told()
    with keeper_in(tmp_path, said=said) as keeper:
        monkeypatch.setattr(disk, "write_new", lambda file, given: full())
        keeper.save(1, lambda: content(torch.ones(3)), None)
        with pytest.raises(MachineError, match=r"disk full.*a resume starts at step 1"):
            keeper.insist(2, lambda: content(torch.ones(3)), None)
    assert len(said) == 1


@pytest.mark.parametrize("ends", ["next save", "end", "error"])
def test_what_the_thread_raises_is_raised(tmp_path, monkeypatch, ends):
    """A fault of ours is no full disk: it is swallowed nowhere, not even where the run ends by another error."""
    monkeypatch.setattr(disk, "write_new", lambda file, given: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised, keeper_in(tmp_path) as keeper:  # noqa: PT012 - each way to the end is the point
        keeper.save(1, lambda: content(torch.ones(3)), None)
        if ends == "next save":
            keeper.save(2, lambda: content(torch.ones(3)), None)
            pytest.fail("the second save began")
        elif ends == "error":
            raise TrainingError("the loss is nan")
    assert isinstance(raised.value.__context__, TrainingError) == (ends == "error")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from toys import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def at_once(base, tmp_path_factory):
    """The same run with every save done before the next step, and its folder."""
    folder = tmp_path_factory.mktemp("at-once")
    return run_toy(base, folder, ROWS, SECTION, PLAN, adapter=DROPOUT, run_id="toy", background=False), folder


def beside(base, folder, **how):
    return run_toy(base, folder, ROWS, SECTION, PLAN, adapter=DROPOUT, run_id="toy", background=True, **how)


def held_until(monkeypatch, step, name="write_new", part="step-4"):
    """The writing of step 4 begins when a later step has been taken."""
    held, real, taken = Held(monkeypatch, name, part), loop.train_step, []

    def train_step(*given):
        result = real(*given)
        taken.append(result)
        if len(taken) == step:
            assert held.reached.wait(PATIENCE)
            held.may_go.set()
        return result

    monkeypatch.setattr(loop, "train_step", train_step)
    return held


def test_two_steps_later_it_is_the_checkpoint_of_its_step(base, at_once, tmp_path, monkeypatch):
    """To the byte what a save that stops the run leaves; the run is the same, and so is one that goes on from there."""
    straight, folder = at_once
    held = held_until(monkeypatch, 6)
    course = beside(base, tmp_path)
    kinds = [(event["event"], event["step"]) for event in course.events if event["event"] in ("step", "checkpoint")]
    assert kinds.index(("checkpoint", 4)) > kinds.index(("step", 6))
    assert kinds[-1] == ("checkpoint", 9)
    assert threading.get_ident() not in held.threads
    assert steps(tmp_path) == steps(folder) == [4, 8, 9]
    for step in steps(folder):
        for name in FILES[:2]:
            assert (tmp_path / f"step-{step}" / name).read_bytes() == (folder / f"step-{step}" / name).read_bytes()
        left, right = (load_checkpoint(one / f"step-{step}", "toy").state for one in (tmp_path, folder))
        left["progress"].pop("seconds"), right["progress"].pop("seconds")
        assert left == right
    assert course.told("step", "step", "loss", "grad_norm", "rows") == straight.told("step", "step", "loss", "grad_norm", "rows")
    assert same(trained_tensors(course.model), trained_tensors(straight.model))
    assert course.outcome.best_step == straight.outcome.best_step


def test_a_run_that_is_resumed_after_it_is_the_same_to_the_bit(base, at_once, tmp_path, monkeypatch):
    """Stopped after step 6, while step 4 is still being written; and once more from step 4 itself."""
    straight, _ = at_once
    held_until(monkeypatch, 6)
    first = beside(base, tmp_path, stop_after=6)
    told = [(event["event"], event["step"]) for event in first.events if event["event"] in ("checkpoint", "interrupted")]
    assert told == [("checkpoint", 4), ("checkpoint", 6), ("interrupted", 6)]
    for step in (6, 4):
        second = beside(base, tmp_path, resume_from=tmp_path / f"step-{step}")
        assert second.told("step", "step", "loss", "grad_norm") == straight.told("step", "step", "loss", "grad_norm")[step:]
        assert same(trained_tensors(second.model), trained_tensors(straight.model))


def test_a_stop_right_after_a_save_waits_for_it_and_saves_no_second(base, tmp_path, monkeypatch):
    held = Held(monkeypatch, "holds")
    threading.Timer(0.3, held.may_go.set).start()
    course = beside(base, tmp_path, stop_after=4)
    assert course.told("checkpoint", "step") == course.told("interrupted", "step") == [4]
    assert newest_checkpoint(tmp_path, "toy") == (tmp_path / "step-4", [])


def test_an_error_that_ends_the_run_waits_for_it_too(base, tmp_path, monkeypatch):
    """The run's lock is given back then: nothing may be written afterwards."""
    held, losses = held_until(monkeypatch, 99, "holds"), iter([1.0, 0.9])
    threading.Timer(0.5, held.may_go.set).start()
    with pytest.raises(StopIteration):  # the third validation, at step 8
        beside(base, tmp_path, validate=lambda: (next(losses), 1))
    assert (read_pointer(tmp_path, LATEST), newest_checkpoint(tmp_path, "toy")) == ("step-4", (tmp_path / "step-4", []))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_a_log_that_takes_no_line_more_hides_no_error(tmp_path):
    """The error that ends the run says more than that the save could not be told; without one, that ends it."""

    class Full(list):
        def append(self, saved):
            raise MachineError("events.jsonl: cannot be written: disk full")

    for error in (TrainingError("the loss is nan"), None):
        with pytest.raises(TrainingError if error else MachineError), keeper_in(tmp_path, saved=Full()) as keeper:  # noqa: PT012
            keeper.save(1, lambda: content(torch.ones(3)), None)
            if error:
                raise error
        assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-1"


def test_the_best_that_could_not_be_saved_is_the_one_that_is_kept(base, tmp_path, monkeypatch):
    """Step 4 is the best, and its save fails when two more steps were taken: what is kept is step 4, not what the weights are by then."""

    def best_at_4(folder, background):
        losses = iter([1.0, 0.5, 0.9, 0.8])
        return run_toy(base, folder, ROWS, SECTION, PLAN, adapter=DROPOUT, validate=lambda: (next(losses), 1), background=background)

    whole = best_at_4(tmp_path / "whole", False)
    held = held_until(monkeypatch, 6)
    real = held.real
    held.real = lambda file, given: full() if ".step-4." in str(file) else real(file, given)
    course = best_at_4(tmp_path / "full", True)
    assert course.outcome.best_step == whole.outcome.best_step == 4
    assert same(trained_tensors(course.model), trained_tensors(whole.model))
    assert "step-4: cannot be saved: disk full" in course.told("note", "message")[0]
    assert course.told("checkpoint", "step") == [8, 9]


def test_without_a_gpu_a_save_is_done_before_the_next_step(base, tmp_path):
    course = run_toy(base, tmp_path, ROWS, SECTION, PLAN, adapter=DROPOUT)
    kinds = [event["event"] for event in course.events if event["event"] in ("step", "checkpoint")]
    assert kinds == ["step"] * 4 + ["checkpoint"] + ["step"] * 4 + ["checkpoint", "step", "checkpoint"]
    assert all(waited == pytest.approx(seconds, abs=0.3) for waited, seconds in course.told("checkpoint", "waited", "seconds"))
