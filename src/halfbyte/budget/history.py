"""What runs on this machine took, beside what was predicted for them, and what the next plan learns from it.

A file for each GPU and version of PyTorch, in the cache folder. Memory: the plan is raised by what the worst of the recent runs took over its
prediction. Time: rates are scaled by the median, for each of the three sides of a step apart: steps that the GPU holds up say how fast the GPU
is, those that the processor or the copies hold up say it of these.
"""

import fcntl
import json
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from halfbyte import __version__
from halfbyte.budget.choose import Choice
from halfbyte.budget.forecast import Target
from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import Effort, Rates, effort_of, known_gpu, step_seconds
from halfbyte.budget.shape import Shape
from halfbyte.errors import MachineError
from halfbyte.runs.cache import cache_folder
from halfbyte.runs.disk import write_whole
from halfbyte.runs.words import number

MOST_RUNS = 200
RECENT = 20
MOST_FACTOR = 1.25
"""A run that took still more was not alone on the GPU, or the prediction is wrong in a way that no factor mends."""
AFTER_RUNNING_OUT = 1.05
"""A run that ran out of memory needed more than its limit, nobody knows how much: the next one gets a little more."""
MOST_DRIVER_BYTES = 1_500_000_000
"""More than a driver takes: another program was there too."""
MEASURED = "measured on this machine"
SIDES = {
    "gpu": (("product_flops", "attention_flops", "scores_flops", "written_bytes"), ("product_flops", "attention_flops", "scores_flops", "seconds_per_byte")),
    "host": (("launches", "recomputed", "quantised"), ("seconds_per_launch", "seconds_per_recomputed", "seconds_per_quantised")),
    "copies": (("copied_bytes",), ("copy_bytes",)),
}
"""Of a step: which of its effort each side bears, and the rates of that side."""


@dataclass(frozen=True)
class Taken:
    """One run."""

    shape: str
    """Such as `mistral 32 x 4096`: family, layers, width."""
    rows: int
    accumulation: int
    tokens: int
    """Of a row, as predicted: the longest."""
    told: str
    predicted_bytes: int
    measured_bytes: int
    """Both of PyTorch alone: what it reserves. Predicted without what earlier runs taught."""
    driver_bytes: int
    predicted_seconds: float
    measured_seconds: float
    """Of a step: as the plan said, for rows as long as those that were measured; and the median."""
    effort: Effort
    """Of the step that was measured: what it takes is predicted from this, so that rates may change."""
    ran_out: bool = False
    """Then `measured_bytes` is the limit that was not enough."""
    halfbyte: str = __version__
    """Predictions of another version say nothing about those of this one."""


