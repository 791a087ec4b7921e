"""Slips in the words of a command, and what a machine refuses anywhere, told like any other: what and where in one line, and a hint."""

import errno
import re
from typing import Any

import typer

from halfbyte.errors import MachineError, RecipeError

# Of click, which typer brings along or imports, by its version.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


# Whatever was being opened or written: none of these is a bug of ours.
MENDS = {
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096", errno.ENFILE: "close other programs: the machine has too many files open",
    errno.ENOSPC: "free some space on that disk, or choose another place", errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EROFS: "choose a place that can be written to", errno.EIO: "the disk fails to read or write: look at it before anything else",
}  # fmt: skip


def machine_problem(error: Exception) -> MachineError | None:
    """None for what is not the machine's."""
    if not isinstance(error, OSError) or error.errno not in MENDS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return MachineError(f"{where}{error.strerror}", hint=MENDS[error.errno])


def asks_for_help(error: Any) -> bool:
    """`halfbyte` alone: not a slip."""
    return type(error).__name__ == "NoArgsIsHelpError"


def usage_problem(error: Any) -> RecipeError:
    """error: of click."""
    message = str(error.format_message()).strip().rstrip(".")
    message = message.replace("Value error, ", "")
    context = error.ctx
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    return RecipeError(re.sub(r"\s+", " ", message[0].lower() + message[1:]), hint=" ".join(["halfbyte", *names, "--help shows what it takes"]))
