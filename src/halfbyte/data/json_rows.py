"""JSON and JSON lines -> rows, value by value, so that a file may be larger than memory and every row knows its line.

Numbers stay as they are written, true and false become text, null is an absent cell. A list of objects is read through a window
that slides over the text, objects on lines of their own line by line, whatever the name of the file says.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from json import JSONDecodeError
from typing import Any, NoReturn, TextIO, cast

from halfbyte.data.rows import DEEPEST, LARGEST_CELL, TOO_LARGE, Part, Problems, Row
from halfbyte.data.streams import CHUNK, File, lines_of, reading_text
from halfbyte.errors import DataError

# Rows that are looked at to find the columns.
LOOKED_AT = 1000
# An object with one of these lists is one conversation; its turns are no rows.
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
FIX = "mend it"
SPREAD, ONE_A_LINE = "an object that goes over several lines", "write one object a line"
TOO_DEEP = f"lists or objects nested deeper than {DEEPEST}"
A_LIST = "write a list of objects, [{...}, {...}], or .jsonl with one object a line"
BLANK = re.compile(r"[ \t\n\r]*")


class _Refused(ValueError):
    """JSON that is well formed and still cannot be a row."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"key {twice!r} stands twice in one object")
    for name, value in pairs:
        if type(value) is not str:
            if value is None:
                del found[name]
            else:
                found[name] = _text_leaves(value)
    return found


