"""Slips in the words of a command, told like any other: what and where in one line, and a hint."""

import re
from typing import Any

import typer

from halfbyte.errors import RecipeError

# Of click, which typer brings along or imports, by its version.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


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
