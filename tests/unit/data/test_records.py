"""From a file to records: no cell is changed, every row is counted, and what cannot be read is named with its line."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from halfbyte.data.records import LARGEST_CELL, Reading, read_records
from halfbyte.data.split import split_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import AutoData, PairData, TextData

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
    return checked(read_records(AutoData(path=str(file), **more)))


def text(file: Path, **more) -> Reading:
    return checked(read_records(TextData(kind="text", path=str(file), **more)))


def pairs(file: Path, prompt: str = "prompt", response: str = "response") -> Reading:
    return checked(read_records(PairData(kind="prompt_response", path=str(file), prompt_column=prompt, response_column=response)))


def checked(reading: Reading) -> Reading:
    """The ledger adds up, whatever was read."""
    assert reading.records_read == len(reading.records) + sum(reading.left_out.values())
    return reading


def refusal(call, *args, **more) -> DataError:
    with pytest.raises(DataError) as caught:
        call(*args, **more)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def texts(reading: Reading) -> list[str]:
    return [record.fields["text"] for record in reading.records]


def written(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


# Cells


CELLS = [
    "NA", "N/A", "null", "None", "nan", "01", "1e5", "TRUE", "2024-01-01", " x ", "a,b", 'he said "no"', "a\nb", "a\r\nb", "=1+1", "\u00e9\u2603\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_comes_back_as_it_stands(write, cell):
    """pandas, and load_dataset("csv") with it, make nothing of NA and null, 1 of 01 and 100000.0 of 1e5."""
    file = write(written([["prompt", "response"], [cell, "b"], ["a", cell]]))
    assert [record.fields for record in pairs(file).records] == [{"prompt": cell, "response": "b"}, {"prompt": "a", "response": cell}]
    assert texts(text(write(written([["text"], [cell]]), "t.csv"))) == [cell]


def test_only_empty_cells_count_as_missing(write):
    reading = pairs(write('prompt,response\n"",b\na,\n" ",b\na,b\nNA,null\n'))
    assert len(reading.records) == 2
    assert reading.left_out == {"empty prompt or response": 3}
    reading = text(write("n,text\n1,\n2,a\n3,  \n"))
    assert texts(reading) == ["a"]
    assert reading.left_out == {"empty": 2}


def test_exact_duplicates_are_counted(write):
    reading = pairs(write("prompt,response\na,b\na,b\nA,b\na,c\na,b\n"))
    assert [(r.fields["prompt"], r.fields["response"], r.line) for r in reading.records] == [("a", "b", 2), ("A", "b", 4), ("a", "c", 5)]
    assert reading.left_out == {"exact duplicate": 2}


def test_a_file_of_nothing_but_left_out_rows_says_why(write):
    error = refusal(pairs, write("prompt,response\n,b\na,\n"))
    assert "0 of 2 rows are left: 2 empty prompt or response" in error.message
    assert "0 of 0 rows are left: the file holds none" in refusal(pairs, write("prompt,response\n")).message


# Encodings


BYTES = "prompt,response\r\ncaf\u00e9,d\u00e9j\u00e0\r\n"


@pytest.mark.parametrize(("encoding", "value", "reason"), [
    ("utf-8", None, None),
    ("utf-8-sig", "UTF-8", "the file begins with UTF-8's byte-order mark"),
    ("utf-16", "UTF-16", "the file begins with UTF-16's byte-order mark"),
    ("cp1252", "cp1252", "byte 0xE9 is not utf-8; read as Windows text (cp1252)"),
])  # fmt: skip
def test_the_encoding_is_found_and_told(write, encoding, value, reason):
    file = write(BYTES.encode(encoding))
    reading = auto(file)
    assert reading.records[0].fields == {"prompt": "caf\u00e9", "response": "d\u00e9j\u00e0"}
    found = [decision for decision in reading.decisions if decision.name == "encoding"]
    assert [decision.value for decision in found] == ([value] if value else [])
    assert all(reason in decision.reason for decision in found)
    if encoding == "cp1252":
        assert f"{file}:2: " in found[0].reason


def test_an_encoding_that_is_asked_for_is_used(write):
    file = write(BYTES.replace("\u00e9", "\u0119").encode("cp1250", "replace"))
    assert auto(file, encoding="cp1250").records[0].fields["prompt"] == "caf\u0119"
    assert "'utf-9' is no encoding" in refusal(auto, file, encoding="utf-9").message
    assert f"{file}:2: byte 0xEA is not utf-8" in refusal(auto, file, encoding="utf-8").message


@pytest.mark.parametrize("asked", [None, "utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_never_part_of_the_first_column(write, asked):
    """Guards against `data.encoding=utf-8` with a marked file: the column was called '\\ufeffprompt' and not found."""
    file = write(BYTES.encode("utf-16" if asked == "utf-16" else "utf-8-sig"))
    assert auto(file, encoding=asked).records[0].fields["prompt"] == "caf\u00e9"


def test_a_byte_order_mark_in_a_cell_is_removed_and_told(write):
    reading = text(write('text\n"\ufeffOne, \ufeffyes"\nTwo\n\ufeffThree\n'))
    assert texts(reading) == ["One, \ufeffyes", "Two", "Three"]
    assert reading.notes == [f"{reading.records[0].file}:2: byte-order mark at the start of a cell removed, and in 1 more rows"]


def test_a_damaged_file_with_a_byte_order_mark_is_not_taken_for_windows_text(write):
    """Guards against two slips: the byte named was three places off, and the mark was read as three letters of cp1252."""
    error = refusal(auto, write(b"\xef\xbb\xbfprompt,response\na,b\xe9\n"))
    assert ":2: byte 0xE9 is not UTF-8, though the file begins with UTF-8's byte-order mark" in error.message
    assert "is not UTF-16, though" in refusal(auto, write("prompt,response\n".encode("utf-16") + b"\x00")).message


def test_a_byte_that_no_encoding_explains_is_named_with_its_line(write):
    assert ":3: byte 0x81 is not utf-8" in refusal(auto, write(b"prompt,response\na,b\nc,\x81\n")).message


@pytest.mark.parametrize(("content", "name", "what", "mend"), [
    (b"PK\x03\x04....", "a.csv", "an Excel workbook or a zip archive (PK header)", "save as CSV"),
    (b"PK\x03\x04....", "a.xlsx", "an Excel workbook", "save as CSV"),
    (b"\x1f\x8b\x08....", "a.csv.gz", "a gzip file", "unpack it"),
    (b"\xfd7zXZ\x00", "a.txt", "an xz file", "unpack it"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.csv", "a Git-LFS pointer", "run git lfs pull"),
    (b"PAR1....", "a.parquet", "a Parquet file", "save as CSV"),
    (b"%PDF-1.7", "a.txt", "a PDF", "save its text as .txt"),
    (b"<!DOCTYPE html><html>Log in</html>", "a.csv", "a web page", "download the file itself"),
])  # fmt: skip
def test_a_file_that_is_no_text_is_named(write, content, name, what, mend):
    file = write(content, name)
    error = refusal(auto, file)
    assert error.message.startswith(f"{file}: looks like {what}")
    assert mend in error.hint


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_an_empty_file_is_named(write, content, name):
    """A file of a byte-order mark alone ended in a traceback."""
    file = write(content, name)
    assert refusal(auto, file).message == f"{file} is empty ({len(content)} bytes)"


def test_other_files_that_cannot_be_read_are_named(write, tmp_path):
    assert refusal(auto, tmp_path / "nowhere.csv").message.endswith("nowhere.csv: no such file")
    assert refusal(auto, tmp_path).message.endswith(": no such file")
    error = refusal(auto, write('{"text": "a"}\n', "a.jsonl"))
    assert "files that end in '.jsonl' are not read" in error.message
    assert ".csv" in error.hint
    assert ":2: holds a zero byte" in refusal(auto, write("prompt,response\na\0,b\n")).message
    assert "holds a zero byte" in refusal(auto, write("prompt,response\n".encode("utf-16-le"))).message
    assert refusal(auto, Path("x" * 5000 + ".csv")).message.endswith(": cannot be read: File name too long")


# CSV


def test_lines_are_counted_as_an_editor_counts_them(write):
    reading = pairs(write('prompt,response\na,b\n\n"two\nlines","and\r\nthree\nmore"\nc,d\n'))
    assert [record.line for record in reading.records] == [2, 4, 8]
    assert reading.records[1].fields == {"prompt": "two\nlines", "response": "and\r\nthree\nmore"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_known(write, end):
    reading = pairs(write(end.join(["prompt,response", "a;,b", "c,d", ""])))
    assert [(r.fields["prompt"], r.line) for r in reading.records] == [("a;", 2), ("c", 3)]


@pytest.mark.parametrize(("row", "count"), [("a,b,c", 3), ("a", 1)])
def test_a_ragged_row_is_named_with_its_line(write, row, count):
    file = write(f'prompt,response\n"x\ny",b\n{row}\n')
    assert refusal(pairs, file).message == f"{file}:4: {count} fields, the header has 2"


@pytest.mark.parametrize(("content", "line"), [
    ('prompt,response\na,b\nc,"d"e\n', 3), ('prompt,response\na,"never closed\nb,c\nd,e\n', 2), ('"prompt,response\na,b\n', 1),
])  # fmt: skip
def test_broken_quotes_are_named_with_the_line_where_the_row_begins(write, content, line):
    file = write(content)
    assert refusal(pairs, file).message.startswith(f"{file}:{line}: not CSV: ")


def test_a_cell_may_be_large_but_not_endless(write):
    assert len(pairs(write(f"prompt,response\na,{'x' * 200_000}\n")).records[0].fields["response"]) == 200_000
    assert ":2: not CSV: field larger than field limit" in refusal(pairs, write(f"prompt,response\na,{'x' * (LARGEST_CELL + 1)}\n")).message


@pytest.mark.parametrize("header", ["a,b,a", "prompt,response,prompt"])
def test_columns_of_one_name_are_refused(write, header):
    name = header.split(",")[0]
    file = write(f"\n{header}\n1,2,3\n")
    assert refusal(auto, file).message == f"{file}:2: column '{name}' stands at places 1 and 3"


def test_columns_without_a_name_are_no_duplicates(write):
    assert pairs(write(",,prompt,response\n1,2,a,b\n")).records[0].fields == {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(("delimiter", "told"), [(",", None), (";", "';'"), ("\t", r"'\t'")])
def test_the_delimiter_is_found_and_told(write, delimiter, told):
    reading = pairs(write(f'prompt{delimiter}response\na{delimiter}"b, c; d"\n'))
    assert reading.records[0].fields == {"prompt": "a", "response": "b, c; d"}
    assert [decision.value for decision in reading.decisions if decision.name == "delimiter"] == ([told] if told else [])


def test_tabs_part_the_columns_of_a_tsv(write):
    """A .tsv of one column, its name without a tab, was read as a CSV: texts with a comma were ragged rows."""
    assert texts(auto(write("text\na, b\n", "a.tsv"))) == ["a, b"]


# Columns


@pytest.mark.parametrize(("header", "prompt", "response"), [
    ("prompt,response", "prompt", "response"), ("Comment,Response", "Comment", "Response"), ("id, Question ,ANSWER", " Question ", "ANSWER"),
    ("instruction,output", "instruction", "output"), ("human,assistant,source", "human", "assistant"), ("mr,ref", "ref", "mr"),
    ("target,meaning_representation", "target", "meaning_representation"),
])  # fmt: skip
def test_columns_are_known_by_their_names(write, header, prompt, response):
    columns = header.split(",")
    reading = auto(write(header + "\n" + ",".join(f"in {name}" for name in columns) + "\n"))
    assert reading.section == PairData(kind="prompt_response", path=reading.section.path, prompt_column=prompt, response_column=response)
    assert reading.records[0].fields == {"prompt": f"in {prompt}", "response": f"in {response}"}
    assert repr(prompt) in reading.decisions[-1].reason


@pytest.mark.parametrize("header", ["context,label", "prompts,responses", "user_id,answered", "contents,id", "ref,label", "target,response_id"])
def test_part_of_a_name_is_not_the_name(write, header):
    """'context' holds 'text': a guess by parts of words would train on the wrong column."""
    error = refusal(auto, write(f"{header}\na,b\n"))
    assert f"cannot tell what the columns {header.replace(',', ', ')} are for" in error.message
    assert "data.kind=prompt_response" in error.hint


@pytest.mark.parametrize(("header", "words"), [
    ("instruction,input,output", "which of the columns instruction, input is the prompt?"),
    ("Prompt,prompt,response", "which of the columns Prompt, prompt is the prompt?"),
    ("question,answer,completion", "which of the columns answer, completion is the response?"),
    ("text,content", "which of the columns text, content holds the text?"),
    ("ref,mr,Ref,prompt,response", None),
])  # fmt: skip
def test_columns_with_two_meanings_are_refused(write, header, words):
    """Guards against Alpaca's three columns: `input` was left out without a word."""
    file = write(f"{header}\n{','.join('abcde'[: header.count(',') + 1])}\n")
    if words is None:
        assert auto(file).section.prompt_column == "prompt"
    else:
        error = refusal(auto, file)
        assert words in error.message
        assert "state it" in error.hint


