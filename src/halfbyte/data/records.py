"""A file -> Records: fields as they stand in the file, with file and line. Cells are never converted.

Decides what the recipe left open (encoding, kind, columns, book or separate rows), each with its reason,
and leaves out what no one wants to train on (empty rows, Project Gutenberg's licence), each counted.
"""

import csv
import io
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import AutoData, PairData, TextData

# Columns are recognised by their whole name, in any case, never by part of a word.
PROMPT_NAMES = ("prompt", "instruction", "question", "comment", "query", "input", "user", "human")
RESPONSE_NAMES = ("response", "answer", "reply", "output", "completion", "assistant")
TEXT_NAMES = ("text", "content", "body", "passage", "document")
# Pairs whose names say nothing alone: sentence -> meaning representation, in the two spellings of ViGGO.
PAIR_NAMES = (("target", "meaning_representation"), ("ref", "mr"))
TEXT_ENDINGS = (".txt", ".md", ".text")
CSV_ENDINGS = (".csv", ".tsv")
# A row of a book cut by a text splitter is a paragraph or more; a message or a review is usually shorter.
BOOK_ROW_CHARACTERS = 400
GUTENBERG_START = "*** START OF TH"
GUTENBERG_END = "*** END OF TH"
LARGEST_CELL = 10_000_000

csv.field_size_limit(LARGEST_CELL)


@dataclass(frozen=True)
class Record:
    """One row or paragraph. `line` is where it begins, counted from 1."""

    fields: dict[str, str]
    file: str
    line: int


@dataclass
class Reading:
    """Records and what was decided on the way to them."""

    section: TextData | PairData
    records: list[Record]
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    records_read: int = 0


def read_records(section: AutoData | TextData | PairData) -> Reading:
    """Reads the file of a data section. Raises DataError with file, line and mend."""
    path = Path(section.path).expanduser()
    text, encoding = _decode(path, section.encoding)
    decisions = [encoding] if encoding else []
    if path.suffix.lower() in CSV_ENDINGS:
        columns, records, notes, delimiter = _read_csv(text, path)
        decisions += [delimiter] if delimiter else []
    elif path.suffix.lower() in TEXT_ENDINGS:
        columns, notes = [], []
        records = _read_paragraphs(text, path)
    else:
        known = ", ".join(TEXT_ENDINGS + CSV_ENDINGS)
        raise DataError(f"{path}: files that end in {path.suffix or 'nothing'!r} are not read", hint=f"use one of {known}")
    settled, more = _settle(section, path, columns, records)
    reading = Reading(settled, records, decisions + more, notes, records_read=len(records))
    _strip_byte_order_marks(reading)
    if isinstance(settled, TextData):
        _keep_text(reading)
    else:
        _keep_pairs(reading)
    if not reading.records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reading.left_out.items()) or "the file holds none"
        raise DataError(f"{path}: 0 of {reading.records_read} rows are left: {reasons}", hint="is this the right file?")
    return reading


def _decode(path: Path, asked: str | None) -> tuple[str, Decision | None]:
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="give another with data.path=FILE")
    raw = path.read_bytes()
    if not raw.strip():
        raise DataError(f"{path} is empty ({len(raw)} bytes)", hint="export it again or give another with data.path=FILE")
    for start, what in (
        (b"PK\x03\x04", "an Excel workbook or a zip archive (PK header): save as CSV"),
        (b"\x1f\x8b", "a gzip file: unpack it"),
        (b"version https://git-lfs", "a Git-LFS pointer: run git lfs pull"),
        (b"PAR1", "a Parquet file: save as CSV"),
        (b"%PDF", "a PDF: save its text as .txt"),
    ):
        if raw.startswith(start):
            described, mend = what.split(": ")
            raise DataError(f"{path}: looks like {described}", hint=mend)
    decision = None
    if asked:
        encoding, decision = asked, Decision("encoding", asked, "the recipe asks for it")
    elif raw.startswith(b"\xef\xbb\xbf"):
        encoding, decision = "utf-8-sig", Decision("encoding", "UTF-8", "read as UTF-8 with byte-order mark")
    elif raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding, decision = "utf-16", Decision("encoding", "UTF-16", "the file begins with UTF-16's byte-order mark")
    else:
        encoding = "utf-8"
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        raise DataError(f"data.encoding: {asked!r} is no encoding", hint="try utf-8, utf-16 or cp1252") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        seen = f"{path}:{line}: byte 0x{raw[error.start]:02X} is not {encoding}"
        if asked:
            raise DataError(seen, hint="leave data.encoding out, or save the file as UTF-8") from error
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(seen, hint="save the file as UTF-8, or name its encoding with data.encoding=...") from error
        decision = Decision("encoding", "cp1252", f"{seen}; read as Windows text (cp1252), say data.encoding=... if it is another")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: holds a zero byte, so it is no text file", hint="export it again as UTF-8 text")
    return text, decision


