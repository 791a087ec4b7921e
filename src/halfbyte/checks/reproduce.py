"""Two runs of one recipe, compared to the last digit from their folders: the first adapter, rows, rates and losses of each step, the last adapter, the figures.

The first thing that differs is named, for what follows differs with it. Reads run.json and events.jsonl; loads no model.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.runs.manifest import Difference, Manifest, differences, read_manifest
from halfbyte.runs.report import read_events
from halfbyte.runs.settle import settle

OF_A_STEP = {"rows": "trains other rows", "learning_rate": "has another learning rate", "loss": "has another loss", "grad_norm": "has another gradient norm"}


@dataclass(frozen=True)
class Reproduction:
    """What came of running again."""

    first: Path
    second: Path | None
    """None where inputs were compared alone."""
    inputs: list[Difference] = field(default_factory=list)
    """Recipe, files or settled plan that are others: another run by right."""
    place: list[Difference] = field(default_factory=list)
    """Versions, machine, threads: what may move last digits."""
    differs: str = ""
    """The first thing in the course of the runs that differs; empty where none does."""
    steps: int = 0
    """Compared."""
    figures: int = 0
    """Of base and tuned, compared."""
    largest: float = 0.0
    """Relative difference of the losses of a step."""

    @property
    def identical(self) -> bool:
        """Of a run that was made again, its course; of inputs alone, all of them."""
        return not self.differs and (self.second is not None or not self.inputs)

    @property
    def sentence(self) -> str:
        """The verdict."""
        if self.second is None:
            return f"{len(self.inputs)} inputs differ" if self.inputs else "the inputs are the same"
        figures = f"{self.figures} figures" if self.figures else "no figures to compare"
        if not self.differs:
            return f"identical: {self.steps} steps (rows, rates, losses, gradient norms), the adapter, {figures}"
        why = "other inputs" if self.inputs else "the same inputs"
        size = f"; losses differ by {self.largest:.1e} of their value at most" if self.largest else ""
        return f"{why}, but {self.differs}{size}"


def finished(folder: Path) -> Manifest:
    """The manifest of a run that can be compared with. Raises DataError where it did not come to its end."""
    manifest = read_manifest(folder)
    if "outcome" not in manifest:
        raise DataError(f"{folder}: the run is not finished, so there is nothing to compare with", hint=f"halfbyte train --resume {folder}")
    return manifest


def compare_courses(first: Path, second: Path, inputs: list[Difference] | None = None, place: list[Difference] | None = None) -> Reproduction:
    """Raises DataError where one of the two is not finished."""
    before, now = finished(first), finished(second)
    logs = [settle(read_events(folder / "events.jsonl")[0]) for folder in (first, second)]
    steps, validations = ([log.rows[kind] for log in logs] for kind in ("step", "validation"))
    figures = [one.get("metrics") or {} for one in (before, now)]
    found = _start(before, now) or _steps(*steps) or _validations(*validations) or _outcome(before, now) or _figures(*figures)
    return Reproduction(
        first, second, inputs or [], place or [], found, len(steps[0]), len(figures[0]) if all(figures) else 0, _largest(*steps),
    )  # fmt: skip


def _start(before: Manifest, now: Manifest) -> str:
    kept, made = before.get("start", {}), now.get("start", {})
    if kept.get("adapter_sha256") != made.get("adapter_sha256"):
        return "the adapter differs before the first step"
    if apart := differences(kept.get("numbers"), made.get("numbers")):
        return f"the model differs before the first step: {apart[0]}"
    return ""


def _steps(before: dict[int, Any], now: dict[int, Any]) -> str:
    for step in sorted(before.keys() | now.keys()):
        if step not in before or step not in now:
            return f"step {step} is in {'the first' if step in before else 'the second'} run alone"
        for key, what in OF_A_STEP.items():
            if key in before[step] and before[step][key] != now[step].get(key):
                return f"step {step} {what}: {before[step][key]} -> {now[step].get(key)}"
    return ""


def _validations(before: dict[int, Any], now: dict[int, Any]) -> str:
    for step in sorted(before.keys() | now.keys()):
        losses = [part.get(step, {}).get("loss") for part in (before, now)]
        if losses[0] != losses[1]:
            return f"the validation after step {step} has another loss: {losses[0]} -> {losses[1]}"
    return ""


def _outcome(before: Manifest, now: Manifest) -> str:
    apart = differences(before["outcome"], now["outcome"])
    return f"the end differs: {apart[0]}" if apart else ""


def _figures(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A run whose measuring broke off has none, which is no difference."""
    if not before or not now:
        return ""
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            return f"the figure {name!r} differs: {before.get(name)} -> {now.get(name)}"
    return ""


def _largest(before: dict[int, Any], now: dict[int, Any]) -> float:
    """Relative difference of the losses of one step, at most."""
    pairs = [(before[step].get("loss"), now[step].get("loss")) for step in before.keys() & now.keys()]
    return max((abs(one - other) / abs(one) for one, other in pairs if one and other is not None), default=0.0)
