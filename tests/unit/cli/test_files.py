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


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", "One, two\n\n  \n 01 \nNA\n"),
    ("a.TXT", "One, two\r\n\r\n 01 \r\nNA"),
    ("mac.txt", "One, two\r 01 \rNA"),
    ("a.jsonl", '{"prompt": "One, two", "id": 3}\n\n{"prompt": " 01 "}\n{"prompt": "NA"}\n'),
    ("a.csv", 'id,prompt\n1,"One, two"\n\n2, 01 \n3,NA\n'),
    ("a.CSV", 'prompt\r\n"One, two"\r\n 01 \r\nNA\r\n'),
])  # fmt: skip
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_prompts_are_read_as_they_stand(write, name, content, mark):
    assert read_prompts(write(name, mark + content)) == ["One, two", " 01 ", "NA"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", 'prompt\n"two\r\nlines\u2028\U0001f600"\n'), ("a.jsonl", '{"prompt": "two\\r\\nlines\u2028\\ud83d\\ude00"}')]
)
def test_a_prompt_keeps_its_line_ends(write, name, content):
    assert read_prompts(write(name, content)) == ["two\r\nlines\u2028\U0001f600"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", "", ": holds no prompt"),
    ("a.txt", " \n\n", ": holds no prompt"),
    ("a.csv", "prompt\n", ": holds no prompt"),
    ("a.md", "x", ": prompts are read from .txt, .jsonl, .csv"),
    ("a.csv", "question\nx\n", ":1: no column 'prompt'; columns are question"),
    ("a.csv", 'prompt,id\n"x\ny",1\nz\n', ":4: 1 fields, the header has 2"),
    ("a.csv", 'prompt,id\nx,1\ny,"2"3\n', ":3: not CSV: "),
    ("a.csv", "prompt,id\nx,1\n ,2\n", ":3: the prompt is empty"),
    ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": }\n', ":3: not JSON: "),
    ("a.jsonl", '["x"]\n', ":1: no text under 'prompt'"),
    ("a.jsonl", '{"Prompt": "x"}\n', ":1: no text under 'prompt'"),
    ("a.jsonl", '{"prompt": 3}\n', ":1: no text under 'prompt'"),
    ("a.jsonl", '{"prompt": " "}\n', ":1: the prompt is empty"),
    ("a.jsonl", '{"prompt": "\\ud800"}\n', ":1: the prompt holds half a character"),
    ("a.jsonl", "[" * 100_000, ":1: not JSON: "),
    ("a.txt", "x\ncaf\u00e9".encode("cp1252"), ":2: byte 0xE9 is not UTF-8"),
    ("a.csv", "prompt\ncaf\u00e9".encode("utf-16"), ":1: byte 0xFF is not UTF-8"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(write, name, content, words):
    """A short row, a blank cell and another encoding ended in tracebacks."""
    file = write(name, content)
    assert refusal(file).startswith(f"{file}{words}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "a.txt").endswith("a.txt: no such file")
    assert refusal(tmp_path).endswith(": no such file")


# Answers


ODD = 'a "quoted", line\nand\r\nmore \u2028 \U0001f600'


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "A.CSV"])
def test_answers_are_written_as_they_come(tmp_path, name):
    file = tmp_path / name
    with write_answers(file) as write_part:
        write_part(["one", "two"], [ODD, "NA"])
        assert "NA" in file.read_text(encoding="utf-8"), "an answer waits for the next part"
        write_part(["three"], ["=1+1"])
    with open(file, encoding="utf-8", newline="") as stream:
        rows = [json.loads(line) for line in stream.read().split("\n")[:-1]] if name.endswith("jsonl") else list(csv.DictReader(stream))
    assert rows == [{"prompt": prompt, "response": answer} for prompt, answer in (("one", ODD), ("two", "NA"), ("three", "=1+1"))]
    assert read_prompts(file) == ["one", "two", "three"]


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
