"""Who writes in a run folder: one process at a time, on one machine.

The lock is flock's, which goes with its process however that ends. Beside it the file says who holds it (process, its start, boot of the
machine, host), because a share between machines may not pass flock on. An orderly end empties the file, so words found in it under a lock
that could be had are of one that was killed: the next start takes over and is told; words of another machine are believed, and refused.
"""

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from halfbyte.errors import DataError
from halfbyte.runs.disk import told

FILE = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True)
class Holder:
    """One process on one boot of one machine. A process number alone comes again."""

    pid: int
    started: int | None
    """Clock ticks after the boot; None where the system does not tell (it does on Linux)."""
    boot: str | None
    host: str
    processes: str | None
    """The space that process numbers are counted in; containers have their own."""
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    def on_this_machine(self, here: "Holder") -> bool:
        return self.boot == here.boot if self.boot and here.boot else self.host == here.host

    def may_live(self, here: "Holder") -> bool:
        """On this machine. Without flock this alone decides."""
        if self.processes != here.processes:
            return False  # a container's process, whose number says nothing here; flock could be had, so it is gone
        return _exists(self.pid) and self.started == _started(self.pid)


def this_process() -> Holder:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), _started(os.getpid()), _read("/proc/sys/kernel/random/boot_id"), platform.node(), _processes(), since)


@contextmanager
def locked(folder: Path) -> Iterator[Holder | None]:
    """Yields who held the lock and was killed, or None. Raises DataError while another holds it, MachineError where no lock can be written."""
    file, here = folder / FILE, this_process()
    with told(file):
        stream = open(file, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after what can fail in between was told
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise _refusal(folder, _holder(stream), here) from error
            # A share that has no locks: who the file names decides.
        before = _holder(stream)
        if before is not None and (not before.on_this_machine(here) or before.may_live(here)):
            raise _refusal(folder, before, here)
        with told(file, 200):
            _say(stream, json.dumps(asdict(here)))
        try:
            yield before
        finally:
            stream.truncate(0)


def _refusal(folder: Path, holder: Holder | None, here: Holder) -> DataError:
    if holder is None:
        return DataError(f"{folder} is being written by another process", hint="wait for it, or stop it with Ctrl-C")
    if holder.on_this_machine(here):
        return DataError(f"{folder} is being written by {holder}", hint="wait for it, or stop it with Ctrl-C")
    return DataError(
        f"{folder} is locked by {holder}, which is not this machine, {here.host}",
        hint=f"wait for it there; if that process is surely gone, remove {folder / FILE}",
    )


def _holder(stream: IO[str]) -> Holder | None:
    """None for an empty file, and for one whose words were cut off by the crash."""
    stream.seek(0)
    try:
        return Holder(**json.loads(stream.read()))
    except (ValueError, TypeError):
        return None


def _say(stream: IO[str], text: str) -> None:
    stream.seek(0)
    stream.truncate(0)
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; the second, the name of the program, may hold spaces and brackets."""
    text = _read(f"/proc/{pid}/stat")
    return int(text.rpartition(")")[2].split()[19]) if text else None


def _processes() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _read(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
