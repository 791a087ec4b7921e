"""Files -> records: streamed, read again at will, every row with one outcome, and what is malformed told together."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from halfbyte.data.read import GUTENBERG, Reading, read_records
from halfbyte.data.records import Record
from halfbyte.data.rows import MOST_PROBLEMS
from halfbyte.data.shapes import Refused
from halfbyte.errors import DataError
from halfbyte.recipe.schema import AutoData, LabelData, MessagesData, PairData, TextData

START = "*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***"


@pytest.fixture
def write(tmp_path):
    """A function: content, name -> path of a file with it, line ends as they are."""

    def to(content: str | bytes, name: str = "a.csv") -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return to


def auto(file: Path, **more) -> Reading:
    return read_records(AutoData(path=str(file), **more))


def text(file: Path, **more) -> Reading:
    return read_records(TextData(kind="text", path=str(file), **more))


def pairs(file: Path, **more) -> Reading:
    return read_records(PairData(kind="prompt_response", path=str(file), prompt_column="prompt", response_column="response", **more))


def labels(file: Path, **more) -> Reading:
    return read_records(LabelData(kind="label", path=str(file), text_column="text", label_column="label", **more))


def texts(reading: Reading) -> list[str]:
    return [record.text for record in reading.records()]


def refusal(call, *args, **more) -> DataError:
    with pytest.raises(DataError) as caught:
        call(*args, **more)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


CELLS = [
    "NA",
    "N/A",
    "null",
    "None",
    "nan",
    "01",
    "1e5",
    "TRUE",
    "2024-01-01",
    " x ",
    "a,b",
    'he said "no"',
    "a\nb",
    "a\r\nb",
    "=1+1",
    "\u00e9\u2603\U0001f600",
]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_comes_back_as_it_stands(tmp_path, write, cell):
    """CORRECTNESS 1.23: pandas, and load_dataset("csv") with it, make nothing of NA and null, 1 of 01 and 100000.0 of 1e5."""
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["prompt", "response"], [cell, "b"], ["a", cell]])
    rows = [{"prompt": cell, "response": "b"}, {"prompt": "a", "response": cell}]
    for file in (tmp_path / "a.csv", write("".join(json.dumps(row) + "\n" for row in rows), "a.jsonl")):
        assert [(record.asked, record.answered) for record in pairs(file).records()] == [(cell, "b"), ("a", cell)]


def test_a_source_is_read_again_at_will(write):
    """Two readings survey and tokenise: they must say the same, and what the first one counted is not counted twice."""
    reading = auto(write("prompt,response\na@b.com,b\n,c\nd,e\n"), redact=["email"])
    first = list(reading.outcomes())
    assert (list(reading.outcomes()), reading.redacted) == (first, {"email": 1})
    assert [type(outcome) for outcome in first] == [Record, Refused, Record]
    assert [(outcome.file, outcome.line) for outcome in first] == [(str(reading.source.files[0]), line) for line in (2, 3, 4)]
    assert len(reading.notes) == 1


def test_lines_are_counted_as_an_editor_counts_them(write):
    reading = pairs(write('prompt,response\na,b\n\n"two\nlines","and\r\nthree\nmore"\nc,d\n'))
    assert [record.line for record in reading.records()] == [2, 4, 8]


def test_a_file_streams(write, monkeypatch):
    """Files larger than memory: no row is read before the one before it was taken."""
    reading = pairs(write("prompt,response\n" + "".join(f"a{i},b\n" for i in range(10_000))))
    taken = 0
    rows = reading.source.rows

    def counted(problems):
        nonlocal taken
        for row in rows(problems):
            taken += 1
            yield row

    monkeypatch.setattr(reading.source, "rows", counted)
    for place, _ in enumerate(reading.outcomes(), 1):
        assert taken == place


def test_only_so_much_is_looked_at(write, monkeypatch):
    """A thousand rows of 10 MB are more than the memory of most machines."""
    monkeypatch.setattr("halfbyte.data.read.HEAD_CHARACTERS", 50)
    seen = []
    monkeypatch.setattr("halfbyte.data.read.settle", lambda section, facts: (seen.append(len(facts.head)), (section, []))[1])
    pairs(write(json.dumps({"prompt": "x" * 30, "response": "y" * 30}) + "\n" + '{"prompt": "a", "response": "b"}\n' * 100, "a.jsonl"))
    monkeypatch.undo()
    assert seen == [1]


# Malformed rows


def conversation(*turns: tuple[str, str]) -> str:
    """A line of JSONL."""
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n"


GOOD = conversation(("user", "a"), ("assistant", "b"))
ROLE = conversation(("user", "a"), ("bot", "b"))


def test_malformed_rows_and_lines_are_told_together(write):
    """A line that is no JSON hid the roles that are unknown, in a file of less than a thousand rows."""
    file = write(GOOD + "{broken\n" + ROLE + GOOD, "a.jsonl")
    error = refusal(list, auto(file).outcomes())
    assert error.message.split("\n") == [
        f"{file}:2:2: not JSON (expecting property name enclosed in double quotes)",
        f"{file}:3: message 2: role 'bot' unknown",
    ]
    assert "data.on_bad_row=skip" in error.hint


def test_at_most_twenty_are_told(write):
    error = refusal(list, auto(write(GOOD + ("{broken\n" + ROLE) * 50, "a.jsonl")).outcomes())
    assert error.message.count(": not JSON") == error.message.count("role 'bot' unknown") == MOST_PROBLEMS / 2
    assert error.message.split("\n")[MOST_PROBLEMS:] == ["20 problems: reading stopped here, there may be more"]


def test_malformed_rows_that_are_skipped_are_counted(write):
    reading = auto(write(GOOD + "{broken\n" + ROLE + GOOD, "a.jsonl"), on_bad_row="skip")
    outcomes = list(reading.outcomes())
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Refused)] == ["unknown role"]
    assert len(outcomes) == 3
    assert reading.source.left_out == {"not JSON": 1}


def test_rows_that_say_nothing_stop_no_one(write):
    """Empty cells are no mistake: they are counted and the rest is read."""
    assert [type(outcome) for outcome in pairs(write("prompt,response\na,b\n,c\n")).outcomes()] == [Record, Refused]


def test_a_file_of_nothing_but_bad_rows_says_which(write):
    file = write("prompt,response\na\nb\n")
    assert refusal(pairs, file).message == f"{file}:2: 1 field, the header has 2\n{file}:3: 1 field, the header has 2"
    assert "0 rows could be read" in refusal(pairs, file, on_bad_row="skip").message
    assert "0 rows could be read" in refusal(pairs, write("prompt,response\n")).message


def test_an_unknown_label_is_told_with_its_line(write):
    """BAD_INPUTS 19."""
    file = write("text,label\na,good\nb,godo\n")
    error = refusal(list, labels(file, labels=["good", "bad"]).outcomes())
    assert error.message == f"{file}:3: label 'godo' not in [good, bad]. Did you mean 'good'?"


# What is told


def test_what_was_left_away_or_merged_is_told(write):
    file = write(conversation(("user", "a"), ("assistant", "b"), ("user", "c")) * 3, "a.jsonl")
    reading = read_records(MessagesData(kind="messages", path=str(file)))
    assert len(list(reading.records())) == 3
    assert reading.notes == ["3 conversations end with a turn that no answer follows, which is left away"]
    reading = labels(write("text,label\na,x\nb,y\nc,x\n"), merge_labels={"x": "z", "w": "z"})
    assert [record.label for record in reading.records()] == ["z", "y", "z"]
    assert (reading.notes, reading.merged) == ([], {"x": 2}), "told over all parts (labels.py)"
    reading = read_records(MessagesData(kind="messages", path=str(write(conversation(("user", "a"), ("assistant", "b"), ("user", "c")), "b.jsonl"))))
    assert len(list(reading.records())) == 1
    assert reading.notes == ["1 conversation ends with a turn that no answer follows, which is left away"]


def test_personal_data_are_replaced_and_counted(write):
    """What is asked, what is answered and what is neither; a class stays what it is."""
    file = write(conversation(("system", "ask a@b.com"), ("user", "i@j.org and k@l.org"), ("assistant", "c@d.com")), "a.jsonl")
    reading = auto(file, redact=["email"])
    assert [[message["content"] for message in record.messages] for record in reading.records()] == [["ask [EMAIL]", "[EMAIL] and [EMAIL]", "[EMAIL]"]]
    assert reading.redacted == {"email": 4}
    assert reading.notes == ["4 email replaced by tags; what no pattern finds stays, so the data are not anonymous"]
    assert texts(auto(write("text\nwrite to a@b.com\n"), redact=["email"])) == ["write to [EMAIL]"]
    assert texts(auto(write("text\nwrite to a@b.com\n"))) == ["write to a@b.com"]
    (record,) = labels(write("text,label\nof a@b.com,a@b.com\n"), redact=["email"]).records()
    assert (record.asked, record.answered, record.label) == ("of [EMAIL]", "a@b.com", "a@b.com")


def test_groups_come_with_their_records(write):
    assert [record.group for record in pairs(write("prompt,response,author\na,b,x\nc,d,\n"), group_column="author").records()] == ["x", ""]


# Project Gutenberg


def test_header_and_licence_of_a_text_are_left_out(write):
    reading = auto(write("\n\n".join(["The eBook of A Tale", "Credits", START, "CHAPTER I", "It was dark.", END, "The licence"]), "a.txt"))
    assert texts(reading) == ["CHAPTER I", "It was dark."]
    assert sum(isinstance(outcome, Refused) and outcome.reason == GUTENBERG for outcome in reading.outcomes()) == 5
    assert reading.notes == ["5 rows of Project Gutenberg header and licence left out (data.keep_boilerplate=true keeps them)"]
    assert len(texts(text(write(f"a\n\n{START}\n\nb", "b.txt"), keep_boilerplate=True))) == 3


def test_another_file_is_read_in_the_same_form(write):
    first = auto(write("Comment,Response\na,b\n"))
    other = read_records(first.section, str(write("Comment,Response\nc,d\n", "b.csv")))
    assert [record.asked for record in other.records()] == ["c"]
    file = write("comment,Response\nc,d\n", "c.csv")
    error = refusal(read_records, first.section, str(file))
    assert error.message == f"{file}: no column 'Comment' (data.prompt_column); columns are comment, Response"
    assert error.hint == "did you mean 'comment'?"


# The real files


@pytest.mark.data
def test_the_real_book_loses_its_licence_and_nothing_else(real_data):
    """A book in 481 pieces, 21 of which are header and licence."""
    reading = auto(real_data / "frankenstein" / "frankenstein_chunks.csv")
    outcomes = list(reading.outcomes())
    assert len(outcomes) == 481
    assert sum(isinstance(outcome, Refused) and outcome.reason == GUTENBERG for outcome in outcomes) == 21
    passages = [outcome.text for outcome in outcomes if isinstance(outcome, Record)]
    assert len(passages) == 460
    assert reading.section.rows == "book"
    assert passages[0].startswith("I am already far north of London")
    assert passages[-1].endswith("borne away by the waves and\nlost in darkness and distance.")
    assert not any("Gutenberg" in passage or "\ufeff" in passage for passage in passages)
    assert "byte-order mark" in reading.source.notes[0]


@pytest.mark.data
def test_the_real_book_as_text(real_data):
    """An older edition: its end stands there as a sentence of two lines before it stands there as a mark."""
    passages = texts(auto(real_data / "frankenstein" / "frankenstein_pg84.txt"))
    assert passages[-1].endswith("lost in darkness and distance.")
    assert not any("Gutenberg" in passage or "***" in passage for passage in passages)
    assert len(passages) > 700


@pytest.mark.data
def test_the_real_articles_without_blank_lines(real_data):
    """Read as one paragraph, nothing could be held out of WikiText."""
    file = real_data / "wikitext" / "wikitext2-raw.train-first1MB.txt.gz"
    reading = auto(file)
    passages = texts(reading)
    assert reading.section.separator.join(passages) == gzip.decompress(file.read_bytes()).decode().rstrip("\n")
    assert len(passages) == 2120, "2,119 line ends, and a last line that was cut"


@pytest.mark.data
@pytest.mark.parametrize(("name", "prompt", "response", "count"), [
    ("youtube_comments/YT-comments.csv", "Comment", "Response", 59), ("viggo/train.csv", "ref", "mr", 5103),
    ("viggo/validation.csv", "ref", "mr", 714), ("viggo/test.csv", "ref", "mr", 1083),
])  # fmt: skip
def test_the_real_pairs_come_as_they_stand(real_data, name, prompt, response, count):
    with open(real_data / name, encoding="utf-8", newline="") as stream:
        rows = [(row[prompt], row[response]) for row in csv.DictReader(stream)]
    assert len(rows) == count
    assert [(record.asked, record.answered) for record in auto(real_data / name).records()] == rows


@pytest.mark.data
def test_the_real_tagged_pairs_in_two_formats(real_data):
    folder = real_data / "mental_health"
    first, second = ([record.messages for record in auto(folder / name).records()] for name in ("train-00000-of-00001.parquet", "mental_health_172.jsonl"))
    assert len(first) == 172
    assert first == second
    assert all(len(messages) == 2 for messages in first)


def test_a_header_that_stands_in_the_middle_is_refused_with_its_line_or_left_out_and_counted(write):
    """Two files joined by `cat`: the model would learn that a prompt called prompt is answered by response."""
    file = write("prompt,response\na,b\nc,d\nprompt,response\ne,f\n")
    with pytest.raises(DataError, match=r"a\.csv:4: the header stands here once more"):
        list(pairs(file).outcomes())
    skipping = pairs(file, on_bad_row="skip")
    assert [record.line for record in skipping.records()] == [2, 3, 5]
    assert skipping.source.left_out == {"the header once more": 1}


def test_blanks_around_a_class_are_taken_off_and_told(write):
    reading = labels(write("text,label\none,good \ntwo, good\nthree,bad\n"))
    assert [record.label for record in reading.records()] == ["good", "good", "bad"]
    assert "2 labels have blanks around them, which are taken off" in reading.notes
    assert not reading.merged
