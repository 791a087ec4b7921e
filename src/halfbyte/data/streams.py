"""A path -> text: packing and encoding found, the bytes hashed and looked through once, so that reading meets no surprise."""

import codecs
import errno
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO, cast

from halfbyte.data.rows import LARGEST_CELL, TOO_LARGE
from halfbyte.errors import DataError, IntegrityError
from halfbyte.recipe.plan import Decision

CHUNK = 1 << 20
# More text at once than the 8 kB of io.TextIOWrapper: lines of data are long.
TEXT_CHUNK = 1 << 16
# Endings of packed files, and how such files begin.
PACKED = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
# How files that are no text begin, and what to do with them; the web pages and the pointer in small letters.
NOT_TEXT = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive (PK header)", "save as CSV, or unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", "save as CSV or as .txt"),
    (b"%PDF", "a PDF", "save its text as .txt"),
    (b"{\\rtf", "a rich-text document", "save its text as .txt"),
    (b"version https://git-lfs", "a Git-LFS pointer", "run git lfs pull"),
    (b"<!doctype html", "a web page", "download the file itself, or save the page's text as .txt"),
    (b"<html", "a web page", "download the file itself, or save the page's text as .txt"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"PARE", "an encrypted Parquet file", "save it without encryption"),
    (b"ARROW1", "an Arrow or Feather file", "save as Parquet"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "save as CSV"),
    (b"\x89HDF", "an HDF5 file", "save as CSV or Parquet"),
    (b"GGUF", "model weights (GGUF)", "give a file of data"),
    (b"BZh", "a bzip2 file", "unpack it, or pack it with gzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"\x89PNG", "a picture", "give a file of data"),
    (b"\xff\xd8\xff", "a picture", "give a file of data"),
    *((bytes([0x80, protocol]), "a pickled Python object", "save as JSONL or CSV") for protocol in range(2, 6)),
)
# What a zip archive is by its ending.
ZIPPED = {
    ".xlsx": ("an Excel workbook", "save as CSV"),
    ".docx": ("a Word document", "save its text as .txt"),
    ".ods": ("a spreadsheet", "save as CSV"),
    ".odt": ("a text document", "save its text as .txt"),
    ".zip": ("a zip archive", "unpack it, and give the file or the folder"),
}
# Byte-order marks, the longer first: how the encoding is called, and the codec that takes the mark away.
MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32", "utf-32"),
    (b"\x00\x00\xfe\xff", "UTF-32", "utf-32"),
    (b"\xef\xbb\xbf", "UTF-8", "utf-8-sig"),
    (b"\xff\xfe", "UTF-16", "utf-16"),
    (b"\xfe\xff", "UTF-16", "utf-16"),
)
# Which of four bytes are zero in Latin text without a mark.
ZERO_BYTES = {
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}


@dataclass(frozen=True)
class File:
    """A file that was looked through once. `encoding` is "" where it holds no text (Parquet)."""

    path: str
    ending: str
    packing: str
    encoding: str
    sha256: str
    stamp: tuple[int, int]
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def ending_of(path: str) -> str:
    """`.csv` of both a.csv and a.CSV.gz."""
    name = Path(path)
    return Path(name.stem).suffix.lower() if name.suffix.lower() in PACKED else name.suffix.lower()


def examine(path: str, asked: str | None) -> File:
    """Reads the file once. Raises DataError for a file that is none, is empty, is no text, or whose text cannot be decoded."""
    refuse_no_file(path)
    try:
        stamp = _stamp(path)
        with open(path, "rb") as raw:
            packing = _find_packing(path, raw.read(8))
        with reading(path, packing) as stream:
            head = stream.read(512)
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from error
    _refuse_what_is_no_text(path, head)
    notes = [f"{path}: is packed ({packing[1:]}) though its name does not say so; it was unpacked"] if packing and not path.lower().endswith(packing) else []
    if head.startswith(b"PAR1"):
        return File(path, ending_of(path), packing, "", _look_through(path, packing, "").sha256, stamp, [], notes)
    encoding, sha256, decision = _find_encoding(path, packing, head, asked)
    return File(path, ending_of(path), packing, encoding, sha256, stamp, [decision] if decision else [], notes)


