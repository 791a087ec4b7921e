"""Two runs of one recipe, compared to the last digit from their folders: the first adapter, rows, rates and losses of each step, the last adapter, the figures.

The first thing that differs is named, for what follows differs with it; and with it what may have made it differ, where memory ran out in one of
the two: fewer rows at a time are the same step, summed in another order. Reads run.json, plan.json and events.jsonl; loads no model.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.recipe.schema import Recipe
from halfbyte.runs.events import Event
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.manifest import SETTLED, Difference, Manifest, differences, read_manifest, recipe_differences
from halfbyte.runs.report import read_events
from halfbyte.runs.settle import settle

OF_A_STEP = {"rows": "trains other rows", "learning_rate": "has another learning rate", "loss": "has another loss", "grad_norm": "has another gradient norm"}
PARTS = ("train", "validation", "test")
OTHER_ORDER = "the same steps, their sums in another order"


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
    memory: list[str] = field(default_factory=list)
    """Where memory ran out in one of them, or was planned otherwise, so that the first difference may come of it."""
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
        why = "other inputs, and" if self.inputs else "the same inputs, but"
        size = f"; losses differ by {self.largest:.1e} of their value at most" if self.largest else ""
        return f"{why} {self.differs}{size}" + "".join(f"; a cause: {one}" for one in self.memory)


def finished(folder: Path) -> Manifest:
    """The manifest of a run that can be compared with. Raises DataError where it did not come to its end."""
    manifest = read_manifest(folder)
    if "outcome" not in manifest:
        raise DataError(f"{folder}: the run is not finished, so there is nothing to compare with", hint=f"halfbyte train --resume {folder}")
    return manifest


def asked_at_first(manifest: Manifest) -> dict[str, Any]:
    """The recipe that a run was begun with, with the keys that were added to recipes since."""
    return Recipe.model_validate(manifest["recipe"]).model_dump(mode="json")


def inputs_apart(manifest: Manifest, plan: dict[str, Any], recipe: dict[str, Any], inputs: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """What makes another run by right: of the run of `manifest` and `plan` (plan.json) against a recipe, inputs and plan. A file's name is no difference."""
    found = recipe_differences(asked_at_first(manifest), recipe)
    before, after = ({**each, "data": dict(each.get("data") or {})} for each in (manifest["inputs"], inputs))
    for part in before["data"].keys() & after["data"].keys():
        if list(before["data"][part].values()) == list(after["data"][part].values()):
            del before["data"][part], after["data"][part]
    found += _with_rows(differences(before, after, "inputs"), plan.get("ledger") or {}, now.get("ledger") or {})
    return found + differences({key: plan.get(key) for key in SETTLED}, {key: now.get(key) for key in SETTLED}, "plan")


