"""What a run shows in the terminal: plan, progress, result. Everything comes from the plan and the events."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from halfbyte.errors import Interrupted
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import read_report
from halfbyte.runs.foreseen import told_of_memory, told_of_time
from halfbyte.runs.words import figure

Event = dict[str, Any]
# Without a terminal (a log file, CI) the bar is replaced by a line every tenth of the run.
LINES_PER_RUN = 10
SECONDS_BETWEEN_WORDS = 10
# Columns of a terminal; in fewer the time that is left would be cut off.
ROOM_FOR_SPEED = 100
# Two shades a kind of token, for a dark terminal and a light one.
SHADES = {"trained": ("black on green3", "black on pale_green3"), "context": ("", "dim"), "padding": ("black on orange3",) * 2, "role": ("bold cyan",) * 2}
VERDICT_STYLES = {"better": "green", "worse": "red"}
# Of a terminal with 16 colours, which would show a pale green as white.
FEW_SHADES = {"trained": ("black on green", "black on bright_green")}


def error_console() -> Console:
    return Console(stderr=True, soft_wrap=True)


class Screen:
    """Shows one run. `on_plan` and `on_event` are handed to the API."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=False)
        self.print = self.console.print
        self.progress: Progress | None = None
        self.bar: TaskID | None = None
        self.total = 0
        self.folder: Path | None = None
        self.validation = ""
        self.status: Status | None = None
        self.told = 0.0
        self.closed: list[str] = []

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._close_bar()
        if isinstance(error, Interrupted) and self.folder:
            error.hint = error.hint or f"go on with: {called()} train --resume {self.folder}"

    def on_plan(self, planned: Any, run: Any) -> None:
        self._close_bar()
        self.total, self.folder = planned.plan.total_steps, run.path
        self._keep_closed()
        self.show_plan(planned)
        self.print(f"Run folder: [bold]{escape(str(run.path))}[/]\n")

    def on_closed(self, why: str) -> None:
        """Nobody reads what is shown any more: the log of the run says why."""
        self.closed.append(why)
        self._keep_closed()

    def _keep_closed(self) -> None:
        while self.folder is not None and self.closed:
            EventLog(self.folder / "events.jsonl").append({"event": "note", "message": self.closed.pop()})

    def show_plan(self, planned: Any, weighed: bool = False) -> None:
        """`weighed`: with every way of computing a step that memory and time chose among."""
        self._show_decisions(f"Plan of {planned.recipe.name}", planned.plan.decisions, planned.plan.notes)
        if weighed and planned.forecast is not None:
            from halfbyte.cli.plans import show_forecast

            self.print()
            show_forecast(self.console, planned.forecast)
        self.show_ledger(planned.prepared.ledger)

    def show_prepared(self, prepared: Any) -> None:
        self._close_bar()
        self._show_decisions("Prepared", prepared.decisions, prepared.notes)
        self.show_ledger(prepared.ledger)
        if prepared.ledger["truncation"]:
            self._show_bill(prepared.ledger["truncation"], any(one["reason"].startswith("the answer does not fit") for one in prepared.ledger["left_out"]))
        self.print(f"Kept in {escape(str(prepared.folder))}, found again by the next train", highlight=False)

    def _show_decisions(self, title: str, decisions: list[Any], notes: list[str]) -> None:
        table = table_of(title)
        for column, style in (("", "bold"), ("decided", ""), ("because", "dim")):
            table.add_column(column, style=style, overflow="fold")
        for decision in decisions:
            table.add_row(decision.name, escape(printable(decision.value)), escape(printable(decision.reason)))
        self.print(table)
        for note in notes:
            self.print(f"[yellow]note[/] {escape(printable(note))}", highlight=False)

    def _show_bill(self, bill: dict[str, Any], left_out: bool) -> None:
        """The truncation bill. `left_out`: answers did not fit, the longest of which may not be counted."""
        self.print()
        table = table_of(f"Share of {bill['answer_tokens']:,} answer tokens kept, by max_length")
        for column in ("max_length", *bill["kept"]):
            table.add_column(column, justify="left" if column == "max_length" else "right")
        table.add_row("here: the prompt gives way", *(f"{share:.1%}" for share in bill["kept"].values()))
        table.add_row("cut at the end, as is usual", *(f"{share:.1%}" for share in bill["cut_at_end"].values()))
        self.print(table)
        if left_out:
            self.print("answers of more than a megabyte are not counted here", style="dim")
        self.print(f"longest row {bill['longest_row']:,} tokens; max_length {bill['length_for_99_percent']:,} keeps 99 % of the rows whole\n", highlight=False)

    def show_ledger(self, ledger: dict[str, Any]) -> None:
        """Every row that was read, in one bin each."""
        self.print()
        table = table_of(f"{ledger['records_read']:,} rows read")
        table.add_column("bin")
        table.add_column("rows", justify="right")
        for name, count in ledger["bins"].items():
            table.add_row(name, f"{count:,}")
        for item in ledger["left_out"]:
            table.add_row(f"[yellow]left out[/] {escape(printable(item['reason']))}", f"{item['count']:,}")
        self.print(table)
        rows = f"{ledger['train_rows']:,} to train, {ledger['validation_rows']:,} to validate, {ledger['test_rows']:,} to test"
        copies = f", {ledger['augmented']:,} of them changed copies" if ledger["augmented"] else ""
        self.print(f"rows of tokens: {rows}{copies}", highlight=False)

    def show_audit(self, audit: Any, name: str) -> None:
        self._close_bar()
        if audit.decisions or audit.notes:
            self._show_decisions("Read as", audit.decisions, audit.notes)
            self.print()
        read = f" of {audit.records + audit.left_out:,} rows read" if audit.left_out else ""
        nothing = "" if audit.findings else ", nothing found"
        self.print(f"[bold]{escape(_on_one_line(name))}[/]: {audit.records:,} record{'s' * (audit.records != 1)}{read}{nothing}", highlight=False)
        for finding in audit.findings:
            level = "[red]warning[/]" if finding.level == "warning" else "[yellow]note[/]"
            self.print(f"\n{level} [bold]{escape(_on_one_line(finding.name))}[/]: {finding.count:,} of {finding.of:,}", highlight=False)
            for sample in finding.samples:
                said = sample.replace(f"{name}:", "line ", 1) if sample.startswith(f"{name}:") else sample
                self.print(Padding(Text(_on_one_line(said), style="dim"), (0, 0, 0, 4)))
            self.print(Padding(Text(finding.advice), (0, 0, 0, 4)))
        self.print("\nPatterns find what they know: a clean audit does not make data anonymous or right.", style="dim")

    def ask_licence(self) -> str | None:
        """None where the answer is empty, or where the input ends (Ctrl-D)."""
        self._close_bar()
        try:
            said = self.console.input("Licence of the data, kept beside the model (empty if you do not know): ")
        except EOFError:
            self.print()
            return None
        return said.strip() or None

    def show_spans(self, shown: list[Any], facts: list[tuple[str, str]], stage: str) -> None:
        """Neighbouring tokens take turns in shade, so that each is seen; where there is no colour, what is trained stands between « and »."""
        from halfbyte.data.show import legend_of, visible

        self._close_bar()
        coloured = self.console.is_terminal and not self.console.no_color
        for name, value in facts:
            self.print(f"[bold]{escape(name)}[/] {escape(printable(value))}", highlight=False)
        legend = Text("\n")
        for kind, meaning in legend_of(stage):
            legend.append(f"«{meaning}»" if kind == "trained" and not coloured else meaning, SHADES[kind][0]).append("  ")
        self.print(legend)
        for one in shown:
            self.print(f"\n[bold]{escape(visible(one.title))}[/]", highlight=False)
            line = Text()
            shades = SHADES if self.console.color_system != "standard" else SHADES | FEW_SHADES
            for number, (before, span, after) in enumerate(zip([None, *one.spans], one.spans, [*one.spans[1:], None], strict=False)):
                text = visible(span.text).replace("\n", "\u21b5\n")
                if span.kind == "role":
                    text = f"{text}: " if before is None else f"\n{text}: "
                elif span.kind == "trained" and not coloured:
                    text = f"{'' if before and before.kind == 'trained' else '«'}{text}{'' if after and after.kind == 'trained' else '»'}"
                line.append(text, shades[span.kind][number % 2])
            self.print(line)

    def on_progress(self, stage: str, rows: int) -> None:
        """Long work on data shows how far it is: on a terminal at once, elsewhere every ten seconds."""
        now = time.monotonic()
        said = f"{stage}: {rows:,} rows"
        if self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status(said)
                self.status.start()
            self.status.update(said)
        elif now - self.told > SECONDS_BETWEEN_WORDS:
            if self.told:
                self.print(said, highlight=False)
            self.told = now

    def on_event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "model":
            trained = event["trainable"] / event["parameters"]
            self.print(
                f"{event['parameters'] / 1e6:,.1f} M parameters, {event['share_4bit']:.0%} of the decoder's projections in 4 bits, "
                f"{event['weight_bytes'] / 1e6:,.1f} MB; {event['trainable'] / 1e6:,.2f} M ({trained:.1%}) are trained"
            )
        elif kind == "progress":
            self.on_progress(event["stage"], event["rows"])
        elif kind == "proofs":
            self.print(f"{event['passed']} proofs hold before step 1, looked at in {event['seconds']:.1f} s", highlight=False)
        elif kind == "step":
            self._step(event)
        elif kind == "validation":
            self.validation = f"{event['loss']:.3f} (step {event['step']})"
        elif kind == "resume":
            self.print(f"[yellow]resume[/] what comes after step {event['step']}", highlight=False)
        elif kind in ("skipped", "note", "memory_change"):
            where = f" step {event['step']}" if "step" in event else ""
            self.print(f"[yellow]{kind.replace('_', ' ')}[/]{where} {escape(printable(event.get('reason') or event.get('message') or ''))}", highlight=False)
        elif kind == "measuring":
            self._close_bar()
            self.print("measuring base against tuned on the held-out rows ...")

    def show_result(self, folder: Path) -> None:
        result = read_report(folder)
        if any(one["group"] != "neutral text" for one in result["comparisons"]):
            self.print()
            self.print(Text(result["verdict"]["title"], style=f"bold {VERDICT_STYLES.get(result['verdict']['word'], '')}"))
            self.print(Text(printable(result["verdict"]["sentence"])))
            self.print()
            self._show_comparisons(result["comparisons"])
            self._tell_training(result["training"])
            self._tell_foreseen(result)
        else:
            self.print("No held-out rows: nothing tells whether this helped. Raise data.test_share, or see the notes of the plan.", style="yellow")
        for shown in result["generations"][:1]:
            self.print()
            for what, style in (("prompt", "bold"), ("base", "dim"), ("tuned", "green")):
                self.print(f"[{style}]{what:6}[/] {escape(_short(shown[what]))}", highlight=False)
        self.print(f"\nReport: [bold]{escape(str(folder / 'report.html'))}[/]")
        self.print(f"Next:   {escape(called())} chat {escape(str(folder))}", highlight=False)
        self.print(f"        {escape(called())} new YOUR_FILE.csv        (writes a recipe for your own data)", highlight=False)

    def _show_comparisons(self, comparisons: list[dict[str, Any]]) -> None:
        table = table_of("Base against tuned, on rows that were never trained on")
        for column in ("", "base", "tuned", "difference", "verdict"):
            table.add_column(column, justify="left" if column in ("", "verdict") else "right", overflow="fold")
        for one in comparisons:
            name = f"{one['metric']}, {one['group']}" if one["group"] in ("answers", "neutral text") else one["metric"]
            figures = [figure(one[key]) for key in ("base", "tuned", "difference")]
            table.add_row(escape(name), *figures, Text(one["verdict"], VERDICT_STYLES.get(one["verdict"], "")))
        self.print(table)

    def _tell_training(self, training: dict[str, Any]) -> None:
        steps, best = training["steps"], training["best_step"]
        took = f"{steps} step{'s' * (steps != 1)}" + (f" in {training['seconds']:.0f} s" if training["seconds"] else "")
        if best is not None and steps and best < steps:
            took += f"; the adapter is that of step {best}, the best by validation loss: more steps did not help"
        self.print(took, highlight=False)

    def _tell_foreseen(self, result: dict[str, Any]) -> None:
        """Where the plan had predicted something. Reports of early versions have no time."""
        told = {"memory": told_of_memory(result["memory"]), "a step": told_of_time(result["time"]) if "time" in result else ""}
        if any(told.values()):
            self.print("; ".join(f"{name}: {words}" for name, words in told.items() if words), highlight=False)

    def _step(self, event: Event) -> None:
        rate = event["tokens_per_second"]
        validation = f"  validation {self.validation}" if self.validation else ""
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
        speed = f"  {rate:,.0f} tokens/s" if self.console.width >= ROOM_FOR_SPEED else ""
        self.progress.update(self.bar, completed=event["step"], shown=f"loss {event['loss']:.3f}{validation}{speed}  left")

    def _close_bar(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None
        if self.progress is not None:
            self.progress.stop()
            self.progress = self.bar = None


def table_of(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))


def print_keys() -> None:
    """Every key with its default and its sentence, from the schema itself."""
    from halfbyte.recipe.explain import every_key

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "default", "what it does"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for key, default, sentence in every_key():
        table.add_row(escape(key), escape(default), escape(sentence))
    Console().print(table)


def print_json(content: Any) -> None:
    Console(soft_wrap=True).print_json(data=content)


def printable(text: str) -> str:
    """Data and model output may hold control characters that would move the cursor or retitle the terminal; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _on_one_line(text: str) -> str:
    return printable(text).replace("\n", " ")


def called() -> str:
    """How to call halfbyte from here: its path where it is not among the commands of the shell, as after `make quickstart`."""
    program = Path(sys.argv[0])
    if shutil.which("halfbyte") or program.name != "halfbyte":
        return "halfbyte"
    return os.path.relpath(program)


def _short(text: str, limit: int = 240) -> str:
    line = _on_one_line(text)
    return line if len(line) <= limit else line[:limit] + " ..."
