"""Which events of a run count. events.jsonl is append-only, so a resumed or remeasured run holds lines that were given up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from halfbyte.runs.events import Event

ROW_KEY = {
    "step": ("step",), "validation": ("step",), "skipped": ("step",), "perplexity": ("model",), "generation": ("row", "prompt"),
    "comparison": ("group", "metric"), "memory": ("phase",), "memory_change": ("message",), "proof": ("name",),
}  # fmt: skip
"""Kinds of which there are many, and what tells one row from the next: a later line with the same key replaces the earlier."""
STATUS_AFTER = {"run": "unfinished", "resume": "unfinished", "end": "finished", "measured": "finished", "interrupted": "interrupted", "failed": "failed"}
HOLDS = {
    dict: (
        "ledger", "versions", "confusion", "unparsable", "majority", "per_class", "averages", "by_likelihood", "recital", "empty", "length_ratio", "per_slot",
    ),
    list: ("classes", "unseen", "notes"),
}  # fmt: skip
"""What the fields of an event are, where they are there."""
MOST_STEPS = 10**12
"""A step beyond is damage, not training."""
OF_THE_WEIGHTS = ("choice", "classes", "answered_classes", "structure", "replies", "rating")
"""Kinds that tell of the tuned weights: a step taken after them makes them old."""


@dataclass
class Log:
    """What counts of the events."""

    status: str = "unfinished"
    latest: dict[str, Event] = field(default_factory=dict)
    """The last event of each kind that has no rows."""
    rows: dict[str, dict[Any, Event]] = field(default_factory=lambda: {kind: {} for kind in ROW_KEY})
    """Kind, then key, then event."""
    notes: list[str] = field(default_factory=list)

    def forget_after(self, step: int) -> None:
        for kind in ("step", "validation", "skipped"):
            self.rows[kind] = {number: row for number, row in self.rows[kind].items() if number <= step}

    def forget_measured(self) -> None:
        """What was told of weights that a step has changed."""
        self.rows["perplexity"].pop("tuned", None)
        for kind in ("generation", "comparison"):
            self.rows[kind].clear()
        for kind in OF_THE_WEIGHTS:
            self.latest.pop(kind, None)

    def forget_measurement(self) -> None:
        """A new one follows, whole: what was measured then and is not now, is old."""
        for kind in ("perplexity", "generation", "comparison"):
            self.rows[kind].clear()
        for kind in ("classes", "answered_classes", "structure", "replies"):
            self.latest.pop(kind, None)


def is_whole(event: Any) -> bool:
    """Whether a line holds what `settle` needs of its kind."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return False
    if any(not isinstance(event.get(name), (kind, type(None))) for kind, names in HOLDS.items() for name in names):
        return False
    if event["event"] == "note":
        return isinstance(event.get("message"), str)
    kind = "step" if event["event"] == "resume" else event["event"]
    wanted = int if kind in ("step", "validation", "skipped") else str
    if wanted is int and isinstance(event.get("step"), int) and abs(event["step"]) > MOST_STEPS:
        return False
    return all(isinstance(event.get(name), wanted) for name in ROW_KEY.get(kind, ()) if name != "row")


def settle(events: list[Event]) -> Log:
    """Walks the events once, first to last; a resume from step K forgets the steps after K."""
    log = Log()
    generations_are_old = False
    for event in events:
        kind = event["event"]
        log.status = STATUS_AFTER.get(kind, log.status)
        if kind == "resume":
            log.forget_after(event["step"])
            log.latest.pop("end", None)
            log.notes.append(f"resumed from step {event['step']}")
        if kind == "step":
            if log.rows["step"] and event["step"] <= next(reversed(log.rows["step"])):  # started again without a checkpoint
                log.forget_after(event["step"] - 1)
            log.forget_measured()
        if kind == "measurement":
            log.forget_measurement()
        if kind == "resume" or (kind == "perplexity" and event["model"] == "base"):
            generations_are_old = True  # the next one starts a new set
        elif kind == "generation" and generations_are_old:
            log.rows["generation"].clear()
            generations_are_old = False
        if kind in ("note", "memory_change"):
            log.notes.append(event["message"])
        if kind not in ROW_KEY:
            log.latest[kind] = event
            continue
        key = tuple(event.get(name) for name in ROW_KEY[kind])
        log.rows[kind][key if len(key) > 1 else key[0]] = event
    for reason, times in Counter(str(row.get("reason")) for row in log.rows["skipped"].values()).items():
        log.notes.append(f"{times:,} step{'s' * (times > 1)} skipped: {reason}")
    if log.status == "interrupted":
        step = log.latest["interrupted"].get("step")
        log.notes.append("interrupted" if step is None else f"interrupted after step {step}")
    if log.status == "failed":
        log.notes.append(f"failed: {log.latest['failed'].get('message')}")
    return log
