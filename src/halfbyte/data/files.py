"""File(s) -> rows: any file people have, a folder or list of them, or a dataset of the hub; streamed, so that size does not matter.

    bytes --streams.py--> text --formats.py, json_rows.py--> Row
    Parquet, hub ------------- tables.py ------------------> Row

Looking at a file decides how it is read (a Part); reading it yields rows and collects what is wrong with others (rows.py).
"""

import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from halfbyte.data.formats import has_paragraphs, look_at_csv, text_part
from halfbyte.data.json_rows import look_at_json
from halfbyte.data.rows import LARGEST_CELL, OnBadRow, Part, Problems, Row
from halfbyte.data.streams import File, ending_of, examine, refuse_ending, refuse_no_file
from halfbyte.data.tables import look_at_hub, look_at_parquet
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision

__all__ = ["LARGEST_CELL", "Problems", "Row", "Source", "open_source"]

TEXT_ENDINGS = (".txt", ".text", ".md")
TABLES: dict[str, Callable[[File], Part]] = {
    ".csv": look_at_csv, ".tsv": look_at_csv, ".json": look_at_json, ".jsonl": look_at_json, ".ndjson": look_at_json, ".parquet": look_at_parquet,
}  # fmt: skip
ENDINGS = (*TABLES, *TEXT_ENDINGS)
MARK = "\ufeff"
# A path takes one of the two slashes away.
ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf)://?", re.IGNORECASE)
# Of 1, letters in common: dat.csv is close to data.csv (0.93), nosuch.csv is not close to nul.csv (0.7).
CLOSE = 0.8
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Source:
    """What is known of the data before they are read through; `rows` reads them, any number of times."""

    kind: Literal["table", "text"]
    """Rows of a text have the one cell `text`."""
    columns: list[str]
    """In order of first appearance; none of a text."""
    joint: str
    """What joins the rows of a text again."""
    files: list[str]
    sha256: str
    """Of the bytes of the file; of the hashes of the files, where there are several."""
    on_bad_row: OnBadRow
    parts: list[Part]
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    """Columns that have no cells because their type cannot become text without a loss."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Bad rows that the last reading skipped, by reason."""

    def rows(self, problems: Problems | None = None) -> Iterator[Row]:
        """Raises DataError for bad rows: at the end, or where there are too many. Given `problems`, only adds to them."""
        found = Problems(self.on_bad_row) if problems is None else problems
        self.left_out = found.left_out
        first_marked, marked = "", 0
        for part in self.parts:
            for row in part.read(found):
                for cell in row.cells.values():
                    if type(cell) is str and cell[:1] == MARK:
                        row = _unmarked(row)
                        first_marked, marked = first_marked or f"{row.file}:{row.line}", marked + 1
                        break
                yield row
        if marked:
            more = f", and in {marked - 1} more rows" if marked > 1 else ""
            found.notes.append(f"{first_marked}: byte-order mark at the start of a cell removed{more}")
        self.notes += [note for note in found.notes if note not in self.notes]
        if problems is None:
            found.raise_if_any()


def _unmarked(row: Row) -> Row:
    """A mark at the start of a cell is left by a tool that glued files together; it is not text."""
    cells = {name: cell.removeprefix(MARK) if isinstance(cell, str) else cell for name, cell in row.cells.items()}
    return Row(cells, row.file, row.line)


def open_source(path: str | list[str], encoding: str | None = None, on_bad_row: OnBadRow = "refuse") -> Source:
    """Looks every file through once. Raises DataError with file, line and mend, IntegrityError for a file that changes meanwhile."""
    decisions, notes, names = _list_files([path] if isinstance(path, str) else path)
    hub = [name for name in names if name.startswith("hub:")]
    texts = [name for name in names if name not in hub and ending_of(name) in TEXT_ENDINGS]
    if texts and len(texts) < len(names):
        other = next(name for name in names if name not in texts)
        raise DataError(f"{texts[0]} is text and {other} is a table: they do not go together", hint="give one of the two, or put them in folders of their own")
    files = {name: examine(name, encoding) for name in names if name not in hub}
    if texts:
        paragraphs = any(has_paragraphs(file) for file in files.values())
        parts = [text_part(file, paragraphs) for file in files.values()]
        joint = "\n\n" if paragraphs else "\n"
    else:
        parts = [look_at_hub(name) if name in hub else TABLES[ending_of(name)](files[name]) for name in names]
        joint = "\n"
    for part in parts:
        decisions += [decision for decision in part.decisions if decision not in decisions]
        notes += part.notes
    columns, differing = _common_columns(parts)
    types = {name: kind for part in parts for name, kind in part.types.items()}
    sha256 = parts[0].sha256 if len(parts) == 1 else hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest()
    return Source("text" if texts else "table", columns, joint, names, sha256, on_bad_row, parts, decisions, notes + differing, types)


