"""The commands that judge finished runs: compare, rate, gate, and evaluate with tasks of the harness. What they find comes from halfbyte.evaluate."""

import json as json_text
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from halfbyte.cli.screen import Screen, called, printable
from halfbyte.errors import DataError, MachineError, PromiseError, RecipeError
from halfbyte.runs.words import chance, figure, interval

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]
KEYS: dict[str, Literal["a", "b", "tie", "skip", "quit"]] = {"a": "a", "b": "b", "=": "tie", "s": "skip", "q": "quit"}
LEGEND = "a or b: that answer is better   =: equally good   s: skip   q: leave, votes are kept"


class Wanted(StrEnum):
    """What the verdict has to be at least."""

    better = "better"
    no_evidence = "no evidence"


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="The run to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="The run in question.")],
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison here too; must not exist.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws behind the intervals.")] = 0,
) -> None:
    """Compare the tuned models of two runs on the test rows that they share: intervals, p and a verdict for each figure that both have."""
    _check_free(json, "--json")
    from halfbyte.evaluate.compare import compare_runs

    versus = compare_runs(first, second, seed)
    screen = Screen()
    screen.print(Text(printable(versus.sentence), style="bold"))
    screen.print()
    screen.print(_table_of([{"group": group, **one.as_json()} for group, one in versus.compared], first.name, second.name))
    for note in versus.notes:
        screen.print(f"[yellow]note[/] {escape(printable(note))}", highlight=False)
    if json is not None:
        _write(json, json_text.dumps(versus.as_json(), indent=1, ensure_ascii=False) + "\n", "--json")
        screen.print(f"Written to [bold]{escape(str(json))}[/]")


def rate(
    run: RunPath,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the pairs as a page to vote on in a browser; must not exist.")] = None,
    votes: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the votes that such a page saved.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order and of what is A and B.")] = 0,
) -> None:
    """Judge pairs of answers, base and tuned, without knowing which is which; a sign test of the votes goes into the report. From a pipe: one vote a line."""
    if page is not None and votes is not None:
        raise RecipeError("give --page or --votes, and not both", hint="--page first; --votes reads what the page saved")
    from halfbyte.evaluate.rate import rate as rate_run
    from halfbyte.evaluate.rate import take_votes

    screen = Screen()
    if page is not None:
        _write_page(run, page, seed, screen)
        return
    if votes is not None:
        rating, taken, before = take_votes(run, votes)
        kept = f"; {before} pairs had a vote before, which stays" if before else ""
        screen.print(f"{taken} votes taken from {escape(str(votes))}{kept}", highlight=False)
    else:
        rating = rate_run(run, _asker(screen), seed)
    screen.print(Text(rating.sentence, style="bold"))
    screen.print(f"Votes: {escape(str(run / 'evaluation' / 'votes.jsonl'))}; a vote once given stays. {called()} rate goes on with the rest.", highlight=False)


def gate(
    run: RunPath,
    min_gain: Annotated[str | None, typer.Option(metavar="SHARE", help="Least gain over the base, such as 5%; evaluate.min_gain when not given.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Which figure; the first of the report when not given.")] = None,
    max_forgetting: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Largest rise of perplexity on neutral text; evaluate.max_forgetting when not given.")
    ] = None,
    verdict: Annotated[Wanted | None, typer.Option(help="What the verdict must be at least; better, where nothing else is promised.")] = None,
) -> None:
    """Leave with 0 where the run keeps what was promised, with 6 where it does not: for scripts and CI. A line for each promise."""
    from halfbyte.evaluate.gate import check_promises, promised

    asked = [_share(text, option) for text, option in ((min_gain, "--min-gain"), (max_forgetting, "--max-forgetting"))]
    least, most = (given if given is not None else kept for given, kept in zip(asked, promised(run), strict=True))
    promises = check_promises(run, least, metric, most, verdict.value if verdict else None)
    lines = "\n".join(promise.line for promise in promises)
    if not all(promise.kept for promise in promises):
        raise PromiseError(lines, hint=f"{run / 'report.html'} has the figures")
    typer.echo(printable(lines))


