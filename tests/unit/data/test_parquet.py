"""Parquet: rows of every batch, refusals before memory runs out, columns without a name."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfbyte.data.files import open_source
from halfbyte.errors import DataError
from reading import cells, said


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
