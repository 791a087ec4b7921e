"""What is kept, what is pointed to, and what a full disk does to a run: it goes on, and says so."""

import pytest
import torch

from halfbyte.errors import MachineError
from halfbyte.runs import disk
from halfbyte.train.checkpoint import FILES, MANIFEST, Checkpoint, newest_checkpoint, save_checkpoint
from halfbyte.train.keeper import BEST, LATEST, Keeper, read_pointer
from toy_disk import Counted, full


def content(number=0, run=""):
    moments = {0: {"exp_avg": torch.ones(3)}}
    return Checkpoint({"weight": torch.full((4,), float(number))}, {"state": moments, "param_groups": []}, {}, run or None)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.fixture
def said():
    return []


def saved(folder, said, keep, upto=5, best=None):
    keeper = Keeper(folder, keep, said.append)
    for step in range(1, upto + 1):
        assert keeper.save(step, lambda step=step: content(step), best if best and step >= best else None)
    return keeper


@pytest.mark.parametrize(("newest", "keep", "best", "left"), [
    (5, 2, 1, [1, 4, 5]), (5, 2, None, [4, 5]), (5, 2, 5, [4, 5]), (5, 9, 1, [1, 2, 3, 4, 5]), (3, 1, 2, [2, 3]), (3, 2, None, [2, 3]),
])  # fmt: skip
def test_pruning_keeps_the_newest_and_the_best(tmp_path, said, newest, keep, best, left):
    """Steps beyond the newest belong to a course that was given up."""
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, content(step))
    assert Keeper(tmp_path, keep, said.append).prune(newest, best) == []
    assert steps(tmp_path) == left


def test_the_pointers_name_what_is_there(tmp_path, said):
    saved(tmp_path, said, keep=2, best=2)
    assert (read_pointer(tmp_path, LATEST), read_pointer(tmp_path, BEST)) == ("step-5", "step-2")
    assert steps(tmp_path) == [2, 4, 5]
    assert said == []


def test_best_stays_where_it_is_when_the_best_could_not_be_saved(tmp_path, said, monkeypatch):
    keeper = saved(tmp_path, said, keep=1, upto=2, best=2)
    monkeypatch.setattr(disk, "os", Counted(3, full))
    assert keeper.save(3, lambda: content(3), 3) is None
    monkeypatch.undo()
    assert keeper.save(4, lambda: content(4), 3)
    assert read_pointer(tmp_path, BEST) == "step-2"
    assert steps(tmp_path) == [2, 4]


def test_only_whole_ones_count_among_those_that_are_kept(tmp_path, said):
    """Guards against a damaged checkpoint that pushes out a whole one: two are kept, and both can be used."""
    keeper = saved(tmp_path, said, keep=2, upto=3)
    file = tmp_path / "step-3" / FILES[0]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    keeper.save(4, lambda: content(4), None)
    assert steps(tmp_path) == [2, 4]
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-4", [])


def test_nothing_goes_before_the_new_one_is_read_back(tmp_path, said, monkeypatch):
    keeper = saved(tmp_path, said, keep=1, upto=2)
    assert steps(tmp_path) == [2]
    real = disk.write_new
    monkeypatch.setattr(disk, "write_new", lambda file, given: real(file, given[:-1] if file.name == FILES[0] else given))
    assert keeper.save(3, lambda: content(3), None) is None
    assert steps(tmp_path) == [2]
    assert "reads back other than it was written" in said[0]


def test_a_checkpoint_of_another_run_is_nobody_s_to_remove(tmp_path, said):
    save_checkpoint(tmp_path, 2, content(2, run="a" * 32))
    keeper = Keeper(tmp_path, 1, said.append, "b" * 32)
    for step in (3, 4):
        keeper.save(step, lambda step=step: content(step, run="b" * 32), None)
    assert steps(tmp_path) == [2, 4]


def test_what_cannot_be_removed_is_told_and_survived(tmp_path, said, monkeypatch):
    keeper = saved(tmp_path, said, keep=1, upto=1)
    monkeypatch.setattr(disk, "try_to_remove", lambda path, first="": False)
    assert keeper.save(2, lambda: content(2), None) == tmp_path / "step-2"
    assert said == [f"{tmp_path / 'step-1'} is no longer needed and cannot be removed"]


def test_a_full_disk_is_told_with_sizes_and_waited_for(tmp_path, said, monkeypatch):
    """Tried at the next interval, then after two, four, eight and eight more; a save that works ends the waiting."""
    keeper = saved(tmp_path, said, keep=1, upto=1)
    tried = []

    def failing(*args):
        tried.append(step)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_new", failing)
        patch.setattr(disk, "free_bytes", lambda place: 4_100_000)
        for step in range(2, 30):
            assert keeper.save(step, content, None) is None
    assert tried == [2, 3, 5, 9, 17, 25]
    assert len(said) == 6
    first = said[0]
    assert "step-2: cannot be saved: disk full: needs " in first
    assert "4.1 MB are free" in first
    assert first.endswith(f"training goes on, and it is tried again at the next interval. The last whole checkpoint is {tmp_path / 'step-1'}")
    assert "tried again in 8 intervals" in said[-1]
    assert keeper.insist(30, lambda: content(30), None) == tmp_path / "step-30"
    assert keeper.save(31, lambda: content(31), None)


def test_at_the_end_a_full_disk_ends_the_run_and_says_what_is_left(tmp_path, said, monkeypatch):
    keeper = saved(tmp_path, said, keep=1, upto=2)
    monkeypatch.setattr(disk, "os", Counted(4, full))
    with pytest.raises(MachineError, match=r"The last whole checkpoint is .*step-2") as raised:
        keeper.insist(3, lambda: content(3), None)
    assert raised.value.exit_code == 3
    assert "make room" in raised.value.hint
    monkeypatch.undo()
    fresh = Keeper(tmp_path / "new", 1, said.append)
    monkeypatch.setattr(disk, "os", Counted(4, full))
    with pytest.raises(MachineError, match="a resume starts at step 1"):
        fresh.insist(3, lambda: content(3), None)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_new_keeper_clears_what_a_killed_one_left(tmp_path, said):
    saved(tmp_path, said, keep=1, upto=1)
    (tmp_path / ".step-2.tmp-0f").mkdir()
    (tmp_path / ".step-2.tmp-0f" / MANIFEST).write_text("{}")
    (tmp_path / ".best.0f.part").write_text("st")
    Keeper(tmp_path, 1, said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-1"]


def test_what_this_process_saved_is_not_read_again_to_be_removed(tmp_path, said, monkeypatch):
    """Each is read back once, when it is written. Guards against a prune that hashed half a gigabyte at every save, to see whose it was."""
    read = []
    monkeypatch.setattr("halfbyte.train.keeper.verify_checkpoint", lambda path, run=None: read.append(path))
    keeper = Keeper(tmp_path, 1, said.append, "b" * 32)
    for step in range(1, 5):
        keeper.save(step, lambda step=step: content(step, run="b" * 32), None)
    assert (read, steps(tmp_path)) == ([], [4])
