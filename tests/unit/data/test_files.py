"""From any file to rows: no cell is changed, every row knows its line, and what cannot be read is named with its line and mend."""

import gzip
import json
import logging
import lzma
import os
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfbyte.data.files import LARGEST_CELL, Problems, Source, open_source
from halfbyte.errors import DataError, HalfbyteError, IntegrityError, MachineError

ROWS = [{"prompt": "caf\u00e9, \u2603", "response": "two\nlines"}, {"prompt": "NA", "response": "01"}]


@pytest.fixture
def write(tmp_path):
    """A function: content, name -> path of a file with it, line ends as they are."""

    def to(content: str | bytes, name: str = "a.csv") -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return to


def cells(source: Source) -> list[dict]:
    return [row.cells for row in source.rows()]


def lines(source: Source) -> list[int]:
    return [row.line for row in source.rows()]


def refusal(path, kind: type[HalfbyteError] = DataError, **more) -> HalfbyteError:
    """The error of opening and reading it through."""
    with pytest.raises(kind) as caught:
        list(open_source(path, **more).rows())
    assert caught.value.hint
    return caught.value


def said(path: str, **more) -> str:
    """The message, less the path."""
    return refusal(path, **more).message.replace(path, "")


def jsonl(rows: list[dict], **more) -> str:
    return "".join(json.dumps(row, **more) + "\n" for row in rows)


def pack(content: bytes, packing: str) -> bytes:
    if packing == ".zst":
        return pa.compress(content, codec="zstd", asbytes=True)
    return gzip.compress(content, mtime=0) if packing == ".gz" else lzma.compress(content)


def decided(source: Source, name: str) -> list[str]:
    return [decision.value for decision in source.decisions if decision.name == name]


# Every form


FORMS = {
    "a.csv": 'prompt,response\n"caf\u00e9, \u2603","two\nlines"\nNA,01\n',
    "a.tsv": 'prompt\tresponse\ncaf\u00e9, \u2603\t"two\nlines"\nNA\t01\n',
    "a.jsonl": jsonl(ROWS),
    "a.ndjson": jsonl(ROWS, ensure_ascii=False),
    "a.json": json.dumps(ROWS, indent=1),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table_gives_the_same_rows_each_time(write, name, packing):
    content = FORMS[name].encode()
    source = open_source(write(pack(content, packing) if packing else content, name + packing))
    assert cells(source) == cells(source) == ROWS
    assert source.columns == ["prompt", "response"]
    assert (source.kind, source.left_out, source.notes) == ("table", {}, [])


@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".zst"])
def test_parquet_gives_the_same_rows(tmp_path, packing):
    file = tmp_path / f"a.parquet{packing}"
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "plain")
    content = (tmp_path / "plain").read_bytes()
    file.write_bytes(pack(content, packing) if packing else content)
    assert cells(open_source(str(file))) == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.text", "A.TXT", "a.txt.gz"])
def test_text_is_parted_at_blank_lines(write, name):
    content = b"\n one\r\ntwo\n\n \nthree  \r\r\rfour\n"
    source = open_source(write(gzip.compress(content, mtime=0) if name.endswith("gz") else content, name))
    assert [(row.cells, row.line) for row in source.rows()] == [({"text": " one\ntwo"}, 2), ({"text": "three  "}, 6), ({"text": "four"}, 9)]
    assert (source.kind, source.columns, source.joint) == ("text", [], "\n\n")


def test_text_without_a_blank_line_is_lines(write):
    source = open_source(write("\none\ntwo\n", "a.txt"))
    assert [(row.cells["text"], row.line) for row in source.rows()] == [("one", 2), ("two", 3)]
    assert source.joint == "\n"


@pytest.mark.parametrize(
    "cell", ["NA", "null", "None", "nan", "01", "1e5", "TRUE", "2024-01-01", " x ", "a,b", 'he said "no"', "a\nb", "a\r\nb", "\u00e9\u2603"]
)
def test_a_cell_comes_back_as_it_stands(write, cell):
    """pandas makes nothing of NA and null, 1 of 01 and 100000.0 of 1e5. BAD_INPUTS 7, 15, 16."""
    quoted = cell.replace('"', '""')
    assert cells(open_source(write(f'x\n"{quoted}"\n'))) == [{"x": cell}]
    assert cells(open_source(write(jsonl([{"x": cell}]), "a.jsonl"))) == [{"x": cell}]


def test_values_of_json_are_text_as_written(write):
    """int() refuses more than 4,300 digits, float() makes 1.0 of 1.00. null is an absent cell."""
    number = "9" * 10_000
    content = f'{{"a": 1.00, "b": {number}, "c": true, "d": null, "e": [1e5, false, null, {{"f": 2, "g": null}}], "h": {{}}}}'
    expected = {"a": "1.00", "b": number, "c": "true", "e": ["1e5", "false", None, {"f": "2"}], "h": {}}
    assert cells(open_source(write(content + "\n", "a.jsonl"))) == [expected]
    assert cells(open_source(write(f"[{content}]", "a.json"))) == [expected]