def _list_files(paths: list[str]) -> tuple[list[Decision], list[str], list[str]]:
    """Decisions, notes, and the files that the paths mean."""
    decisions: list[Decision] = []
    notes: list[str] = []
    names: list[str] = []
    for path in paths:
        if path.startswith("hub:"):
            names.append(path)
            continue
        place = Path(path).expanduser()
        try:
            if place.is_dir():
                found, others = _walk(place)
                names += found
                decisions.append(Decision("files", f"{len(found)} of {path}", "files of the folder by name, hidden ones left out"))
                if others:
                    few = ", ".join(others[:3] + ["..."] * (len(others) > 3))
                    notes.append(f"{path}: {len(others)} file{'s' * (len(others) > 1)} of other endings left out ({few})")
            elif place.is_file():
                if ending_of(path) not in ENDINGS:
                    refuse_ending(path, ENDINGS)
                names.append(str(place))
            elif ADDRESS.match(path):
                raise DataError(f"{path}: is an address, not a file", hint="download it first, and give the file")
            elif os.path.lexists(place):
                refuse_no_file(str(place))
            else:
                raise DataError(f"{path}: no such file", hint=_meant(place))
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"{path}: cannot be read: {what}", hint="are you allowed to read it?") from error
    twice = next((name for name, count in Counter(os.path.realpath(name) for name in names).items() if count > 1), None)
    if twice:
        raise DataError(f"{twice}: is named twice", hint="name each file once")
    if not names:
        raise DataError(f"{', '.join(paths) or 'data.path'}: holds no file to read", hint=f"files that end in {', '.join(ENDINGS)} are read")
    return decisions, notes, names


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Files that are read, and the names of those that are not; sorted, folders inside too."""
    found: list[str] = []
    others: list[str] = []

    def refuse(error: OSError) -> NoReturn:
        raise error  # or a folder that may not be read would be left out without a word

    for inside, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            if ending_of(name) in ENDINGS:
                found.append(os.path.join(inside, name))
            else:
                others.append(name)
    return found, others


def _meant(place: Path) -> str:
    """What was meant by a path that is not there."""
    if HUB_NAME.fullmatch(str(place)) and not place.parent.exists():
        return f"write hub:{place} for the dataset of the hub"
    several = str(place).split(",")
    if len(several) > 1 and all(ending_of(name) in ENDINGS for name in several):
        return f"write several files as a list: data.path=[{','.join(several)}]"
    near = difflib.get_close_matches(place.name, os.listdir(place.parent), n=1, cutoff=CLOSE) if place.parent.is_dir() else []
    return f"did you mean {place.parent / near[0]}?" if near else "give another file"


def _common_columns(parts: list[Part]) -> tuple[list[str], list[str]]:
    """All columns, and what is worth telling. Raises DataError where two files have columns that the other has not."""
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    fullest = max(parts, key=lambda part: len(part.columns))
    notes = []
    for part in parts:
        lacking = [name for name in fullest.columns if name not in part.columns]
        other = [name for name in part.columns if name not in fullest.columns]
        if other:
            said = f"column {', '.join(map(repr, other))} where {fullest.name} has {', '.join(map(repr, lacking))}"
            raise DataError(f"{part.name}: {said}", hint="give files of one form, or let their columns have the same names")
        if lacking:
            notes.append(f"{part.name}: lacks column {', '.join(map(repr, lacking))}")
    return columns, notes
