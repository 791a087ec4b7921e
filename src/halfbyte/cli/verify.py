"""halfbyte verify-resume: proves on this machine that a run which is cut and gone on with is the run that was left alone."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.cli.screen import Screen, table_of
from halfbyte.errors import IntegrityError

SAMPLES = Path(__file__).parent.parent / "samples"


def verify_resume(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe file (YAML); that of the quickstart when not given.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as train.batch_size=2.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="So many steps are trained twice, and cut behind each.")] = 6,
) -> None:
    """Prove that a resumed run is the same run: the first steps of a recipe left alone and cut behind each, compared to the last digit. Leaves nothing."""
    # Read when cuBLAS is first used: without it its sums need not repeat.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from halfbyte.recipe.load import load_recipe

    given = [*(overrides or []), *([] if recipe else [f"data.path={SAMPLES / 'gothic_tale.txt'}"])]
    loaded = load_recipe(recipe or SAMPLES / "quickstart.yaml", given)
    from halfbyte import api

    screen = Screen()

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            screen.print(f"[dim]{'cut' if event['cut'] else 'left alone'}: step {event['step']} of {steps}, loss {event['loss']:.6f}[/]", highlight=False)

    proof = api.verify_resume(loaded, steps, tell)
    table = table_of("Left alone, and cut behind every step")
    for column in ("step", "rows", "learning rate", "loss", ""):
        table.add_column(column, overflow="fold")
    for one in proof.steps:
        losses = dict.fromkeys(str(event.get("loss")) for event in (one.alone, one.cut))
        said = "[green]same[/]" if not one.differs else f"[red]other {', '.join(one.differs)}[/]"
        table.add_row(str(one.step), str(one.alone.get("rows"))[:8], str(one.alone.get("learning_rate")), "\nwhen cut ".join(losses), said)
    screen.print(table)
    screen.print(f"last adapter: {proof.adapters[0][:16]} left alone, {proof.adapters[1][:16]} when cut", highlight=False)
    if not proof.identical:
        restless = "this machine does not repeat itself: a kernel that sums in any order, or a chip that errs"
        raise IntegrityError(proof.sentence, hint=restless if proof.repeats is False else "please report it with the table above")
    screen.print(f"[bold green]{proof.sentence}[/]", highlight=False)
