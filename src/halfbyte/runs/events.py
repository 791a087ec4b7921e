"""events.jsonl: what happened, append-only, one line a step. The figures of the report come from it alone."""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfbyte.redaction import hide_in
from halfbyte.runs.disk import told

Event = dict[str, Any]


class EventLog:
    """Appends events to a file and hands each to the listener (a screen). A line is written whole and at once, or not at all: raises MachineError."""

    def __init__(self, file: Path, listener: Callable[[Event], None] | None = None):
        self.file = file
        self.listener = listener
        self._end_torn_line()

    def append(self, event: Event) -> None:
        stamped = hide_in({"event": event["event"], "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event})
        line = (json.dumps(_finite(stamped), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        with told(self.file, len(line), hint="make room on the disk; halfbyte train --resume goes on from the last checkpoint"):
            self._write(line)
        if self.listener:
            self.listener(stamped)

    def tell(self, event: Event) -> None:
        """To the listener alone: progress, of which nothing need be kept."""
        if self.listener:
            self.listener(event)

    def _write(self, line: bytes) -> None:
        with open(self.file, "ab", buffering=0) as stream:
            whole = os.fstat(stream.fileno()).st_size
            try:
                written = stream.write(line)
                if written != len(line):  # the disk became full in mid-line; asked again it says so
                    stream.write(line[written:])
            except OSError:
                with suppress(OSError):
                    os.ftruncate(stream.fileno(), whole)
                raise

    def _end_torn_line(self) -> None:
        """After a crash in mid-line the next event begins on a line of its own."""
        if self.file.is_file() and self.file.stat().st_size:
            with told(self.file, 1), open(self.file, "rb+") as stream:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity: null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
