"""Records -> a few numbers about each: enough to split millions of rows without holding one of them.

Seventy bytes a row: hashes of what it asks, answers, begins with and says in all, its group, label, length and line. Signatures of near-duplicates
are in temporary files (near.py). Rows that say nothing have a bin of the ledger instead.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from halfbyte.data.near import Signatures, normalise
from halfbyte.data.read import Reading, Refused
from halfbyte.data.records import Record
from halfbyte.data.rows import MOST_PROBLEMS
from halfbyte.errors import DataError
from halfbyte.recipe.schema import ManyTurns, SettledData, TextData

# Rows between two words of progress.
BATCH = 1000
# Texts that are signed together: many are faster, but of long ones only a few are held.
SIGNED_TEXTS, SIGNED_CHARACTERS = 4096, 4_000_000
# What has more is no class; each is held by its name.
MOST_LABELS = 65_536
Progress = Callable[[str, int], None]
"""Told the stage and the rows done so far."""
# Type codes of `array`, one column each.
COLUMNS = {
    "part": "B",
    "asked": "Q",
    "answered": "Q",
    "opening": "Q",
    "second": "Q",
    "whole": "Q",
    "group": "Q",
    "label": "i",
    "characters": "I",
    "line": "q",
    "file": "I",
    "refused": "H",
}


@dataclass(frozen=True)
class Survey:
    """One entry a row, over all parts in order; `part` is 0 for `path`, 1 for `validation_path`, 2 for `test_path`. Hashes are 0 for nothing."""

    part: np.ndarray
    asked: np.ndarray
    """Of what the user says, or of the text, in its normal form: two that differ only in case and blanks are the same."""
    answered: np.ndarray
    """Of what the assistant says, in its normal form."""
    opening: np.ndarray
    """Of the first exchange, in its normal form, in data of many turns: rows that grow turn by turn share it."""
    second: np.ndarray
    """Of the first two exchanges, where there are two."""
    whole: np.ndarray
    """Of all that is said, as it stands."""
    group: np.ndarray
    label: np.ndarray
    characters: np.ndarray
    line: np.ndarray
    file: np.ndarray
    refused: np.ndarray
    """0 for a record; otherwise the place of its reason in `reasons`."""
    reasons: list[str]
    labels: list[str]
    files: list[str]
    near: np.ndarray
    """(P, 2) rows that ask nearly the same; as edges they connect all that do."""
    near_whole: np.ndarray
    """(P, 2) rows that are nearly the same in all they say; looked for only where they are to be dropped."""
    first_refused: dict[str, str] = field(default_factory=dict)
    merged: Counter[str] = field(default_factory=Counter)
    """Rows of each class that is read as another."""

    def __len__(self) -> int:
        return len(self.part)

    def place(self, row: int) -> str:
        return f"{self.files[self.file[row]]}:{self.line[row]}"


def survey_records(readings: list[tuple[int, Reading]], near: bool, progress: Progress | None = None) -> Survey:
    """Reads each source once. `near`: look for near-duplicates too. Raises DataError with what is wrong in all of them."""
    drop = near and readings[0][1].section.near_duplicates == "drop"
    faults: list[DataError] = []
    with ExitStack() as open_files:
        asked, whole = (_Signed(open_files.enter_context(Signatures())) if wanted else None for wanted in (near, drop))
        rows, merged = _Rows(asked, whole), Counter[str]()
        for part, reading in readings:
            try:
                for outcome in reading.outcomes():
                    if isinstance(outcome, Refused):
                        rows.refuse(part, outcome)
                    else:
                        rows.take(part, outcome, reading.section)
                    if progress and rows.count % BATCH == 0:
                        progress("reading", rows.count)
                merged += reading.merged
            except DataError as error:
                faults.append(error)
        if faults:
            lines = "\n".join(error.message for error in faults).split("\n")
            raise DataError("\n".join(lines[: MOST_PROBLEMS + 1]), hint=faults[0].hint)
        return rows.survey(merged)


def left_out(survey: Survey) -> Counter[str]:
    """How many rows say nothing, by reason."""
    counts = np.bincount(survey.refused, minlength=len(survey.reasons))
    return Counter({reason: int(count) for reason, count in zip(survey.reasons[1:], counts[1:], strict=True) if count})


def hash_of(text: str) -> int:
    """Eight bytes, never 0, which means that there is nothing to compare."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1 if text else 0