def test_values_of_parquet_become_text_where_nothing_is_lost(tmp_path):
    """BAD_INPUTS 42: a float column has no cells, and its type is told to whoever asks for it."""
    table = pa.table({
        "text": pa.array(["a", None]), "large": pa.array(["b", "c"], pa.large_string()), "kind": pa.array(["x", "x"]).dictionary_encode(),
        "n": pa.array([2**63 - 1, -1]), "ok": pa.array([True, False]), "turns": pa.array([[{"role": "user", "n": 1}], []]),
        "share": pa.array([0.5, 1.0]), "raw": pa.array([b"1", b"2"]), "shares": pa.array([[0.5], []]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    first, second = source.rows()
    assert first.cells == {"text": "a", "large": "b", "kind": "x", "n": "9223372036854775807", "ok": "true", "turns": [{"role": "user", "n": "1"}]}
    assert second.cells == {"large": "c", "kind": "x", "n": "-1", "ok": "false", "turns": []}
    assert (first.line, second.line) == (1, 2)
    assert source.columns == table.column_names
    assert source.types == {"share": "double", "raw": "binary", "shares": "list<element: double>"}


# Encodings


TEXT = "prompt,response\r\ncaf\u00e9,d\u00e9j\u00e0\r\n"


@pytest.mark.parametrize(("encoding", "value", "reason"), [
    ("utf-8", None, None),
    ("utf-8-sig", "UTF-8", "the file begins with UTF-8's byte-order mark"),
    ("utf-16", "UTF-16", "the file begins with UTF-16's byte-order mark"),
    ("utf-32", "UTF-32", "the file begins with UTF-32's byte-order mark"),
    ("cp1252", "cp1252", "byte 0xE9 is not utf-8; read as Windows text (cp1252)"),
])  # fmt: skip
def test_the_encoding_is_found_and_told(write, encoding, value, reason):
    """BAD_INPUTS 3, 4, 5."""
    path = write(TEXT.encode(encoding))
    source = open_source(path)
    assert cells(source) == [{"prompt": "caf\u00e9", "response": "d\u00e9j\u00e0"}]
    assert decided(source, "encoding") == ([value] if value else [])
    assert all(reason in decision.reason for decision in source.decisions)
    if encoding == "cp1252":
        assert f"{path}:2: " in source.decisions[0].reason


def test_an_encoding_that_is_asked_for_is_used(write):
    path = write(TEXT.replace("\u00e9", "\u0119").encode("cp1250", "replace"))
    assert cells(open_source(path, encoding="cp1250"))[0]["prompt"] == "caf\u0119"
    assert said(path, encoding="utf-8") == ":2: byte 0xEA is not utf-8"
    for unknown in ("utf-9", "hex", "a\0b"):
        assert "is no encoding" in said(path, encoding=unknown)
    assert said(write(TEXT.encode("utf-8-sig")), encoding="cp1252") == ": begins with UTF-8's byte-order mark, but data.encoding says cp1252"


@pytest.mark.parametrize(
    ("encoding", "asked"), [("utf-8-sig", "utf8"), ("utf-8-sig", "UTF-8"), ("utf-16", "utf-16-le"), ("utf-16", "utf_16"), ("utf-16-le", "utf-16-le")]
)
def test_a_byte_order_mark_is_never_part_of_the_first_column(write, encoding, asked):
    """Guards against `data.encoding=utf-8` with a marked file: the column was called '\\ufeffprompt' and not found."""
    assert open_source(write(TEXT.encode(encoding)), encoding=asked).columns == ["prompt", "response"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark_is_named_with_the_mend(write, encoding):
    error = refusal(write(TEXT.encode(encoding)))
    assert f"looks like {encoding[:6].upper()} without a byte-order mark" in error.message
    assert f"data.encoding={encoding}" in error.hint


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_line_of_a_bad_byte_is_exact(write, end, size):
    """The first bad byte behind a megabyte, with line ends on the border of two reads."""
    count = size // (len(end) + 1) + 3
    path = write(b"\xef\xbb\xbf" + ("a" + end).encode() * count + b"b\xe9\n", "a.txt")
    assert said(path) == f":{count + 1}: byte 0xE9 is not UTF-8, though the file begins with UTF-8's byte-order mark"
    assert said(write(("a" + end).encode() * count + b"b\0", "a.txt")) == f":{count + 1}: holds a zero byte, so it is no text file"


def test_a_line_end_on_the_border_of_two_reads_counts_once(write):
    """The first megabyte ends between \\r and \\n."""
    content = b"x\n" + b"a\r\n" * 400_000
    assert content[(1 << 20) - 1 : (1 << 20) + 1] == b"\r\n"
    assert said(write(content + b"\0", "a.txt")).startswith(":400002: holds a zero byte")


def test_the_line_of_a_bad_pair_is_exact_in_utf_16(write):
    content = "\ufeff".encode("utf-16-be") + ("a\n" * 300_000).encode("utf-16-be") + b"\xd8\x00\x00a"
    assert said(write(content, "a.txt")).startswith(":300001: byte 0xD8 is not UTF-16, though")


def test_a_damaged_utf_8_file_is_not_taken_for_windows_text(write):
    """A bad byte far down in UTF-8 text would have turned every accent before it into two letters, of the whole file."""
    assert said(write("caf\u00e9\n".encode() + b"caf\xe9\n", "a.txt")) == ":2: byte 0xE9 is not utf-8, though the text before it is"
    assert said(write(b"a\n\xc3\xa9\n\x81", "a.txt")).startswith(":3: byte 0x81 is not utf-8")
    assert said(write(b"a\nb\x81", "a.txt")) == ":2: byte 0x81 is not utf-8"


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.json", "a.jsonl", "a.parquet"])
def test_an_empty_file_is_named(write, content, name):
    """BAD_INPUTS 1. A file of a byte-order mark alone ended in a traceback."""
    if name != "a.parquet" or not content:
        assert said(write(content, name)) == f" is empty ({len(content)} bytes)"


def test_marks_at_the_start_of_cells_are_removed_and_told(write):
    """Files glued together."""
    path = write('text\n"\ufeffOne, \ufeffyes"\nTwo\n\ufeffThree\n')
    source = open_source(path)
    assert [row["text"] for row in cells(source)] == ["One, \ufeffyes", "Two", "Three"]
    assert source.notes == [f"{path}:2: byte-order mark at the start of a cell removed, and in 1 more rows"]
    assert cells(open_source(write(jsonl(ROWS) + "\ufeff" + jsonl(ROWS), "a.jsonl"))) == ROWS * 2
    assert open_source(write(("\ufeff\ufeffprompt\na\n").encode())).columns == ["prompt"]


# What is no data


@pytest.mark.parametrize(("content", "name", "what", "mend"), [
    (b"PK\x03\x04....", "a.csv", "looks like an Excel workbook or a zip archive (PK header)", "save as CSV"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.parquet", "looks like a Git-LFS pointer", "run git lfs pull"),
    (b"%PDF-1.7", "a.txt", "looks like a PDF", "save its text as .txt"),
    (b"<!DOCTYPE html><html>Log in</html>", "a.csv", "looks like a web page", "download the file itself"),
    (b"<HTML><body>", "a.jsonl", "looks like a web page", "download the file itself"),
    (b"PAR1....", "a.csv", "looks like a Parquet file", ".parquet"),
    (b"SQLite format 3\0", "a.csv", "looks like an SQLite database", "export"),
    (b"\x80\x04\x95", "a.jsonl", "looks like a pickled Python object", "save as"),
    (b"\x40\0\0\0\0\0\0\0" + b'{"a":', "a.json", "looks like model weights", "give a file of data"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.csv", "looks like an old Excel", "save as"),
    (b"a,b\n", "a.parquet", "is no Parquet file (it does not begin with PAR1)", "export it again"),
    (b"a,b\n", "a.csv.gz", "ends in .gz, but is not packed that way", "take .gz off its name"),
    (gzip.compress(lzma.compress(b"a"), mtime=0), "a.csv.gz", "is packed twice (xz inside)", "unpack it once"),
    (gzip.compress(b"PK\x03\x04....", mtime=0), "a.csv.gz", "looks like an Excel workbook", "save as CSV"),
])  # fmt: skip
def test_a_file_that_is_no_data_is_named(write, content, name, what, mend):
    """BAD_INPUTS 24."""
    path = write(content, name)
    error = refusal(path)
    assert error.message.startswith(f"{path}: {what}")
    assert mend in error.hint


def test_a_packed_file_is_known_without_its_ending(write):
    source = open_source(write(gzip.compress(FORMS["a.csv"].encode(), mtime=0)))
    assert cells(source) == ROWS
    assert "is packed (gz) though its name does not say so" in source.notes[0]


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.parquet"])
def test_a_damaged_packed_file_ends_in_a_line(write, name, packing):
    content = pack(b"PAR1 some words, some more\n" * 20_000 if name == "a.parquet" else FORMS["a.csv"].encode() * 20_000, packing)
    middle = len(content) // 2
    for damaged in (content[:middle], content[:-1], content[:10], content[:middle] + b"\0" * 20 + content[middle + 20 :]):
        assert said(write(damaged, name + packing)).startswith(": cannot be unpacked: ")


def test_other_files_that_cannot_be_read_are_named(write, tmp_path):
    write("a\n", "data.csv")
    error = refusal(str(tmp_path / "dat.csv"))
    assert error.message.endswith("dat.csv: no such file")
    assert error.hint == f"did you mean {tmp_path / 'data.csv'}?"
    assert refusal("squad-makers/squad").hint == "write hub:squad-makers/squad for the dataset of the hub"
    assert "files that end in '.xlsx' are not read" in said(write("a", "a.xlsx"))
    assert said(write("a", "a")) == ": has no ending, which says what a file is"
    assert refusal("x" * 5000 + ".csv").message.endswith(": cannot be read: File name too long")
    assert "no such file" in refusal("a\0.csv").message
    assert refusal([]).message == "data.path: holds no file to read"
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.csv")
    for path in (tmp_path / "in" / "pipe.csv", tmp_path / "in", "/dev/null", "/dev/zero"):
        assert refusal(str(path)).message.endswith(": is a pipe or device, not a file")


def test_a_link_that_leads_nowhere_is_named_with_where_it_leads(tmp_path):
    """It was "no such file", and the mend was the very same name."""
    (tmp_path / "in").mkdir()
    link, circle = tmp_path / "in" / "a.csv", tmp_path / "circle.csv"
    link.symlink_to("gone.csv")
    circle.symlink_to("circle.csv")
    for path in (link, tmp_path / "in"):
        assert refusal(str(path)).message == f"{link}: is a link to gone.csv, which is not there"
    assert said(str(circle)) == ": is a link to circle.csv, which leads in a circle"


@pytest.mark.parametrize(("name", "content", "what", "mend"), [
    ("a.xlsx", b"PK\x03\x04....", "an Excel workbook", "save as CSV"), ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel", "save as CSV"),
    ("a.docx", b"PK\x03\x04....", "a Word document", "save its text"), ("a.zip", b"PK\x03\x04....", "a zip archive", "unpack it"),
    ("a.pdf", b"%PDF-1.7", "a PDF", "save its text"), ("a.csv", b"PK\x03\x04....", "an Excel workbook or a zip", "save as CSV"),
    ("a", b"PAR1....", "a Parquet file", ".parquet"), ("a.dat.gz", gzip.compress(b"%PDF-1.7", mtime=0), "a PDF", "save its text"),
])  # fmt: skip
def test_a_file_of_another_ending_is_named_by_its_content(write, name, content, what, mend):
    error = refusal(write(content, name))
    assert f"{name}: looks like {what}" in error.message
    assert mend in error.hint


def test_what_is_no_path_is_named_with_the_mend(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nul.csv", "a.csv", "b.csv"):
        write("a\n", name)
    for path in ("http://x.org/a.csv", "https:/x.org/a.csv", "s3://x/a.csv"):
        assert said(path) == ": is an address, not a file"
    assert refusal("a.csv,b.csv").hint == "write several files as a list: data.path=[a.csv,b.csv]"
    assert refusal("nosuch.csv").hint == "give another file"
    assert refusal("null.csv").hint == "did you mean nul.csv?"


# CSV


def test_lines_are_counted_as_an_editor_counts_them(write):
    source = open_source(write('prompt,response\na,b\n\n"two\nlines","and\r\nthree\nmore"\nc,d\n'))
    assert lines(source) == [2, 4, 8]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_known(write, end):
    content = end.join(["prompt,response", "a;,b", "c,d", ""])
    assert [(row.cells["prompt"], row.line) for row in open_source(write(content)).rows()] == [("a;", 2), ("c", 3)]
    assert lines(open_source(write(end.join(['{"a": 1}', "", '{"a": 2}']), "a.jsonl"))) == [1, 3]
    assert lines(open_source(write(end.join(["[", '{"a": 1},', '{"a": 2}]']), "a.json"))) == [2, 3]


def test_all_ragged_rows_are_told_together(write):
    """BAD_INPUTS 9."""
    path = write('prompt,response\n"x\ny",b\na,b,c\n"d"e,f\nq\na,b\n')
    assert said(path) == ":4: 3 fields, the header has 2\n:5: not CSV: ',' expected after '\"'\n:6: 1 field, the header has 2"
    source = open_source(path, on_bad_row="skip")
    for _ in range(2):
        assert cells(source) == [{"prompt": "x\ny", "response": "b"}, {"prompt": "a", "response": "b"}]
        assert source.left_out == {"another number of fields": 2, "not CSV": 1}


def test_at_most_twenty_problems_are_told(write):
    path = write("a,b\n" + "c\n" * 19)
    assert len(said(path).split("\n")) == 19
    told = said(write("a,b\n" + "c\n" * 1000)).split("\n")
    assert (len(told), told[19], told[20]) == (21, ":21: 1 field, the header has 2", "20 problems: reading stopped here, there may be more")


def test_problems_of_rows_and_of_their_reader_are_told_together(write):
    path = write("a,b\nc\nd,e\n")
    problems = Problems()
    for row in open_source(path).rows(problems):
        problems.add(f"{row.file}:{row.line}", "cell 'a' is odd", "odd")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    assert caught.value.message == f"{path}:2: 1 field, the header has 2\n{path}:3: cell 'a' is odd"


@pytest.mark.parametrize(("content", "line"), [('a,b\n1,2\n3,"never closed\n4,5\n', 3), ('"a,b\n1,2\n', 1)])
@pytest.mark.parametrize("on_bad_row", ["refuse", "skip"])
def test_a_quote_that_is_never_closed_is_never_skipped(write, content, line, on_bad_row):
    """The rest of the file would be lost with that row."""
    assert said(write(content), on_bad_row=on_bad_row).startswith(f":{line}: not CSV: ")
    assert said(write('a,b\n1\n2,"never\n')) == ":2: 1 field, the header has 2\n:3: not CSV: unexpected end of data"


@pytest.mark.parametrize("on_bad_row", ["refuse", "skip"])
def test_a_cell_may_be_large_but_not_endless(write, on_bad_row):
    """BAD_INPUTS 22."""
    assert len(cells(open_source(write(f"a,b\nc,{'x' * 200_000}\n")))[0]["b"]) == 200_000
    assert said(write(f"a,b\nc,{'x' * LARGEST_CELL}\n"), on_bad_row=on_bad_row) == ":2: a line of more than 10 MB"
    lines_in_a_cell = "x\n" * (LARGEST_CELL // 2 + 1)
    assert said(write(f'a,b\nc,"{lines_in_a_cell}"\n'), on_bad_row=on_bad_row) == ":2: a cell of more than 10 MB"


@pytest.mark.parametrize("header", ["a,b,a", "prompt,response,prompt"])
def test_columns_of_one_name_are_refused(write, header):
    """BAD_INPUTS 12."""
    assert said(write(f"\n{header}\n1,2,3\n")) == f":2: column '{header.split(',')[0]}' stands at places 1 and 3"


def test_columns_without_a_name_are_left_out_and_told(write):
    source = open_source(write(",,prompt\n0,,a\n1,,b\n"))
    assert (cells(source), source.columns) == ([{"prompt": "a"}, {"prompt": "b"}], ["prompt"])
    assert "2 columns without a name left out" in source.notes[0]
    assert cells(open_source(write("prompt,\na,0\nb,1\n"))) == [{"prompt": "a"}, {"prompt": "b"}]
    assert cells(open_source(write(",prompt\n7,a\n3,b\n"))) == [{"prompt": "a"}, {"prompt": "b"}], "the index of a shuffled table"
    assert said(write(",\n1,2\n")) == ":1: no column has a name"
    assert said(write(f"a,{'text ' * 100}\n1,2\n")) == ":1: the name of column 2 has 500 characters"


@pytest.mark.parametrize(("content", "told"), [
    ("prompt,\na,yes\nb,no\nc,\n", ":1: column 2 has no name, yet 2 of the first 3 rows have a value there"),
    ("sep=;\n\nprompt;\na;7\nb;3\n", ":3: column 2 has no name, yet 2 of the first 2 rows have a value there"),
    (",prompt\n1,a\n1,b\n", ":1: column 1 has no name, yet 2 of the first 2 rows have a value there"),
])  # fmt: skip
def test_a_column_without_a_name_that_holds_values_is_refused(write, content, told):
    """The answers were left out, with a note."""
    assert said(write(content)) == told
    assert said(write("prompt,\n" + "a,\n" * 30 + "a,b\n" * 20 + 'c,"', "b.csv")).startswith(":52: not CSV")


@pytest.mark.parametrize(("head", "tail", "lost"), [("a,\n", "a,b\n", "450 rows have"), ("a,\n", "a,0\n", "450 rows have"), ("a,\n", "a, \n", "")])
def test_values_of_a_column_without_a_name_are_counted_to_the_end(write, head, tail, lost):
    """Only the first 50 rows were looked at: what filled the column behind them was left out without a word."""
    path = write("prompt,\n" + head * 50 + tail * 450)
    source = open_source(path)
    for _ in range(2):
        assert len(cells(source)) == 500
    assert source.notes[1:] == ([f"{path}: column 2 without a name left out, though {lost} a value there"] if lost else [])


def test_numbers_of_rows_are_no_lost_values(write):
    path = write(",prompt\n" + "".join(f"{n},a\n" for n in range(100)) + "x,a\n")
    source = open_source(path)
    cells(source)
    assert source.notes[1:] == [f"{path}: column 1 without a name left out, though 1 row has a value there"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_first_line_with_the_delimiter_is_no_header(write, first, mark):
    """Excel writes and reads it. It was the header, and the rows were ragged."""
    path = write(f'{mark}{first}\r\n\r\na;"b,\r\nc"\r\n1,5;2\r\n3\r\n')
    source = open_source(path, on_bad_row="skip")
    assert ([row.cells for row in source.rows()], lines(source), source.columns) == ([{"a": "1,5", "b,\r\nc": "2"}], [5], ["a", "b,\r\nc"])
    assert "';'" in decided(source, "delimiter")
    assert said(path) == ":6: 1 field, the header has 2"
    assert said(write("sep=;\n")) == ": holds no header under the line with sep="


def test_a_header_with_tabs_overrules_a_first_line_that_names_another_delimiter(write):
    """A .tsv below `sep=,` had one column, called `prompt\\tresponse`."""
    source = open_source(write("sep=,\n\nprompt\tresponse\na, b\tc\n", "a.tsv"))
    assert (cells(source), decided(source, "delimiter")) == ([{"prompt": "a, b", "response": "c"}], [r"'\t'"])
    assert open_source(write("sep=,\na\tb,c\n1,2\n", "b.tsv")).columns == ["a\tb", "c"]


@pytest.mark.parametrize(("content", "told"), [
    ("a,b\n1,2\n", []), ("a;b\n1;2,5\n", ["';'"]), ("a\tb\n1\t2\n", [r"'\t'"]), ("a|b\n1|2\n", ["'|'"]), ("a\n1\n", []),
    ('"a,b";c\n1;2\n', ["';'"]), ("a, x;b\n1;2\n3;4\n", ["';'"]), ("a;b;c,d\n1;2;3\n", ["';'"]), ("a;x,b\n1,2\n", ["','"]),
])  # fmt: skip
def test_the_delimiter_is_found_and_told(write, content, told):
    """BAD_INPUTS 10."""
    source = open_source(write(content))
    assert decided(source, "delimiter") == told
    assert len(cells(source)) == content.count("\n") - 1


def test_two_delimiters_that_are_equally_likely_are_refused(write):
    assert "commas and semicolons part the first rows evenly" in said(write("a,b;c\n1,2;3\n"))
    assert "commas and semicolons part the first rows evenly" in said(write("prompt,a;response,b\n1,2;3,4\n"))
    assert "commas and semicolons stand equally often in the first line" in said(write("a,b;c\n1\n"))
    [decision] = open_source(write("prompt,a;response,b\n1;2\n")).decisions
    assert decision.reason == "it parts the first rows into as many fields as the header, though commas stand in its names too"


def test_tabs_part_the_columns_of_a_tsv(write):
    """A .tsv of one column was read as a CSV: texts with a comma were ragged rows."""
    assert cells(open_source(write("text\na, b\n", "a.tsv"))) == [{"text": "a, b"}]


def test_a_header_alone_has_no_rows(write):
    assert cells(open_source(write("a,b"))) == []


# JSON


@pytest.mark.parametrize(("content", "words"), [
    ('{"a": 1}\n{"a": }\n', ":2:7: not JSON (expecting value)"),
    ('{"a": 1}\n  {"a": "x}\n', ":2:9: not JSON (unterminated string starting at)"),
    ('{"a": 1} {"a": 2}\n', ":1:10: not JSON (a second object on one line)"),
    ('{"a": 1}{"a": 2}\n', ":1:9: not JSON (a second object on one line)"),
    ('{"a": 1}, \n', ":1:9: not JSON (extra data)"),
    ('\n{"a": 1, "b": 2, "a": 3}\n', ":2: key 'a' stands twice in one object"),
    ('{"a": [{"b": 1, "b": 1}]}\n', ":1: key 'b' stands twice in one object"),
    ('{"a": NaN}\n', ":1: NaN is no JSON"),
    ('{"a": [-Infinity]}\n', ":1: -Infinity is no JSON"),
    ('{"a": "\\ud83d"}\n', ":1: holds half a character (a lone surrogate)"),
    ('{"a": [{"b": "\\uDE00 x"}]}\n', ":1: holds half a character (a lone surrogate)"),
    ('{"\\udc00": 1}\n', ":1: holds half a character (a lone surrogate)"),
    ('{"a": "\\x41"}\n', ":1:8: not JSON (invalid \\escape)"),
    ('{"a": "\t"}\n', ":1:8: not JSON (invalid control character at)"),
    ("7\n", ":1: a single value where an object belongs"),
    ('"a","b"\n', ":1:4: not JSON (extra data)"),
    ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}\n", ":1: lists or objects nested deeper than 100"),
    ('{"a": ' + "[" * 150 + "]" * 150 + "}\n", ":1: lists or objects nested deeper than 100"),
    ('{\n"a": 1\n}\n', ":1: an object that goes over several lines"),
    ("{}\n", ": holds no row"),
    ("prompt,response\na,b\n", ":1:1: not JSON (expecting value)\n:2:1: not JSON (expecting value)"),
])  # fmt: skip
def test_a_bad_line_of_json_is_named_with_its_place(write, content, words):
    """BAD_INPUTS 25, 28, 39, 40."""
    assert said(write(content, "a.jsonl")) == words


@pytest.mark.parametrize(("content", "words"), [
    ('[{"a": 1},\n {"a": }]', ":2:8: not JSON (expecting value)"),
    ('[{"a": 1},\n {"a": 2, "a": 3}, {"b": NaN}, ["c"],\n1]',
     ":2:2: key 'a' stands twice in one object\n:2:20: NaN is no JSON\n:2:32: a list where an object belongs\n:3:1: a single value where an object belongs"),
    ('[{"a": "\\ud800"}]', ":1:2: holds half a character (a lone surrogate)"),
    ('[{"a": 1}\n{"a": 2}]', ":2:1: not JSON (expecting ',' or ']')"),
    ('[{"a": 1}', ":1:10: not JSON (expecting ',' or ']')"),
    ('[{"a": 1}]\n[]', ":2:1: more text behind the list"),
    ('{"a": 1} x', ":1:10: more text behind the object"),
    ("[" * 10_000, ":1:2: lists or objects nested deeper than 100"),
    ('{"a": ' + "[" * 10_000, ":1:8: lists or objects nested deeper than 100"),
    ("[]", ": holds no row"),
    ("3", ":1:1: neither a list nor an object"),
    ('{"a": [{"b": 1}], "c": [{"d": 1}]}', ": holds 2 lists of objects (a, c)"),
    ('{"a": ["x", "y"], "b": ["z", "w"]}', ": is written column by column (a, b)"),
    ('{"a": {"0": "x"}, "b": {"0": "y"}}', ": is written column by column (a, b)"),
    ('{"a": 1, "a": 2}', ":1:13: key 'a' stands twice in one object"),
])  # fmt: skip
def test_a_bad_json_file_is_named_with_its_place(write, content, words):
    assert said(write(content, "a.json")) == words


def test_bad_lines_are_skipped_and_counted(write):
    """BAD_INPUTS 25."""
    source = open_source(write('{"a": "1"}\nx\n{"a": NaN}\n{"a": "2"}\n', "a.jsonl"), on_bad_row="skip")
    assert [(row.cells["a"], row.line) for row in source.rows()] == [("1", 1), ("2", 4)]
    assert source.left_out == {"not JSON": 2}
    source = open_source(write('[{"a": "1"},\n3, {"a": NaN},\n{"a": "2"}]', "a.json"), on_bad_row="skip")
    assert [(row.cells["a"], row.line) for row in source.rows()] == [("1", 1), ("2", 3)]
    assert source.left_out == {"not JSON": 2}


def test_an_object_over_several_lines_is_a_bad_row_like_any_other(write):
    """It stopped the reading even where bad rows are skipped. As the first row it still does: the whole file is likely written so."""
    path = write('{"a": "1"}\n{\n"a": "x"\n}\n{"a": "2"}\n', "a.jsonl")
    source = open_source(path, on_bad_row="skip")
    assert ([row.cells["a"] for row in source.rows()], source.left_out) == (["1", "2"], {"not JSON": 3})
    assert said(path).startswith(":2: an object that goes over several lines\n:3:4: not JSON (extra data)\n")
    assert said(write('\n{\n"a": 1}\n{"a": 2}\n', "b.jsonl"), on_bad_row="skip") == ":2: an object that goes over several lines"


@pytest.mark.parametrize(("name", "content", "note"), [
    ("a.jsonl", json.dumps(ROWS), "is one JSON list, not one object a line"),
    ("a.json", jsonl(ROWS), "is one object a line (JSON lines)"),
    ("a.json", json.dumps({"version": 1, "tags": ["x"], "data": ROWS, "more": {"n": [2]}}), "rows are the objects of the list 'data'"),
])  # fmt: skip
def test_other_forms_of_json_are_read_and_told(write, name, content, note):
    """BAD_INPUTS 27."""
    source = open_source(write(content, name))
    assert cells(source) == ROWS
    assert [note in told for told in source.notes] == [True]


def test_a_conversation_alone_in_a_file_is_one_row(write):
    """Its turns, a list of objects, must not be taken for rows: `content` would be a column of texts."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert cells(open_source(write(json.dumps({"messages": turns, "id": 1}), "a.json"))) == [{"messages": turns, "id": "1"}]


def test_keys_may_differ_from_row_to_row(write):
    """BAD_INPUTS 30."""
    path = write('{"a": "1", "b": "2"}\n{"c": "3", "a": "4"}\n' + '{"a": "5"}\n' * 1000 + '{"d": "6"}\n' * 2, "a.jsonl")
    source = open_source(path)
    assert source.columns == ["a", "b", "c"]
    assert cells(source)[1] == {"c": "3", "a": "4"}
    cells(source)
    assert source.notes == [f"{path}:1003: key 'd' first stands here; columns were found in the first 1000 rows"]


def test_text_that_holds_json_stays_text(write):
    assert cells(open_source(write(jsonl([{"messages": '[{"role": "user"}]'}]), "a.jsonl"))) == [{"messages": '[{"role": "user"}]'}]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_list_is_read_through_a_window(write, monkeypatch, indent):
    """With a window of a few characters every border falls everywhere: in texts, escapes, numbers and between rows."""
    rows = [{"a": "x" * n + '\n"\u2603\\', "b": [{"c": n * 1000}, True]} for n in range(40)]
    path = write(json.dumps({"n": 1234567, "rows": rows, "m": 7654321}, indent=indent), "a.json")
    expected = [{"a": row["a"], "b": [{"c": str(row["b"][0]["c"])}, "true"]} for row in rows]
    whole = [(row.cells, row.line) for row in open_source(path).rows()]
    assert [row for row, _ in whole] == expected
    for size in (1, 2, 7):
        monkeypatch.setattr("halfbyte.data.json_rows.CHUNK", size)
        assert [(row.cells, row.line) for row in open_source(path).rows()] == whole
    bad = Path(path).read_text().replace("true", "true x", 1)
    place = said(write(bad, "b.json"))
    monkeypatch.setattr("halfbyte.data.json_rows.CHUNK", 1 << 20)
    assert said(str(Path(path).parent / "b.json")) == place


def test_a_value_may_be_large_but_not_endless(write):
    assert said(write('{"a": "' + "x" * LARGEST_CELL + '"}\n', "a.jsonl")) == ":1: a line of more than 10 MB"
    assert said(write('[{"a": "' + "x" * 3 * LARGEST_CELL + '"}]', "a.json")) == ":1:2: a value of more than 10 MB"
    assert said(write("x" * (LARGEST_CELL + 1), "a.txt")) == ":1: a line of more than 10 MB"


@pytest.mark.parametrize(("name", "content", "place"), [
    ("a.json", json.dumps(["text"] * 30), ":1:2"), ("a.jsonl", "\n" + '"text"\n' * 30, ":2:1"), ("a.json", '\n[\n "text"]', ":3:2"),
])  # fmt: skip
def test_a_list_of_texts_is_told_once(write, name, content, place):
    error = refusal(write(content, name))
    assert error.message.endswith(f"{name}{place}: texts where objects belong")
    assert "in a .txt" in error.hint


# Parquet


@pytest.fixture
def parquet(tmp_path):
    def to(columns: dict, name: str = "a.parquet", **more) -> str:
        pq.write_table(pa.table(columns), tmp_path / name, **more)
        return str(tmp_path / name)

    return to


def test_a_damaged_parquet_file_ends_in_a_line(parquet):
    """BAD_INPUTS 43."""
    path = parquet({"text": ["some words"] * 1000, "n": list(range(1000))})
    content = Path(path).read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], content[:4], content[:-8] + b"\xff\xff\xff\x7fPAR1", b"PAR1" + bytes(100) + content[104:]):
        Path(path).write_bytes(damaged)
        assert said(path).startswith(": cannot be read as Parquet: ")


def test_rows_of_parquet_are_counted_over_all_batches(parquet):
    rows = list(
        open_source(parquet({"n": list(range(1000)), "in": [{"a": None, "b": None if n % 2 else "x"} for n in range(1000)]}, row_group_size=300)).rows()
    )
    assert [row.line for row in rows] == [int(row.cells["n"]) + 1 for row in rows] == list(range(1, 1001))
    assert [row.cells["in"] for row in rows[:2]] == [{"b": "x"}, {}]


def test_parquet_without_rows_has_none(parquet):
    assert cells(open_source(parquet({"text": pa.array([], pa.string())}))) == []
    assert said(parquet({})) == ": no column has a name"


def test_parquet_without_a_readable_column_has_rows_without_cells(parquet):
    source = open_source(parquet({"share": [0.5, 1.0]}))
    assert (cells(source), source.types) == ([{}, {}], {"share": "double"})


def test_parquet_with_equal_names_or_broken_text_is_refused(tmp_path, parquet):
    path = str(tmp_path / "b.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["a", "a"]), path)
    assert said(path) == ": column 'a' stands at places 1 and 2"
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")])
    assert said(parquet({"text": broken})) == ": rows 1 to 1: column 'text' is not UTF-8"


def test_a_parquet_file_that_unpacks_to_memory_it_has_not_is_refused(parquet, monkeypatch):
    path = parquet({"text": ["x" * 100_000] * 100}, use_dictionary=False, compression="zstd")
    assert len(cells(open_source(path))) == 100
    monkeypatch.setattr("halfbyte.data.tables.BOMB_BYTES", 1_000_000)
    assert "row group 1 unpacks from " in said(path)


@pytest.mark.parametrize("small", [0, 10_000_000])
@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_equal_cells_that_add_up_to_memory_it_has_not_are_refused(parquet, monkeypatch, kind, small):
    """A file of 469 bytes held 1,500 times one cell of 1 MB: the file says only the size of the one. A small one is refused before it is read."""
    path = parquet({"text": pa.array(["x" * 10_000] * 1500, kind)}, compression="zstd")
    monkeypatch.setattr("halfbyte.data.tables.BOMB_BYTES", 5_000_000)
    monkeypatch.setattr("halfbyte.data.tables.SMALL_FILE", small)
    assert f": the first {1500 if small else 512} rows unpack from 0.00" in said(path)
    if small:
        with pytest.raises(DataError, match="unpack from"):
            open_source(path)
    monkeypatch.setattr("halfbyte.data.tables.BOMB_RATIO", 1_000_000)
    assert len(cells(open_source(path))) == 1500


BOMBS = {
    "dictionary": lambda texts: texts,
    "string": lambda texts: texts,
    "list": lambda texts: pa.ListArray.from_arrays(pa.array(range(0, 20_001, 20), pa.int32()), texts),
    "struct": lambda texts: pa.StructArray.from_arrays([texts], ["a"]),
    "list of string": lambda texts: pa.ListArray.from_arrays(pa.array(range(0, 20_001, 20), pa.int32()), texts),
}
BOMB_MEMORY = """
import sys
import pyarrow
from halfbyte.data.files import open_source
from halfbyte.errors import DataError
try:
    open_source(sys.argv[1])
except DataError as error:
    print(pyarrow.default_memory_pool().max_memory(), error.message.split(": ")[1])
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_being_unpacked(parquet, name):
    """One text of 1 MB, 20,000 times: inside a list it walked round the limit and took 5 GB, elsewhere half a gigabyte before it was refused."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 1_000_000]))
    path = parquet({"text": BOMBS[name](texts)}, compression="zstd", store_schema="string" not in name)
    done = subprocess.run([sys.executable, "-c", BOMB_MEMORY, path], capture_output=True, text=True, check=True, timeout=60)
    peak, message = done.stdout.split(" ", 1)
    assert message.startswith("the first ")
    assert int(peak) < 20_000_000


def test_texts_held_once_inside_lists_are_read_over_row_groups(parquet):
    """pyarrow refuses to join them in one batch, so an honest file was called damaged."""
    texts = [f"text {n}" for n in range(200)]
    column = pa.ListArray.from_arrays(pa.array(range(0, 201, 2), pa.int32()), pa.array(texts).dictionary_encode())
    rows = list(open_source(parquet({"text": column}, row_group_size=30)).rows())
    assert ([text for row in rows for text in row.cells["text"]], [row.line for row in rows]) == (texts, list(range(1, 101)))


def test_a_batch_of_large_texts_goes_on_row_by_row(parquet, monkeypatch):
    path = parquet({"text": ["x" * n for n in range(300)]})
    expected = [(row.cells, row.line) for row in open_source(path).rows()]
    monkeypatch.setattr("halfbyte.data.tables.BATCH_BYTES", 1000)
    assert [(row.cells, row.line) for row in open_source(path).rows()] == expected


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.list_(pa.struct({"a": pa.string()})), pa.dictionary(pa.int8(), pa.string())])
def test_a_text_inside_a_list_may_not_be_endless_either(parquet, monkeypatch, kind):
    """Only the texts of plain columns were measured."""
    monkeypatch.setattr("halfbyte.data.tables.LARGEST_CELL", 10)
    texts = ["x" * 10, "x" * 11]
    column = texts if pa.types.is_dictionary(kind) else [[{"a": text} if pa.types.is_struct(kind.value_type) else text] for text in texts]
    path = parquet({"text": pa.array(column, kind)})
    assert said(path) == ": row 2: column 'text' holds more than 10 MB"
    assert len(cells(open_source(path, on_bad_row="skip"))) == 1


# Columns without a name


def table(**columns: list) -> pa.Table:
    """Where a column is called `unnamed`, it has no name."""
    return pa.table(columns).rename_columns(["" if name.startswith("unnamed") else name for name in columns])


def test_the_index_of_pandas_is_left_out_and_told(tmp_path):
    """`__index_level_0__` was a column of texts, and a column without a name vanished without a note."""
    path = str(tmp_path / "a.parquet")
    pq.write_table(table(unnamed=[7, 3], text=["a", "b"], __index_level_0__=[1, 1], unnamed_too=pa.array([None, None], pa.string())), path)
    source = open_source(path)
    assert (cells(source), source.columns, source.types) == ([{"text": "a"}, {"text": "b"}], ["text"], {})
    assert source.notes == [f"{path}: pandas' numbers of rows (__index_level_0__) left out", f"{path}: 2 columns without a name left out"]
    pq.write_table(table(text=["a"], __index_level_0__=["an id"]), path)
    assert cells(open_source(path)) == [{"text": "a", "__index_level_0__": "an id"}], "it numbers no rows"
    pq.write_table(table(text=["a"] * 100, unnamed=[None] * 60 + ["b"] * 40), path)
    assert open_source(path).notes[1:] == [f"{path}: column 2 without a name left out, though 40 rows have a value there"]


@pytest.mark.parametrize("values", [["yes", "no", None], [0, 1, 0], [0.5, 1.5, 2.5], [["a"], ["b"], ["c"]]])
def test_a_column_of_parquet_without_a_name_that_holds_values_is_refused(tmp_path, values):
    """The answers were lost without a note."""
    path = str(tmp_path / "a.parquet")
    pq.write_table(table(text=["a", "b", "c"], unnamed=values), path)
    assert said(path) == f": column 2 has no name, yet {sum(value is not None for value in values)} of the first 3 rows have a value there"


# Folders and lists


def test_a_folder_is_read_by_name_without_hidden_files(write, tmp_path):
    write("a,b\n1,2\n", "in/2.csv")
    write('{"a": "3", "b": "4"}\n', "in/10.jsonl")
    write("x", "in/.hidden.csv")
    write("x", "in/.cache/x.csv")
    write("x", "in/notes.pdf")
    source = open_source(str(tmp_path / "in"))
    assert [row.cells["a"] for row in source.rows()] == ["3", "1"]
    assert [Path(row.file).name for row in source.rows()] == ["10.jsonl", "2.csv"]
    assert decided(source, "files") == [f"2 of {tmp_path / 'in'}"]
    assert "1 file of other endings left out (notes.pdf)" in source.notes[0]


def test_files_may_lack_a_column_but_not_differ(write):
    full, lacking, other = write("a,b\n1,2\n"), write("a\n3\n", "b.csv"), write("a,c\n3,4\n", "c.csv")
    source = open_source([lacking, full])
    assert cells(source) == [{"a": "3"}, {"a": "1", "b": "2"}]
    assert (source.columns, source.notes) == (["a", "b"], [f"{lacking}: lacks column 'b'"])
    assert refusal([full, other]).message == f"{other}: column 'c' where {full} has 'b'"


def test_what_does_not_go_together_is_refused(write, tmp_path):
    table, text = write("a\n1\n"), write("words", "b.txt")
    assert refusal([table, text]).message == f"{text} is text and {table} is a table: they do not go together"
    assert refusal(str(tmp_path)).message.endswith("they do not go together")
    assert refusal([table, table]).message == f"{table}: is named twice"


def test_one_text_with_paragraphs_parts_all_by_paragraph(write):
    source = open_source([write("one\ntwo", "a.txt"), write("three\n\nfour", "b.txt")])
    assert [row["text"] for row in cells(source)] == ["one\ntwo", "three", "four"]


def test_problems_of_all_files_are_told_together(write):
    paths = [write("a,b\n1\n"), write("a,b\n1,2,3\n", "b.csv")]
    assert refusal(paths).message == f"{paths[0]}:2: 1 field, the header has 2\n{paths[1]}:2: 3 fields, the header has 2"


# Content and changes


def test_the_hash_is_of_the_bytes(write):
    import hashlib

    content = lzma.compress(FORMS["a.csv"].encode()) + b"more" * 1_000_000  # which xz does not look at
    path = write(content, "a.csv.xz")
    assert open_source(path).sha256 == hashlib.sha256(content).hexdigest()
    one, other = write("a\n12\n", "1.csv"), write("a\n3\n", "2.csv")
    assert len({open_source(paths).sha256 for paths in (one, other, [one, other], [other, one])}) == 4


@pytest.mark.parametrize("change", ["bytes", "time", "gone"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
def test_a_file_that_changes_after_it_was_opened_is_refused(write, name, change):
    """BAD_INPUTS 57: the rows that train would not be the rows that were looked at."""
    content = FORMS.get(name, "words\n")
    path = write(content, name)
    source = open_source(path)
    if change == "bytes":
        write(content + content, name)
    elif change == "time":
        os.utime(path, (1, 1))
    else:
        os.unlink(path)
    with pytest.raises(IntegrityError, match="was changed while it was in use"):
        list(source.rows())


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_file_that_changes_while_it_is_read_is_refused(write, parquet, name):
    path = parquet({"a": ["x"] * 1000}) if name == "a.parquet" else write("a\n1\n" if name == "a.csv" else '{"a": 1}\n', name)
    rows = open_source(path).rows()
    next(rows)
    os.utime(path, (1, 1))
    with pytest.raises(IntegrityError):
        list(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.csv.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    """40 MB of rows in less than 20 MB: they stream. What the system calls the peak of a process is at least that of its parent."""
    row = {"a": "x" * 1000, "b": "y"}
    parts = {"a.jsonl": json.dumps(row) + "\n", "a.json": json.dumps(row) + ",", "a.txt": "x" * 1000 + "\n\n"}
    part = parts.get(name, "x" * 1000 + ",y\n").encode()
    begin, end = {"a.json": (b"[", json.dumps(row).encode() + b"]"), "a.csv": (b"a,b\n", b""), "a.csv.gz": (b"a,b\n", b"")}.get(name, (b"", b""))
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wb") as file:
        file.write(begin)
        for _ in range(400):
            file.write(part * 100)
        file.write(end)
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(str(tmp_path / name)).rows()) == 40_000 + (name == "a.json")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# The hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for load_dataset that is told what to give, and keeps what it was asked."""
    import datasets

    asked = types.SimpleNamespace(words=None, gives=datasets.Dataset.from_list([{"text": "a", "n": 1, "share": 0.5}, {"text": "b", "n": 2, "share": 1.0}]))

    def load(name, config, split, revision):
        asked.words = (name, config, split, revision)
        if isinstance(asked.gives, Exception):
            raise asked.gives
        return asked.gives

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize(("path", "words"), [
    ("hub:owner/name", ("owner/name", None, "train", None)), ("hub:name", ("name", None, "train", None)),
    ("hub:owner/name:a-b@v1.0#test", ("owner/name", "a-b", "test", "v1.0")), ("hub:owner/name#train[:10%]", ("owner/name", None, "train[:10%]", None)),
])  # fmt: skip
def test_a_dataset_of_the_hub_is_read_as_a_table(hub, path, words):
    source = open_source(path)
    assert hub.words == words
    assert [(row.cells, row.file, row.line) for row in source.rows()] == [({"text": "a", "n": "1"}, path, 1), ({"text": "b", "n": "2"}, path, 2)]
    assert (source.columns, source.types, source.files) == (["text", "n", "share"], {"share": "double"}, [path])
    assert source.sha256 == open_source(path).sha256


def test_columns_of_the_hub_without_a_name_follow_the_rule_of_files(hub):
    import datasets

    hub.gives = datasets.Dataset.from_dict({"text": ["a", "b"], "": [0, 1], "__index_level_0__": [5, 5]})
    source = open_source("hub:owner/name")
    assert (cells(source), len(source.notes)) == ([{"text": "a"}, {"text": "b"}], 2)
    hub.gives = datasets.Dataset.from_dict({"text": ["a", "b"], "": ["yes", "no"]})
    assert said("hub:owner/name") == ": column 2 has no name, yet 2 of the first 2 rows have a value there"


def test_rows_of_the_hub_are_counted_over_all_batches(hub):
    import datasets

    before = open_source("hub:owner/name").sha256
    hub.gives = datasets.Dataset.from_dict({"n": list(range(1000))})
    source = open_source("hub:owner/name")
    assert [(row.line, row.cells["n"]) for row in source.rows()] == [(n + 1, str(n)) for n in range(1000)]
    assert source.sha256 != before


@pytest.mark.parametrize(("error", "kind"), [
    (ValueError("Unknown split 'train'. Should be one of ['test'].\nmore"), DataError), (FileNotFoundError(""), DataError),
    (ConnectionError("offline"), MachineError), (KeyError("x"), DataError),
    (type("ConnectTimeout", (Exception,), {})("slow"), MachineError),
])  # fmt: skip
def test_what_goes_wrong_on_the_hub_is_one_line(hub, error, kind):
    hub.gives = error
    message = refusal("hub:owner/name", kind).message
    assert message.startswith("hub:owner/name: ")
    assert "\n" not in message


@pytest.mark.parametrize("answer", [None, KeyError("no such data set"), ConnectionError("no route")])
def test_the_hub_is_asked_once_before_anything_is_loaded(hub, monkeypatch, caplog, answer):
    """Without a network `datasets` tried for half a minute and logged 12 lines."""
    import huggingface_hub

    asked = []

    def dataset_info(self, name, timeout):
        logging.getLogger("huggingface_hub.utils").warning("a try")
        asked.append((name, timeout))
        if answer:
            raise answer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    level = logging.getLogger("huggingface_hub").level
    if isinstance(answer, ConnectionError):
        error = refusal("hub:owner/name", MachineError)
        assert error.message == "hub:owner/name: the hub cannot be reached: no route"
        assert "HF_HUB_OFFLINE=1" in error.hint
        assert hub.words is None
    else:
        assert open_source("hub:owner/name").columns == ["text", "n", "share"]
    assert asked == [("owner/name", 3)]
    assert (caplog.messages, logging.getLogger("huggingface_hub").level) == ([], level)


def test_a_folder_is_never_taken_for_a_dataset(hub, tmp_path, monkeypatch):
    """load_dataset("owner/name") reads a folder of that name where there is one."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert said("hub:owner/name") == ": owner/name is also a folder here, and `datasets` would read that"
    assert hub.words is None


def test_a_name_that_is_none_is_refused(hub):
    assert said("hub:a/b/c") == ": is no name of a dataset"
    assert hub.words is None
