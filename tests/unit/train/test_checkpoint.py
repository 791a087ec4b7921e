"""A checkpoint is whole or it does not exist: every flipped bit, cut and missing file is found before anything is loaded."""

import hashlib
import json
import math
import os
import pickle
import shutil
import sys

import pytest
import torch

from halfbyte import __version__
from halfbyte.errors import IntegrityError, MachineError
from halfbyte.runs import disk
from halfbyte.train.checkpoint import FILES, MANIFEST, Checkpoint, checkpoint_of, load_checkpoint, newest_checkpoint, save_checkpoint, tidy, verify_checkpoint
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.random_state import random_states
from toy_disk import Counted
from toy_training import same

RUN = "0123456789abcdef" * 2


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
    state = {"progress": {"step": steps, "best_loss": 1 / 3, "best_step": None}, "scaler": {}, "random": random_states()}
    return Checkpoint(adapter, optimizer.state_dict(), state, RUN)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = content()
    path = save_checkpoint(tmp_path / "checkpoints", 3, saved)
    assert path == tmp_path / "checkpoints" / "step-3"
    loaded = load_checkpoint(path)
    assert same(loaded.adapter, saved.adapter)
    assert loaded.run == RUN
    assert loaded.state == {**saved.state, "step": 3}
    assert loaded.state["progress"]["best_loss"] == 1 / 3
    assert loaded.optimizer["state"].keys() == saved.optimizer["state"].keys() == {0, 1}
    for number, values in saved.optimizer["state"].items():
        assert same(loaded.optimizer["state"][number], values)
    assert json.dumps(loaded.optimizer["param_groups"]) == json.dumps(saved.optimizer["param_groups"])


def test_an_optimizer_goes_on_from_its_state_to_the_bit(tmp_path):
    parameters, optimizer = trained(steps=3)
    state = Checkpoint({"a": parameters[0].detach()}, optimizer.state_dict(), {})
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
    assert (manifest["step"], manifest["run"], manifest["halfbyte"]) == (7, RUN, __version__)
    assert set(manifest["files"]) == set(FILES) == {file.name for file in path.iterdir()} - {MANIFEST}
    for name, written in manifest["files"].items():
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


