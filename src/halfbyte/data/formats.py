"""CSV and plain text -> rows. Cells are never converted; a row's line is where it begins, as an editor counts lines."""

import csv
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

from halfbyte.data.rows import LARGEST_CELL, TOO_LARGE, Part, Problems, Row, check_names
from halfbyte.data.streams import File, lines_of, reading_text
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Rows that are tried when two delimiters stand in the header.
TRIED_ROWS = 50
RAGGED = "put texts that hold the delimiter in double quotes"
# What the csv module says of a quote that is never closed: rows behind it cannot be found again.
ENDLESS = ("field larger than field limit", "unexpected end of data")


def look_at_csv(file: File) -> Part:
    """Raises DataError for a header that cannot be one, and where two delimiters are equally likely."""
    delimiter, decision = _find_delimiter(file)
    line, columns = next(_csv_cells(file, delimiter, Problems()))
    check_names(columns, f"{file.path}:{line}")
    named = [name for name in columns if name]
    unnamed = len(columns) - len(named)
    notes = [f"{file.path}: {unnamed} column{'s' * (unnamed > 1)} without a name left out"] if unnamed else []
    return Part(file.path, named, partial(_csv_rows, file, delimiter), file.sha256, [*file.decisions, *decision], file.notes + notes)


def _csv_rows(file: File, delimiter: str, problems: Problems) -> Iterator[Row]:
    found = _csv_cells(file, delimiter, problems)
    _, columns = next(found)
    for line, values in found:
        cells = dict(zip(columns, values, strict=True))
        cells.pop("", None)
        yield Row(cells, file.path, line)


def _csv_cells(file: File, delimiter: str, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its cells; the header first, blank lines left out, rows of another width among the problems."""
    csv.field_size_limit(LARGEST_CELL)
    width, begins = 0, 1
    with reading_text(file, newline="") as stream:
        reader = csv.reader(lines_of(file, stream), delimiter=delimiter, strict=True)
        while True:
            try:
                for cells in reader:
                    line, begins = begins, reader.line_num + 1
                    if not cells:
                        continue
                    if width and len(cells) != width:
                        problems.add(f"{file.path}:{line}", f"{len(cells)} fields, the header has {width}", "another number of fields", RAGGED)
                        continue
                    if not width:
                        width = len(cells)
                        cells = [name.removeprefix("\ufeff") for name in cells]
                    yield line, cells
                return
            except csv.Error as error:
                _tell(error, f"{file.path}:{begins}", problems, header=not width)
                begins = reader.line_num + 1


def _tell(error: csv.Error, where: str, problems: Problems, header: bool) -> None:
    if str(error).startswith(ENDLESS) or header:
        what = f"a cell of {TOO_LARGE}" if str(error).startswith(ENDLESS[0]) else f"not CSV: {error}"
        problems.stop(where, what, "is a quote opened and never closed? export the file again")
    problems.add(where, f"not CSV: {error}", "not CSV", "double the quotes inside a quoted field")


def _find_delimiter(file: File) -> tuple[str, list[Decision]]:
    if file.ending == ".tsv":
        return "\t", []
    with reading_text(file, newline="") as stream:
        header = next(line for line in lines_of(file, stream) if line.strip("\r\n"))
    bare = re.sub('"[^"]*"', "", header)
    counts = {delimiter: bare.count(delimiter) for delimiter in DELIMITERS if delimiter in bare}
    if len(counts) < 2:
        delimiter = next(iter(counts), ",")
        return delimiter, [] if delimiter == "," else [Decision("delimiter", repr(delimiter), "it stands in the first line, and no comma does")]
    fitting = [delimiter for delimiter in counts if _fits(file, delimiter)] or list(counts)
    fitting.sort(key=lambda delimiter: counts[delimiter], reverse=True)
    if len(fitting) > 1 and counts[fitting[0]] == counts[fitting[1]]:
        names = " and ".join(f"{DELIMITERS[delimiter]}s" for delimiter in fitting if counts[delimiter] == counts[fitting[0]])
        raise DataError(
            f"{file.path}: cannot tell what parts the columns: {names} stand equally often in the first line", hint="save the file as .tsv or .jsonl"
        )
    reason = "it parts the first rows into as many fields as the header" if len(fitting) == 1 else "it stands most often in the first line"
    return fitting[0], [] if fitting[0] == "," else [Decision("delimiter", repr(fitting[0]), reason)]


def _fits(file: File, delimiter: str) -> bool:
    """Whether the first rows are as wide as the header."""
    problems = Problems()
    try:
        for _ in islice(_csv_cells(file, delimiter, problems), TRIED_ROWS):
            pass
    except DataError:
        return False
    return not problems.lines


def has_paragraphs(file: File) -> bool:
    """Whether a blank line stands between two that are not."""
    begun = parted = False
    with reading_text(file) as stream:
        for line in lines_of(file, stream):
            blank = line.isspace()
            if parted and not blank:
                return True
            begun, parted = begun or not blank, begun and blank
    return False


def text_part(file: File, paragraphs: bool) -> Part:
    return Part(file.path, [], partial(_paragraphs if paragraphs else _lines, file), file.sha256, file.decisions, file.notes)


def _lines(file: File, problems: Problems) -> Iterator[Row]:
    """Lines that are not blank."""
    with reading_text(file) as stream:
        for number, line in enumerate(lines_of(file, stream), 1):
            if not line.isspace():
                yield Row({"text": line.removesuffix("\n")}, file.path, number)


def _paragraphs(file: File, problems: Problems) -> Iterator[Row]:
    """What blank lines part; the lines of a paragraph keep their ends."""
    held: list[str] = []
    begins = size = 0
    for row in chain(_lines(file, problems), [Row({"text": ""}, file.path, 0)]):
        text = row.cells["text"]
        if held and row.line != begins + len(held):
            yield Row({"text": "\n".join(held)}, file.path, begins)
            held, size = [], 0
        begins = begins if held else row.line
        held.append(text)
        size += len(text)
        if size > LARGEST_CELL:
            problems.stop(f"{file.path}:{begins}", f"a paragraph of {TOO_LARGE}", "part it with blank lines")