@dataclass(frozen=True)
class History:
    """Of one machine, oldest first. `notes`: what could not be read or kept."""

    runs: list[Taken] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def taken_by(
    choice: Choice, target: Target, measured_bytes: int, driver_bytes: int, step_seconds_measured: float, tokens: float | None = None, ran_out: bool = False
) -> Taken:
    """What `remember` keeps of a run that was computed in the way of `choice`, planned for `target`.

    measured_bytes: what PyTorch reserved at most. tokens: of a mean row in the steps that were timed, where rows were shorter than planned.
    The time of the fast path, whose rates are its own, is not kept: it would say nothing of the plain path's.
    """
    work = choice.work
    if choice.path == "fast":
        step_seconds_measured = 0.0
    seen = replace(work, tokens=max(1, round(tokens))) if tokens else work
    peak = training_peak(seen)
    effort = effort_of(seen, peak.launches, peak.written_bytes)
    return Taken(
        name_of(work.shape), work.rows, work.accumulation, work.tokens, choice.told(), int(choice.torch_bytes / target.memory_factor), measured_bytes,
        driver_bytes, step_seconds(effort, target.rates), step_seconds_measured, effort, ran_out,
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What runs of one shape without a GPU have shown: memory over prediction, and operations of matrix products a second (None before the first)."""

    memory_ratio: float = 1.0
    product_flops: float | None = None


def measured_on_cpu(history: History, shape: Shape) -> Measured:
    """The medians of the recent runs of this shape."""
    runs = [run for run in history.runs if run.shape == name_of(shape) and run.halfbyte == __version__ and run.measured_seconds > 0][-RECENT:]
    if not runs:
        return Measured()
    ratio = statistics.median(run.measured_bytes / run.predicted_bytes for run in runs)
    return Measured(ratio, statistics.median(run.effort.product_flops / run.measured_seconds for run in runs))


def name_of(shape: Shape) -> str:
    return f"{shape.family} {shape.layers} x {shape.width}"


def calibrated(target: Target, history: History, family: str | None = None) -> Target:
    """The target as runs here have shown it to be; unchanged without any. family: of the base, for memory learns from its like alone."""
    recent = history.runs[-RECENT:]
    if not recent:
        return target
    alike = [run for run in history.runs if run.halfbyte == __version__ and family in (None, run.shape.split()[0])][-RECENT:]
    factor = max((_memory_factor(run) for run in alike), default=1.0)
    drivers = [run.driver_bytes for run in recent if 0 < run.driver_bytes <= MOST_DRIVER_BYTES]
    timed = [run for run in recent if run.measured_seconds > 0 and not run.ran_out]
    return replace(
        target, memory_factor=min(MOST_FACTOR, max(1.0, factor)), driver_bytes=max(drivers, default=target.driver_bytes),
        rates=_scaled(target.rates, timed), rates_from=f"{MEASURED}: {len(timed)} run{'s' * (len(timed) != 1)}" if timed else target.rates_from,
    )  # fmt: skip


def _memory_factor(run: Taken) -> float:
    return run.measured_bytes / run.predicted_bytes * (AFTER_RUNNING_OUT if run.ran_out else 1.0)


def _scaled(rates: Rates, runs: list[Taken]) -> Rates:
    """Each side by the median of the runs that it held up; a side that held up none, by that of all. Of two, the lower: interference only slows down."""
    factors: dict[str, list[float]] = {side: [] for side in SIDES}
    for run in runs:
        borne = {side: step_seconds(_part(run.effort, parts), rates) for side, (parts, _) in SIDES.items()}
        factors[max(borne, key=borne.__getitem__)].append(run.measured_seconds / step_seconds(run.effort, rates))
    every = [factor for found in factors.values() for factor in found]
    changed: dict[str, float] = {}
    for side, (_, names) in SIDES.items():
        if every:
            factor = statistics.median_low(factors[side] or every)
            changed |= {name: getattr(rates, name) * (factor if name.startswith("seconds") else 1 / factor) for name in names}
    return replace(rates, **changed)


def _part(effort: Effort, names: tuple[str, ...]) -> Effort:
    """What of it stands under these names alone."""
    return Effort(**{name: value if name in names else 0.0 for name, value in asdict(effort).items()})


# The file


def recall(gpu: str) -> History:
    """What is known of this GPU with the PyTorch that is installed. A file that cannot be read is a note."""
    file = _file_of(gpu)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return History([_taken(run) for run in kept["runs"]])
    except FileNotFoundError:
        return History()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return History(notes=[f"{file}: cannot be read ({error}), so this plan learns nothing from earlier runs"])


def remember(gpu: str, run: Taken) -> History:
    """Adds a run; a damaged file is put aside and begun anew. The run itself is done: what cannot be kept is a note, no error."""
    file = _file_of(gpu)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            history = recall(gpu)
            if history.notes:
                aside = file.with_name(f"{file.name}.damaged")
                file.replace(aside)
                history = History(notes=[f"{file} was damaged; it lies in {aside.name} now, and what runs take is learned anew"])
            runs = [*history.runs, run][-MOST_RUNS:]
            content = {"gpu": gpu, "torch": _torch_version(), "runs": [asdict(one) for one in runs]}
            write_whole(file, json.dumps(content, indent=1) + "\n")
            return History(runs, history.notes)
    except MachineError as error:
        return History([run], [f"{error.message}; the next plan does not learn from this run"])
    except OSError as error:
        return History([run], [f"{file}: cannot be written ({error.strerror}), so the next plan does not learn from this run"])


def _taken(kept: dict[str, Any]) -> Taken:
    """Raises ValueError, KeyError or TypeError for what is no run."""
    run = Taken(**kept | {"effort": Effort(**kept["effort"])})
    figures = [run.predicted_bytes, run.measured_bytes, run.predicted_seconds, run.measured_seconds, *asdict(run.effort).values()]
    if None in map(number, [*figures, run.driver_bytes]) or min(figures) < 0 or not run.predicted_bytes or not run.predicted_seconds:
        raise ValueError("a run in it has figures that are none")
    return run


def _file_of(gpu: str) -> Path:
    """`NVIDIA H200` and the H200 of `--gpu` are the same; a slice of one (MIG) is not."""
    known = known_gpu(gpu) if "MIG" not in gpu else None
    name = re.sub(r"[^\w.+]+", "-", f"{known.name if known else gpu} torch {_torch_version()}").lower()
    return cache_folder() / "machines" / f"{name}.json"


def _torch_version() -> str:
    """Without importing it."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return "absent"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process writes; the lock goes with it, however it ends."""
    with open(file.with_name(f"{file.name}.lock"), "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