def _beginnings(record: Record) -> tuple[str, str]:
    """The first exchange and the first two, up to an answer each; '' where a conversation has but one."""
    said = ""
    exchanges = []
    for message in record.messages:
        said += f"{message['role']} {normalise(message['content'])}\n" if message["role"] != "system" else ""
        if message["role"] == "assistant":
            exchanges.append(said)
            if len(exchanges) == 2:
                break
    first, *more = exchanges
    return first, more[0] if more else ""


class _Rows:
    """The columns of a survey as they grow."""

    def __init__(self, asked: "_Signed | None", whole: "_Signed | None") -> None:
        self.asked, self.whole = asked, whole
        self.columns = {name: array(code) for name, code in COLUMNS.items()}
        self.labels, self.files, self.reasons = _Names(), _Names(), _Names()
        self.reasons.number("")
        self.first_refused: dict[str, str] = {}

    @property
    def count(self) -> int:
        return len(self.columns["part"])

    def take(self, part: int, record: Record, section: SettledData) -> None:
        is_text = isinstance(section, TextData)
        said, answer = (record.text, "") if is_text else (record.asked, record.answered)
        form, answer_form = normalise(said), normalise(answer)
        if self.asked:
            self.asked.add(self.count, form)
        if self.whole:
            self.whole.add(self.count, f"{form}\n{answer_form}")
        opening, second = _beginnings(record) if isinstance(section, ManyTurns) else ("", "")
        # With its length before each turn no two conversations are written alike.
        whole = hash_of(said if is_text else "".join([f"{turn['role']} {len(turn['content'])} {turn['content']}" for turn in record.messages]))
        label, file = self.labels.number(record.label), self.files.number(record.file)
        self._add(
            part,
            hash_of(form),
            hash_of(answer_form),
            hash_of(opening),
            hash_of(second),
            whole,
            hash_of(record.group),
            label,
            len(said) + len(answer),
            record.line,
            file,
            0,
        )
        if len(self.labels.all) > MOST_LABELS:
            message = f"{record.file}:{record.line}: this is label {MOST_LABELS + 1:,}, so they are no classes"
            raise DataError(message, hint="is data.label_column the right column?")

    def refuse(self, part: int, refused: Refused) -> None:
        self._add(part, 0, 0, 0, 0, 0, 0, 0, 0, refused.line, self.files.number(refused.file), self.reasons.number(refused.reason))
        self.first_refused.setdefault(refused.reason, f"{refused.file}:{refused.line}: {refused.seen}")

    def survey(self, merged: Counter[str]) -> Survey:
        columns = {name: np.frombuffer(column, dtype=column.typecode) if column else np.zeros(0, column.typecode) for name, column in self.columns.items()}
        near, near_whole = (signed.pairs() if signed else np.zeros((0, 2), np.int64) for signed in (self.asked, self.whole))
        return Survey(
            **columns, reasons=self.reasons.all, labels=self.labels.all, files=self.files.all, near=near, near_whole=near_whole,
            first_refused=self.first_refused, merged=merged,
        )  # fmt: skip

    def _add(self, *values: int) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)


class _Signed:
    """Which rows have a signature, and the texts that wait for theirs."""

    def __init__(self, signatures: Signatures) -> None:
        self.signatures = signatures
        self.rows = array("q")
        self.texts: list[str] = []
        self.characters = 0

    def add(self, row: int, text: str) -> None:
        self.rows.append(row)
        self.texts.append(text)
        self.characters += len(text)
        if len(self.texts) == SIGNED_TEXTS or self.characters >= SIGNED_CHARACTERS:
            self._sign()

    def pairs(self) -> np.ndarray:
        self._sign()
        return np.array(self.rows, dtype=np.int64)[self.signatures.pairs()]

    def _sign(self) -> None:
        self.signatures.append(self.texts)
        self.texts, self.characters = [], 0


class _Names:
    """Numbers names in the order they come."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._known: dict[str, int] = {}

    def number(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = len(self.all)
            self.all.append(name)
        return self._known[name]