def evaluate_tasks(run: Path, tasks: str, include: Path | None = None, limit: int | None = None, batch_size: int = 8) -> None:
    """`halfbyte evaluate RUN --tasks a,b`: base and tuned through lm-eval."""
    from halfbyte.evaluate.harness import check_installed, keep_result, run_tasks
    from halfbyte.runs.folder import open_run

    check_installed()
    from halfbyte import api

    screen = Screen()
    tuned = api.open_tuned(run, fast_cpu=False)
    opened = open_run(run)
    with opened.locked():
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        result = run_tasks(tuned.model, tuned.tokenizer, names, include=include, limit=limit, batch_size=batch_size, context=tuned.context, dtype=tuned.dtype)
        file = keep_result(opened, result)
    if result.compared:
        screen.print(_table_of([{"group": task, **one.as_json()} for task, one in result.compared], "base", "tuned"))
    for task, figures in result.results["tuned"].items():
        if task not in {name for name, _ in result.compared}:
            screen.print(f"{escape(task)}: {escape(str(figures))} (its rows give no comparison)", highlight=False)
    screen.print(f"Kept in [bold]{escape(str(file))}[/]")


def _table_of(comparisons: list[dict[str, Any]], first: str, second: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("on", "figure", first, second, "difference", "95 % interval", "chance", "verdict"):
        table.add_column(escape(column), justify="left" if column in ("on", "figure", "verdict") else "right", overflow="fold")
    for one in comparisons:
        ends = interval(one["interval"])
        within = f"{figure(ends[0])} to {figure(ends[1])}" if ends else "too few rows"
        figures = [figure(one[name]) for name in ("base", "tuned", "difference")]
        style = {"better": "green", "worse": "red"}.get(one["verdict"], "")
        name = f"{one['metric']} ({'higher' if one['higher_is_better'] else 'lower'} is better)"
        table.add_row(escape(one["group"]), escape(name), *figures, within, chance(one["p_value"]), Text(one["verdict"], style))
    return table


def _asker(screen: Screen) -> Callable[[Any, int, int], Any]:
    """Shows a pair and reads a key; from a pipe a line that is no key is refused, since nobody is there to be asked again."""
    person = sys.stdin.isatty()
    line = 0

    def ask(pair: Any, place: int, of: int) -> str:
        nonlocal line
        if place == 1:
            screen.print("Which answer is better? One is the base's, one the tuned model's, drawn anew for each pair.", style="dim")
            screen.print(LEGEND, style="dim", highlight=False)
        screen.print(f"\n[dim]{place} of {of}[/]", highlight=False)
        screen.print(Text(printable(pair.prompt), style="bold"))
        for letter, side in (("A", pair.a), ("B", pair.b)):
            screen.print(Text(letter, style="dim"))
            screen.print(Padding(Text(printable(pair.answers[side]).strip() or "(empty)"), (0, 0, 0, 4), expand=False))
        while True:
            try:
                said = input("> " if person else "").strip().lower()
            except (EOFError, KeyboardInterrupt):
                return "quit"
            line += 1
            if said in KEYS:
                return KEYS[said]
            if not person:
                raise DataError(f"line {line}: {said!r} is no vote", hint="write a, b, =, s or q, one a line; the votes before it are kept")
            screen.print(LEGEND, style="dim", highlight=False)

    return ask


def _write_page(run: Path, file: Path, seed: int, screen: Screen) -> None:
    _check_free(file, "--page")
    from halfbyte.evaluate.rate import open_ballot
    from halfbyte.evaluate.rating_page import page
    from halfbyte.evaluate.runs import open_evaluated

    ballot = open_ballot(open_evaluated(run), seed)
    if not ballot.open_pairs:
        raise DataError(f"{run}: all {len(ballot.pairs)} pairs are voted on", hint=f"{called()} rate {run} shows the rating")
    _write(file, page(run.resolve().name, ballot.adapter, seed, ballot.open_pairs), "--page")
    screen.print(f"Written to [bold]{escape(str(file))}[/]: {len(ballot.open_pairs)} pairs", highlight=False)
    screen.print(f"Next: open it, vote, save, then {called()} rate {escape(str(run))} --votes FILE", highlight=False)


def _share(text: str | None, option: str) -> float | None:
    """5% or 0.05 -> 0.05. A bare 5 could be either, and is refused."""
    if text is None:
        return None
    percent = text.strip().endswith("%")
    try:
        share = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf") or (share > 1 and not percent):
        raise RecipeError(f"{option}: {text!r} is no share", hint="write it as 5% or as 0.05")
    return share


def _check_free(file: Path | None, option: str) -> None:
    if file is not None and file.exists():
        raise DataError(f"{file} exists and is left as it is", hint=f"choose another name with {option}")


def _write(file: Path, text: str, option: str) -> None:
    try:
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise MachineError(f"{file}: cannot be written: {error.strerror}", hint=f"choose another place with {option}") from error
