"""What a memory plan looks like in the terminal, and `halfbyte plan --gpu`, which needs the base's config.json alone. Read `show_forecast` first."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from halfbyte.budget.choose import Choice
from halfbyte.budget.forecast import Forecast, Target, make_forecast, read_bytes, refuse, target_of
from halfbyte.budget.history import calibrated, recall
from halfbyte.budget.phases import host_bytes
from halfbyte.budget.rates import known_gpu
from halfbyte.budget.shape import read_shape
from halfbyte.cli.screen import print_json, printable
from halfbyte.errors import MachineError
from halfbyte.model.base import Base, check_length, find_base
from halfbyte.recipe.load import load_recipe_alone
from halfbyte.recipe.schema import Recipe
from halfbyte.runs.words import size

BAR = 24
"""Characters that stand for the whole budget."""
WIDE = 100
"""Columns of a terminal, from which on there is room between the columns of a table."""
FAST = "Fast: halfbyte's own training step. Thin keeps all but gate and up, attention the input and attention's result; away waits in the computer's memory."
NEARLY_FULL = 0.95
CLEARLY = 0.99
"""Of the time: what is hardly faster is not worth its memory."""


def plan_for_gpu(file: Path, overrides: list[str] | None, gpu: str, as_json: bool, console: Console) -> None:
    """Shows the plan of a recipe for a GPU that need not be here. Raises MachineError, with what was weighed shown, where nothing fits."""
    recipe = load_recipe_alone(file, overrides).recipe
    base = _find(recipe.base)
    check_length(recipe.data.max_length, base)
    target, notes = _target(recipe, gpu, read_shape(base.config, recipe.base).family)
    forecast = make_forecast(recipe, base.config, target)
    notes.append(f"rows are taken as full, {recipe.data.max_length:,} tokens (data.max_length): the data are not read")
    if forecast.plain_because:
        notes.append(f"not the fast path: {forecast.plain_because}")
    forecast = replace(forecast, notes=[*notes, *forecast.notes])
    if as_json:
        print_json(forecast_as_json(forecast, recipe))
    else:
        console.print(Text(f"Plan of {recipe.name} for {_called(target)}", style="bold"))
        console.print()
        show_forecast(console, forecast)
        for note in forecast.notes:
            console.print(f"[yellow]note[/] {escape(printable(note))}", highlight=False)
    if forecast.choice is None:
        raise refuse(forecast, recipe)


def _find(name: str) -> Base:
    """Of the base, its config alone is needed."""
    try:
        return find_base(name)
    except MachineError as error:  # no network
        raise MachineError(error.message, hint="a folder that holds no more than the base's config.json will do: base=FOLDER") from error


def _target(recipe: Recipe, gpu: str, family: str) -> tuple[Target, list[str]]:
    """The GPU asked for, as far as the recipe lets it be used, with what was measured on one here."""
    target, notes = target_of(gpu), []
    if recipe.memory_budget is not None and (budget := read_bytes(recipe.memory_budget)) < target.budget_bytes:
        target = replace(target, budget_bytes=budget)
        notes.append(f"memory_budget {recipe.memory_budget} of the recipe is what may be used")
    if known_gpu(gpu) is not None:
        history = recall(target.name)
        return calibrated(target, history, family), [*notes, *history.notes]
    return target, notes


def forecast_as_json(forecast: Forecast, recipe: Recipe) -> dict[str, Any]:
    """For programs: bytes and seconds."""
    choice, change = forecast.choice, forecast.change
    return {
        **forecast.as_json(),
        "recipe": recipe.name,
        "base": recipe.base,
        "fits": choice is not None,
        "predicted_bytes": forecast.predicted_bytes,
        "predicted_step_seconds": choice.step_seconds if choice else None,
        "reason": reason_of(forecast),
        "evaluate_rows": forecast.evaluate_rows if choice else None,
        "host_bytes": sum(host_bytes(choice.work).values()) + choice.host_bytes if choice else None,
        "plain_because": forecast.plain_because,
        "change": {"keys": change.keys, "peak_bytes": change.peak_bytes, "step_seconds": change.step_seconds} if change else None,
        "notes": forecast.notes,
    }


def show_forecast(console: Console, forecast: Forecast) -> None:
    """What was weighed, why one was chosen, what each phase takes of the budget, and what the figures rest on."""
    console.print(_weighed(forecast, console.width))
    if forecast.choice is not None:
        console.print()
        console.print(Text(f"Chosen: {reason_of(forecast)}.", style="bold"))
        console.print()
        console.print(_phases(forecast, forecast.choice, console))
    console.print()
    for line in _rests_on(forecast):
        console.print(Text(printable(line), style="dim"))


def _weighed(forecast: Forecast, width: int) -> Table:
    """Most rows at a time first, then the fastest first."""
    target, some = forecast.target, forecast.considered[0]
    rows = some.way.rows * some.accumulation
    table = Table(
        title=f"Ways to compute a step of {rows} row{'s' * (rows != 1)} of {some.work.tokens:,} tokens", title_justify="left", title_style="bold", box=None,
        padding=(0, 2 if width >= WIDE else 1, 0, 0),
    )  # fmt: skip
    for name, side in (("rows", "left"), ("activations", "left"), ("weights", "left"), ("GB", "right"), ("s a step", "right"), ("tokens/s", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=name in ("rows", "GB", "s a step", "tokens/s"))
    table.add_column("")
    decimals = 1 if min(one.step_seconds for one in forecast.considered) >= 10 else 2
    for choice in sorted(forecast.considered, key=lambda one: (-one.way.rows, one.step_seconds, one.peak_bytes)):
        chosen = choice == forecast.choice
        over = round(choice.peak_bytes / 1e9, 1) - round(target.budget_bytes / 1e9, 1)  # of what is shown
        verdict = "chosen" if chosen else "fits" if choice.fits else f"{max(0.1, over):,.1f} GB over"
        table.add_row(
            f"{choice.way.rows} x {choice.accumulation}", _activations(choice), _weights(choice), _gb(choice.peak_bytes),
            f"{choice.step_seconds:,.{decimals}f}", f"{choice.tokens_per_second:,.0f}", verdict,
            style="bold green" if chosen else "" if choice.fits else "dim",
        )  # fmt: skip
    return table


def _activations(choice: Choice) -> str:
    if choice.path == "fast":
        kinds = Counter(f"{layer.activations}{' away' * layer.parked}" for layer in choice.work.layers)
        return "fast, " + ", ".join(f"{count} {kind}" if len(kinds) > 1 else kind for kind, count in kinds.items())
    way, layers = choice.way, choice.work.shape.layers
    if way.kept == layers:
        return "kept"
    become = "inputs away" if way.inputs_away else "recomputed"
    return f"{layers - way.kept} of {layers} {become}" if way.kept else become


def _weights(choice: Choice) -> str:
    way, layers = choice.way, choice.work.shape.layers
    at_home = "4 bits" if choice.work.four_bit else "16 bits"
    sixteen = sum(layer.weights == "16bit" for layer in choice.work.layers) if choice.path == "fast" else way.sixteen
    moved = [
        f"{'all' if number == layers else number} {where}" for number, where in ((way.away, "away"), (sixteen, f"in {8 if choice.fp8 else 16} bits")) if number
    ]
    return ", ".join(moved) or at_home


def reason_of(forecast: Forecast) -> str:
    """Why this way: what else fits, and what the next faster one would need. Empty where nothing was chosen."""
    chosen = forecast.choice
    if chosen is None:
        return ""
    others = [one for one in forecast.considered if one.fits and one != chosen]
    said = f"{chosen.way.rows} x {chosen.accumulation} rows, {chosen.told()}; "
    said += f"the fastest of the {len(others) + 1} that fit" if others else "nothing else fits"
    faster = [one for one in forecast.considered if not one.fits and one.step_seconds < CLEARLY * chosen.step_seconds]
    if not faster:
        return f"{said}, and nothing larger is clearly faster" if len(forecast.considered) > 1 else said
    leanest = min(faster, key=lambda one: one.peak_bytes)
    times = leanest.step_seconds / chosen.step_seconds
    return f"{said}. The next faster one needs {_gb(leanest.peak_bytes, up=True)} GB and takes {100 * times:.0f} % of the time"


def _phases(forecast: Forecast, choice: Choice, console: Console) -> Table:
    """A bar for each, as long as its share of the budget; plain characters where there is no terminal."""
    target = forecast.target
    table = Table(
        title=f"Peak of each phase, of {_gb(target.budget_bytes)} GB", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0),
        show_header=False,
    )  # fmt: skip
    table.add_column("phase", no_wrap=True)
    table.add_column("bar", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("told", style="dim")
    for phase in forecast.phases:
        share = phase.peak_bytes / target.budget_bytes
        style = "red" if share > 1 else "yellow" if share > NEARLY_FULL else "green"
        over = f"{_gb(phase.peak_bytes - target.budget_bytes, up=True)} GB over; " if share > 1 else ""
        told = phase.told.removesuffix(f", {choice.told()}")  # stands above
        table.add_row(phase.name, Text(_bar(share, console.is_terminal), style=style), f"{_gb(phase.peak_bytes)} GB", f"{over}{told}")
    return table


def _bar(share: float, drawn: bool) -> str:
    full = min(BAR, round(share * BAR))
    return ("\u2588" * full + "\u2591" * (BAR - full)) if drawn else ("#" * full + "." * (BAR - full))


def _rests_on(forecast: Forecast) -> list[str]:
    """Where the figures come from, and what the plan takes beside the GPU's memory."""
    target = forecast.target
    times = f"{target.rates_from}, not measured on one" if target.rates_from.startswith("datasheet") else target.rates_from
    lines = [f"Times: {times}.", f"Memory: of the whole GPU; {_gb(target.driver_bytes)} GB of it are the driver's."]
    if forecast.choice is not None and (host := {name: taken for name, taken in host_bytes(forecast.choice.work).items() if taken}):
        parts = ", ".join(f"{name} {size(taken)}" for name, taken in host.items())
        lines.append(f"Computer's memory: {size(sum(host.values()))} ({parts}).")
    if forecast.choice is not None and forecast.choice.host_bytes:
        lines.append(f"Computer's memory: {size(forecast.choice.host_bytes)} for what is away.")
    if any(one.path == "fast" for one in forecast.considered):
        lines.append(FAST)
    if any(one.way.inputs_away for one in forecast.considered):
        lines.append("Inputs away: recomputed, from inputs that wait in the computer's memory.")
    if any(one.way.away for one in forecast.considered):
        lines.append("Weights away: in the computer's memory, copied when their layer is computed.")
    return lines


def _called(target: Target) -> str:
    memory = f"{_gb(target.budget_bytes)} GB"
    return memory if known_gpu(target.name) is None else f"{target.name}, {memory}"


def _gb(taken: float, up: bool = False) -> str:
    """With one decimal; rounded up where less would not do."""
    tenths = taken / 1e8
    return f"{(-(-tenths // 1) if up else round(tenths)) / 10:,.1f}"
