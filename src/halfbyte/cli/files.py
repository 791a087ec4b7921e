"""Prompts from a file and answers to a file, for `halfbyte generate` and `halfbyte classify`."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from halfbyte.data.files import Source, open_source
from halfbyte.errors import DataError, MachineError

Write = Callable[..., None]  # a list of texts for each column
# A spreadsheet takes a cell that begins so for a formula, in full-width forms too; and where a list separator is a semicolon or a tab, what stands behind one
# is a cell of its own. A line end inside a cell is left alone unless a formula follows it: lists of answers begin their lines with a dash.
FORMULA = re.compile(r"(?:\A|(?<=[;\t]))(?=[=+\-@\t\r＝＋－＠])|(?<=[\r\n])(?=[=@＝＠])")


def read_prompts(file: Path) -> list[str]:
    """Prompts of any file that data are read from: one a line of a text, or a column `prompt`, or the only column.

    Raises DataError with the line where a prompt is missing.
    """
    source = open_source(str(file))
    prompts = _lines(source) if source.kind == "text" else _column(source, file)
    if not prompts:
        raise DataError(f"{file}: holds no prompt", hint="write one prompt a line")
    return prompts


def _lines(source: Source) -> list[str]:
    """A paragraph is as many prompts as it has lines."""
    return [_checked(line, f"{row.file}:{row.line + below}") for row in source.rows() for below, line in enumerate(row.cells["text"].split("\n"))]


def _column(source: Source, file: Path) -> list[str]:
    name = "prompt" if "prompt" in source.columns else source.columns[0]
    if name != "prompt" and len(source.columns) > 1:
        raise DataError(f"{file}: no column 'prompt'; columns are {', '.join(source.columns)}", hint="name the column with the prompts `prompt`")
    if name in source.types:
        raise DataError(f"{file}: column {name!r} is {source.types[name]}, need string", hint="export it as text")
    return [_checked(row.cells.get(name, ""), f"{row.file}:{row.line}") for row in source.rows()]


@contextmanager
def write_answers(file: Path, columns: Sequence[str] = ("prompt", "response")) -> Iterator[Write]:
    """Opens a new file at once, so that a name that is taken is told before anything is computed; written as answers come, column by column.

    Where no answer comes, because the run is not there for instance, no file is left. In .csv what a spreadsheet would run as a formula (= + - @,
    a tab or a carriage return where a cell begins) gets an apostrophe in front; .jsonl keeps it as it is.
    """
    kind = file.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise DataError(f"{file}: answers are written to .jsonl or .csv", hint="give another name with --output")
    try:
        file.touch(exist_ok=False)
    except FileExistsError as error:
        raise DataError(f"{file} exists and is left as it is", hint="choose another name with --output") from error
    except OSError as error:
        raise MachineError(f"{file}: cannot be written: {error.strerror}", hint="choose another place with --output") from error
    try:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)

            def write(*values: list[str]) -> None:
                if kind == ".csv" and not stream.tell():
                    table.writerow(columns)
                for row in zip(*values, strict=True):
                    if kind == ".csv":
                        table.writerow([_no_formula(str(cell)) for cell in row])
                    else:
                        stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
                stream.flush()

            yield write
    finally:
        if file.is_file() and not file.stat().st_size:
            file.unlink()


def _no_formula(cell: str) -> str:
    return FORMULA.sub(lambda found: f"{found[0]}'", cell)


def _checked(prompt: object, where: str) -> str:
    if not isinstance(prompt, str):
        raise DataError(f"{where}: the prompt is no text", hint="write the prompt as a text, in double quotes")
    if not prompt.strip():
        raise DataError(f"{where}: the prompt is empty", hint="fill it, or take the line out")
    return prompt
