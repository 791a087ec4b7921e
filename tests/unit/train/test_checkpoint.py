"""A checkpoint is whole or it does not exist: every flipped bit, cut and missing file is found before anything is loaded."""

import builtins
import hashlib
import json
import math
import os
import pickle

import pytest
import torch

from halfbyte.errors import IntegrityError, MachineError
from halfbyte.train import checkpoint as checkpoints
from halfbyte.train.checkpoint import FILES, MANIFEST, Checkpoint, load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint, verify_checkpoint
from halfbyte.train.optimizer import make_optimizer
from toy_training import same


def trained(steps=3, seed=0):
    """A parameter of each shape and an optimizer that has taken some steps."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,), (2, 2))]
    optimizer = make_optimizer("adamw_torch", parameters, 1e-2, 0.1)
    for _ in range(steps):
        for parameter in parameters[:2]:  # the third never had a gradient, so it has no state
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameters, optimizer


def content(steps=3, seed=0):
    parameters, optimizer = trained(steps, seed)
    adapter = {f"layer.{number}.weight": parameter.detach() for number, parameter in enumerate(parameters)}
    state = {"progress": {"step": steps, "best_loss": 1 / 3, "best_step": None}, "scaler": {}}
    return Checkpoint(adapter, optimizer.state_dict(), state, {"cpu": torch.get_rng_state()})


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = content()
    path = save_checkpoint(tmp_path / "checkpoints", 3, saved)
    assert path == tmp_path / "checkpoints" / "step-3"
    loaded = load_checkpoint(path)
    assert same(loaded.adapter, saved.adapter)
    assert same(loaded.random, saved.random)
    assert loaded.state == {**saved.state, "step": 3}
    assert loaded.state["progress"]["best_loss"] == 1 / 3
    assert loaded.optimizer["state"].keys() == saved.optimizer["state"].keys() == {0, 1}
    for number, values in saved.optimizer["state"].items():
        assert same(loaded.optimizer["state"][number], values)
    assert json.dumps(loaded.optimizer["param_groups"]) == json.dumps(saved.optimizer["param_groups"])


def test_an_optimizer_goes_on_from_its_state_to_the_bit(tmp_path):
    parameters, optimizer = trained(steps=3)
    state = Checkpoint({"a": parameters[0].detach()}, optimizer.state_dict(), {}, {})
    save_checkpoint(tmp_path, 3, state)
    again, fresh = trained(steps=0)
    with torch.no_grad():
        for old, new in zip(parameters, again, strict=True):
            new.copy_(old)
    fresh.load_state_dict(load_checkpoint(tmp_path / "step-3").optimizer)
    for which, opt in ((parameters, optimizer), (again, fresh)):
        for parameter in which:
            parameter.grad = torch.full_like(parameter, 0.3)
        opt.step()
    assert all(torch.equal(old, new) for old, new in zip(parameters, again, strict=True))
    assert not torch.equal(parameters[0], trained(steps=3)[0][0])


def test_the_manifest_has_size_and_hash_of_every_file(tmp_path):
    path = save_checkpoint(tmp_path, 7, content())
    manifest = json.loads((path / MANIFEST).read_text())
    assert set(manifest) == set(FILES) == {file.name for file in path.iterdir()} - {MANIFEST}
    for name, written in manifest.items():
        raw = (path / name).read_bytes()
        assert written == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    verify_checkpoint(path)


def test_nothing_of_it_is_pickle(tmp_path, monkeypatch):
    """Read and written with pickle out of order; the files begin as safetensors and JSON do."""

    def refuse(*args, **kwargs):
        raise AssertionError("pickle is used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    path = save_checkpoint(tmp_path, 3, content())
    load_checkpoint(path)
    for file in path.iterdir():
        raw = file.read_bytes()
        assert raw[8:9] == b"{" if file.suffix == ".safetensors" else json.loads(raw) is not None


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_flipped_bit_is_found(tmp_path, name):
    """In the manifest too: a changed hash fits no file. Every bit of the small files, some of each part of the others."""
    path = save_checkpoint(tmp_path, 3, content(steps=1))
    file = path / name
    raw = file.read_bytes()
    bits = len(raw) * 8
    missed = []
    for bit in range(0, bits, max(1, bits // 500)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            verify_checkpoint(path)
        except IntegrityError:
            continue
        missed.append(bit)
    assert missed == []
    file.write_bytes(raw)
    verify_checkpoint(path)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_cut_or_missing_file_is_found(tmp_path, name):
    path = save_checkpoint(tmp_path, 3, content())
    file = path / name
    raw = file.read_bytes()
    for size in (0, 1, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:size])
        with pytest.raises(IntegrityError, match="is not what was saved"):
            load_checkpoint(path)
    file.unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing" if name != MANIFEST else "no manifest"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"adapter.safetensors": 3}', '{"adapter.safetensors": {"bytes": 1}}'])
def test_a_manifest_that_says_nothing_proves_nothing(tmp_path, text):
    """Guards against an empty manifest, with which no file was checked."""
    path = save_checkpoint(tmp_path, 3, content())
    (path / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json is not what was saved"):
        verify_checkpoint(path)


def test_the_newest_whole_one_is_taken_and_the_broken_ones_are_named(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    for step in (2, 9, 10, 11, 12):
        save_checkpoint(tmp_path, step, content())
    (tmp_path / "step-12" / MANIFEST).unlink()
    (tmp_path / "step-11" / FILES[0]).write_bytes(b"x")
    (tmp_path / "step-13").mkdir()
    (tmp_path / "step-14x").mkdir()
    (tmp_path / ".step-15.part").mkdir()
    path, passed_over = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-10"  # by number, not by name
    assert [line.split(" is ")[0].split("/")[-2 if "safetensors" in line else -1] for line in passed_over] == ["step-13", "step-12", "step-11"]
    assert all(line.endswith("; ignored") for line in passed_over)
    for step in (2, 9, 10):
        (tmp_path / f"step-{step}" / FILES[1]).unlink()
    path, passed_over = newest_checkpoint(tmp_path)
    assert path is None
    assert len(passed_over) == 6


@pytest.mark.parametrize(("newest", "keep", "best", "left"), [
    (5, 2, 1, [1, 4, 5]), (5, 2, None, [4, 5]), (5, 2, 5, [4, 5]), (5, 9, 1, [1, 2, 3, 4, 5]), (3, 1, 2, [2, 3]), (3, 2, None, [2, 3]),
])  # fmt: skip
def test_pruning_keeps_the_newest_and_the_best(tmp_path, newest, keep, best, left):
    """Steps beyond the newest belong to a course that was given up."""
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, content(steps=1))
    prune_checkpoints(tmp_path, newest, keep, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step}" for step in left]


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    save_checkpoint(tmp_path, 3, content(seed=1))
    second = content(seed=2)
    save_checkpoint(tmp_path, 3, second)
    assert same(load_checkpoint(tmp_path / "step-3").adapter, second.adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def fail_at(monkeypatch, call):
    """The call-th fsync, rename, mkdir or opening for writing says that the disk is full. Returns what was counted."""
    counted = [0]

    def counting(real, counts=lambda *a, **k: True):
        def act(*args, **kwargs):
            if counts(*args, **kwargs):
                counted[0] += 1
                if counted[0] == call:
                    raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return act

    writes = lambda file, mode="r", *rest, **more: "w" in mode or "+" in mode  # noqa: E731
    monkeypatch.setattr(checkpoints, "save_file", counting(checkpoints.save_file))
    monkeypatch.setattr(os, "fsync", counting(os.fsync))
    monkeypatch.setattr(os, "rename", counting(os.rename))
    monkeypatch.setattr(os, "mkdir", counting(os.mkdir))
    monkeypatch.setattr(builtins, "open", counting(builtins.open, writes))
    return counted


def test_a_full_disk_at_any_moment_leaves_the_last_one_whole(tmp_path):
    """Every write, fsync, mkdir and rename of a save fails once."""
    old = content(seed=1)
    failures = []
    for call in range(1, 100):
        folder = tmp_path / str(call)
        save_checkpoint(folder, 2, old)
        with pytest.MonkeyPatch.context() as patch:
            counted = fail_at(patch, call)
            try:
                save_checkpoint(folder, 3, content(seed=2))
            except MachineError as error:
                failures.append((error.exit_code, "No space left on device" in error.message))
        path, _ = newest_checkpoint(folder)
        assert same(load_checkpoint(folder / "step-2").adapter, old.adapter)
        if counted[0] < call:
            assert path.name == "step-3"
            break
        assert not (folder / ".step-3.part").exists()
    assert set(failures) == {(3, True)}
    assert len(failures) == call - 2 >= 10  # one call was left alone, and the first mkdir may fail: the folder is there


def test_what_a_crash_left_behind_is_cleared_away(tmp_path):
    (tmp_path / ".step-1.part").mkdir()
    (tmp_path / ".step-1.part" / FILES[0]).write_bytes(b"half")
    save_checkpoint(tmp_path, 2, content())
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    assert math.isfinite(load_checkpoint(tmp_path / "step-2").state["progress"]["best_loss"])