def refuse_no_file(path: str) -> None:
    """Raises DataError for a link that leads nowhere, and for what is there and no file: opening a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            what = "which leads in a circle" if isinstance(error, OSError) and error.errno == errno.ELOOP else "which is not there"
            raise DataError(f"{path}: is a link to {os.readlink(path)}, {what}", hint="mend the link, or give the file itself") from error
        raise _cannot_read(path, error) from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is a pipe or device, not a file", hint="save it first, and give the file")


def refuse_ending(path: str, endings: tuple[str, ...]) -> NoReturn:
    """For a file whose ending is not read: says what it looks like, if that is known."""
    with open(path, "rb") as raw:
        packing = _find_packing(path, raw.read(8))
    with reading(path, packing) as stream:
        _refuse_what_is_no_text(path, stream.read(512))
    ending = ending_of(path)
    what = f"files that end in {ending!r} are not read" if ending else "has no ending, which says what a file is"
    raise DataError(f"{path}: {what}", hint=f"use one of {', '.join(endings)}, packed with .gz, .xz or .zst if you like")


@contextmanager
def reading(path: str, packing: str, raw: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """The unpacked bytes. What goes wrong on the way is a DataError of one line."""
    with raw or open(path, "rb") as packed:
        try:
            yield _unpacked(packed, packing)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if packing:
                raise DataError(f"{path}: cannot be unpacked: {error}", hint="is it cut off or damaged? download or pack it again") from error
            raise _cannot_read(path, error) from error


@contextmanager
def reading_text(file: File, newline: str | None = None) -> Iterator[TextIO]:
    """The text, line ends as they are with newline="". Raises IntegrityError for a file that is not what it was when it was examined."""
    refuse_changed(file)
    with reading(file.path, file.packing) as stream:
        text = io.TextIOWrapper(stream, encoding=file.encoding, newline=newline)
        text._CHUNK_SIZE = TEXT_CHUNK  # type: ignore[attr-defined]
        try:
            yield text
        except UnicodeError as error:
            raise _changed(file) from error
    refuse_changed(file)


def lines_of(file: File, stream: TextIO) -> Iterator[str]:
    """Lines with their ends. Raises DataError for one that is too long to be held."""
    for number, line in enumerate(iter(partial(stream.readline, LARGEST_CELL + 1), ""), 1):
        if len(line) > LARGEST_CELL:
            raise DataError(f"{file.path}:{number}: a line of {TOO_LARGE}", hint="break it into lines, or is the file damaged?")
        yield line


def _stamp(path: str) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns


def refuse_changed(file: File) -> None:
    try:
        if _stamp(file.path) == file.stamp:
            return
    except OSError as error:
        raise _changed(file) from error
    raise _changed(file)


def _changed(file: File) -> IntegrityError:
    return IntegrityError(f"{file.path}: the file was changed while it was in use", hint="start again with the file as it is now")


def _cannot_read(path: str, error: Exception) -> DataError:
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{path}: cannot be read: {what}", hint="are you allowed to read it?")


def _find_packing(path: str, head: bytes) -> str:
    """By the first bytes, whatever the name says."""
    for ending, start in PACKED.items():
        if head.startswith(start):
            return ending
        if path.lower().endswith(ending) and head:
            raise DataError(f"{path}: ends in {ending}, but is not packed that way", hint=f"take {ending} off its name, or download it again")
    return ""


def _unpacked(raw: BinaryIO, packing: str) -> BinaryIO:
    if packing == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if packing == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if packing == ".zst":
        import pyarrow  # slow to import, and seldom needed here

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), CHUNK))
    return raw


def _refuse_what_is_no_text(path: str, head: bytes) -> None:
    for start, what, mend in NOT_TEXT:
        if head.startswith(start) or (start.isascii() and start.islower() and head[: len(start)].lower() == start):
            if start == b"PAR1" and ending_of(path) == ".parquet":
                return
            what, mend = ZIPPED.get(ending_of(path), (what, mend)) if start == NOT_TEXT[0][0] else (what, mend)
            raise DataError(f"{path}: looks like {what}", hint=mend)
    for ending, start in PACKED.items():
        if head.startswith(start):
            raise DataError(f"{path}: is packed twice ({ending[1:]} inside)", hint="unpack it once")
    if head[8:10] == b'{"' and b"\0" in head[:8]:
        raise DataError(f"{path}: looks like model weights (safetensors)", hint="give a file of data")
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: looks like a tar archive", hint="unpack it")
    if head and ending_of(path) == ".parquet":
        raise DataError(f"{path}: is no Parquet file (it does not begin with PAR1)", hint="export it again, or name it after what it is")


def _find_encoding(path: str, packing: str, head: bytes, asked: str | None) -> tuple[str, str, Decision | None]:
    """The codec to read with, the hash, and the decision if there was one."""
    mark = next((mark for mark in MARKS if head.startswith(mark[0])), None)
    if asked:
        encoding = _asked_codec(path, asked, mark)
        decision: Decision | None = Decision("encoding", asked, "the recipe asks for it")
    elif mark:
        encoding = mark[2]
        decision = Decision("encoding", mark[1], f"the file begins with {mark[1]}'s byte-order mark")
    else:
        encoding, decision = "utf-8", None
        _refuse_unmarked(path, head)
    seen = _look_through(path, packing, encoding)
    if seen.bad_byte is not None:
        said = f"{path}:{seen.line}: byte 0x{seen.bad_byte:02X} is not {decision.value if decision else encoding}"
        if asked:
            raise DataError(said, hint="leave data.encoding out, or save the file as UTF-8")
        if decision:
            raise DataError(f"{said}, though {decision.reason}", hint="is the file damaged? save it as UTF-8 again")
        if not seen.ascii:
            raise DataError(f"{said}, though the text before it is", hint="mend that line, or name the file's encoding with data.encoding=...")
        encoding = "cp1252"
        decision = Decision("encoding", "cp1252", f"{said}; read as Windows text (cp1252), say data.encoding=... if it is another")
        seen = _look_through(path, packing, encoding)
        if seen.bad_byte is not None:
            raise DataError(said, hint="save the file as UTF-8, or name its encoding with data.encoding=...")
    if seen.zero_line:
        raise DataError(f"{path}:{seen.zero_line}: holds a zero byte, so it is no text file", hint="export it again as UTF-8 text")
    if seen.blank:
        raise DataError(f"{path} is empty ({seen.size} bytes)", hint="export it again, or give another file")
    return encoding, seen.sha256, decision


def _asked_codec(path: str, asked: str, mark: tuple[bytes, str, str] | None) -> str:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=asked)  # refuses codecs that are not for text
        codec = codecs.lookup(asked).name
    except (LookupError, ValueError) as error:
        raise DataError(f"data.encoding: {asked!r} is no encoding", hint="try utf-8, utf-16 or cp1252") from error
    if mark is None:
        return codec
    if not codec.startswith(mark[1].lower()):
        raise DataError(f"{path}: begins with {mark[1]}'s byte-order mark, but data.encoding says {asked}", hint="leave data.encoding out")
    return mark[2]


def _refuse_unmarked(path: str, head: bytes) -> None:
    """UTF-16 and UTF-32 without a byte-order mark: half of the bytes or more are zero, always at the same places."""
    codec = ZERO_BYTES.get(cast(tuple[bool, bool, bool, bool], tuple(byte == 0 for byte in head[:4])))
    if codec:
        name = codec.upper()[:6]
        raise DataError(f"{path}: looks like {name} without a byte-order mark", hint=f"save it as UTF-8, or say data.encoding={codec}")


@dataclass
class _Seen:
    """What a look through a file found."""

    sha256: str = ""
    size: int = 0
    blank: bool = True
    ascii: bool = True
    line: int = 1
    returned: bool = False
    zero_line: int = 0
    bad_byte: int | None = None


class _Hashed(io.FileIO):
    """A file that hashes what is read of it."""

    def __init__(self, path: str):
        super().__init__(path)
        self.hash = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = super().readinto(buffer) or 0
        self.hash.update(memoryview(buffer)[:count])
        return count


def _look_through(path: str, packing: str, encoding: str) -> _Seen:
    """One pass: the hash of the packed bytes, whether they decode, and where the first bad or zero byte stands."""
    seen = _Seen()
    raw = _Hashed(path)
    packed = io.BufferedReader(raw, CHUNK)
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    with reading(path, packing, cast(BinaryIO, packed)) as stream:
        while True:
            chunk = stream.read(CHUNK)
            seen.size += len(chunk)
            if decoder:
                state = decoder.getstate()
                try:
                    _note_text(seen, decoder.decode(chunk, final=not chunk))
                except UnicodeError as error:
                    decoder.setstate(state)
                    _note_bad_byte(seen, error, chunk, decoder)
                    return seen
            if not chunk:
                break
        while packed.read(CHUNK):  # what stands behind the packed data
            pass
    seen.sha256 = raw.hash.hexdigest()
    return seen


def _note_text(seen: _Seen, text: str) -> None:
    seen.blank = seen.blank and (not text or text.isspace())
    seen.ascii = seen.ascii and text.isascii()
    if not seen.zero_line and "\0" in text:
        seen.zero_line = seen.line + _line_ends(text[: text.index("\0")], seen.returned)
    seen.line += _line_ends(text, seen.returned)
    seen.returned = text.endswith("\r") if text else seen.returned


def _note_bad_byte(seen: _Seen, error: UnicodeError, chunk: bytes, decoder: codecs.IncrementalDecoder) -> None:
    """What stands before the bad byte counts for its line."""
    if not isinstance(error, UnicodeDecodeError):
        seen.bad_byte = 0
        return
    seen.bad_byte = error.object[error.start]
    held = len(error.object) - len(chunk)  # bytes of the chunk before, which were no whole character
    _note_text(seen, decoder.decode(chunk[: max(0, error.start - held)]))


def _line_ends(text: str, returned: bool) -> int:
    """As an editor counts them: \\n, \\r\\n and the lone \\r of old files. `returned`: the text before ended in \\r, which was counted."""
    ends = text.count("\n") - (returned and text.startswith("\n"))
    return ends + text.count("\r") - text.count("\r\n") if "\r" in text else ends