def _read_csv(text: str, path: Path) -> tuple[list[str], list[Record], list[str], Decision | None]:
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count) if any(mark in first for mark in ",;\t") else ","
    decision = None if delimiter == "," else Decision("delimiter", repr(delimiter), "the first line has no comma more often")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, notes = [], []
    try:
        columns = next(reader)
        begins = reader.line_num + 1
        repeated = [name for name, count in Counter(columns).items() if count > 1 and name]
        if repeated:
            places = [str(i + 1) for i, name in enumerate(columns) if name == repeated[0]]
            raise DataError(f"{path}:1: column {repeated[0]!r} stands at places {' and '.join(places)}", hint="give each column its own name")
        for cells in reader:
            if cells and len(cells) != len(columns):
                raise DataError(f"{path}:{begins}: {len(cells)} fields, the header has {len(columns)}", hint="put texts with commas in double quotes")
            if cells:
                records.append(Record(dict(zip(columns, cells, strict=True)), str(path), begins))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}", hint="double the quotes inside a quoted field; export it again") from error
    return columns, records, notes, decision


def _read_paragraphs(text: str, path: Path) -> list[Record]:
    """Blank lines part paragraphs; a paragraph keeps its own line ends."""
    records: list[Record] = []
    held: list[str] = []
    begins = 1
    for number, line in enumerate([*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""], start=1):
        if line.strip():
            begins = begins if held else number
            held.append(line)
        elif held:
            records.append(Record({"text": "\n".join(held)}, str(path), begins))
            held = []
    return records


def _settle(section: AutoData | TextData | PairData, path: Path, columns: list[str], records: list[Record]) -> tuple[TextData | PairData, list[Decision]]:
    """Fills in kind, columns and rows; a stated one is only checked."""
    shared = section.model_dump(include={"path", "encoding", "max_length", "validation_share", "test_share"})
    if isinstance(section, PairData):
        if not columns:
            raise DataError(f"{path}: prompt and response need two columns of a CSV", hint="use data.kind=text for a text file")
        for key in ("prompt_column", "response_column"):
            _must_have(path, columns, getattr(section, key), f"data.{key}")
        return section, [Decision("data", "prompt_response", f"the recipe says {section.prompt_column} -> {section.response_column}")]
    if isinstance(section, AutoData):
        pair = _find_pair(columns)
        if pair:
            settled = PairData(kind="prompt_response", prompt_column=pair[0], response_column=pair[1], **shared)
            return settled, [Decision("data", "prompt_response", f"columns {pair[0]!r} and {pair[1]!r} are known names of prompt and response")]
        if columns and len(columns) > 1 and not _named(columns, TEXT_NAMES):
            raise DataError(
                f"{path}: cannot tell what the columns {', '.join(columns)} are for",
                hint="state it: data.kind=prompt_response data.prompt_column=... data.response_column=..., or data.kind=text data.column=...",
            )
        section = TextData(kind="text", **shared)
    if not columns:
        section = section.model_copy(update={"rows": "book" if section.rows == "auto" else section.rows, "separator": "\n\n"})
        return section, [Decision("data", "text", f"{path.suffix} files are text; paragraphs are joined again and cut into blocks")]
    if section.column is not None:
        _must_have(path, columns, section.column, "data.column")
        column, reason = section.column, "the recipe says so"
    else:
        column = _named(columns, TEXT_NAMES) or columns[0]
        reason = "the known name of a text column" if _named(columns, TEXT_NAMES) else "the only column"
        if len(columns) > 1 and not _named(columns, TEXT_NAMES):
            raise DataError(f"{path}: which of the columns {', '.join(columns)} holds the text?", hint="state it with data.column=...")
    decisions = [Decision("data", "text", f"column {column!r}: {reason}")]
    rows = section.rows
    if rows == "auto":
        middle = statistics.median(len(record.fields[column]) for record in records) if records else 0
        rows = "book" if middle >= BOOK_ROW_CHARACTERS else "separate"
        how = "consecutive pieces of one text, joined" if rows == "book" else "a text of its own each"
        decisions.append(Decision("rows", rows, f"half of them have {middle:.0f} characters or more: {how}; data.rows states it otherwise"))
    return section.model_copy(update={"column": column, "rows": rows}), decisions


