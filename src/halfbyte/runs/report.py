"""The report of a run, made from its folder alone: report.json for programs, report.html to look at, report.md to read as text.

Read `write_report` first. `settle` keeps what counts of the events, `summarise` makes the content that all three forms show.
Every number is copied from an event, or is a sum, median or maximum over the steps that count.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.runs.chart import Points, mean_of, thin
from halfbyte.runs.disk import write_whole
from halfbyte.runs.events import Event
from halfbyte.runs.markdown import markdown
from halfbyte.runs.page import page
from halfbyte.runs.settle import Log, is_whole, settle
from halfbyte.runs.verdict import in_order, judge
from halfbyte.runs.words import fields_of, number, rows_of

MODEL_KEYS = ("parameters", "trainable", "share_4bit", "weight_bytes", "adapter", "reason")
GENERATION_KEYS = ("prompt", "reference", "base", "tuned", "base_ended", "tuned_ended")
CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_bytes")
ANSWERS = "evaluation/answers.jsonl"
MEASURED_AS = {"train": "step"}
"""Phases that the plan calls otherwise than the events do."""


def write_report(run: Path) -> dict[str, Any]:
    """Reads what the run left; writes report.json, report.html and report.md; returns the content of report.json."""
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder", hint="give the folder that `halfbyte train` named when it started")
    events, notes = read_events(run / "events.jsonl")
    plan, plan_notes = read_plan(run / "plan.json")
    log = settle(events)
    folder = run.resolve().name
    report = summarise(log, plan, folder) | kept_files(run, plan)
    report["verdict"] = judge(report)
    report["notes"] = plan_notes + notes + log.notes
    write_whole(run / "report.html", page(report, folder))
    write_whole(run / "report.md", markdown(report, folder))
    write_whole(run / "report.json", as_json(report))  # the last: it says whether the run is finished, and a finished run is not written to again
    return report


# Reading


def read_events(path: Path) -> tuple[list[Event], list[str]]:
    """The events, and a note on each line that is none: a crash can tear the last line, and a resume writes on after it."""
    if not path.is_file():
        return [], ["events.jsonl is not there: nothing was logged"]
    events, notes = [], []
    # Not splitlines: it would also cut at U+2028, which may stand inside a JSON string. NaN and Infinity become null, as JSON has neither.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            event = None
        if is_whole(event):
            events.append(event)
        else:
            where = "the last line" if line_number == len(lines) else f"line {line_number}"
            notes.append(f"events.jsonl: {where} is torn, as a crash leaves it, and is left out")
    return events, notes


def read_plan(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The plan and its notes; a plan that cannot be read is a note."""
    if not path.is_file():
        return {}, []
    try:
        plan = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        return {}, [f"plan.json could not be read: {error}"]
    return (plan, list(plan.get("notes") or [])) if isinstance(plan, dict) else ({}, ["plan.json holds no plan"])


