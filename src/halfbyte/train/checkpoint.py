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
from safetensors.torch import load_file, save_file

from halfbyte.errors import IntegrityError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had not stopped."""

    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    """Step, best step, best loss, random states: what loop.py put in."""
    random: dict[str, torch.Tensor]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Writes `folder/step-N`; an older one of the same step is replaced only once the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"step-{step}", folder / f".step-{step}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file({name: tensor.contiguous().cpu() for name, tensor in checkpoint.adapter.items()}, aside / "adapter.safetensors")
    tensors, plain = _flatten(checkpoint.optimizer)
    save_file({**tensors, **{f"random.{name}": tensor for name, tensor in checkpoint.random.items()}}, aside / "optimizer.safetensors")
    _write(aside / "state.json", json.dumps({**checkpoint.state, "step": step, "optimizer": plain}, indent=1))
    files = sorted(aside.iterdir())
    _write(aside / MANIFEST, json.dumps({file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}, indent=1))
    for file in aside.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _sync_folder(folder)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises IntegrityError when a file is missing, cut or changed."""
    verify_checkpoint(path)
    stored = load_file(path / "optimizer.safetensors")
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    random = {name.removeprefix("random."): tensor for name, tensor in stored.items() if name.startswith("random.")}
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("random.")}
    return Checkpoint(load_file(path / "adapter.safetensors"), _unflatten(tensors, state.pop("optimizer")), state, random)


def verify_checkpoint(path: Path) -> None:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise IntegrityError(f"{path} is incomplete (no manifest)", hint="an older checkpoint is used if there is one")
    for name, said in json.loads(manifest.read_text(encoding="utf-8")).items():
        file = path / name
        if not file.is_file():
            raise IntegrityError(f"{file} is missing", hint="an older checkpoint is used if there is one")
        if file.stat().st_size != said["bytes"] or _sha256(file) != said["sha256"]:
            raise IntegrityError(f"{file} is not what was saved ({file.stat().st_size} bytes, {said['bytes']} written)", hint="an older checkpoint is used if there is one")


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The whole checkpoint with the highest step, and one line for each broken one that was passed over."""
    passed_over = []
    for path in sorted(_steps(folder), key=_step_of, reverse=True):
        try:
            verify_checkpoint(path)
        except (IntegrityError, ValueError, KeyError) as error:
            passed_over.append(f"{error}; ignored")
            continue
        return path, passed_over
    return None, passed_over


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` and the best. Called after a new one is whole."""
    for path in sorted(_steps(folder), key=_step_of, reverse=True)[keep:]:
        if _step_of(path) != best_step:
            shutil.rmtree(path)


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)] if folder.is_dir() else []


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state by parameter number and name: tensors apart from plain numbers. Groups hold only plain values."""
    tensors, plain = {}, {}
    for number, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.detach().clone().contiguous().cpu()
            else:
                plain[f"{number}.{name}"] = value
    return tensors, {"values": plain, "groups": optimizer["param_groups"]}


def _unflatten(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["values"]}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
