"""halfbyte reproduce: a finished run once more, and whether it came out the same."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from halfbyte.cli.screen import Screen, printable
from halfbyte.errors import IntegrityError, RecipeError


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, such as runs/quickstart.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Where files are now: data.path=FILE, base=FOLDER.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare what it was made of with what is here, and train nothing.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run although inputs differ.")] = False,
    against: Annotated[Path | None, typer.Option("--against", metavar="RUN", help="Compare with this finished run instead of making one.")] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder for the new run; that of RUN when not given.")] = None,
) -> None:
    """Run again from a run's manifest (run.json) and say whether it is identical to the last digit, or the first thing that differs (exit code 5)."""
    if against is not None and (check or anyway or changes or runs):
        raise RecipeError("--against compares two runs and makes none", hint="leave the other words out")
    screen = Screen()
    if against is not None:
        from halfbyte.checks.reproduce import compare_courses

        found = compare_courses(run, against)
    else:
        from halfbyte import api

        with screen:
            found = api.reproduce(run, changes, runs, screen.on_event, screen.on_plan, f"halfbyte reproduce {run}", anyway, check)
    for one in found.place:
        screen.print(f"[yellow]not as then[/] {escape(printable(str(one)))}", highlight=False)
    for one in found.inputs:
        screen.print(f"[yellow]other input[/] {escape(printable(str(one)))}", highlight=False)
    if not found.identical:
        raise IntegrityError(found.sentence, hint=_why(found.place, found.inputs, found.memory, against is not None))
    screen.print(f"[bold green]{escape(found.sentence)}[/]", highlight=False)
    if found.second is not None:
        screen.print(f"{escape(str(found.first))} and {escape(str(found.second))}", highlight=False)


def _why(place: list, inputs: list, memory: list, two: bool) -> str:
    if inputs and two:
        return "two different runs by right; halfbyte compare says which is better"
    if inputs:
        return "another run by right: put the old inputs back to compare"
    if memory:
        return "rounding, by the memory that there was: close what else needs it and reproduce once more to compare to the digit"
    if place:
        return "computed elsewhere or with other versions, which moves last digits; put back what is named above to compare to the digit"
    return "the same inputs, versions and machine as then: on a GPU, set CUBLAS_WORKSPACE_CONFIG=:4096:8 for both runs; on a CPU please report it"