def test_a_text_column_is_chosen_by_name_or_when_it_is_the_only_one(write):
    assert text(write("id,Text\n1,a\n")).section.column == "Text"
    assert text(write("words\na\n")).section.column == "words"
    assert auto(write("words\na\n")).section.column == "words"
    assert "which of the columns id, words holds the text?" in refusal(text, write("id,words\n1,a\n")).message


@pytest.mark.parametrize(("asked", "near"), [("respons", "Response"), ("response", "Response"), ("Response ", "Response"), ("zen", None)])
def test_a_missing_column_is_named_with_what_was_meant(write, asked, near):
    error = refusal(pairs, write("Comment,Response\na,b\n"), "Comment", asked)
    assert f"no column {asked!r} (data.response_column); columns are Comment, Response" in error.message
    assert error.hint == (f"did you mean {near!r}?" if near else "name one of them")
    assert "no column 'x' (data.column)" in refusal(text, write("a,b\n1,2\n"), column="x").message


def test_pairs_need_columns(write):
    assert "prompt and response need two columns of a CSV" in refusal(pairs, write("a\n\nb\n", "a.txt")).message


# Texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_part_paragraphs(write, end):
    reading = auto(write(end.join(["", "One", "  and a half", "", " \t", "Two", ""]), "a.md"))
    assert [(r.fields["text"], r.line) for r in reading.records] == [("One\n  and a half", 2), ("Two", 6)]
    assert (reading.section.rows, reading.section.separator) == ("book", "\n\n")
    assert "paragraphs are joined again" in reading.decisions[-1].reason


