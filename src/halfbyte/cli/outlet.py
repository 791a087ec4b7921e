"""Output that may close under a run: a pipe whose reader left (`| head`), a terminal that was closed. The run goes on, its log with it."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""The reader left; the terminal is closed; the device is not there any more."""


class Outlet:
    """A stream as its owner has it, until a write fails because nobody can read it: from then on it leads nowhere, and `on_gone` has heard why."""

    def __init__(self, stream: TextIO, name: str, on_gone: Callable[[str], None]):
        self.stream, self.called, self.on_gone = stream, name, on_gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self._try(lambda: self.stream.writelines(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._lead_nowhere()
            self.on_gone(f"{self.called} is closed ({error.strerror}): the run goes on, output to its log only")

    def _lead_nowhere(self) -> None:
        """Also what the stream holds back yet, and what other libraries write past it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


@contextmanager
def output_may_close(on_gone: Callable[[str], None]) -> Iterator[None]:
    """Inside, neither a closed terminal (SIGHUP) nor one that cannot be written to ends the process."""
    before = sys.stdout, sys.stderr
    closing = signal.Signals.__members__.get("SIGHUP")  # Windows has none
    handler = signal.getsignal(closing) if closing is not None else None
    if closing is not None and handler == signal.SIG_DFL:
        signal.signal(closing, lambda *_: on_gone("the terminal was closed (SIGHUP): the run goes on, and its log with it"))
    sys.stdout, sys.stderr = Outlet(before[0], "standard output", on_gone), Outlet(before[1], "standard error", on_gone)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # now, not when Python ends, where it would be an error again
        sys.stdout, sys.stderr = before
        if closing is not None:
            signal.signal(closing, handler)
