"""Checkpoints that are whole or absent: written aside, hashed, renamed, read back; verified before they are used.

    step-20/  adapter.safetensors  optimizer.safetensors  state.json  manifest.json (step, run, size and sha256 of each, its own sha256)

No pickle: tensors in safetensors, the rest in JSON. A folder whose manifest does not fit its files, its name or its run does not exist.
The order of a save: a folder with a random name on the same disk; each file, synced; the manifest last, synced; the folder synced; renamed;
the parent synced; read back. Where the step has a checkpoint already, the new one stands beside it as step-N.new until the old one is removed,
so that at every moment one of the two is whole. All of it goes through runs/disk.py, where a test can cut it off at each call.
"""

import hashlib
import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file

from halfbyte import __version__
from halfbyte.errors import IntegrityError, MachineError
from halfbyte.runs import disk
from halfbyte.train.layout import lay_out

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
FORMAT = 1
NAME = re.compile(r"step-(\d+)(\.new)?")
NEW = ".new"
OLDER = "an older checkpoint is used if there is one"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had not stopped."""

    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    """Step, best step, best loss, random states (JSON, train/random_state.py): what loop.py put in."""
    run: str | None = None
    """The id in run.json, which tells the run from every other; in the manifest too."""


@dataclass(frozen=True)
class Picture:
    """A checkpoint as it was at its step, in the bytes of its files: training may go on while they are written."""

    step: int
    run: str | None
    files: dict[str, memoryview]

    def adapter(self) -> dict[str, torch.Tensor]:
        return load(bytes(self.files[FILES[0]]))


def picture_of(step: int, checkpoint: Checkpoint) -> Picture:
    """Copies every tensor, so it is for the thread that trains; nothing in it changes afterwards."""
    tensors, plain = _flatten(checkpoint.optimizer)
    state = {**checkpoint.state, "step": step, "optimizer": plain, "run": checkpoint.run}
    contents = lay_out(checkpoint.adapter), lay_out(tensors), memoryview(json.dumps(state, indent=1).encode("utf-8"))
    return Picture(step, checkpoint.run, dict(zip(FILES, contents, strict=True)))


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Both at once: picture_of and write_picture."""
    return write_picture(folder, picture_of(step, checkpoint))


def write_picture(folder: Path, picture: Picture) -> Path:
    """Writes `folder/step-N` and reads it back; an older one of the same step goes only then. Raises MachineError, and leaves what was there.

    Touches nothing but the disk, so a thread of its own may do it (keeper.py).
    """
    step, contents = picture.step, picture.files
    final, aside = folder / f"step-{step}", folder / f".step-{step}.tmp-{secrets.token_hex(4)}"
    needs = sum(map(len, contents.values()))
    try:
        if not folder.is_dir():
            disk.make_folder(folder)
        tidy(folder)
        disk.make_folder(aside)
        _write(aside, step, picture.run, contents)
        path = final.with_name(final.name + NEW) if final.exists() else final
        disk.rename(aside, path)
        _check_written(path, contents)
    except OSError as error:
        disk.try_to_remove(aside)
        seen = f"{final}: cannot be saved: {disk.reason(error, folder, needs)}"
        raise MachineError(seen, hint="make room on the disk, then resume the run from its last checkpoint") from error
    if path != final and disk.try_to_remove(final, first=MANIFEST):
        try:
            disk.rename(path, final)
        except OSError:
            return path if path.exists() else final  # whole under either name; the next save sets it right
        return final
    return path


def tidy(folder: Path) -> None:
    """Before anything is read or written there, by the one who holds the run's lock: what a killed save left goes, what it finished gets its name."""
    disk.clear_left_overs(folder)
    for new in checkpoints_in(folder):
        if not new.name.endswith(NEW):
            continue
        final = new.with_name(new.name.removesuffix(NEW))
        if not _is_whole(new):
            disk.try_to_remove(new, first=MANIFEST)
        elif not final.exists() or disk.try_to_remove(final, first=MANIFEST):
            disk.rename(new, final)


def load_checkpoint(path: Path, run: str | None = None) -> Checkpoint:
    """Raises IntegrityError when a file is missing, cut or changed, or of another step or run."""
    verify_checkpoint(path, run)
    adapter, optimizer, plain = (path / name for name in FILES)
    state = json.loads(plain.read_text(encoding="utf-8"))
    return Checkpoint(load_file(adapter), _unflatten(load_file(optimizer), state.pop("optimizer")), state, state.pop("run"))


