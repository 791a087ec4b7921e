"""events.jsonl: what happened, append-only, one line a step. The figures of the report come from it alone."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfbyte.redaction import hide_in

Event = dict[str, Any]


class EventLog:
    """Appends events to a file and hands each to the listener (a screen). A line is written whole and at once."""

    def __init__(self, file: Path, listener: Callable[[Event], None] | None = None):
        self.file = file
        self.listener = listener
        self._end_torn_line()

    def append(self, event: Event) -> None:
        stamped = hide_in({"event": event["event"], "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event})
        line = json.dumps(_finite(stamped), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(line)
        if self.listener:
            self.listener(stamped)

    def tell(self, event: Event) -> None:
        """To the listener alone: progress, of which nothing need be kept."""
        if self.listener:
            self.listener(event)

    def _end_torn_line(self) -> None:
        """After a crash in mid-line the next event begins on a line of its own."""
        if self.file.is_file() and self.file.stat().st_size:
            with open(self.file, "rb+") as stream:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity: null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
