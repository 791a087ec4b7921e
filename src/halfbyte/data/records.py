"""A file -> Records: fields as they stand in the file, with file and line. Cells are never converted.

Decides what the recipe left open (encoding, kind, columns, book or separate rows), each with its reason,
and leaves out what no one wants to train on (empty rows, Project Gutenberg's licence), each counted.
"""

import csv
import difflib
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterator
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
# Older books say the end twice, the first time as a sentence.
GUTENBERG_MARK = re.compile(r"(?:\*\*\* ?(START|END) OF TH(?:E|IS) PROJECT GUTENBERG|^End of (?:the )?Project Gutenberg).*", re.MULTILINE)
LARGEST_CELL = 10_000_000
STATE_COLUMNS = (
    "state it behind the file or the recipe: data.kind=prompt_response data.prompt_column=... data.response_column=..., or data.kind=text data.column=..."
)
# How files that are no text begin, in small letters, and what to do with them.
NOT_TEXT = (
    (b"pk\x03\x04", "an Excel workbook or a zip archive (PK header)", "save as CSV"),
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"\xfd7zxz", "an xz file", "unpack it"),
    (b"version https://git-lfs", "a Git-LFS pointer", "run git lfs pull"),
    (b"par1", "a Parquet file", "save as CSV"),
    (b"%pdf", "a PDF", "save its text as .txt"),
    (b"<!doctype html", "a web page", "download the file itself, or save the page's text as .txt"),
)


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
    text, encoding = _decode(_read_bytes(path), path, section.encoding)
    decisions = [encoding] if encoding else []
    if path.suffix.lower() in CSV_ENDINGS:
        columns, records, delimiter = _read_csv(text, path)
        decisions += [delimiter] if delimiter else []
        joint = "\n"
    else:
        columns = []
        records, joint = _read_paragraphs(text, path)
    settled, more = _settle(section, path, columns, records, joint)
    reading = Reading(settled, records, decisions + more, records_read=len(records))
    _strip_byte_order_marks(reading)
    if isinstance(settled, TextData):
        _keep_text(reading, settled)
    else:
        _keep_pairs(reading, settled)
    if not reading.records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reading.left_out.items()) or "the file holds none"
        raise DataError(f"{path}: 0 of {reading.records_read} rows are left: {reasons}", hint="is this the right file?")
    return reading


def _read_bytes(path: Path) -> bytes:
    """Raises DataError for a file that is not there, or is known not to be text."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file", hint="give another file")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="are you allowed to read it?") from error
    for start, what, mend in NOT_TEXT:
        if raw[: len(start)].lower() == start:
            raise DataError(f"{path}: looks like {what}", hint=mend)
    if path.suffix.lower() not in TEXT_ENDINGS + CSV_ENDINGS:
        raise DataError(f"{path}: files that end in {path.suffix or 'nothing'!r} are not read", hint=f"use one of {', '.join(TEXT_ENDINGS + CSV_ENDINGS)}")
    return raw


def _decode(raw: bytes, path: Path, asked: str | None) -> tuple[str, Decision | None]:
    decision = None
    if asked:
        encoding, decision = asked, Decision("encoding", asked, "the recipe asks for it")
    elif raw.startswith(b"\xef\xbb\xbf"):
        encoding, decision = "utf-8-sig", Decision("encoding", "UTF-8", "the file begins with UTF-8's byte-order mark")
    elif raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding, decision = "utf-16", Decision("encoding", "UTF-16", "the file begins with UTF-16's byte-order mark")
    else:
        encoding = "utf-8"
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        raise DataError(f"data.encoding: {asked!r} is no encoding", hint="try utf-8, utf-16 or cp1252") from error
    except UnicodeDecodeError as error:
        # The error counts in its own copy of the bytes, which lacks a byte-order mark that was read.
        line = error.object.count(b"\n", 0, error.start) + 1
        seen = f"{path}:{line}: byte 0x{error.object[error.start]:02X} is not {decision.value if decision else encoding}"
        if asked:
            raise DataError(seen, hint="leave data.encoding out, or save the file as UTF-8") from error
        if decision:
            raise DataError(f"{seen}, though {decision.reason}", hint="is the file damaged? save it as UTF-8 again") from error
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(seen, hint="save the file as UTF-8, or name its encoding with data.encoding=...") from error
        decision = Decision("encoding", "cp1252", f"{seen}; read as Windows text (cp1252), say data.encoding=... if it is another")
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path} is empty ({len(raw)} bytes)", hint="export it again, or give another file")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: holds a zero byte, so it is no text file", hint="export it again as UTF-8 text")
    return text, decision


def _read_csv(text: str, path: Path) -> tuple[list[str], list[Record], Decision | None]:
    delimiter, decision = _find_delimiter(text, path)
    columns: list[str] = []
    records: list[Record] = []
    for line, cells in csv_rows(text, path, delimiter):
        if columns:
            records.append(Record(dict(zip(columns, cells, strict=True)), str(path), line))
        else:
            columns = cells
            _check_header(columns, f"{path}:{line}")
    return columns, records, decision


def csv_rows(text: str, path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its cells; the header first, blank lines left out. Raises DataError for a row of another width."""
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    width, begins = 0, 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if cells and width and len(cells) != width:
                raise DataError(f"{path}:{line}: {len(cells)} fields, the header has {width}", hint="put texts with commas in double quotes")
            if cells:
                width = width or len(cells)
                yield line, cells
    except csv.Error as error:
        raise DataError(f"{path}:{begins}: not CSV: {error}", hint="double the quotes inside a quoted field; export it again") from error


