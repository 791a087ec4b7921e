"""What a run shows in the terminal: plan, progress, result. Everything comes from the plan and the events."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from halfbyte.errors import Interrupted
from halfbyte.runs.folder import read_report

Event = dict[str, Any]
# Without a terminal (a log file, CI) the bar is replaced by a line every tenth of the run.
LINES_PER_RUN = 10


def error_console() -> Console:
    return Console(stderr=True, soft_wrap=True)


class Screen:
    """Shows one run. `on_plan` and `on_event` are handed to the API."""

    def __init__(self) -> None:
        self.console = Console(soft_wrap=False)
        self.print = self.console.print
        self.progress: Progress | None = None
        self.bar: TaskID | None = None
        self.total = 0
        self.folder: Path | None = None
        self.validation: float | None = None

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._close_bar()
        if isinstance(error, Interrupted) and self.folder:
            error.hint = error.hint or f"go on with: {called()} train --resume {self.folder}"

    def on_plan(self, planned: Any, run: Any) -> None:
        self.total, self.folder = planned.plan.total_steps, run.path
        self.show_plan(planned)
        self.print(f"Run folder: [bold]{escape(str(run.path))}[/]\n")

    def show_plan(self, planned: Any) -> None:
        table = Table(title=f"Plan of {planned.recipe.name}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column, style in (("", "bold"), ("decided", ""), ("because", "dim")):
            table.add_column(column, style=style, overflow="fold")
        for decision in planned.plan.decisions:
            table.add_row(decision.name, escape(printable(decision.value)), escape(printable(decision.reason)))
        self.print(table)
        for note in planned.plan.notes:
            self.print(f"[yellow]note[/] {escape(printable(note))}", highlight=False)
        ledger = planned.prepared.ledger
        left = sum(item["count"] for item in ledger["left_out"])
        rows = f"{ledger['train_rows']} to train, {ledger['validation_rows']} to validate, {ledger['test_rows']} to test"
        why = "; ".join(f"{item['count']} {item['reason']}" for item in ledger["left_out"])
        self.print(f"{ledger['records_read']} records read, {left} left out{f' ({why})' if why else ''}; rows of tokens: {rows}")

    def on_event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "model":
            trained = event["trainable"] / event["parameters"]
            self.print(
                f"{event['parameters'] / 1e6:,.1f} M parameters, {event['share_4bit']:.0%} of the decoder's projections in 4 bits, "
                f"{event['weight_bytes'] / 1e6:,.1f} MB; {event['trainable'] / 1e6:,.2f} M ({trained:.1%}) are trained"
            )
        elif kind == "step":
            self._step(event)
        elif kind == "validation":
            self.validation = event["loss"]
        elif kind in ("skipped", "note", "resume"):
            where = f" step {event['step']}" if "step" in event else ""
            self.print(f"[yellow]{kind}[/]{where} {escape(printable(event.get('reason') or event.get('message') or ''))}", highlight=False)
        elif kind == "measuring":
            self._close_bar()
            self.print("measuring base against tuned on the held-out rows ...")

    def show_result(self, folder: Path) -> None:
        result = read_report(folder)
        perplexity = result["perplexity"]
        if perplexity and perplexity.get("base") and perplexity.get("tuned"):
            change = perplexity["tuned"] / perplexity["base"] - 1
            table = Table(title="Base against tuned", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
            for column in ("", "base", "tuned", "change"):
                table.add_column(column, justify="right" if column else "left")
            table.add_row("perplexity", f"{perplexity['base']:.2f}", f"{perplexity['tuned']:.2f}", f"{change:+.1%}")
            self.print(table)
            self.print(f"on {perplexity['tokens']:,} held-out tokens that were never trained on")
            self._tell_training(result["training"])
        else:
            self.print("No held-out rows: nothing tells whether this helped. Raise data.test_share.", style="yellow")
        for shown in result["generations"][:1]:
            self.print()
            for what, style in (("prompt", "bold"), ("base", "dim"), ("tuned", "green")):
                self.print(f"[{style}]{what:6}[/] {escape(_short(shown[what]))}", highlight=False)
        self.print(f"\nReport: [bold]{escape(str(folder / 'report.html'))}[/]")
        self.print(f"Next:   {escape(called())} chat {escape(str(folder))}", highlight=False)
        self.print(f"        {escape(called())} new YOUR_FILE.csv        (writes a recipe for your own data)", highlight=False)

    def _tell_training(self, training: dict[str, Any]) -> None:
        steps, best = training["steps"], training["best_step"]
        took = f"{steps} steps in {training['seconds']:.0f} s" if training["seconds"] else f"{steps} steps"
        if best is not None and steps and best < steps:
            took += f"; the adapter is that of step {best}, the best by validation loss: more steps did not help"
        self.print(took, highlight=False)

    def _step(self, event: Event) -> None:
        rate = event["tokens_per_second"]
        validation = f"  validation {self.validation:.3f}" if self.validation is not None else ""
        if not sys.stdout.isatty():
            if event["step"] % max(1, self.total // LINES_PER_RUN) == 0 or event["step"] == self.total:
                self.print(f"step {event['step']}/{self.total}  loss {event['loss']:.4f}{validation}  {rate:,.0f} tokens/s", highlight=False)
            return
        if self.progress is None or self.bar is None:
            self.progress = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn(), console=self.console
            )
            self.progress.start()
            self.bar = self.progress.add_task("training", total=self.total, completed=event["step"] - 1, shown="")
        self.progress.update(self.bar, completed=event["step"], shown=f"loss {event['loss']:.3f}{validation}  {rate:,.0f} tokens/s  left")

    def _close_bar(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = self.bar = None


def print_keys() -> None:
    """Every key with its default and its sentence, from the schema itself."""
    from halfbyte.recipe.explain import every_key

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "default", "what it does"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for key, default, sentence in every_key():
        table.add_row(escape(key), escape(default), escape(sentence))
    Console().print(table)


def printable(text: str) -> str:
    """Data and model output may hold control characters that would move the cursor or retitle the terminal; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def called() -> str:
    """How to call halfbyte from here: its path where it is not among the commands of the shell, as after `make quickstart`."""
    program = Path(sys.argv[0])
    if shutil.which("halfbyte") or program.name != "halfbyte":
        return "halfbyte"
    return os.path.relpath(program)


def _short(text: str, limit: int = 240) -> str:
    line = printable(text).replace("\n", " ")
    return line if len(line) <= limit else line[:limit] + " ..."
