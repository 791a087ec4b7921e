"""Prompts come in as they stand, answers go out as they come, and a file that is there is left as it is."""

import csv
import json
from pathlib import Path

import pytest

from halfbyte.cli.files import read_prompts, write_answers
from halfbyte.errors import DataError, MachineError


@pytest.fixture
def write(tmp_path):
    def to(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return to


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_prompts(file)
    assert caught.value.hint
    return caught.value.message


# Prompts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "One, two\n\n  \n 01 \nNA\n"),
        ("a.TXT", "One, two\r\n\r\n 01 \r\nNA"),
        ("mac.txt", "One, two\r 01 \rNA"),
        ("a.jsonl", '{"prompt": "One, two", "id": 3}\n\n{"prompt": " 01 "}\n{"prompt": "NA"}\n'),
        ("a.csv", 'id,prompt\n1,"One, two"\n\n2, 01 \n3,NA\n'),
        ("a.CSV", 'prompt\r\n"One, two"\r\n 01 \r\nNA\r\n'),
        ("a.csv", 'question\n"One, two"\n 01 \nNA\n'),
        ("a.tsv", "id\tprompt\n1\tOne, two\n2\t 01 \n3\tNA\n"),
        ("a.md", "One, two\n\n 01 \nNA\n"),
        ("a.json", '[{"prompt": "One, two"}, {"prompt": " 01 "}, {"prompt": "NA"}]'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_prompts_are_read_as_they_stand(write, name, content, mark):
    assert read_prompts(write(name, mark + content)) == ["One, two", " 01 ", "NA"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", 'prompt\n"two\r\nlines\u2028\U0001f600"\n'), ("a.jsonl", '{"prompt": "two\\r\\nlines\u2028\\ud83d\\ude00"}')]
)
def test_a_prompt_keeps_its_line_ends(write, name, content):
    assert read_prompts(write(name, content)) == ["two\r\nlines\u2028\U0001f600"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", " is empty (0 bytes)"),
        ("a.txt", " \n\n", " is empty (3 bytes)"),
        ("a.csv", "prompt\n", ": holds no prompt"),
        ("a.doc", "x", ": files that end in '.doc' are not read"),
        ("a.csv", "question,id\nx,1\n", ": no column 'prompt'; columns are question, id"),
        ("a.csv", 'prompt,id\n"x\ny",1\nz\n', ":4: 1 field, the header has 2"),
        ("a.csv", 'prompt,id\nx,1\ny,"2"3\n', ":3: not CSV: "),
        ("a.csv", "prompt,id\nx,1\n ,2\n", ":3: the prompt is empty"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": }\n', ":3:12: not JSON (expecting value)"),
        ("a.jsonl", '["x"]\n', ":1:2: texts where objects belong"),
        ("a.jsonl", '{"Prompt": "x", "id": 1}\n', ": no column 'prompt'; columns are Prompt, id"),
        ("a.jsonl", '{"prompt": ["x"]}\n', ":1: the prompt is no text"),
        ("a.jsonl", '{"prompt": null, "id": 1}\n{"prompt": "x"}\n', ":1: the prompt is empty"),
        ("a.jsonl", '{"prompt": " "}\n', ":1: the prompt is empty"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', ":1: holds half a character"),
        ("a.jsonl", "[" * 100_000, ":1:2: lists or objects nested deeper than 100"),
        ("a.txt", b"x\ncaf\x81", ":2: byte 0x81 is not utf-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(write, name, content, words):
    """A short row, a blank cell and another encoding ended in tracebacks."""
    file = write(name, content)
    assert refusal(file).startswith(f"{file}{words}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "a.txt").endswith("a.txt: no such file")
    assert refusal(tmp_path).endswith(": holds no file to read")
    assert refusal(Path("http://x.org/a.csv")).endswith(": is an address, not a file")


def test_prompts_in_another_encoding_are_read(write):
    assert read_prompts(write("a.csv", "prompt\ncaf\u00e9\n".encode("utf-16"))) == ["caf\u00e9"]
    assert read_prompts(write("a.txt", "caf\u00e9\n".encode("cp1252"))) == ["caf\u00e9"]


def test_the_line_of_a_prompt_in_a_paragraph_is_its_own(write):
    assert read_prompts(write("a.txt", "\none\ntwo\n\nthree")) == ["one", "two", "three"]


# Answers


ODD = 'a "quoted", line\nand\r\nmore \u2028 \U0001f600'


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "A.CSV"])
def test_answers_are_written_as_they_come(tmp_path, name):
    file = tmp_path / name
    with write_answers(file) as write_part:
        write_part(["one", "two"], [ODD, "NA"])
        assert "NA" in file.read_text(encoding="utf-8"), "an answer waits for the next part"
        write_part(["three"], ["1+1"])
    with open(file, encoding="utf-8", newline="") as stream:
        rows = [json.loads(line) for line in stream.read().split("\n")[:-1]] if name.endswith("jsonl") else list(csv.DictReader(stream))
    assert rows == [{"prompt": prompt, "response": answer} for prompt, answer in (("one", ODD), ("two", "NA"), ("three", "1+1"))]
    assert read_prompts(file) == ["one", "two", "three"]


# What stands behind a semicolon or a tab is a cell of its own where those part the cells.
SAFE = {
    "=1+1": "'=1+1",
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")',
    "+1": "'+1",
    "-1": "'-1",
    "@SUM(1)": "'@SUM(1)",
    "\t=1": "'\t'=1",
    "\r=1": "'\r'=1",
    "＝1": "'＝1",
    "＋1": "'＋1",
    "－1": "'－1",
    "＠SUM(1)": "'＠SUM(1)",
    "a;=cmd|' /C calc'!A0": "a;'=cmd|' /C calc'!A0",
    'a";-1': "a\";'-1",
    "a\t@x": "a\t'@x",
    "a\n=1": "a\n'=1",
    "a\r\n@x": "a\r\n'@x",
    " =1": " =1",
    "1-1": "1-1",
    "": "",
    "one\n- two\n+ three": "one\n- two\n+ three",
    "a, -5; b": "a, -5; b",
}


@pytest.mark.parametrize("cell", SAFE)
def test_no_spreadsheet_runs_an_answer_as_a_formula(tmp_path, cell):
    """Guards against answers that Excel executes when the file is opened (CSV injection). JSON lines keep them as they are."""
    with write_answers(tmp_path / "a.csv") as table, write_answers(tmp_path / "a.jsonl") as lines:
        table([cell], [cell])
        lines([cell], [cell])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream))[1] == [SAFE[cell], SAFE[cell]]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"prompt": cell, "response": cell}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_that_is_there_is_left_as_it_is(tmp_path, name):
    file = tmp_path / name
    file.write_text("mine")
    with pytest.raises(DataError, match="exists and is left as it is"), write_answers(file):
        raise AssertionError("it was opened")
    assert file.read_text() == "mine"
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="exists and is left as it is"), write_answers(tmp_path / "link.csv"):
        raise AssertionError("it was opened")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_nothing_is_left_where_no_answer_came(tmp_path, name):
    """Guards against an empty file of a run that was not there, which then stood in the way of the next call."""
    file = tmp_path / name
    assert answers_until(DataError("no run there"), file, []) == (True, False)
    assert answers_until(KeyboardInterrupt(), file, ["two"]) == (True, True)
    assert "two" in file.read_text()


def answers_until(error: BaseException, file: Path, answers: list[str]) -> tuple[bool, bool]:
    """Whether the file is there while answers are computed, and after the error that ends them."""
    there = False
    try:
        with write_answers(file) as write_part:
            there = file.exists()
            if answers:
                write_part(["one"], answers)
            raise error
    except type(error):
        return there, file.exists()


def test_an_error_inside_is_not_blamed_on_the_file(tmp_path):
    with pytest.raises(OSError, match="of the model"), write_answers(tmp_path / "a.csv"):
        raise OSError("of the model")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(MachineError, match=r"a\.csv: cannot be written: No such file or directory"), write_answers(tmp_path / "nowhere" / "a.csv"):
        pass
    with pytest.raises(DataError, match=r"answers are written to \.jsonl or \.csv"), write_answers(tmp_path / "a.txt"):
        pass