def _must_have(path: Path, columns: list[str], name: str, key: str) -> None:
    if name not in columns:
        near = [column for column in columns if column.strip().lower() == name.strip().lower()]
        mend = f"did you mean {near[0]!r}?" if near else "name one of them"
        raise DataError(f"{path}: no column {name!r} ({key}); columns are {', '.join(columns)}", hint=mend)


def _named(columns: list[str], names: tuple[str, ...]) -> str | None:
    for name in names:
        for column in columns:
            if column.strip().lower() == name:
                return column
    return None


def _find_pair(columns: list[str]) -> tuple[str, str] | None:
    for prompt_name, response_name in PAIR_NAMES:
        prompt, response = _named(columns, (prompt_name,)), _named(columns, (response_name,))
        if prompt and response:
            return prompt, response
    prompt, response = _named(columns, PROMPT_NAMES), _named(columns, RESPONSE_NAMES)
    return (prompt, response) if prompt and response else None


def _strip_byte_order_marks(reading: Reading) -> None:
    """A mark at the start of a cell is left by a tool that glued files together; it is not text."""
    cleaned = []
    for record in reading.records:
        if any(cell.startswith("\ufeff") for cell in record.fields.values()):
            reading.notes.append(f"{record.file}:{record.line}: byte-order mark at the start of a cell removed")
            record = Record({name: cell.removeprefix("\ufeff") for name, cell in record.fields.items()}, record.file, record.line)
        cleaned.append(record)
    reading.records = cleaned


def _keep_text(reading: Reading) -> None:
    column = reading.section.column or "text"
    kept = [Record({"text": record.fields[column]}, record.file, record.line) for record in reading.records if record.fields[column].strip()]
    _count(reading, "empty", len(reading.records) - len(kept))
    if not reading.section.keep_boilerplate:
        kept = _without_gutenberg(reading, kept)
    reading.records = kept


def _without_gutenberg(reading: Reading, records: list[Record]) -> list[Record]:
    """Leaves out what stands up to the start mark and from the end mark on.

    A row that holds the start mark is front matter and goes whole; a row that holds the end mark keeps the text before it.
    """
    start = next((i for i, record in enumerate(records) if GUTENBERG_START in record.fields["text"]), None)
    end = next((i for i, record in enumerate(records) if GUTENBERG_END in record.fields["text"]), None)
    if start is None and end is None:
        return records
    first = 0 if start is None else start + 1
    kept = records[first:] if end is None else records[first:end]
    dropped = first + (0 if end is None else len(records) - end - 1)
    if end is not None and end >= first:
        before = records[end].fields["text"].split(GUTENBERG_END)[0].rstrip()
        if before:
            kept.append(Record({"text": before}, records[end].file, records[end].line))
            reading.notes.append(f"{records[end].file}:{records[end].line}: cut at Project Gutenberg's end mark, the text before it is kept")
        else:
            dropped += 1
    _count(reading, "Project Gutenberg header or licence", dropped)
    reading.notes.append(f"{dropped} rows of Project Gutenberg header and licence left out (data.keep_boilerplate=true keeps them)")
    return kept


def _keep_pairs(reading: Reading) -> None:
    section = reading.section
    kept, seen = [], set()
    for record in reading.records:
        prompt, response = record.fields[section.prompt_column], record.fields[section.response_column]
        if not prompt.strip() or not response.strip():
            _count(reading, "empty prompt or response", 1)
        elif (prompt, response) in seen:
            _count(reading, "exact duplicate", 1)
        else:
            seen.add((prompt, response))
            kept.append(Record({"prompt": prompt, "response": response}, record.file, record.line))
    reading.records = kept


def _count(reading: Reading, reason: str, count: int) -> None:
    if count:
        reading.left_out[reason] += count
