"""CSV and plain text -> rows. Cells are never converted; a row's line is where it begins, as an editor counts lines."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
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
# A first line that Excel reads the delimiter from.
NAMED = re.compile(r'"?sep=([^\w"\s]|\t)"?', re.IGNORECASE)
WHOLE_NUMBER = re.compile(r"\d{1,18}")
# What the csv module says of a quote that is never closed: rows behind it cannot be found again.
ENDLESS = ("field larger than field limit", "unexpected end of data")


def look_at_csv(file: File) -> Part:
    """Raises DataError for a header that cannot be one, and where two delimiters are equally likely."""
    named = _named_delimiter(file)
    delimiter, decision = named or _find_delimiter(file)
    above = 1 if named else 0
    line, columns = next(_csv_cells(file, delimiter, above, Problems()), (0, []))
    if not columns:
        raise DataError(f"{file.path}: holds no header under the line with sep=", hint="export it again, or give another file")
    check_names(columns, f"{file.path}:{line}")
    unnamed: dict[int, bool] = {}
    if not all(columns):
        head: list[list[str]] = []
        with suppress(DataError):  # told when the rows are read
            head += (cells for _, cells in islice(_csv_cells(file, delimiter, above, Problems("skip")), 1, TRIED_ROWS + 1))
        unnamed = look_at_unnamed(columns, head, f"{file.path}:{line}")
    read = partial(_csv_rows, file, delimiter, above, unnamed)
    notes = [*file.notes, *note_unnamed(file.path, unnamed)]
    return Part(file.path, [name for name in columns if name], read, file.sha256, [*file.decisions, *decision], notes)


def look_at_unnamed(columns: list[str], head: Iterable[list[str]], where: str) -> dict[int, bool]:
    """The places of columns without a name, and whether these number the rows as pandas does.

    Raises DataError where one is mostly filled with anything else, by its first cells (head): that would be lost.
    """
    unnamed = {}
    for place in (place for place, name in enumerate(columns) if not name):
        values = [cells[place].strip() for cells in head]
        filled = [value for value in values if value]
        numbers = [int(value) for value in filled if WHOLE_NUMBER.fullmatch(value)]
        mostly = 2 * len(filled) > len(values)
        # The first column numbers the rows of a shuffled table too.
        unnamed[place] = mostly and len(numbers) == len(filled) == len(set(numbers)) and (place == 0 or numbers == sorted(numbers))
        if mostly and not unnamed[place]:
            said = f"column {place + 1} has no name, yet {len(filled)} of the first {len(values)} rows have a value there"
            raise DataError(f"{where}: {said}", hint="write its name into the header, or take the column out")
    return unnamed


def note_unnamed(name: str, unnamed: dict[int, bool]) -> list[str]:
    return [f"{name}: {len(unnamed)} column{'s' * (len(unnamed) > 1)} without a name left out"] if unnamed else []


def counting_lost(rows: Iterable[tuple[int, list[str]]], unnamed: dict[int, bool], name: str, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The same rows; at the end notes how many have a value where no column has a name, numbers of rows aside."""
    lost: Counter[int] = Counter()
    for line, cells in rows:
        for place, numbering in unnamed.items():
            cell = cells[place].strip()
            lost[place] += bool(cell) and not (numbering and WHOLE_NUMBER.fullmatch(cell))
        yield line, cells
    for place, count in lost.items():
        if count:
            have = "1 row has" if count == 1 else f"{count} rows have"
            problems.notes.append(f"{name}: column {place + 1} without a name left out, though {have} a value there")


def _csv_rows(file: File, delimiter: str, above: int, unnamed: dict[int, bool], problems: Problems) -> Iterator[Row]:
    found = _csv_cells(file, delimiter, above, problems)
    _, columns = next(found)
    for line, values in counting_lost(found, unnamed, file.path, problems) if unnamed else found:
        if values == columns and len(columns) > 1:
            problems.add(f"{file.path}:{line}", "the header stands here once more", "the header once more", "take it out where files were joined")
            continue
        cells = dict(zip(columns, values, strict=True))
        cells.pop("", None)
        yield Row(cells, file.path, line)


def _csv_cells(file: File, delimiter: str, above: int, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its cells; the header first, blank lines left out, rows of another width among the problems.

    `above`: lines above the header that are none of the table.
    """
    csv.field_size_limit(LARGEST_CELL)
    width, begins = 0, 1 + above
    with reading_text(file, newline="") as stream:
        reader = csv.reader(islice(lines_of(file, stream), above, None), delimiter=delimiter, strict=True)
        while True:
            try:
                for cells in reader:
                    line, begins = begins, reader.line_num + 1 + above
                    if not cells:
                        continue
                    if width and len(cells) != width:
                        problems.add(
                            f"{file.path}:{line}", f"{len(cells)} field{'s' * (len(cells) != 1)}, the header has {width}", "another number of fields", RAGGED
                        )
                        continue
                    if not width:
                        width = len(cells)
                        cells = [name.removeprefix("\ufeff") for name in cells]
                    yield line, cells
                return
            except csv.Error as error:
                _tell(error, f"{file.path}:{begins}", problems, header=not width)
                begins = reader.line_num + 1 + above


def _tell(error: csv.Error, where: str, problems: Problems, header: bool) -> None:
    if str(error).startswith(ENDLESS) or header:
        what = f"a cell of {TOO_LARGE}" if str(error).startswith(ENDLESS[0]) else f"not CSV: {error}"
        problems.stop(where, what, "is a quote opened and never closed? export the file again")
    problems.add(where, f"not CSV: {error}", "not CSV", "double the quotes inside a quoted field")


def _named_delimiter(file: File) -> tuple[str, list[Decision]] | None:
    """By a first line with sep=, unless it is plainly wrong: a table of tabs keeps that line when a program saves it anew."""
    with reading_text(file, newline="") as stream:
        lines = lines_of(file, stream)
        found = NAMED.fullmatch(next(lines).rstrip("\r\n"))
        header = next((line for line in lines if line.strip("\r\n")), "") if found else ""
    if not found:
        return None
    if "\t" in header and found[1] not in header:
        return "\t", [Decision("delimiter", repr("\t"), f"it stands in the header, where {found[1]!r} of the first line (sep=) does not")]
    return found[1], [Decision("delimiter", repr(found[1]), "the first line says so (sep=)")]


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
    fitting = [delimiter for delimiter in counts if _fits(file, delimiter)]
    most = max(counts.values())
    likely = fitting or [delimiter for delimiter in counts if counts[delimiter] == most]
    if len(likely) > 1:
        names = " and ".join(f"{DELIMITERS[delimiter]}s" for delimiter in likely)
        said = "part the first rows evenly" if fitting else "stand equally often in the first line"
        raise DataError(f"{file.path}: cannot tell what parts the columns: {names} {said}", hint="put names that hold one in double quotes, or save as .jsonl")
    reason = "it parts the first rows into as many fields as the header" if fitting else "it stands most often in the first line"
    others = " and ".join(f"{DELIMITERS[delimiter]}s" for delimiter in counts if delimiter != likely[0])
    return likely[0], [Decision("delimiter", repr(likely[0]), f"{reason}, though {others} stand in its names too")]


def _fits(file: File, delimiter: str) -> bool:
    """Whether the first rows are as wide as the header."""
    problems = Problems()
    try:
        for _ in islice(_csv_cells(file, delimiter, 0, problems), TRIED_ROWS):
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
