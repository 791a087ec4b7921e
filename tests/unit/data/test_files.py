"""From any file to rows: no cell is changed, every row knows its line, and what cannot be read is named with its line and mend."""

import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfbyte.data.files import open_source
from halfbyte.errors import IntegrityError
from reading import ROWS, cells, decided, jsonl, pack, refusal, said

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