def _text_leaves(value: Any) -> Any:
    """true and false as text, in lists too; objects were done when they were read."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return [_text_leaves(one) for one in value] if isinstance(value, list) else value


def _no_number(name: str) -> NoReturn:
    raise _Refused(f"{name} is no JSON")


# int and float would make 1 of 1.0, and refuse 10,000 digits.
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_no_number)
# For what is only stepped over.
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)


def look_at_json(file: File) -> Part:
    """Finds the form and the columns by looking into the file. Raises DataError where it holds no rows."""
    read, notes = _find_form(file)
    columns: dict[str, None] = {}
    # Bad rows are told when the rows are read, unless there is nothing else.
    with suppress(DataError):
        for row in islice(read(Problems(most=LOOKED_AT)), LOOKED_AT):
            columns |= dict.fromkeys(row.cells)
    if not columns:
        _refuse_texts(file)
        problems = Problems()
        for _ in islice(read(problems), LOOKED_AT):
            pass
        problems.raise_if_any()
        raise DataError(f"{file.path}: holds no row", hint=A_LIST)
    return Part(file.path, list(columns), partial(_telling_new_keys, read, list(columns)), file.sha256, file.decisions, file.notes + notes)


def _refuse_texts(file: File) -> None:
    """Told once, not for every text."""
    with reading_text(file) as stream:
        window = _Window(file, stream, Problems())
        listed = window.peek() == "["
        if listed:
            window.take("[")
        if window.peek() == '"':
            where = window.where(window.at)
            window.value(LENIENT)
            if not listed and window.peek() not in ('"', ""):  # a CSV by another name
                return
            raise DataError(f"{where}: texts where objects belong", hint='write objects, {"text": "..."}, or one text a line in a .txt')


def _find_form(file: File) -> tuple[Callable[[Problems], Iterator[Row]], list[str]]:
    """How to read the rows, and what is worth telling about it."""
    with reading_text(file) as stream:
        window = _Window(file, stream, Problems())
        first = window.peek()
        if first == "[":
            notes = [] if file.ending == ".json" else [f"{file.path}: is one JSON list, not one object a line; read as such"]
            return partial(_listed_rows, file, ""), notes
        if file.ending != ".json":
            return partial(_line_rows, file), []
        if first != "{":
            window.refuse("neither a list nor an object", A_LIST)
        members = {name: window.kind_of_value() for name in window.members()}
        more = window.peek()
    if more == "{":
        return partial(_line_rows, file), [f"{file.path}: is one object a line (JSON lines); read as such"]
    if more:
        window.refuse("more text behind the object", A_LIST)
    lists = [name for name, kind in members.items() if kind == "objects" and name not in TURNS]
    if len(lists) > 1:
        raise DataError(f"{file.path}: holds {len(lists)} lists of objects ({', '.join(lists)})", hint="write each list to a file of its own")
    if lists:
        return partial(_listed_rows, file, lists[0]), [f"{file.path}: rows are the objects of the list {lists[0]!r}"]
    if members and set(members.values()) in ({"values"}, {"object"}):
        raise DataError(f"{file.path}: is written column by column ({', '.join(list(members)[:5])})", hint=A_LIST)
    return partial(_single_row, file), [f"{file.path}: is one object, read as one row"]


def _telling_new_keys(read: Callable[[Problems], Iterator[Row]], columns: list[str], problems: Problems) -> Iterator[Row]:
    known = set(columns)
    for row in read(problems):
        if not known.issuperset(row.cells):
            for name in row.cells.keys() - known:
                problems.notes.append(f"{row.file}:{row.line}: key {name!r} first stands here; columns were found in the first {LOOKED_AT} rows")
            known.update(row.cells)
        yield row


def _line_rows(file: File, problems: Problems) -> Iterator[Row]:
    """One object a line."""
    begun = False
    with reading_text(file) as stream:
        for number, line in enumerate(lines_of(file, stream), 1):
            if line[0] == "\ufeff":
                problems.notes.append(f"{file.path}:{number}: byte-order mark at the start of a line removed")
                line = line[1:]
            line = line.removesuffix("\n")
            start = 0 if line.startswith("{") else _skip_blank(line)
            if start == len(line):
                continue
            try:
                cells, end = DECODER.raw_decode(line, start)
                if end < len(line):
                    _refuse_more(line, end)
                if why_not := _why_no_row(cells, line, start, end):
                    raise _Refused(why_not)
            except (ValueError, RecursionError) as error:
                place = f":{error.pos + 1}" if isinstance(error, JSONDecodeError) else ""
                if line.strip() != "{":
                    problems.add(f"{file.path}:{number}{place}", _said(error), "not JSON", FIX)
                elif begun:
                    problems.add(f"{file.path}:{number}", SPREAD, "not JSON", ONE_A_LINE)
                else:  # all objects of the file are likely written so
                    problems.stop(f"{file.path}:{number}", SPREAD, ONE_A_LINE)
            else:
                yield Row(cells, file.path, number)
            begun = True


def _listed_rows(file: File, key: str, problems: Problems) -> Iterator[Row]:
    """The objects of a list: of the whole file, or of the one under `key` in an object."""
    with reading_text(file) as stream:
        window = _Window(file, stream, problems)
        for name in window.members() if key else [""]:
            if name == key:
                for line in window.elements():
                    cells = window.row()
                    if cells is not None:
                        yield Row(cells, file.path, line)
            else:
                window.value(LENIENT)
        if window.peek():
            window.refuse("more text behind the list", A_LIST)


def _single_row(file: File, problems: Problems) -> Iterator[Row]:
    with reading_text(file) as stream:
        window = _Window(file, stream, problems)
        window.peek()
        line, cells = window.line_at(window.at), window.row()
        if cells is not None:
            yield Row(cells, file.path, line)


class _Window:
    """The part of a JSON text that is held, and the place that was read up to. It grows until a value fits in."""

    def __init__(self, file: File, stream: TextIO, problems: Problems):
        self.file, self.stream, self.problems = file, stream, problems
        self.text, self.at = "", 0
        self.line, self.counted = 1, 0  # the line at text[counted]
        self.dropped = 0  # characters of the first line that are no longer held

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self.at = _skip_blank(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._grow():
                return ""

    def take(self, *expected: str) -> str:
        found = self.peek()
        if found not in expected:
            self.refuse(f"not JSON (expecting {' or '.join(map(repr, expected))})", FIX)
        self.at += 1
        return found

    def members(self) -> Iterator[str]:
        """The keys of an object; whoever is given one takes its value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                self.refuse("not JSON (expecting a key in double quotes)", FIX)
            name = self.value(LENIENT)
            if name in seen:
                self.refuse(f"key {name!r} stands twice in one object", "take one of them out")
            seen.add(name)
            self.take(":")
            yield name
            if self.take(",", "}") == "}":
                return

    def elements(self) -> Iterator[int]:
        """The lines where the elements of a list begin; whoever is given one takes the element."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.peek()
            yield self.line_at(self.at)
            if self.take(",", "]") == "]":
                return

    def row(self) -> dict[str, Any] | None:
        """The next value as cells; None where it cannot be a row, which is then among the problems."""
        self.peek()
        try:
            cells, start, end = self._decode(DECODER)
            why_not = _why_no_row(cells, self.text, start, end)
        except _Refused as error:
            why_not = str(error)
            cells, start, _ = self._decode(LENIENT)
        except RecursionError as error:
            self.refuse(_said(error), FIX)
        if not why_not:
            return cast(dict[str, Any], cells)
        self.problems.add(self.where(start), why_not, "not JSON", FIX)
        return None

    def value(self, decoder: json.JSONDecoder) -> Any:
        self.peek()
        return self._decode(decoder)[0]

    def kind_of_value(self) -> str:
        """objects (a list of them), values (a list of anything else), object, or value; steps over it."""
        first = self.peek()
        if first != "[":
            self.value(LENIENT)
            return "object" if first == "{" else "value"
        kind = "values"
        for _ in self.elements():
            kind = "objects" if self.peek() == "{" else kind
            self.value(LENIENT)
        return kind

    def line_at(self, place: int) -> int:
        """Places must not go back, so that no text is counted twice."""
        self.line += self.text.count("\n", self.counted, place)
        self.counted = place
        return self.line

    def where(self, place: int) -> str:
        begins = self.text.rfind("\n", 0, place) + 1
        return f"{self.file.path}:{self.line_at(place)}:{place - begins + 1 + (0 if begins else self.dropped)}"

    def refuse(self, what: str, hint: str, place: int | None = None) -> NoReturn:
        self.problems.stop(self.where(self.at if place is None else place), what, hint)

    def _decode(self, decoder: json.JSONDecoder) -> tuple[Any, int, int]:
        """The value at `at`, where it begins and where it ends; `at` moves behind it. Raises _Refused without moving."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except JSONDecodeError as error:
                # A cut string is reported where it begins, all else close to the end.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - len("-Infinity")
                if not cut or not self._grow():
                    self.refuse(_said(error), FIX, error.pos)
            except RecursionError as error:
                self.refuse(_said(error), FIX)
            else:
                # A number that touches the end may go on.
                if end < len(self.text) or not self._grow():
                    start, self.at = self.at, end
                    return value, start, end

    def _grow(self) -> bool:
        """Lets go of what was read, and holds at least twice as much of the rest. False at the end of the file, where nothing changes."""
        held = len(self.text) - self.at
        if held > LARGEST_CELL:
            self.refuse(f"a value of {TOO_LARGE}", "is the file damaged? cut such texts up")
        more = self.stream.read(max(CHUNK, held))
        if not more:
            return False
        self.line_at(self.at)
        self.dropped = self.at - self.text.rfind("\n", 0, self.at) - 1 + (0 if "\n" in self.text[: self.at] else self.dropped)
        self.text, self.at, self.counted = self.text[self.at :] + more, 0, 0
        return True


def _skip_blank(text: str, start: int = 0) -> int:
    blank = BLANK.match(text, start)
    return blank.end() if blank else start


def _refuse_more(line: str, end: int) -> None:
    rest = _skip_blank(line, end)
    if rest < len(line):
        what = "a second object on one line" if line[rest] == "{" else "Extra data"
        raise JSONDecodeError(what, line, rest)


def _why_no_row(value: Any, text: str, start: int, end: int) -> str:
    """A row is an object, and its texts can be written as UTF-8: half of a pair of escapes is no character."""
    if type(value) is not dict:
        return "a list where an object belongs" if isinstance(value, list) else "a single value where an object belongs"
    if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "holds half a character (a lone surrogate)"
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST and _is_deep(value):
        return TOO_DEEP
    return ""


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level if isinstance(one, list | dict) for inner in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, JSONDecodeError):
        return str(error)
    return f"not JSON ({error.msg[:1].lower()}{error.msg[1:].rstrip(': ')})"
