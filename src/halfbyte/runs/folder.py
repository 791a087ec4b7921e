"""The run folder: where a run's files are. A new run gets a new folder; nothing is written over but what was killed before it had a plan.

runs/NAME/  recipe.yaml (as asked)   plan.json (as decided)   events.jsonl (what happened)
            adapter/ (peft format)   checkpoints/step-N/      report.html  report.json
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError, IntegrityError, MachineError
from halfbyte.redaction import hide_in
from halfbyte.runs.disk import clear_left_overs, write_whole
from halfbyte.runs.lock import FILE as LOCK
from halfbyte.runs.lock import Holder, locked
from halfbyte.runs.manifest import MANIFEST, OF_THE_PLAN

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What is read back out of plan.json stays as it was settled: a path that looks like a token is a path. The rest is told to people.
READ_BACK = ("base", "computing", *OF_THE_PLAN)
# All that a train writes before plan.json, whole or cut off in runs/disk.py.
BEFORE_THE_PLAN = (LOCK, "recipe.yaml", "recipe.resolved.yaml", MANIFEST)
UNFINISHED = re.compile(r"\.(recipe\.yaml|recipe\.resolved\.yaml|run\.json|plan\.json)\.[0-9a-f]{8}\.part")


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def adapter_hash(self) -> Path:
        return self.path / "adapter.sha256"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[Holder | None]:
        """One writer at a time (lock.py); what a killed one left half-written is cleared away. Yields who that was, or None. Raises DataError."""
        with locked(self.path) as killed:
            for folder in (self.path, self.checkpoints):
                clear_left_overs(folder)
            yield killed

    def seal_adapter(self) -> None:
        """Keeps the hash of the adapter that was measured."""
        write_whole(self.adapter_hash, self._adapter_sha256() + "\n")

    def check_adapter(self) -> None:
        """Raises DataError when there is no adapter yet, IntegrityError when it is not the one that was measured."""
        if not (self.adapter / ADAPTER_WEIGHTS).is_file() or not self.adapter_hash.is_file():
            raise DataError(f"{self.path} has no adapter yet: the run is not finished", hint=f"halfbyte train --resume {self.path}")
        if self.adapter_hash.read_bytes() != self._adapter_sha256().encode("ascii") + b"\n":
            raise IntegrityError(f"{self.adapter / ADAPTER_WEIGHTS} is not what was written", hint="copy it again from where it was made, or train again")

    def _adapter_sha256(self) -> str:
        with open(self.adapter / ADAPTER_WEIGHTS, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read_plan(self, *needed: str) -> dict[str, Any]:
        """`needed`: keys that it must have. Raises IntegrityError when it is not what was written."""
        return _read_json(self.plan, needed, hint="start the run again")

    def write_plan(self, plan: dict[str, Any]) -> None:
        read_back = {key: plan[key] for key in READ_BACK if key in plan}
        write_whole(self.plan, json.dumps(hide_in(plan) | read_back, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def new_run(runs: Path, name: str) -> Iterator[RunFolder]:
    """runs/NAME, or NAME-2, NAME-3 ... where that exists. Locked until what is done inside, which ends with the plan, is done.

    A folder without a plan is no run: a train that was killed as it began has left it. It is emptied and taken, where nobody holds its lock and
    nothing but what a train writes up to its plan lies there.
    """
    with ExitStack() as held:
        yield RunFolder(_claim(runs, name, held))


def _claim(runs: Path, name: str, held: ExitStack) -> Path:
    """The lock goes into `held`."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = runs / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                if not _is_stub(path):
                    continue
            with ExitStack() as lock:
                try:
                    lock.enter_context(locked(path))
                except DataError:  # another train has it
                    continue
                if not _is_stub(path):  # another train had it, and has let go since it was looked at
                    continue
                for left in path.iterdir():
                    if left.name != LOCK:
                        os.unlink(left)
                held.enter_context(lock.pop_all())
                return path
    except OSError as error:
        raise MachineError(f"{runs}: cannot be written to: {error.strerror}", hint="choose another folder with --runs") from error
    raise MachineError(f"{runs}: ten thousand runs are called {name}", hint="give the recipe another name")


def _is_stub(path: Path) -> bool:
    """Empty, or with the lock of a train and nothing that it does not write before the plan is there. What lies beside it is somebody's."""
    if path.is_symlink() or not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return False
    there = {inner.name: inner for inner in path.iterdir()}
    ours = all((name in BEFORE_THE_PLAN or UNFINISHED.fullmatch(name)) and inner.is_file() and not inner.is_symlink() for name, inner in there.items())
    return ours and (not there or LOCK in there)


def open_run(path: Path) -> RunFolder:
    """A folder that holds a run. Raises DataError otherwise."""
    if not (path / "plan.json").is_file():
        near = sorted(str(p.parent) for p in path.parent.glob("*/plan.json")) or sorted(str(p.parent) for p in Path("runs").glob("*/plan.json"))
        raise DataError(f"{path}: no run there (expected plan.json)", hint="there are: " + ", ".join(near[:8]) if near else "halfbyte train RECIPE makes one")
    refuse_links_out(path)
    return RunFolder(path)


def refuse_links_out(path: Path) -> None:
    """A run folder of somebody else's may hold links to files of ours, and what is logged or saved would be written there. Raises DataError."""
    inside = path.resolve()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = Path(folder) / name
            if place.is_symlink() and not place.resolve().is_relative_to(inside):
                raise DataError(f"{place} is a link that leads out of the run folder", hint="put the file itself there, or take the link away")


def read_report(path: Path) -> dict[str, Any]:
    """report.json of a run. Raises IntegrityError when it is not what was written."""
    return _read_json(path / "report.json", ("status",), hint=f"halfbyte evaluate {path} writes it again")


def _read_json(file: Path, needed: Iterable[str], hint: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{file} is damaged: {error}", hint=hint) from error
    lacks = "no keys" if not isinstance(found, dict) else next((f"no {key}" for key in needed if key not in found), None)
    if lacks:
        raise IntegrityError(f"{file} is damaged: it has {lacks}", hint=hint)
    return found
