"""Checkpoints that are whole or absent: written aside, hashed, renamed; verified before they are used.

    step-20/  adapter.safetensors  optimizer.safetensors  state.json  manifest.json (size and sha256 of each)

No pickle: tensors in safetensors, the rest in JSON. A folder without a manifest that fits does not exist.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from halfbyte.errors import IntegrityError, MachineError

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
OLDER = "an older checkpoint is used if there is one"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had not stopped."""

    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    """Step, best step, best loss, random states: what loop.py put in."""
    random: dict[str, torch.Tensor]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Writes `folder/step-N`; an older one of the same step is replaced only once the new one is whole. Raises MachineError."""
    final, aside = folder / f"step-{step}", folder / f".step-{step}.part"
    adapter, optimizer, state = (aside / name for name in FILES)
    tensors, plain = _flatten(checkpoint.optimizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".step-*.part"):
            shutil.rmtree(left_over)
        aside.mkdir()
        save_file({name: tensor.contiguous().cpu() for name, tensor in checkpoint.adapter.items()}, adapter)
        save_file({**tensors, **{f"random.{name}": tensor for name, tensor in checkpoint.random.items()}}, optimizer)
        state.write_text(json.dumps({**checkpoint.state, "step": step, "optimizer": plain}, indent=1), encoding="utf-8")
        manifest = {name: {"bytes": (aside / name).stat().st_size, "sha256": _sha256(aside / name)} for name in FILES}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for name in (*FILES, MANIFEST):
            with open(aside / name, "rb+") as stream:
                os.fsync(stream.fileno())
        _sync_folder(aside)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise MachineError(f"{final}: cannot be saved: {error}", hint="make room on the disk, then resume the run from its last checkpoint") from error
    return final


def load_checkpoint(path: Path, owner: str | None = None) -> Checkpoint:
    """Raises IntegrityError when a file is missing, cut or changed, or when another run than `owner` saved it."""
    verify_checkpoint(path)
    check_owner(path, owner)
    adapter, optimizer, plain = (path / name for name in FILES)
    stored = load_file(optimizer)
    state = json.loads(plain.read_text(encoding="utf-8"))
    random = {name.removeprefix("random."): tensor for name, tensor in stored.items() if name.startswith("random.")}
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("random.")}
    return Checkpoint(load_file(adapter), _unflatten(tensors, state.pop("optimizer")), state, random)


def verify_checkpoint(path: Path) -> None:
    """Raises IntegrityError unless every file has the size and the hash that the manifest gives."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise IntegrityError(f"{path} is incomplete (no manifest)", hint=OLDER)
    try:
        written = json.loads(manifest.read_text(encoding="utf-8"))
        expected = {name: (written[name]["bytes"], written[name]["sha256"]) for name in FILES}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{manifest} is not what was saved", hint=OLDER) from error
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise IntegrityError(f"{file} is missing", hint=OLDER)
        if file.stat().st_size != size or _sha256(file) != digest:
            raise IntegrityError(f"{file} is not what was saved ({file.stat().st_size} bytes, {size} written)", hint=OLDER)


def check_owner(path: Path, owner: str | None) -> None:
    """Raises IntegrityError when a whole checkpoint was saved by another run, or under another step. `owner`: the id in run.json; None asks nothing."""
    if owner is None:
        return
    state = json.loads((path / FILES[2]).read_text(encoding="utf-8"))
    if (state.get("identity") or {}).get("run") != owner:
        raise IntegrityError(f"{path} was saved by another run", hint=OLDER)
    if state["step"] != _step_of(path):
        raise IntegrityError(f"{path} was saved at step {state['step']}", hint=OLDER)


def newest_checkpoint(folder: Path, owner: str | None = None) -> tuple[Path | None, list[str]]:
    """The whole checkpoint of `owner` with the highest step, and one line for each other one that was passed over."""
    passed_over = []
    for path in sorted(_steps(folder), key=_step_of, reverse=True):
        try:
            verify_checkpoint(path)
            check_owner(path, owner)
        except IntegrityError as error:
            passed_over.append(f"{error}; ignored")
            continue
        return path, passed_over
    return None, passed_over


def prune_checkpoints(folder: Path, newest: int, keep: int, best_step: int | None) -> None:
    """Removes all but the last `keep` up to step `newest`, which was just saved, and the best.

    Later steps are of a course that was given up: a resume passed over them because they are broken.
    """
    steps = sorted(map(_step_of, _steps(folder)))
    kept = [step for step in steps if step <= newest][-keep:]
    for step in steps:
        if step not in kept and step != best_step:
            shutil.rmtree(folder / f"step-{step}")


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)] if folder.is_dir() else []


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state as `number.name`, or `number.name.name` where bitsandbytes nests it: tensors apart from plain values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}

    def walk(state: dict[Any, Any], above: str) -> None:
        for name, value in state.items():
            if isinstance(value, dict):
                walk(value, f"{above}{name}.")
            elif isinstance(value, torch.Tensor):
                tensors[f"{above}{name}"] = value.detach().clone().contiguous().cpu()
            else:
                values[f"{above}{name}"] = value

    walk(optimizer["state"], "")
    return tensors, {"values": values, "groups": optimizer["param_groups"]}


def _unflatten(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["values"]}.items():
        number, *above, name = key.split(".")
        place = state.setdefault(int(number), {})
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