def verify_checkpoint(path: Path, run: str | None = None) -> None:
    """Raises IntegrityError unless every file has the size and the hash that the manifest gives, for this step and, where it is known, this run."""
    written = _read_manifest(path, run)
    for name, (size, digest) in written.items():
        file = path / name
        if not file.is_file():
            raise IntegrityError(f"{file} is missing", hint=OLDER)
        if (found := file.stat().st_size) != size:
            raise IntegrityError(f"{file} is not what was saved ({found} bytes, {size} written)", hint=OLDER)
        if (hashed := _sha256(file)) != digest:
            seen = f"{file} is not what was saved (its {size} bytes were changed: sha256 {hashed[:12]}, {digest[:12]} written)"
            raise IntegrityError(seen, hint=OLDER)


def _read_manifest(path: Path, run: str | None = None) -> dict[str, tuple[int, str]]:
    """File -> size and sha256. Raises IntegrityError where the manifest itself is not what was written, or is of another step, run or format."""
    file = path / MANIFEST
    if not file.is_file():
        raise IntegrityError(f"{path} is incomplete (no manifest)", hint=OLDER)
    try:
        text = file.read_bytes()
        said = json.loads(text)
        whole = _manifest_text({key: value for key, value in said.items() if key != "sha256"}) == text
        step, of_run, form = said["step"], said["run"], said["format"]
        files = {name: (said["files"][name]["bytes"], said["files"][name]["sha256"]) for name in FILES}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{file} is not what was saved", hint=OLDER) from error
    if not whole:
        raise IntegrityError(f"{file} is not what was saved", hint=OLDER)
    if form != FORMAT:
        raise IntegrityError(f"{path} is of format {form}, this halfbyte reads {FORMAT}", hint=f"resume it with halfbyte {said.get('halfbyte')}")
    if step != step_of(path):
        raise IntegrityError(f"{path} was saved at step {step}", hint=OLDER)
    if run is not None and of_run != run:
        raise IntegrityError(f"{path} was saved by another run", hint=OLDER)
    return files


def newest_checkpoint(folder: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """The whole checkpoint with the highest step, and one line for each broken one that was passed over."""
    passed_over = []
    for path in reversed(checkpoints_in(folder)):
        try:
            verify_checkpoint(path, run)
        except IntegrityError as error:
            passed_over.append(f"{error}; ignored")
            continue
        return path, passed_over
    return None, passed_over


def checkpoints_in(folder: Path) -> list[Path]:
    """By step, never by time of the files; whole or not. A step's newer one, where a save was cut off before it got its name, comes after."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (step_of(path), path.name.endswith(NEW)))


def checkpoint_of(folder: Path, step: int) -> Path:
    """Of one step, the newer where there are two: a save may have been left with step-N.new. The plain name where there is none."""
    found = [path for path in checkpoints_in(folder) if step_of(path) == step]
    return found[-1] if found else folder / f"step-{step}"


def step_of(path: Path) -> int:
    """-1 for a name that is no checkpoint's."""
    named = NAME.fullmatch(path.name)
    return int(named[1]) if named else -1


def bytes_of(trainable: int, optimizer: str) -> int:
    """About what a checkpoint takes: the adapter in float32 and two moments of each weight, in 8 bits where the optimizer keeps them so."""
    return trainable * (4 + (2 if "8bit" in optimizer else 8)) + (1 << 20)


def _write(aside: Path, step: int, run: str | None, contents: dict[str, memoryview]) -> None:
    """The manifest last: without it the folder is nothing. Files are hashed while the disk is busy."""
    with ThreadPoolExecutor(1) as beside:
        hashes = {name: beside.submit(_digest, content) for name, content in contents.items()}
        for name, content in contents.items():
            disk.write_new(aside / name, content)
        files = {name: {"bytes": len(content), "sha256": hashes[name].result()} for name, content in contents.items()}
    disk.write_new(aside / MANIFEST, _manifest_text({"format": FORMAT, "halfbyte": __version__, "step": step, "run": run, "files": files}))
    disk.sync_folder(aside)


def _manifest_text(body: dict[str, Any]) -> bytes:
    """With the sha256 of all that stands before it: a changed step or run is found as a changed file is."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode("utf-8")).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1).encode("utf-8")


def _check_written(path: Path, contents: dict[str, memoryview]) -> None:
    """What the disk gives back is what was meant, byte for byte. Raises OSError."""
    for name, content in contents.items():
        if not disk.holds(path / name, content):
            disk.try_to_remove(path, first=MANIFEST)
            raise OSError(f"{name} reads back other than it was written")


def _is_whole(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except IntegrityError:
        return False
    return True


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state as `number.name`, or `number.name.name` where bitsandbytes nests it: tensors apart from plain values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}

    def walk(state: dict[Any, Any], above: str) -> None:
        for name, value in state.items():
            if isinstance(value, dict):
                walk(value, f"{above}{name}.")
            elif isinstance(value, torch.Tensor):
                tensors[f"{above}{name}"] = value
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


def _digest(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
