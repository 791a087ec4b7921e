"""What is done to the disk where a loss would hurt: every call that can fail or be cut short stands here, and nothing else writes a checkpoint.

Each function is one or a few calls of `os`, so that a test which puts another `os` in its place can count them, fail the n-th or end the
process there. What was synced is on the disk itself, not on its way; a name that was renamed is the old file or the new one, never half of it.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halfbyte.errors import HalfbyteError, MachineError
from halfbyte.runs.words import size

PIECE = 16 << 20
"""Bytes of one write."""
COMPARED = 1 << 20
"""Bytes that are compared at a time: so short that other threads of Python, which waits meanwhile, do not notice."""
FULL = (errno.ENOSPC, errno.EDQUOT)
# A network share may know no sync of a folder; what it promises is then what there is.
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
MAKE_ROOM = "make room on the disk, or choose another place"


def write_new(file: Path, content: bytes | memoryview) -> None:
    """A file that must not exist yet; it is on the disk when this returns."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left[:PIECE]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def holds(file: Path, content: memoryview) -> bool:
    """Whether the file is these bytes, all of them and no more. Reads it in pieces."""
    left, place = content, bytearray(min(COMPARED, len(content)) + 1)
    with open(file, "rb", buffering=0) as stream:
        while read := stream.readinto(place):
            # As bytes: two of them are compared at once, a memoryview item by item, which takes longer than reading does.
            if bytes(left[:read]) != bytes(memoryview(place)[:read]):
                return False
            left = left[read:]
    return not left


def write_whole(file: Path, given: str | bytes) -> None:
    """Through a file beside it and a rename: readers see the old content or the new, never half. Raises MachineError."""
    content = given.encode("utf-8") if isinstance(given, str) else given
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    with told(file, len(content)):
        try:
            write_new(aside, content)
            os.replace(aside, file)
        except OSError:
            with suppress(OSError):
                os.unlink(aside)
            raise
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """The names in it, which a sync of the files does not cover."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    os.mkdir(folder)


def rename(old: Path, new: Path) -> None:
    """Within one folder; a sync of it makes the new name last."""
    os.rename(old, new)
    sync_folder(new.parent)


def remove(path: Path, first: str = "") -> None:
    """A file, or a folder with all that is in it; `first` names the file that goes before the others. A link goes, not what it points to."""
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for inner in sorted(path.iterdir(), key=lambda one: (one.name != first, one.name)):
        remove(inner)
    os.rmdir(path)


def try_to_remove(path: Path, first: str = "") -> bool:
    """False where it, or some of it, is still there: what is left over is no reason to stop."""
    with suppress(OSError):
        remove(path, first)
        return True
    return not path.exists()


def clear_left_overs(folder: Path) -> None:
    """What write_whole and a save of checkpoints leave behind where their process was killed. Only for the one who holds the run's lock."""
    for path in (*folder.glob(".*.part"), *folder.glob(".*.tmp-*")):
        try_to_remove(path)


def free_bytes(place: Path) -> int:
    """What this user may still write where `place` is, or will be."""
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def reason(error: OSError, place: Path, needs: int) -> str:
    """Why a write failed, in words; with both sizes where the disk is full."""
    if error.errno in FULL:
        what = "disk full" if error.errno == errno.ENOSPC else "disk quota used up"
        return f"{what}: needs {size(needs)}, {size(free_bytes(place))} are free"
    return (error.strerror or str(error)).lower()


@contextmanager
def told(place: Path, needs: int = 0, hint: str = MAKE_ROOM) -> Iterator[None]:
    """What fails inside is told as the machine's, with the place. Raises MachineError."""
    try:
        yield
    except HalfbyteError:
        raise
    except Exception as error:
        seen = error if isinstance(error, OSError) else _in_words(error)
        if seen is None:
            raise
        raise MachineError(f"{place}: cannot be written: {reason(seen, place.parent, needs)}", hint=hint) from error


def is_full(error: Exception) -> bool:
    """The disk, or this user's share of it."""
    seen = error if isinstance(error, OSError) else _in_words(error)
    return seen is not None and seen.errno in FULL


def _in_words(error: Exception) -> OSError | None:
    """safetensors and tokenizers say it in their text alone: "I/O error: No space left on device (os error 28)"."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def check_room(folder: Path, needs: int, what: str) -> None:
    """Before the work begins: a file can be written, synced, renamed and removed in `folder`, and `needs` bytes are free. Raises MachineError."""
    probe = folder / f".probe.{secrets.token_hex(4)}.part"
    with told(folder, hint="choose another folder with --runs"):
        try:
            write_new(probe, b"halfbyte\n")
            renamed = probe.with_name(f".probed.{secrets.token_hex(4)}.part")
            rename(probe, renamed)
            os.unlink(renamed)
        except OSError:
            try_to_remove(probe)
            raise
    free = free_bytes(folder)
    if free < needs:
        seen = f"{folder}: disk full: {what} need {size(needs)}, {size(free)} are free"
        raise MachineError(seen, hint=f"make room for {size(needs - free)} more, or choose another folder with --runs")