def _with_rows(found: list[Difference], before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """Hashes of rows with the number of the rows. Other training rows have other labels, which is not told twice."""
    others = {one.what for one in found}
    told = []
    for one in found:
        part = one.what.removeprefix("inputs.split.")
        if part == "labels" and "inputs.split.train" in others:
            continue
        told.append(replace(one, rows=(before.get(f"{part}_rows"), now.get(f"{part}_rows"))) if part in PARTS else one)
    return told


@dataclass(frozen=True)
class Parting:
    """Where two courses part."""

    told: str
    step: int | None = None
    """The last that may have made the difference; None: any."""
    phases: tuple[str, ...] = ("train",)
    """Memory that ran out in one of these may have."""


def compare_courses(first: Path, second: Path, inputs: list[Difference] | None = None, place: list[Difference] | None = None) -> Reproduction:
    """`inputs`, `place`: what differs in what the two were made of; the two manifests say it where it is not given. Raises DataError for an unfinished run."""
    before, now = finished(first), finished(second)
    if inputs is None:
        plans = [run.read_plan() if (run := RunFolder(folder)).plan.is_file() else {} for folder in (first, second)]
        inputs = inputs_apart(before, plans[0], asked_at_first(now), now["inputs"], plans[1])
    place = differences(before["place"], now["place"], "place") if place is None else place
    events = [read_events(folder / "events.jsonl")[0] for folder in (first, second)]
    logs = [settle(each) for each in events]
    steps, validations = ([log.rows[kind] for log in logs] for kind in ("step", "validation"))
    figures = [one.get("metrics") or {} for one in (before, now)]
    found = _start(before, now) or _steps(*steps) or _validations(*validations) or _outcome(before, now) or _figures(*figures)
    return Reproduction(
        first, second, inputs, place, found.told if found else "", memory_apart((first, second), events, found) if found else [],
        len(steps[0]), len(figures[0]) if all(figures) else 0, _largest(*steps),
    )  # fmt: skip


def _start(before: Manifest, now: Manifest) -> Parting | None:
    kept, made = before.get("start", {}), now.get("start", {})
    if kept.get("adapter_sha256") != made.get("adapter_sha256"):
        return Parting("the adapter differs before the first step", phases=())
    if apart := differences(kept.get("numbers"), made.get("numbers")):
        return Parting(f"the model differs before the first step: {apart[0]}", phases=())
    return None


def _steps(before: dict[int, Any], now: dict[int, Any]) -> Parting | None:
    for step in sorted(before.keys() | now.keys()):
        if step not in before or step not in now:
            return Parting(f"step {step} is in {'the first' if step in before else 'the second'} run alone", step, ("train", "validate"))
        for key, what in OF_A_STEP.items():
            if key in before[step] and before[step][key] != now[step].get(key):
                of_sums = ("train",) if key in ("loss", "grad_norm") else ()
                return Parting(f"step {step} {what}: {before[step][key]} -> {now[step].get(key)}", step, of_sums)
    return None


def _validations(before: dict[int, Any], now: dict[int, Any]) -> Parting | None:
    for step in sorted(before.keys() | now.keys()):
        losses = [part.get(step, {}).get("loss") for part in (before, now)]
        if losses[0] != losses[1]:
            return Parting(f"the validation after step {step} has another loss: {losses[0]} -> {losses[1]}", step, ("train", "validate"))
    return None


def _outcome(before: Manifest, now: Manifest) -> Parting | None:
    apart = differences(before["outcome"], now["outcome"])
    return Parting(f"the end differs: {apart[0]}", None, ("train", "validate")) if apart else None


def _figures(before: dict[str, Any], now: dict[str, Any]) -> Parting | None:
    """A run whose measuring broke off has none, which is no difference."""
    if not before or not now:
        return None
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            return Parting(f"the figure {name!r} differs: {before.get(name)} -> {now.get(name)}", None, ("evaluate",))
    return None


def memory_apart(folders: tuple[Path, Path], events: list[list[Event]], parting: Parting) -> list[str]:
    """What was computed in other parts, up to where the courses part: as planned, or since memory ran out. Recomputing changes no bit and is no cause."""
    told: list[str] = []
    if "train" in parting.phases:
        splits = [_splits(folder, each, parting.step) for folder, each in zip(folders, events, strict=True)]
        planned = [split[0][1] for split in splits]
        if planned[0] != planned[1]:
            told.append(f"{folders[0]} was planned with {_rows(planned[0])} at a time, {folders[1]} with {_rows(planned[1])}: {OTHER_ORDER}")
        if splits[0] != splits[1]:
            told += [
                f"memory ran out in {folder}, which computes {_rows(rows)} at a time from step {step} on: {OTHER_ORDER}"
                for folder, split in zip(folders, splits, strict=True) for step, rows in split[1:]
            ]  # fmt: skip
    others = [phase for phase in parting.phases if phase != "train"]
    seen = [{event["message"] for event in each if event["event"] == "memory_change" and event.get("phase") in others} for each in events]
    for folder, mine, other in zip(folders, seen, reversed(seen), strict=True):
        told += [f"in {folder} {one}" for one in sorted(mine - other)]
    return told


def _splits(folder: Path, events: list[Event], until: int | None) -> list[tuple[int, int | None]]:
    """Rows at a time: of the plan, as of step 0, and from each step on at which that changed. None where the plan does not say.

    A run that is gone on with from before a change begins there with what it ended with.
    """
    run = RunFolder(folder)
    planned = ((run.read_plan() if run.plan.is_file() else {}).get("computing") or {}).get("micro_batch_size")
    changes: dict[int, int] = {}
    last = 0
    for event in events:
        step, rows = event.get("step"), event.get("micro_batch_size")
        if event["event"] == "resume" or (event["event"] == "step" and event["step"] <= last):
            again = event["step"] + (event["event"] == "resume")
            for later in sorted(number for number in changes if number > again):
                changes[again] = changes.pop(later)
        elif event["event"] == "memory_change" and event.get("phase") == "train" and isinstance(rows, int) and isinstance(step, int):
            changes[step] = rows
        if event["event"] in ("resume", "step"):
            last = event["step"]
    found: list[tuple[int, int | None]] = [(0, planned)]
    for step, rows in sorted(changes.items()):
        if rows != found[-1][1] and (until is None or step <= until):
            found.append((step, rows))
    return found


def _rows(count: int | None) -> str:
    return "rows not told" if count is None else f"{count} row{'s' * (count != 1)}"


def _largest(before: dict[int, Any], now: dict[int, Any]) -> float:
    """Relative difference of the losses of one step, at most."""
    pairs = [(before[step].get("loss"), now[step].get("loss")) for step in before.keys() & now.keys()]
    return max((abs(one - other) / abs(one) for one, other in pairs if one and other is not None), default=0.0)
