"""What `halfbyte evaluate` left of a run, read back from runs/NAME/evaluation/ and looked over before anything is built on it.

metrics.json says what was measured, statistics.npz holds the summed statistics of every test row, answers.jsonl what base and tuned said.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.metrics import VALUES, Metric, metric_from_json
from halfbyte.runs.folder import RunFolder, open_run

ANSWERED = {"answers", "structure", "replies"}
"""Groups that are measured on answers: a run without them has no answers.jsonl."""


@dataclass(frozen=True)
class Answer:
    """What base and tuned said to one test row, as they said it."""

    row: str
    """`file:line` of the data."""
    prompt: str
    reference: str
    base: str
    tuned: str
    base_ended: bool
    tuned_ended: bool


@dataclass(frozen=True)
class Measured:
    """One metric of a run with the statistics that it is a function of."""

    metric: Metric
    group: str
    """text, labels, answers, structure, replies or neutral text."""
    base: np.ndarray
    """(N, K)"""
    tuned: np.ndarray
    """(N, K)"""
    units: np.ndarray | None
    """(N,) document of each row; None where every row is one."""


def open_evaluated(path: Path) -> RunFolder:
    """A finished run with its adapter and its evaluation. Raises DataError where one is missing, IntegrityError for another adapter than was measured."""
    run = open_run(path)
    run.check_adapter()
    if not (folder_of(run) / "metrics.json").is_file():
        raise DataError(f"{path} has no evaluation yet (expected {folder_of(run) / 'metrics.json'})", hint=f"halfbyte evaluate {path}")
    return run


def folder_of(run: RunFolder) -> Path:
    return run.path / "evaluation"


def read_measured(run: RunFolder) -> list[Measured]:
    """Every metric with its statistics, base and tuned on the same rows. Raises IntegrityError for what is damaged or missing."""
    file = folder_of(run) / "metrics.json"
    try:
        entries = json.loads(_read_text(run, file))
    except ValueError as error:
        raise _damaged(run, file, f"is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise _damaged(run, file, "holds no list of metrics")
    arrays = _read_arrays(run)
    measured = [_measured(run, arrays, number, entry) for number, entry in enumerate(entries)]
    known = {f"{number}/{side}" for number in range(len(entries)) for side in ("base", "tuned")} | {f"units/{one.group}" for one in measured}
    if strange := sorted(set(arrays) - known):  # units under another name would silently count as none
        raise _damaged(run, folder_of(run) / "statistics.npz", f"array {strange[0]!r} belongs to no metric of metrics.json")
    return measured


def read_answers(run: RunFolder) -> list[Answer]:
    """In the order of the test rows; none where the rows were read and not answered."""
    file = folder_of(run) / "answers.jsonl"
    if not file.is_file() and not ANSWERED & {one.group for one in read_measured(run)}:
        return []
    answers = []
    # Not splitlines: it would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(_read_text(run, file).split("\n"), 1):
        if line:
            answers.append(_answer(run, file, number, line))
    scored = {len(one.base) for one in read_measured(run) if one.group in ANSWERED} if answers else set()
    if scored and scored != {len(answers)}:
        raise _damaged(run, file, f"{len(answers)} answers, where {max(scored)} were scored")
    return answers


def _answer(run: RunFolder, file: Path, number: int, line: str) -> Answer:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise _damaged(run, file, f"line {number} is no JSON: {error}") from error
    for field in fields(Answer):
        if not isinstance(said, dict) or not isinstance(said.get(field.name), field.type):  # type: ignore[arg-type]
            raise _damaged(run, file, f"line {number} has no {field.name!r} as {getattr(field.type, '__name__', field.type)}")
    return Answer(**{field.name: said[field.name] for field in fields(Answer)})


def _measured(run: RunFolder, arrays: dict[str, np.ndarray], number: int, entry: Any) -> Measured:
    file = folder_of(run) / "metrics.json"
    group = entry.get("group") if isinstance(entry, dict) else None
    try:
        metric = metric_from_json({key: value for key, value in entry.items() if key != "group"})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(run, file, f"entry {number + 1} is no metric: {error}") from error
    if metric.kind not in VALUES or not isinstance(group, str):
        raise _damaged(run, file, f"entry {number + 1}: kind {metric.kind!r} of group {group!r} is not known")
    base, tuned = (_array(run, arrays, f"{number}/{side}", dimensions=2) for side in ("base", "tuned"))
    units = _array(run, arrays, f"units/{group}", dimensions=1) if f"units/{group}" in arrays else None
    if base.shape != tuned.shape or (units is not None and len(units) != len(base)):
        documents = "" if units is None else f", documents of {len(units)}"
        raise _damaged(run, folder_of(run) / "statistics.npz", f"{metric.name}: base has shape {base.shape}, tuned {tuned.shape}{documents}")
    return Measured(metric, group, base, tuned, units)


def _array(run: RunFolder, arrays: dict[str, np.ndarray], name: str, dimensions: int) -> np.ndarray:
    found = arrays.get(name)
    if found is None or found.ndim != dimensions or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        kept = "is missing" if found is None else f"holds {found.dtype} of shape {found.shape}, need finite numbers in {dimensions} dimensions"
        raise _damaged(run, folder_of(run) / "statistics.npz", f"array {name!r} {kept}")
    return found


def _read_arrays(run: RunFolder) -> dict[str, np.ndarray]:
    file = folder_of(run) / "statistics.npz"
    if not file.is_file():
        raise _damaged(run, file, "is missing")
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    # A cut or changed zip fails in as many ways as it has layers; AttributeError: a bare .npy has no files, and is not what was written.
    except (OSError, ValueError, KeyError, EOFError, AttributeError, NotImplementedError, RuntimeError, MemoryError, zipfile.error, zlib.error) as error:
        raise _damaged(run, file, f"cannot be read: {error}") from error


def _read_text(run: RunFolder, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _damaged(run, file, "is missing") from error
    except UnicodeDecodeError as error:
        raise _damaged(run, file, f"is no UTF-8: {error}") from error


def _damaged(run: RunFolder, file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file}: {what}", hint=f"halfbyte evaluate {run.path} measures it again")
