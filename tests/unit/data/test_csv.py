"""CSV and TSV: lines, quotes, delimiters, headers; every bad row told with its line."""

import pytest

from halfbyte.data.files import LARGEST_CELL, Problems, open_source
from halfbyte.errors import DataError
from reading import cells, decided, lines, said


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
