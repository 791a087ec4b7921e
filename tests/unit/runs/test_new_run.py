"""A train that is killed before it has a plan leaves no stub behind for good: the next of its name takes the folder, and nobody's own files."""

import os

import pytest

from halfbyte import api
from halfbyte.errors import MachineError
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs import disk, folder
from halfbyte.runs.folder import BEFORE_THE_PLAN, RunFolder, new_run
from halfbyte.runs.lock import FILE, locked
from halfbyte.runs.manifest import write_manifest
from toy_disk import Counted, die
from toys import make_base

STUB = {FILE: "", "recipe.yaml": "name: toy\n", "recipe.resolved.yaml": "name: toy\n", ".run.json.20070b2f.part": "{"}


def begin(runs, counted):
    """What a train does up to its plan."""
    disk.os = counted
    with new_run(runs, "toy") as run:
        disk.write_whole(run.recipe, "name: toy\n")
        disk.write_whole(run.path / "recipe.resolved.yaml", "name: toy\n")
        write_manifest(run.path, {"id": "0"})
        run.write_plan({})


def made(runs, name="toy", files=None):
    (runs / name).mkdir(parents=True)
    for file, text in (STUB if files is None else files).items():
        (runs / name / file).write_text(text)
    return runs / name


def there(path):
    return sorted(inner.name for inner in path.iterdir())


def test_killed_at_every_call_up_to_the_plan(tmp_path):
    counted = Counted()
    before = disk.os
    try:
        begin(tmp_path / "whole", counted)
    finally:
        disk.os = before
    assert len(counted.calls) > 10
    left = set()
    for at in range(1, len(counted.calls) + 1):
        runs = tmp_path / str(at)
        child = os.fork()
        if not child:
            try:
                begin(runs, Counted(at, die))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
        left |= set(there(runs / "toy"))
        planned = (runs / "toy" / "plan.json").is_file()
        with new_run(runs, "toy") as run:
            assert run.path.name == ("toy-2" if planned else "toy")
            assert there(run.path) == [FILE]
        assert there(runs) == (["toy", "toy-2"] if planned else ["toy"])
    assert {name.split(".")[1] for name in left if name.endswith(".part")} == {"recipe", "run", "plan"}, "no kill left a file half-written"


@pytest.mark.parametrize("more", [{"notes.txt": "mine"}, {"plan.json": "{}"}, {"events.jsonl": ""}, {".notes.20070b2f.part": "mine"}])
def test_what_a_train_does_not_write_is_somebody_s(tmp_path, more):
    path = made(tmp_path, files=STUB | more)
    with new_run(tmp_path, "toy") as run:
        assert run.path == tmp_path / "toy-2"
    assert there(path) == sorted(STUB | more)


def test_a_recipe_that_somebody_put_there_stays(tmp_path):
    """No train was ever there: it takes the lock first."""
    path = made(tmp_path, files={"recipe.yaml": "name: toy\n"})
    with new_run(tmp_path, "toy") as run:
        assert run.path == tmp_path / "toy-2"
    assert there(path) == ["recipe.yaml"]


def test_a_link_or_a_folder_in_it_is_somebody_s(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    (made(tmp_path, files={FILE: ""}) / "recipe.yaml").symlink_to(tmp_path / "mine.yaml")
    (made(tmp_path, "toy-2", {FILE: ""}) / "run.json").mkdir()
    with new_run(tmp_path, "toy") as run:
        assert run.path == tmp_path / "toy-3"
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_train_that_begins_is_let_be(tmp_path):
    """Two of one name at the same time: the first has no plan yet, and keeps what it wrote."""
    with new_run(tmp_path, "toy") as first:
        first.recipe.write_text("first")
        with new_run(tmp_path, "toy") as second:
            assert (first.path.name, second.path.name) == ("toy", "toy-2")
        assert first.recipe.read_text() == "first"


def test_one_that_was_quicker_keeps_the_folder(tmp_path, monkeypatch):
    """Between the look and the lock another train took the stub, wrote its plan and let go."""
    path = made(tmp_path)

    def later(place):
        if place == path:
            (path / "plan.json").write_text("{}")
        return locked(place)

    monkeypatch.setattr(folder, "locked", later)
    with new_run(tmp_path, "toy") as run:
        assert run.path == tmp_path / "toy-2"
    assert there(path) == sorted([*STUB, "plan.json"])


def test_the_lock_is_given_back(tmp_path):
    with new_run(tmp_path, "toy") as run:
        run.write_plan({})
    with run.locked() as before:
        assert before is None


def test_what_fails_inside_is_raised_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), new_run(tmp_path, "toy"):
        raise FileNotFoundError("a fault of ours")


def toy(folder):
    """A recipe with its base and data."""
    base = make_base(folder / "base")
    tale = folder / "tale.txt"
    tale.write_text("\n\n".join(f"{number}. " + "the keeper lit the lamp. " * 6 for number in range(16)), encoding="utf-8")
    return parse_recipe(f"name: toy\nbase: {base}\ndata:\n  path: {tale}\n  max_length: 48\n", "toy.yaml", [])


def test_a_disk_that_is_too_small_leaves_a_folder_for_the_next(tmp_path, monkeypatch):
    """A plan in it would make it a run, which the next of its name goes round."""
    loaded, runs = toy(tmp_path), tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda place: 4_100_000)
        with pytest.raises(MachineError, match="disk full"):
            api.train(loaded, runs)
    assert there(runs / "toy") == [FILE]
    with new_run(runs, "toy") as run:
        assert run.path == runs / "toy"


def test_a_whole_train_takes_it(tmp_path, monkeypatch):
    """Through the verb. Whatever a train comes to write before its plan must stand in BEFORE_THE_PLAN."""
    loaded = toy(tmp_path)
    runs, real = tmp_path / "runs", RunFolder.write_plan

    def full(run, plan):
        raise MachineError("disk full")

    monkeypatch.setattr(RunFolder, "write_plan", full)
    with pytest.raises(MachineError):
        api.train(loaded, runs)
    assert there(runs / "toy") == sorted(BEFORE_THE_PLAN)
    monkeypatch.setattr(RunFolder, "write_plan", real)

    def stop(planned, run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train(loaded, runs, on_plan=stop)
    assert there(runs) == ["toy"]
    assert there(runs / "toy") == sorted([*BEFORE_THE_PLAN, "plan.json"])