def test_a_text_without_blank_lines_is_parted_by_lines(write):
    """Guards against one row that nothing can be held out of: WikiText without its blank lines could not be trained on."""
    reading = auto(write("One\nTwo\nThree\n", "a.txt"))
    assert [(r.fields["text"], r.line) for r in reading.records] == [("One", 1), ("Two", 2), ("Three", 3)]
    assert (reading.section.rows, reading.section.separator) == ("book", "\n")
    assert "lines are joined again" in reading.decisions[-1].reason


@pytest.mark.parametrize(("content", "name"), [("One\n\nTwo\n", "a.txt"), ("One\nTwo\n", "b.txt"), ("text\nOne\nTwo\n", "c.csv")])
def test_the_separator_that_is_asked_for_is_used(write, content, name):
    """Guards against a key that text files did not read."""
    assert text(write(content, name), separator=" | ").section.separator == " | "


@pytest.mark.parametrize(("length", "rows"), [(399, "separate"), (400, "book")])
def test_long_rows_are_a_book_and_short_ones_are_separate(write, length, rows):
    reading = text(write(written([["text"], ["x" * length], ["x" * length], ["y"]])))
    assert reading.section.rows == rows
    assert f"half of them have {length} characters or more" in reading.decisions[-1].reason
    assert text(write(written([["text"], ["x" * length]])), rows="separate").section.rows == "separate"


