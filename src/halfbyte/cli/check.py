"""`halfbyte check`: what is proven of a set-up before it is trained, a line for each proof. What they find comes from halfbyte.checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from halfbyte.cli.screen import Screen, called, print_json, printable

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); `halfbyte new FILE` writes one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as train.num_epochs=2.")]
SIGNS = {True: ("proven", "green"), False: ("not proven", "bold red"), None: ("not looked at", "yellow")}


def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also build base and adapter twice more, ask a fresh process, and look at every row.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proofs as JSON.")] = False,
) -> None:
    """Prove that what a recipe would train computes what it says: labels, masks, gradients, padding, saving. Trains nothing; exit code 5 if a proof fails."""
    from halfbyte.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    from halfbyte import api

    with Screen() as screen:
        if not json:
            api.check(loaded, listener_of(screen), deep)
            screen.print(f"Next: {escape(called())} train {escape(str(recipe))}", highlight=False)
            return
        proofs: list[dict[str, Any]] = []
        try:
            api.check(loaded, lambda event: proofs.append(event) if event["event"] == "proof" else None, deep)
        finally:  # of a set-up that is refused too
            print_json([{key: value for key, value in proof.items() if key != "event"} for proof in proofs])


def listener_of(screen: Screen) -> Callable[[dict[str, Any]], None]:
    unseen: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "proof":
            show_proof(screen, event)
            unseen.extend([event["name"]] * (event["passed"] is None))
        elif event["event"] == "proofs":
            rest = f"; not looked at: {', '.join(unseen)}" if unseen else ""
            screen.print(f"\n[bold]{event['passed']} proven[/] in {event['seconds']:.1f} s{escape(rest)}", highlight=False)
        else:
            screen.on_event(event)

    return on_event


def show_proof(screen: Screen, proof: dict[str, Any]) -> None:
    sign, style = SIGNS[proof["passed"]]
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=13)
    line.add_column(width=16)
    line.add_column(overflow="fold")
    line.add_row(Text(sign, style), Text(proof["name"], "bold"), Text(printable(proof["told"]), "" if proof["passed"] else style))
    if proof["passed"] is False:
        line.add_row("", "likely", Text(printable(proof["likely"])))
        line.add_row("", "mend", Text(printable(proof["hint"])))
    screen.print(line)
