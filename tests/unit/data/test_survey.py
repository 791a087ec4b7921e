"""A few numbers a row: what is the same has the same hash, what differs does not, and every row has its place."""

import json
import sys
import tracemalloc
from array import array
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from halfbyte.data.read import read_records
from halfbyte.data.survey import COLUMNS, Survey, left_out, survey_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import AutoData, LabelData


@pytest.fixture
def survey(tmp_path):
    """A function: rows of cells, one list a part -> their survey."""

    def of(*parts: list[dict], near: bool = False, progress=None, **more) -> Survey:
        readings = []
        for part, rows in enumerate(parts):
            file = tmp_path / f"{'abc'[part]}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            section = readings[0][1].section if readings else AutoData(path=str(file), **more)
            readings.append((part, read_records(section, str(file))))
        return survey_records(readings, near, progress)

    return of


def pair(prompt: str, response: str, **more) -> dict:
    return {"prompt": prompt, "response": response, **more}


def test_every_row_has_an_entry(survey):
    found = survey([pair("a", "b"), pair("", "b"), pair("c", "d")], [pair("e", "f")])
    assert found.part.tolist() == [0, 0, 0, 1]
    assert found.line.tolist() == [1, 2, 3, 1]
    assert [Path(found.place(row)).name for row in range(4)] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]
    assert found.refused.astype(bool).tolist() == [False, True, False, False]
    assert left_out(found) == {"empty prompt or response": 1}
    assert found.first_refused == {"empty prompt or response": f"{found.files[0]}:2: the prompt is empty"}
    assert found.characters.tolist() == [2, 0, 2, 2]


@pytest.mark.parametrize(("one", "other", "same"), [
    (pair("What is it?", "x"), pair(" what  IS\nit? ", "x"), {"asked", "answered"}), (pair("\ufb01ne \u2460", "x"), pair("fine 1", "x"), {"asked", "answered"}),
    (pair("a", "x"), pair("a", "y"), {"asked"}), (pair("a", "x"), pair("b", " X "), {"answered"}),
    (pair("a", "x"), pair("a", "x"), {"asked", "answered", "whole"}),
    (pair("a", "b"), pair("b", "a"), set()),
])  # fmt: skip
def test_what_is_the_same_has_the_same_hash(survey, one, other, same):
    """CORRECTNESS 1.19: alike but for case, blanks and Unicode's compatible forms."""
    found = survey([one, other])
    assert {name for name in ("asked", "answered", "whole") if getattr(found, name)[0] == getattr(found, name)[1]} == same


def test_a_text_asks_what_it_says(survey):
    found = survey([{"text": "One"}, {"text": "one "}])
    assert found.asked[0] == found.asked[1] != 0
    assert found.whole[0] != found.whole[1]
    assert found.answered.tolist() == [0, 0], "a text answers nothing, so that no two texts share an answer"


def test_the_system_text_is_part_of_the_whole_and_of_nothing_else(survey):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = survey([{"messages": turns}, {"messages": [{"role": "system", "content": "s"}, *turns]}])
    assert found.asked[0] == found.asked[1]
    assert found.whole[0] != found.whole[1]


def test_groups_and_labels(survey):
    found = survey([pair("a", "b", author="x"), pair("c", "d", author="y"), pair("e", "f", author="x"), pair("g", "h")], group_column="author")
    assert found.group[0] == found.group[2] not in (0, found.group[1])
    assert found.group[3] == 0
    found = survey([{"text": f"text {i}", "label": "xyz"[i % 3]} for i in range(6)])
    assert [found.labels[label] for label in found.label] == ["x", "y", "z", "x", "y", "z"]


LONG = " ".join(f"word{i}" for i in range(60))


def test_near_copies_are_found_where_they_are_asked_for(survey):
    rows = [pair(LONG, "x"), pair("", "x"), pair("another question altogether", "y"), pair(LONG + " more", "z")]
    assert survey(rows, near=True).near.tolist() == [[0, 3]], "numbers of rows, those that say nothing counted too"
    assert survey(rows).near.tolist() == []
    assert survey(rows[:3], [rows[3]], near=True).near.tolist() == [[0, 3]]
    assert len(survey(rows, near=True).near_whole) == 0


def test_whole_rows_are_compared_where_near_copies_are_dropped(survey):
    """Two long answers to nearly the same prompt are no copies: dropping one would lose it."""
    rows = [pair(LONG, "yes " * 5), pair(LONG + " more", " ".join(f"other{i}" for i in range(60))), pair(LONG, "yes " * 5 + "indeed")]
    found = survey(rows, near=True, near_duplicates="drop")
    assert found.near_whole.tolist() == [[0, 2]]
    assert len(found.near) == 2


def test_all_that_is_wrong_in_all_parts_is_told(survey, tmp_path):
    """The test file's mistakes were told only when those of the training file were mended."""
    rows = [pair("a", "b"), pair("c", ["d"])]
    with pytest.raises(DataError) as caught:
        survey(rows, rows)
    assert caught.value.message.split("\n") == [f"{tmp_path / name}:2: response is a list, need text" for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(DataError) as caught:
        survey([rows[0]] + [rows[1]] * 30, [rows[0]] + [rows[1]] * 30)
    assert caught.value.message.count("is a list") == 20


def test_so_many_labels_are_no_classes(survey, monkeypatch, tmp_path):
    """Each is held by its name: five million of them are more than memory."""
    monkeypatch.setattr("halfbyte.data.survey.MOST_LABELS", 5)
    file = tmp_path / "l.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "label": f"label {i}"}) + "\n" for i in range(10)))
    section = LabelData(kind="label", path=str(file), text_column="text", label_column="label")
    with pytest.raises(DataError, match=r"l\.jsonl:6: this is label 6, so they are no classes"):
        survey_records([(0, read_records(section))], near=False)


def test_progress_is_told(survey):
    told = []
    survey([pair(f"a{i}", "b") for i in range(2500)], progress=lambda stage, rows: told.append((stage, rows)))
    assert told == [("reading", 1000), ("reading", 2000)]


def test_no_object_is_kept_for_a_row(survey):
    """A 5 GB file has five million rows: arrays only, and 72 bytes a row at most."""
    rows = [pair(f"prompt {i}", f"answer {i}") for i in range(20_000)]
    assert sum(array(code).itemsize for code in COLUMNS.values()) <= 72
    survey(rows[:10])
    tracemalloc.start()
    found = survey(rows, near=True)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 72 * len(rows) * 1.2 + 500_000
    assert peak < held + 60_000_000
    for part in fields(found):
        value = getattr(found, part.name)
        assert isinstance(value, np.ndarray) or len(value) < 10, part.name
    assert sys.getsizeof(found.labels) < 1000
