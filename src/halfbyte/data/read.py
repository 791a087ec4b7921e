"""File(s) -> Records: a stream that can be read again and again, so that no file is too large.

Decides what the recipe left open (kind, columns, book or separate rows), each with its reason; leaves out what no one wants
to train on (Project Gutenberg's licence) and replaces personal data where the recipe asks for it, both counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from halfbyte.data.files import Source, open_source
from halfbyte.data.gutenberg import REASON as GUTENBERG
from halfbyte.data.gutenberg import without_gutenberg
from halfbyte.data.kinds import Seen, settle
from halfbyte.data.personal import redact
from halfbyte.data.records import Record
from halfbyte.data.rows import Problems, Row
from halfbyte.data.shapes import BLANKS, LEFT_AWAY, LEFT_AWAY_ONCE, Refused, shape_for
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import SettledData, SomeData, TextData

__all__ = ["GUTENBERG", "Reading", "Refused", "read_records"]

# What is looked at to find kind, columns and tags.
HEAD_ROWS, HEAD_CHARACTERS = 1000, 20_000_000


@dataclass
class Reading:
    """What is known of a source before it is read through; `outcomes` reads it, any number of times."""

    section: SettledData
    source: Source
    decisions: list[Decision]
    notes: list[str] = field(default_factory=list)
    """Of the last reading, once it is through."""
    redacted: Counter[str] = field(default_factory=Counter)
    merged: Counter[str] = field(default_factory=Counter)
    """Rows of each class that data.merge_labels reads as another; told by labels.py, over all parts."""

    def outcomes(self) -> Iterator[Record | Refused]:
        """One for each row that could be read, in order: what it says, or why it says nothing.

        Raises DataError at the end with all malformed rows, at most 20 of them, unless on_bad_row is skip.
        """
        self.notes, self.redacted = [], Counter()
        problems, told = Problems(self.section.on_bad_row), Counter[str]()
        stream = self._shaped(problems, told)
        if isinstance(self.section, TextData) and not self.section.keep_boilerplate:
            stream = without_gutenberg(stream, self.notes)
        yield from self._redacted(stream) if self.section.redact else stream
        problems.raise_if_any()
        if ends := told.pop(LEFT_AWAY, 0):
            self.notes.append(f"{ends} {LEFT_AWAY}" if ends > 1 else LEFT_AWAY_ONCE)
        if blanks := told.pop(BLANKS, 0):
            self.notes.append(f"{blanks} {BLANKS}" if blanks > 1 else "1 label has blanks around it, which are taken off")
        self.merged = told
        if self.redacted:
            said = ", ".join(f"{count} {kind}" for kind, count in sorted(self.redacted.items()))
            self.notes.append(f"{said} replaced by tags; what no pattern finds stays, so the data are not anonymous")

    def records(self) -> Iterator[Record]:
        return (outcome for outcome in self.outcomes() if isinstance(outcome, Record))

    def _shaped(self, problems: Problems, told: Counter[str]) -> Iterator[Record | Refused]:
        shape = shape_for(self.section, told)
        for row in self.source.rows(problems):
            outcome = shape(row)
            if isinstance(outcome, Refused) and outcome.bad and self.section.on_bad_row == "refuse":
                problems.add(f"{outcome.file}:{outcome.line}", outcome.seen, outcome.reason)
            yield outcome

    def _redacted(self, stream: Iterator[Record | Refused]) -> Iterator[Record | Refused]:
        for outcome in stream:
            if isinstance(outcome, Refused):
                yield outcome
                continue
            messages = tuple({**message, "content": self._masked(message["content"])} for message in outcome.messages)
            # A class is no personal data, and its answer must stay the class.
            if outcome.label:
                messages = (*messages[:-1], outcome.messages[-1])
            yield replace(outcome, text=self._masked(outcome.text), messages=messages)

    def _masked(self, text: str) -> str:
        masked, found = redact(text, self.section.redact)
        self.redacted += found
        return masked


def read_records(section: SomeData, path: str | None = None) -> Reading:
    """Opens the file of a data section, or another `path` in the same form. Raises DataError with file, line and mend."""
    source = open_source(section.path if path is None else path, section.encoding, section.on_bad_row)
    where = source.files[0] if len(source.files) == 1 else f"{source.files[0]} and {len(source.files) - 1} more"
    head = _head(source)
    if not head:
        for _ in source.rows():  # raises what is wrong with them
            pass
        raise DataError(f"{where}: 0 rows could be read", hint="is this the right file?")
    settled, decisions = settle(section, Seen(where, source.columns, source.types, head, source.joint))
    return Reading(settled, source, [*source.decisions, *decisions])


def _head(source: Source) -> list[Row]:
    """The first rows that can be read; bad ones are told when all are read."""
    head: list[Row] = []
    characters = 0
    for row in source.rows(Problems("skip")):
        head.append(row)
        characters += sum(len(cell) if isinstance(cell, str) else len(str(cell)) for cell in row.cells.values())
        if len(head) == HEAD_ROWS or characters > HEAD_CHARACTERS:
            break
    return head
