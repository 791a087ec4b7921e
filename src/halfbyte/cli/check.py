"""`halfbyte check`: what is proven of a set-up before it is trained, a line for each proof. What they find comes from halfbyte.checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from halfbyte.cli.screen import Screen, print_json, printable

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); `halfbyte new FILE` writes one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as train.num_epochs=2.")]
SIGNS = {True: ("proven", "green"), False: ("not proven", "bold red"), None: ("not here", "yellow")}


def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also build base and adapter twice more, ask a fresh process, and look at every row.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proofs as JSON.")] = False,
) -> None:
    """Load what a recipe would train and prove that it computes what it says: labels, masks, gradients, padding, saving. Trains nothing; exit code 5 where a proof fails."""
    from halfbyte.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    from halfbyte import api

    with Screen() as screen:
        if json:
            proofs = api.check(loaded, deep=deep)
            print_json([proof.as_json() for proof in proofs])
        else:
            api.check(loaded, listener_of(screen), deep)


def listener_of(screen: Screen) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "proof":
            show_proof(screen, event)
        elif event["event"] == "proofs":
            screen.print(f"{event['passed']} proven in {event['seconds']:.1f} s", highlight=False)
        else:
            screen.on_event(event)

    return on_event


def show_proof(screen: Screen, proof: dict[str, Any]) -> None:
    sign, style = SIGNS[proof["passed"]]
    line = Text(f"{sign:10}  ", style).append(f"{proof['name']:17}", "bold").append(f" {printable(proof['told'])}", "" if proof["passed"] else style)
    screen.print(line)
    if proof["passed"] is False:
        screen.print(Padding(Text(f"likely: {printable(proof['likely'])}"), (0, 0, 0, 30)))
        screen.print(Padding(f"mend:   {escape(printable(proof['hint']))}", (0, 0, 0, 30)), highlight=False)