# Project Gutenberg


def gutenberg(*pieces: str) -> str:
    return "\n\n".join(pieces)


def test_header_and_licence_of_a_text_file_are_left_out(write):
    reading = auto(write(gutenberg("The eBook of A Tale", "Credits", START, "CHAPTER I", "It was dark.", END, "The licence"), "a.txt"))
    assert texts(reading) == ["CHAPTER I", "It was dark."]
    assert reading.left_out == {"Project Gutenberg header or licence": 5}
    assert "5 rows of Project Gutenberg header and licence left out" in reading.notes[-1]
    assert len(text(write(gutenberg("a", START, "b"), "b.txt"), keep_boilerplate=True).records) == 3


@pytest.mark.parametrize(("start", "end"), [
    ("***START OF THE PROJECT GUTENBERG EBOOK A***", "***END OF THE PROJECT GUTENBERG EBOOK A***"),
    ("*** START OF THIS PROJECT GUTENBERG EBOOK A ***", "*** END OF THIS PROJECT GUTENBERG EBOOK A ***"),
])  # fmt: skip
def test_the_marks_of_older_books_are_known(write, start, end):
    assert texts(auto(write(gutenberg("header", start, "a", "b", end, "licence"), "a.txt"))) == ["a", "b"]


def test_an_end_that_is_not_gutenbergs_is_text(write):
    """Guards against `*** END OF THE FIRST PART ***`, behind which everything was left out."""
    pieces = ["a", "*** START OF THE STORM ***", "b", "*** END OF THE FIRST PART ***", "c"]
    assert texts(auto(write(gutenberg(*pieces), "a.txt"))) == pieces


