"""What a run notices beside its work: which checkpoint is the last whole one, how long a stop takes, a clock that jumps, a terminal that closes."""

import time
from pathlib import Path

from halfbyte.runs.events import Event, EventLog
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.report import read_events

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL, as `docker stop` has it. Kubernetes gives 30, systemd 90."""
JUMP_SECONDS = 60.0
"""By which the clock of the day runs away from the monotonic one before it is told: it is set in smaller steps all the time."""


class Watch:
    """Hears the events of one process of a run."""

    def __init__(self, run: RunFolder, log: EventLog, resume_from: Path | None):
        self.run, self.log = run, log
        self.newest = resume_from.name if resume_from is not None else None
        self.step_seconds = 0.0
        self.told_grace = False
        self.apart = _clocks_apart()

    def hear(self, event: Event) -> None:
        """After the event was logged."""
        if event["event"] == "step":
            self.step_seconds = event["tokens"] / event["tokens_per_second"] if event["tokens_per_second"] else 0.0
            self._look_at_clock(event["step"])
        elif event["event"] == "checkpoint":
            self.newest = Path(event["path"]).name
            self._look_at_grace(event)

    def look_back(self) -> None:
        """At the start of a resumed run: what its earlier steps and saves took."""
        earlier = read_events(self.run.events)[0]
        for kind in ("step", "checkpoint"):
            if (last := next((event for event in reversed(earlier) if event["event"] == kind), None)) is not None:
                if kind == "step" and last.get("tokens_per_second"):
                    self.step_seconds = last["tokens"] / last["tokens_per_second"]
                elif kind == "checkpoint":
                    self._look_at_grace(last)

    def last_words(self) -> str:
        """At a second signal, from another thread: nothing of the main thread's is touched but the file of events, to which a line is added whole."""
        EventLog(self.run.events).append({"event": "interrupted", "at_once": True})
        if self.newest is None:
            return f"no checkpoint was saved yet; begin again with: halfbyte train --resume {self.run.path}"
        return f"the last whole checkpoint is {self.newest}; go on with: halfbyte train --resume {self.run.path}"

    def hang_up(self) -> None:
        EventLog(self.run.events).append({"event": "note", "message": "the terminal was closed (SIGHUP): the run goes on, and its log with it"})

    def _look_at_grace(self, event: Event) -> None:
        needed = self.step_seconds + (event.get("seconds") or 0.0)
        if needed > GRACE_SECONDS and not self.told_grace:
            self.told_grace = True
            parts = f"a step {self.step_seconds:.0f} s, a save {event.get('seconds') or 0:.0f} s"
            self._note(
                f"to stop and save takes about {needed:.0f} s ({parts}), longer than the {GRACE_SECONDS:.0f} s between SIGTERM and SIGKILL that is usual: "
                "allow more (docker stop --time, terminationGracePeriodSeconds, TimeoutStopSec)"
            )

    def _look_at_clock(self, step: int) -> None:
        jumped, self.apart = _clocks_apart() - self.apart, _clocks_apart()
        if abs(jumped) > JUMP_SECONDS:
            seen = "slept, or its clock was set forward" if jumped > 0 else "had its clock set back"
            self._note(f"before step {step} the computer {seen}: {abs(jumped):,.0f} s; seconds and rates of this run are counted without them")

    def _note(self, message: str) -> None:
        self.log.append({"event": "note", "message": message})


def _clocks_apart() -> float:
    """The clock of the day counts on while a computer sleeps, and can be set; the monotonic one, by which all is timed, neither."""
    return time.time() - time.monotonic()