def test_what_differs_is_told_the_size_or_the_hash(tmp_path):
    """Equal sizes say nothing of what is wrong."""
    path = save_checkpoint(tmp_path, 3, content())
    file = path / FILES[0]
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(IntegrityError, match=rf"\({len(raw) - 1} bytes, {len(raw)} written\)"):
        verify_checkpoint(path)
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=rf"\(its {len(raw)} bytes were changed: sha256 [0-9a-f]{{12}}, [0-9a-f]{{12}} written\)"):
        verify_checkpoint(path)


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
    (tmp_path / ".step-15.tmp-0a").mkdir()
    path, passed_over = newest_checkpoint(tmp_path)
    assert path == tmp_path / "step-10"  # by number, not by name
    assert [line.split(" is ")[0].split("/")[-2 if "safetensors" in line else -1] for line in passed_over] == ["step-13", "step-12", "step-11"]
    assert all(line.endswith("; ignored") for line in passed_over)
    for step in (2, 9, 10):
        (tmp_path / f"step-{step}" / FILES[1]).unlink()
    path, passed_over = newest_checkpoint(tmp_path)
    assert path is None
    assert len(passed_over) == 6


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    save_checkpoint(tmp_path, 3, content(seed=1))
    second = content(seed=2)
    save_checkpoint(tmp_path, 3, second)
    assert same(load_checkpoint(tmp_path / "step-3").adapter, second.adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_what_a_crash_left_behind_is_cleared_away(tmp_path):
    (tmp_path / ".step-1.tmp-5c").mkdir()
    (tmp_path / ".step-1.tmp-5c" / FILES[0]).write_bytes(b"half")
    (tmp_path / ".latest.9d.part").write_text("half")
    save_checkpoint(tmp_path, 2, content())
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    assert math.isfinite(load_checkpoint(tmp_path / "step-2").state["progress"]["best_loss"])


def test_a_file_of_another_step_is_found(tmp_path):
    """Whole in itself, and of the same size."""
    for step in (6, 12):
        save_checkpoint(tmp_path, step, content(seed=step))
    for name in FILES:
        kept = (tmp_path / "step-12" / name).read_bytes()
        (tmp_path / "step-12" / name).write_bytes((tmp_path / "step-6" / name).read_bytes())
        with pytest.raises(IntegrityError, match="is not what was saved"):
            verify_checkpoint(tmp_path / "step-12")
        (tmp_path / "step-12" / name).write_bytes(kept)
    verify_checkpoint(tmp_path / "step-12")


def test_a_checkpoint_under_another_name_or_of_another_run_is_found(tmp_path):
    save_checkpoint(tmp_path, 6, content())
    shutil.copytree(tmp_path / "step-6", tmp_path / "step-12")
    with pytest.raises(IntegrityError, match="step-12 was saved at step 6"):
        verify_checkpoint(tmp_path / "step-12")
    verify_checkpoint(tmp_path / "step-6", RUN)
    with pytest.raises(IntegrityError, match="was saved by another run"):
        verify_checkpoint(tmp_path / "step-6", "f" * 32)
    assert newest_checkpoint(tmp_path, "f" * 32)[0] is None
    assert newest_checkpoint(tmp_path, RUN)[0] == tmp_path / "step-6"


def test_a_save_that_got_its_place_but_not_its_name_is_the_newest(tmp_path):
    """Cut off between the two renames of a step that was saved again."""
    save_checkpoint(tmp_path, 3, content(seed=1))
    again = content(seed=2)
    save_checkpoint(tmp_path / "aside", 3, again)
    (tmp_path / "aside" / "step-3").rename(tmp_path / "step-3.new")
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-3.new", [])
    tidy(tmp_path)
    assert same(load_checkpoint(tmp_path / "step-3").adapter, again.adapter)
    assert not (tmp_path / "step-3.new").exists()
    shutil.copytree(tmp_path / "step-3", tmp_path / "step-3.new")
    (tmp_path / "step-3.new" / FILES[0]).write_bytes(b"half")
    tidy(tmp_path)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-3", [])
    assert not (tmp_path / "step-3.new").exists()


def test_what_the_disk_gives_back_is_compared(tmp_path, monkeypatch):
    """A disk that loses bytes without an error: told, and the checkpoint does not exist."""
    real = disk.write_new

    def lossy(file, given):
        real(file, bytes(given[:-1]) + b"?" if file.name == FILES[1] else given)

    monkeypatch.setattr(disk, "write_new", lossy)
    with pytest.raises(MachineError, match="reads back other than it was written"):
        save_checkpoint(tmp_path, 3, content())
    assert newest_checkpoint(tmp_path) == (None, [])


def test_nothing_of_a_save_goes_past_the_layer_that_can_be_made_to_fail(tmp_path, monkeypatch):
    """Python's own audit of what opens for writing, renames, makes and removes, beside what runs/disk.py did."""
    seen, counting = [], [False]

    def audit(event, args):
        if counting[0] and event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.move", "os.truncate"):
            seen.append(event)
        elif counting[0] and event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            seen.append("os.open")

    sys.addaudithook(audit)
    save_checkpoint(tmp_path, 3, content(seed=1))
    counted = Counted()
    monkeypatch.setattr(disk, "os", counted)
    counting[0] = True
    save_checkpoint(tmp_path, 3, content(seed=2))
    counting[0] = False
    named = {"rename": "os.rename", "replace": "os.rename", "unlink": "os.remove", "mkdir": "os.mkdir", "rmdir": "os.rmdir", "open": "os.open"}
    made = [named[call] for call in counted.calls if call in named]
    assert sorted(seen) == sorted(made)
    assert counted.calls.count("fsync") >= 4 + 1 + 1


def test_the_checkpoint_of_a_step_is_found_under_either_name(tmp_path):
    """A best that a save left as step-3.new, because the old one could not be removed, was passed over for the last step's."""
    assert checkpoint_of(tmp_path, 3) == tmp_path / "step-3"
    save_checkpoint(tmp_path, 3, content(steps=3))
    assert checkpoint_of(tmp_path, 3) == tmp_path / "step-3"
    (tmp_path / "step-3").rename(tmp_path / "step-3.new")
    assert load_checkpoint(checkpoint_of(tmp_path, 3)).state["step"] == 3