def _find_delimiter(text: str, path: Path) -> tuple[str, Decision | None]:
    if path.suffix.lower() == ".tsv":
        return "\t", None
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(",;\t", key=first.count)  # the comma where none stands, or as many of each
    return delimiter, None if delimiter == "," else Decision("delimiter", repr(delimiter), "it stands more often than a comma in the first line")


def _check_header(columns: list[str], where: str) -> None:
    for name in columns:
        places = [str(i + 1) for i, other in enumerate(columns) if other == name]
        if name and len(places) > 1:
            raise DataError(f"{where}: column {name!r} stands at places {' and '.join(places)}", hint="give each column its own name")


def _read_paragraphs(text: str, path: Path) -> tuple[list[Record], str]:
    """Paragraphs, which blank lines part and which keep their own line ends; lines where no line is blank. And what joins them again."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    records: list[Record] = []
    held: list[str] = []
    begins = 1
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            begins = begins if held else number
            held.append(line)
        elif held:
            records.append(Record({"text": "\n".join(held)}, str(path), begins))
            held = []
    if len(records) > 1:
        return records, "\n\n"
    return [Record({"text": line}, str(path), number) for number, line in enumerate(lines, start=1) if line.strip()], "\n"


def _settle(
    section: AutoData | TextData | PairData, path: Path, columns: list[str], records: list[Record], joint: str
) -> tuple[TextData | PairData, list[Decision]]:
    """Fills in kind, columns and rows; a stated one is only checked."""
    shared = section.model_dump(include={"path", "encoding", "max_length", "validation_share", "test_share"})
    if isinstance(section, PairData):
        if not columns:
            raise DataError(f"{path}: prompt and response need two columns of a CSV", hint="use data.kind=text for a text file")
        for key in ("prompt_column", "response_column"):
            _must_have(path, columns, getattr(section, key), f"data.{key}")
        return section, [Decision("data", "prompt_response", f"the recipe says {section.prompt_column} -> {section.response_column}")]
    if isinstance(section, AutoData):
        pair = _find_pair(columns, path)
        if pair:
            settled = PairData(kind="prompt_response", prompt_column=pair[0], response_column=pair[1], **shared)
            return settled, [Decision("data", "prompt_response", f"columns {pair[0]!r} and {pair[1]!r} are known names of prompt and response")]
        if len(columns) > 1 and not _known(columns, TEXT_NAMES):
            raise DataError(f"{path}: cannot tell what the columns {', '.join(columns)} are for", hint=STATE_COLUMNS)
        section = TextData(kind="text", **shared)
    section = section.model_copy(update={"separator": joint if section.separator == "auto" else section.separator})
    if not columns:
        section = section.model_copy(update={"rows": "book" if section.rows == "auto" else section.rows})
        pieces = "paragraphs" if joint == "\n\n" else "lines"
        return section, [Decision("data", "text", f"{path.suffix} files are text; {pieces} are joined again and cut into blocks")]
    if section.column is not None:
        _must_have(path, columns, section.column, "data.column")
        column, reason = section.column, "the recipe says so"
    else:
        known = _known(columns, TEXT_NAMES)
        if len(known) != 1 and len(columns) > 1:
            raise DataError(f"{path}: which of the columns {', '.join(known or columns)} holds the text?", hint="state it with data.column=...")
        column, reason = (known[0], "the known name of a text column") if known else (columns[0], "the only column")
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
        alike = {column.strip().lower(): column for column in columns}
        near = difflib.get_close_matches(name.strip().lower(), list(alike), n=1, cutoff=0.6)
        mend = f"did you mean {alike[near[0]]!r}?" if near else "name one of them"
        raise DataError(f"{path}: no column {name!r} ({key}); columns are {', '.join(columns)}", hint=mend)


def _known(columns: list[str], names: tuple[str, ...]) -> list[str]:
    return [column for column in columns if column.strip().lower() in names]


def _find_pair(columns: list[str], path: Path) -> tuple[str, str] | None:
    """Columns of prompt and response by their names; two that could be the prompt are for the user to choose from."""
    for prompt_name, response_name in PAIR_NAMES:
        prompts, responses = _known(columns, (prompt_name,)), _known(columns, (response_name,))
        if len(prompts) == len(responses) == 1:
            return prompts[0], responses[0]
    prompts, responses = _known(columns, PROMPT_NAMES), _known(columns, RESPONSE_NAMES)
    for what, found in (("prompt", prompts), ("response", responses)):
        if prompts and responses and len(found) > 1:
            raise DataError(f"{path}: which of the columns {', '.join(found)} is the {what}?", hint=STATE_COLUMNS)
    return (prompts[0], responses[0]) if prompts and responses else None


def _strip_byte_order_marks(reading: Reading) -> None:
    """A mark at the start of a cell is left by a tool that glued files together; it is not text."""
    marked = [index for index, record in enumerate(reading.records) if any(cell.startswith("\ufeff") for cell in record.fields.values())]
    for index in marked:
        record = reading.records[index]
        reading.records[index] = Record({name: cell.removeprefix("\ufeff") for name, cell in record.fields.items()}, record.file, record.line)
    if marked:
        first, more = reading.records[marked[0]], f", and in {len(marked) - 1} more rows" if len(marked) > 1 else ""
        reading.notes.append(f"{first.file}:{first.line}: byte-order mark at the start of a cell removed{more}")


def _keep_text(reading: Reading, section: TextData) -> None:
    column = section.column or "text"
    kept = [Record({"text": record.fields[column]}, record.file, record.line) for record in reading.records if record.fields[column].strip()]
    _count(reading, "empty", len(reading.records) - len(kept))
    reading.records = kept if section.keep_boilerplate else _without_gutenberg(reading, kept)


def _without_gutenberg(reading: Reading, records: list[Record]) -> list[Record]:
    """Leaves out what stands outside a start mark and the end mark behind it; a file may hold several books.

    A row with the start mark is front matter and goes up to its end; a row with the end mark keeps the text before it.
    """
    marks = [mark.group(1) for record in records for mark in GUTENBERG_MARK.finditer(record.fields["text"])]
    if not marks:
        return records
    kept = []
    inside = marks[0] != "START"
    for record in records:
        text, place, said = record.fields["text"], 0, ""
        for mark in GUTENBERG_MARK.finditer(text):
            said += text[place : mark.start()] if inside else ""
            inside, place = mark.group(1) == "START", mark.end()
        if not place:
            kept += [record] if inside else []
        elif said.strip():
            kept.append(Record({"text": said.strip("\n").rstrip()}, record.file, record.line))
            reading.notes.append(f"{record.file}:{record.line}: cut at Project Gutenberg's mark, the text before it is kept")
    left = len(records) - len(kept)
    _count(reading, "Project Gutenberg header or licence", left)
    reading.notes.append(f"{left} rows of Project Gutenberg header and licence left out (data.keep_boilerplate=true keeps them)")
    return kept


def _keep_pairs(reading: Reading, section: PairData) -> None:
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
