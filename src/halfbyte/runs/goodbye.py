"""How the last process of a run ended, as far as its events tell, and what going on repeats. A killed process says no goodbye."""

from typing import Any

from halfbyte.runs.events import Event
from halfbyte.runs.words import number, size

GOODBYES = ("interrupted", "failed", "end", "measured")
FULL = 0.9
"""Of the computer's memory: a process that took more and vanished was likely ended by the system."""


def tell_unended(events: list[Event], run: str) -> str | None:
    """With what a new run begins that has the name of one which never ended; None where that one did."""
    last = _last_process(events)
    if not last or any(event["event"] in GOODBYES for event in last):
        return None
    step = next((event["step"] for event in reversed(events) if event["event"] in ("step", "resume")), None)
    return f"{run} did not end: it is running yet, or was killed {_where(last, step)}; halfbyte train --resume {run} goes on with it, this is a new run"


def tell_ending(events: list[Event], resumed_step: int | None, memory_bytes: Any = None) -> str | None:
    """The note with which a resumed run begins; None where there is nothing to tell. memory_bytes: of a computer without a GPU."""
    last = _last_process(events)
    if not last:  # what was logged before the first process began its work, such as that nobody reads its output
        return None
    goodbye = next((event for event in reversed(last) if event["event"] in GOODBYES), None)
    step = next((event["step"] for event in reversed(events) if event["event"] in ("step", "resume")), None)
    if goodbye is None:
        told = f"the last run ended without goodbye {_where(last, step)} ({_guess(last, memory_bytes)})"
    elif goodbye.get("at_once"):
        told = f"the last run was left at once {_where(last, step)}"
    else:
        told = ""
    repeated = (step or 0) - (resumed_step or 0)
    if not told and repeated <= 0:
        return None
    begins = "beginning again at step 1" if resumed_step is None else f"resuming from step-{resumed_step}"
    if repeated > 0:
        told += f"{'; ' if told else ''}{begins}, {repeated} step{'s are' if repeated != 1 else ' is'} repeated"
    else:
        told += f"; {begins}, nothing is repeated"
    if repeated < 0:
        told += f"; steps {(step or 0) + 1} to {resumed_step} were computed, but their lines were lost (power off?): the curves have a gap there"
    return told


def _last_process(events: list[Event]) -> list[Event]:
    """From its first event on: `run` is logged by each, whether it resumes or not."""
    start = max((place for place, event in enumerate(events) if event["event"] == "run"), default=len(events))
    return events[start:]


def _where(events: list[Event], step: int | None) -> str:
    kinds = {event["event"] for event in events}
    if "measuring" in kinds:
        return "while it measured"
    if "step" in kinds:
        return f"at step {step}"
    return "before its first step" if "model" in kinds else "while it loaded"


def _guess(events: list[Event], memory_bytes: Any) -> str:
    taken = max((number(event.get("peak_bytes")) or 0 for event in events), default=0)
    limit = number(memory_bytes)
    if limit and taken > FULL * limit:
        return f"out of memory, most likely: it had taken {size(int(taken))} of {size(int(limit))}"
    return "killed? out of memory?"
