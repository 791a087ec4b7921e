"""JSON and JSONL: every bad line told with its place, other forms read and told."""

import json
from pathlib import Path

import pytest

from halfbyte.data.files import LARGEST_CELL, open_source
from reading import ROWS, cells, jsonl, refusal, said


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
