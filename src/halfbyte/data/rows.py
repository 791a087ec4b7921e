"""Row: one row as it stands in its file. Part: one file, looked at. Problems: what is wrong with rows, told together."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision

OnBadRow = Literal["refuse", "skip"]
MOST_PROBLEMS = 20
# Characters of one cell, and of one line: what is longer is a damaged file far more often than a text.
LARGEST_CELL = 10_000_000
# Of a column. What is longer is the first text of a file without a header.
LONGEST_NAME = 200
# Lists and objects inside each other: what is nested deeper is an attack or an accident, and whoever walks over it runs out of stack.
DEEPEST = 100
TOO_LARGE = f"more than {LARGEST_CELL // 1_000_000} MB"


@dataclass(frozen=True, slots=True)
class Row:
    """A cell is text exactly as in the file, or a list or dict with texts as leaves. What is null or absent has no cell."""

    cells: dict[str, Any]
    file: str
    line: int
    """Where the row begins, counted from 1; in Parquet and on the hub the number of the row."""


class Problems:
    """Collects what is wrong with rows, so that all of it is told at once; where rows are skipped counts them in `left_out` by reason."""

    def __init__(self, on_bad_row: OnBadRow = "refuse", most: int = MOST_PROBLEMS):
        self.on_bad_row = on_bad_row
        self.most = most
        self.lines: list[str] = []
        self.hint = ""
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        """What is worth telling, yet no problem."""

    def add(self, where: str, what: str, reason: str, hint: str = "mend these rows") -> None:
        """`reason` is the name under which skipped rows are counted. Raises when there are too many to go on."""
        if self.on_bad_row == "skip":
            self.left_out[reason] += 1
            return
        self.lines.append(f"{where}: {what}")
        self.hint = self.hint or f"{hint}, or leave such rows out with data.on_bad_row=skip"
        if len(self.lines) == self.most:
            self.lines.append(f"{self.most} problems: reading stopped here, there may be more")
            self.raise_if_any()

    def stop(self, where: str, what: str, hint: str) -> NoReturn:
        """For what no row can be skipped over: the rest of the file would be lost with it."""
        raise DataError("\n".join([*self.lines, f"{where}: {what}"]), hint=self.hint or hint)

    def raise_if_any(self) -> None:
        if self.lines:
            raise DataError("\n".join(self.lines), hint=self.hint)


@dataclass(frozen=True)
class Part:
    """One file that was looked at. `read` reads its rows anew at each call."""

    name: str
    columns: list[str]
    read: Callable[[Problems], Iterator[Row]]
    sha256: str
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    """Columns whose values are no text and cannot become text without a loss (float, binary), with their type."""


def check_names(columns: list[str], where: str) -> None:
    """Raises DataError where two columns have one name, none has one, or one is a text; single columns without a name are let through."""
    if not any(columns):
        raise DataError(f"{where}: no column has a name", hint="write the names of the columns in the first line")
    twice = next((name for name, count in Counter(columns).items() if name and count > 1), None)
    if twice is not None:
        places = " and ".join(str(place) for place, name in enumerate(columns, 1) if name == twice)
        raise DataError(f"{where}: column {twice[:LONGEST_NAME]!r} stands at places {places}", hint="give each column its own name")
    for place, name in enumerate(columns, 1):
        if len(name) > LONGEST_NAME:
            raise DataError(f"{where}: the name of column {place} has {len(name)} characters", hint="is the first row a header? write the names there")