def kept_files(run: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What the report takes from the other files of the folder."""

    def text(name: str) -> str:
        return (run / name).read_text(encoding="utf-8-sig", errors="replace") if (run / name).is_file() else ""

    seed = re.search(r"^seed: *(\d+) *$", text("recipe.resolved.yaml"), re.MULTILINE)
    return {
        "recipe": text("recipe.yaml"),
        "seed": plan.get("seed", int(seed[1]) if seed else None),
        "adapter_sha256": text("adapter.sha256").strip() or None,
        "answers": ANSWERS if (run / ANSWERS).is_file() else None,
    }


def as_json(report: dict[str, Any]) -> str:
    """Indented, with each list of numbers on one line. A line feed inside a string is written \\n, so only the indentation is touched."""
    text = json.dumps(report, indent=2)
    return re.sub(r"\[\n\s+([-+.\deE,\snul]+?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


# The content


def summarise(log: Log, plan: dict[str, Any], folder: str) -> dict[str, Any]:
    """What the events and the plan say. What the run has not got to is null or empty."""
    run, end, model, labels = (log.latest.get(kind, {}) for kind in ("run", "end", "model", "labels"))
    steps, validation = list(log.rows["step"].values()), [row for _, row in sorted(log.rows["validation"].items())]
    fields = ("loss", "perplexity", "tokens")
    evaluation = {name: {key: number(log.rows["perplexity"].get(name, {}).get(key)) for key in fields} for name in ("base", "tuned")}
    perplexity = {name: row["perplexity"] for name, row in evaluation.items()}
    best = [row["step"] for row in validation if row.get("best")]

    def of_steps(key: str) -> list[float]:
        return [row[key] for row in steps if number(row.get(key)) is not None]

    peak = end.get("peak_bytes", max(of_steps("peak_bytes"), default=None))
    return {
        "perplexity": None if None in perplexity.values() else perplexity | {"tokens": evaluation["tuned"]["tokens"]},
        "verdict": None,
        "name": run.get("name") or folder,
        "status": log.status,
        "base_model": run.get("base"),
        "device": run.get("device"),
        "versions": run.get("versions") or {},
        "command": run.get("command"),
        "started": run.get("time"),
        "comparisons": in_order([without_stamp(row) or {} for row in log.rows["comparison"].values()]),
        "rating": without_stamp(log.latest.get("rating")),
        "classes": without_stamp(log.latest.get("classes")),
        "answered_classes": without_stamp(log.latest.get("answered_classes")),
        "structure": without_stamp(log.latest.get("structure")),
        "replies": without_stamp(log.latest.get("replies")),
        "choice": without_stamp(log.latest.get("choice")),
        "test_opened": log.latest.get("test_opened", {}).get("times"),
        "proofs": {"seconds": number(log.latest.get("proofs", {}).get("seconds")), "rows": [without_stamp(row) for row in log.rows["proof"].values()]},
        "data": log.latest.get("data", {}).get("ledger") or {},
        "model": {key: model[key] for key in MODEL_KEYS if key in model},
        "training": {
            "steps": end.get("steps", steps[-1]["step"] if steps else 0),
            "best_step": end.get("best_step", best[-1] if best else None),
            "stopped": end.get("stopped"),
            "first_loss": number(steps[0].get("loss")) if steps else None,
            "last_loss": number(steps[-1].get("loss")) if steps else None,
            "seconds": end.get("seconds", max(of_steps("seconds"), default=None)),
            "tokens": sum(of_steps("tokens")),
            "tokens_per_second": statistics.median(of_steps("tokens_per_second") or [0]) or None,
            "peak_bytes": peak,
        },
        "memory": memory_of(log, plan, peak),
        "time": {"predicted_step_seconds": number(plan.get("predicted_step_seconds")), "measured_step_seconds": step_seconds(steps)},
        "evaluation": evaluation,
        "validation": [{"step": row["step"], "loss": number(row.get("loss")), "tokens": row.get("tokens"), "best": row.get("best")} for row in validation],
        "curves": curves(steps),
        "generations": [{key: row.get(key) for key in GENERATION_KEYS} for row in log.rows["generation"].values()],
        "decisions": [one for one in plan.get("decisions") or [] if isinstance(one, dict)],
        "settings": [one for one in rows_of(plan.get("settings")) if one.get("key")],
        "licences": {"data": plan.get("licence"), "base": plan.get("base_licence")},
        "hashes": {"base": plan.get("base_fingerprint"), "rows": plan.get("rows_sha256"), "labels": labels.get("sha256")},
        "labels_as_previewed": labels.get("same_as_preview"),
    }


def memory_of(log: Log, plan: dict[str, Any], peak: Any) -> dict[str, Any]:
    """The budget, predicted and measured, of the run and of each phase that the plan names. `peak`: what the whole run is known to have taken at most."""
    measured = {MEASURED_AS.get(phase, phase): number(row.get("peak_bytes")) for phase, row in log.rows["memory"].items()}
    planned = fields_of(plan.get("memory"))
    phases = [
        {"name": str(phase.get("name")), "predicted_bytes": number(phase.get("peak_bytes")), "measured_bytes": measured.get(str(phase.get("name")))}
        for phase in rows_of(planned.get("phases"))
    ]
    known = [taken for taken in (number(peak), *measured.values()) if taken is not None]
    return {
        "budget_bytes": number(planned.get("budget_bytes")), "predicted_bytes": number(plan.get("predicted_bytes")),
        "measured_bytes": max(known, default=None), "phases": phases, "changes": [without_stamp(row) for row in log.rows["memory_change"].values()],
    }  # fmt: skip


def step_seconds(steps: list[Event]) -> float | None:
    """The median. A step event tells its rate, and of seconds those since the run began."""
    known = [(number(row.get("tokens")), number(row.get("tokens_per_second"))) for row in steps]
    return statistics.median([tokens / rate for tokens, rate in known if tokens and rate] or [0]) or None


def without_stamp(event: Event | None) -> Event | None:
    return {key: value for key, value in event.items() if key not in ("event", "time")} if event else None


def curves(steps: list[Event]) -> dict[str, Any]:
    """[step, value] of each curve, thinned to what a screen can show; and the mean loss, where there are enough steps to hide the trend."""

    def points(key: str) -> Points:
        return [(row["step"], row[key]) for row in steps if number(row.get(key)) is not None]

    stretch = len(points("loss")) // 40
    means = mean_of(points("loss"), stretch) if stretch >= 5 else []  # fewer steps show their trend themselves
    thinned = {key: [list(point) for point in thin(points(key))] for key in CURVES}
    return {**thinned, "loss_mean": {"steps": stretch, "points": [list(point) for point in means]} if means else None}