@pytest.mark.parametrize(("pieces", "kept"), [
    (["licence on top", START, "a"], ["a"]),
    (["a", "b", END, "licence"], ["a", "b"]),
    (["a", f"b\n{END}", "licence"], ["a", "b"]),
    (["a", f"{END}\nmore", "licence"], ["a"]),
    (["a", "End of Project Gutenberg's A Tale, by\nA Writer", END, "licence"], ["a"]),
    (["a", "The End of Project Gutenberg", "b", END], ["a", "The End of Project Gutenberg", "b"]),
    (["head", f"Credits\n{START}\nTitle", "a"], ["a"]),
    # Two books in one file, which lost the second, and a book in a row, which lost all.
    (["head", START, "a", END, "licence", "head", START, "b", END, "licence"], ["a", "b"]),
    ([f"head\n{START}\na\n{END}\nlicence", f"head\n{START}\nb\nc\n{END}\nlicence"], ["a", "b\nc"]),
    (["head", START, "a", f"{END}\nlicence\n{START}", "b"], ["a", "b"]),
])  # fmt: skip
def test_what_stands_outside_the_marks_is_left_out(write, pieces, kept):
    reading = text(write(written([["text"], *([piece] for piece in pieces)])))
    assert texts(reading) == kept
    assert reading.left_out["Project Gutenberg header or licence"] == len(pieces) - len(kept)


def test_a_row_that_holds_text_before_the_end_mark_is_told(write):
    reading = text(write(written([["text"], ["a"], [f"  b \n\n  {END}\nlicence"]])))
    assert texts(reading) == ["a", "  b"]
    assert any(":3: cut at Project Gutenberg's mark" in note for note in reading.notes)


def test_a_file_of_nothing_but_licence_is_refused(write):
    error = refusal(auto, write(gutenberg("head", START, END, "licence"), "a.txt"))
    assert "0 of 4 rows are left: 4 Project Gutenberg header or licence" in error.message


@pytest.mark.data
def test_the_real_book_loses_its_licence_and_nothing_else(real_data):
    reading = auto(real_data / "frankenstein" / "frankenstein_chunks.csv")
    assert reading.records_read == 481
    assert reading.left_out == {"Project Gutenberg header or licence": 21}
    assert len(reading.records) == 460
    assert reading.section.rows == "book"
    assert reading.records[0].fields["text"].startswith("I am already far north of London")
    assert reading.records[-1].fields["text"].endswith("borne away by the waves and\nlost in darkness and distance.")
    assert not any("Gutenberg" in passage or "\ufeff" in passage for passage in texts(reading))
    assert "byte-order mark" in reading.notes[0]


@pytest.mark.data
def test_the_real_book_as_text(real_data):
    """An older edition: its end stands there as a sentence of two lines before it stands there as a mark."""
    passages = texts(auto(real_data / "frankenstein" / "frankenstein_pg84.txt"))
    assert passages[-1].endswith("lost in darkness and distance.")
    assert not any("Gutenberg" in passage or "***" in passage for passage in passages)
    assert len(passages) > 700


@pytest.mark.data
def test_the_real_articles_without_blank_lines(real_data, write):
    """recipes/wikitext.yaml trains on this file; read as one paragraph, nothing could be held out of it."""
    articles = gzip.decompress((real_data / "wikitext" / "wikitext2-raw.train-first1MB.txt.gz").read_bytes())
    reading = auto(write(articles, "wikitext.txt"))
    assert reading.section.separator.join(texts(reading)) == articles.decode().rstrip("\n")
    split = split_records(reading)
    assert len(reading.records) == 2120, "2,119 line ends, and a last line that was cut"
    assert (len(split.train) > 1500, len(split.test) > 200) == (True, True)


@pytest.mark.data
@pytest.mark.parametrize(("file", "prompt", "response", "read", "kept"), [
    ("youtube_comments/YT-comments.csv", "Comment", "Response", 59, 59), ("viggo/train.csv", "ref", "mr", 5103, 5096),
])  # fmt: skip
def test_the_real_pairs_are_known(real_data, file, prompt, response, read, kept):
    reading = auto(real_data / file)
    assert (reading.section.prompt_column, reading.section.response_column) == (prompt, response)
    assert (reading.records_read, len(reading.records)) == (read, kept)
    with open(real_data / file, encoding="utf-8", newline="") as stream:
        rows = dict.fromkeys((row[prompt], row[response]) for row in csv.DictReader(stream))
    assert [tuple(record.fields.values()) for record in reading.records] == list(rows)
