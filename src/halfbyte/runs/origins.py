"""Where a run comes from: its data with every row accounted for, machine and versions, seed, hashes, licences. Rows for the page and the text."""

import re
import shlex
from collections import Counter
from typing import Any

from halfbyte.runs.foreseen import seconds, told_of_memory, told_of_time
from halfbyte.runs.words import DASH, count, duration, fields_of, number, percent, rows_of, size

Rows = list[list[str]]


def told_of_data(data: dict[str, Any]) -> str:
    nothing = "" if data.get("left_out") else ", none left out"
    copies = f"; {count(data['augmented'])} of the training rows are changed copies" if data.get("augmented") else ""
    return f"Records read: {count(data.get('records_read'))}{nothing}{copies}." if data else ""


def bins(data: dict[str, Any]) -> Rows:
    """Every bin of the ledger: where each row that was read went."""
    rows = [[str(name), count(rows)] for name, rows in fields_of(data.get("bins")).items()]
    return rows + [[f"left out: {one.get('reason')}", count(one.get("count"))] for one in rows_of(data.get("left_out"))]


def split(data: dict[str, Any]) -> Rows:
    return [[name, count(data.get(f"{name}_rows")), count(data.get(f"{name}_tokens"))] for name in ("train", "validation", "test")] if data else []


def decisions(report: dict[str, Any]) -> Rows:
    return [[str(one.get(key)) for key in ("name", "value", "reason")] for one in report["decisions"]]


SETTINGS_HEAD = ["key", "value", "set by"]


def settings(report: dict[str, Any]) -> tuple[Rows, Rows]:
    """Every key of the recipe with its value: those that you or the plan set, and those that nobody did."""

    def rows(usual: bool) -> Rows:
        found = [one for one in report["settings"] if (one.get("by") == "default") is usual]
        return [[str(one["key"]), _as_yaml(one.get("value")), str(one.get("by"))] for one in found]

    return rows(False), rows(True)


def told_of_settings(report: dict[str, Any]) -> str:
    by = Counter(str(one.get("by")) for one in report["settings"])
    return f"{by['you']} keys were set by you, {by['the plan']} by the plan, and {by['default']} have their default." if by else ""


def _as_yaml(value: Any) -> str:
    """As it would be written into a recipe."""
    if value is None:
        return "not given"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) and not value.isprintable() else str(value)


def work(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """What the training took."""
    training, model = report["training"], report["model"]
    trained, parameters = number(model.get("trainable")), number(model.get("parameters"))
    share = f" ({100 * trained / parameters:.3g}\u00a0%)" if trained is not None and parameters else ""
    return [
        ("steps", count(training["steps"]) + (f", {training['stopped']}" if training["stopped"] else "")),
        ("training time", duration(training["seconds"])),
        ("tokens in training", count(training["tokens"] or None)),
        ("tokens a second (median)", count(training["tokens_per_second"])),
        ("peak memory", told_of_memory(report["memory"]) or size(training["peak_bytes"])),
        ("seconds a step (median)", told_of_time(report["time"]) or seconds(report["time"]["measured_step_seconds"])),
        ("parameters", count(parameters)),
        ("trained", count(trained) + share),
        ("in 4 bits", f"{percent(model['share_4bit'], 0)} of the decoder’s projections" if model.get("share_4bit") is not None else None),
        ("weights", size(model.get("weight_bytes"))),
    ]


def environment(report: dict[str, Any]) -> list[tuple[str, Any]]:
    licences = report["licences"]
    previewed = report["labels_as_previewed"]
    same = "yes" if previewed is True else "no: other labels than the preview showed" if previewed is False else None
    return [
        ("base model", report["base_model"]),
        ("adapter", ": ".join(str(report["model"][key]) for key in ("adapter", "reason") if report["model"].get(key))),
        ("device", report["device"]),
        ("started", re.sub(r"(\d)T(\d\d:\d\d)\S*\+00:00$", r"\1 \2 UTC", str(report["started"] or DASH))),
        ("seed", report["seed"]),
        ("licence of the data", licences["data"] or "not stated"),
        ("licence of the base", licences["base"]),
        ("trained on what was previewed", same),
    ]


def long_facts(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts that need the width of the page."""
    hashes = report["hashes"]
    return [
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("command", report["command"]),
        ("hash of the base", hashes["base"]),
        ("hash of the adapter", report["adapter_sha256"]),
        ("hash of the rows", hashes["rows"]),
        ("hash of the labels", hashes["labels"]),
    ]


def next_commands(status: str, folder: str) -> str:
    """What can be done with this run now; a resume without a checkpoint starts at step 1."""
    run = shlex.quote(folder)
    if status != "finished":
        return f"halfbyte train --resume {run}"
    return f"halfbyte chat {run}\nhalfbyte generate {run} --input prompts.txt --output answers.jsonl\nhalfbyte evaluate {run}\nhalfbyte reproduce {run}"
