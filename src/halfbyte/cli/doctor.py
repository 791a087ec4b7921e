"""`halfbyte doctor`: what is wrong with this machine, with a recipe, or with somebody's training script. The last needs no torch."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from halfbyte.cli.screen import Screen, print_json, printable
from halfbyte.errors import DataError, MachineError, ModelError, RecipeError

VERDICTS = {"ok": "green", "note": "yellow", "problem": "bold red"}
LEVELS = {"fault": "bold red", "note": "yellow"}
RECIPES, SCRIPTS = (".yaml", ".yml"), (".py", ".ipynb")


def doctor(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="A recipe, or scripts and notebooks; without any, the machine.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="What is unwise in a recipe.")] = None,
    notebook: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Faults of a training script or notebook (.py, .ipynb), several in order.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that would hold the run folders.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Examine this machine, with a short training whose losses are known; or a recipe, or a Trainer/TRL script or notebook, which is read and not run."""
    from halfbyte.checks.scripts import is_requirements

    scripts = [*(notebook or []), *(file for file in files or [] if file.suffix.lower() in SCRIPTS or is_requirements(file))]
    recipes = [*([recipe] if recipe else []), *(file for file in files or [] if file.suffix.lower() in RECIPES)]
    odd = [file for file in files or [] if file not in scripts and file not in recipes]
    if odd:
        raise DataError(f"{odd[0]}: is neither a recipe (.yaml) nor a script (.py, .ipynb)", hint="halfbyte audit looks at data")
    if len(recipes) > 1 or (recipes and scripts):
        raise RecipeError("one recipe, or scripts and notebooks of one project, at a time", hint="call halfbyte doctor once for each")
    screen = Screen()
    if scripts:
        _show_scripts(scripts, json, screen)
    elif recipes:
        _show_recipe(recipes[0], json, screen)
    else:
        _show_machine(runs, json, screen)


def _show_machine(runs: Path, json: bool, screen: Screen) -> None:
    from halfbyte.checks.doctor import Check
    from halfbyte.checks.doctor import doctor as examine_machine
    from halfbyte.checks.golden import STEPS

    def show(check: Check) -> None:
        verdict, name = Text(f"{check.verdict:8}", VERDICTS[check.verdict]), Text(f"{check.name:24} ", "bold")
        if screen.console.is_terminal:  # what is longer than the line goes on under its own column
            line = Table.grid()
            line.add_column(width=8)
            line.add_column(width=25)
            line.add_column(overflow="fold")
            line.add_row(verdict, name, Text(printable(check.figure)))
            screen.print(line)
        else:
            screen.print(Text.assemble(verdict, name, printable(check.figure)), highlight=False, soft_wrap=True)
        if check.mend:
            screen.print(Padding(Text(f"mend: {printable(check.mend)}"), (0, 0, 0, 8), expand=False))

    with screen.console.status("looking") as status:
        on_step = None if json else lambda step: status.update(f"golden curve: step {step} of {STEPS}")
        checks = examine_machine(None if json else show, runs, on_step=on_step)
    counted = Counter(check.verdict for check in checks)
    if json:
        print_json({"healthy": not counted["problem"], "checks": [check.as_json() for check in checks]})
    else:
        screen.print(f"\n[bold]{_many(counted['problem'], 'problem')}, {_many(counted['note'], 'note')}[/] in {len(checks)} checks", highlight=False)
    if counted["problem"]:
        raise typer.Exit(MachineError.exit_code)


def _show_scripts(scripts: list[Path], json: bool, screen: Screen) -> None:
    from halfbyte.checks.script_rules import RULES, examine_files

    findings, unread = examine_files(scripts)
    if json:
        print_json({"files": [str(file) for file in scripts], "rules": len(RULES), "findings": [one.as_json() for one in findings], "unread": unread})
        return
    for line in unread:
        screen.print(f"[yellow]not read[/] {escape(printable(line))}", highlight=False)
    _show_findings([{**one.as_json(), "where": str(one.place)} for one in findings], screen)
    counted = Counter(one.level for one in findings)
    screen.print(
        f"\n[bold]{_many(counted['fault'], 'fault')}, {_many(counted['note'], 'note')}[/] by {len(RULES)} rules. Nothing was run; what stands in the data "
        "or the settings of a library is not seen.", highlight=False,
    )  # fmt: skip


def _show_recipe(file: Path, json: bool, screen: Screen) -> None:
    from halfbyte.checks.recipes import RULES, examine_recipe
    from halfbyte.recipe.load import load_recipe_alone

    loaded = load_recipe_alone(file)
    data = loaded.recipe.data
    given = [*data.paths, *(path for path in (data.validation_path, data.test_path) if path is not None)]
    ledger, unseen = None, "the data are not here: what became of their rows is not seen"
    if all(Path(path).expanduser().exists() for path in given):
        from halfbyte import api

        try:
            with screen:
                ledger, unseen = api.prepare(loaded, None if json else screen.on_event).ledger, ""
        except (MachineError, ModelError) as error:
            unseen = f"the data were not looked at: {error.message}"
    findings = [{**one.as_json(), "where": f"{file}:{one.line}" if one.line else str(file)} for one in examine_recipe(loaded.recipe, loaded.text, ledger)]
    if json:
        print_json({"files": [str(file)], "rules": len(RULES), "findings": findings, "unread": [unseen] if unseen else []})
        return
    _show_findings([{**one, "seen": f"{one['key']}: {one['seen']}"} for one in findings], screen)
    if unseen:
        screen.print(f"\n[yellow]note[/] {escape(printable(unseen))}", highlight=False)
    counted = Counter(one["level"] for one in findings)
    screen.print(f"\n[bold]{_many(counted['fault'], 'fault')}, {_many(counted['note'], 'note')}[/] by {len(RULES)} rules", highlight=False)


def _show_findings(findings: list[dict[str, Any]], screen: Screen) -> None:
    """One block a finding; what happens and the mend are said at the first of each rule."""
    told: set[str] = set()
    for one in findings:
        screen.print(Text.assemble("\n", (one["level"], LEVELS[one["level"]]), " ", (one["rule"], "bold"), f"  {one['where']}"), highlight=False)
        if one.get("text"):
            screen.print(Padding(Text(printable(one["text"]), style="cyan"), (0, 0, 0, 4), expand=False))
        screen.print(Padding(Text(printable(one["seen"])), (0, 0, 0, 4), expand=False))
        if one["rule"] not in told:
            screen.print(Padding(Text(f"silently: {one['silently']}", style="dim"), (0, 0, 0, 4), expand=False))
            screen.print(Padding(Text(f"mend: {one['mend']}"), (0, 0, 0, 4), expand=False))
        told.add(one["rule"])


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
