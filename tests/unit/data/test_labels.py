"""Classes: too small ones are refused with a line, conflicting and doubtful ones told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from halfbyte.data.labels import label_form, rows_for_each
from halfbyte.data.read import read_records
from halfbyte.data.split import Split, split_records
from halfbyte.data.survey import survey_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import LabelData


@pytest.fixture
def split(tmp_path):
    """A function: (text, label) rows, one list a part -> their split."""

    def of(*parts: list[tuple[str, str]], **more) -> Split:
        files = []
        for name, rows in zip(("train", "validation", "test"), parts, strict=False):
            files.append(tmp_path / f"{name}.jsonl")
            files[-1].write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        section = LabelData(kind="label", path=str(files[0]), text_column="text", label_column="label", **more)
        readings = [(part, read_records(section, str(file))) for part, file in enumerate(files)]
        return split_records(survey_records(readings, near=True), section)

    return of


def many(label: str, count: int = 20) -> list[tuple[str, str]]:
    return [(f"{label} text number {i} {i * 7919}", label) for i in range(count)]


def test_a_class_too_small_for_all_parts_is_refused_with_its_line(split):
    """BAD_INPUTS 18: all such classes together."""
    with pytest.raises(DataError) as caught:
        split([*many("a"), ("x", "mixed"), *many("b"), ("y", "rare"), ("z", "rare")])
    lines = caught.value.message.split("\n")
    assert lines[0].endswith("train.jsonl:21: label 'mixed' has 1 row: cannot be in train, validation and test; need at least 3")
    assert lines[1].endswith("train.jsonl:42: label 'rare' has 2 rows: cannot be in train, validation and test; need at least 3")
    assert "data.merge_labels" in caught.value.hint


def test_a_class_needs_a_row_for_each_part_that_is_drawn(split):
    rows = [*many("a"), *many("b"), ("y", "rare"), ("z", "rare")]
    assert split(rows, validation_share=0, test_share=0).count(0) == 42
    held_out = split(rows, validation_share=0)
    assert held_out.count(2) == 7
    with pytest.raises(DataError, match="cannot be in train and a held-out part; need at least 2"):
        split(rows[:-1], validation_share=0)
    assert split([*rows[:-1]], many("a", 3), many("b", 3)).count(0) == 41, "nothing is drawn: a class of one row may train"


def test_one_class_is_refused(split):
    with pytest.raises(DataError, match="every row has the label 'a': there is nothing to tell apart") as caught:
        split(many("a"))
    assert "data.label_column" in caught.value.hint


def test_conflicting_labels_are_counted_and_told_with_their_lines(split):
    """BAD_INPUTS 21 and 49: the same text in two classes; an exact repetition is no conflict."""
    rows = [
        *many("a"),
        *many("b"),
        ("The same text", "a"),
        ("the  same text", "b"),
        ("the same TEXT", "b"),
        ("the same text", "b"),
        ("twice", "a"),
        ("twice", "a"),
    ]
    result = split(rows)
    assert len(result.notes) == 1
    assert result.notes[0].startswith("4 rows have a text that also stands with another label: ")
    assert "train.jsonl:41 'a' and " in result.notes[0]
    assert "train.jsonl:42 'b'; correct them" in result.notes[0]
    assert result.left_out == {"exact duplicate": 1}
    assert len({int(side) for side in result.side[40:44]}) == 1, "they stay on one side"
    assert not split([*many("a"), *many("b")]).notes


def test_near_copies_with_another_label_are_not_dropped(split):
    text = " ".join(f"word{i}" for i in range(40))
    result = split([*many("a"), *many("b"), (text, "a"), (text + " more", "b"), (text + " still", "a")], near_duplicates="drop")
    assert result.left_out == {"near-duplicate": 1}
    assert result.side[41] != 3


@pytest.mark.parametrize(("one", "other", "same"), [
    ("1", "1.0", True), ("1", "01", True), ("1", "+1", True), ("Good", "good", True), ("a b", " A  B ", True), ("\ufb01t", "fit", True),
    ("1", "10", False), ("1e5", "100000", False), ("nan", "NA", False), ("C", "C++", False), ("+", "-", False), ("a-b", "ab", False),
])  # fmt: skip
def test_labels_that_differ_only_in_form(one, other, same):
    """BAD_INPUTS 16. Signs count: + and - were taken for one class."""
    assert (label_form(one) == label_form(other)) is same


def test_labels_that_differ_only_in_form_are_told(split):
    result = split([*many("1"), *many("1.0"), *many("2")])
    assert result.notes == ["labels '1', '1.0' differ only in form; data.merge_labels makes them one"]


def test_declared_classes_without_a_row_are_told(split):
    assert split([*many("a"), *many("b")], labels=["a", "b", "c"]).notes == ["data.labels: no row has the label 'c'"]


def test_merged_classes_are_told_over_all_parts(split):
    """One note a part said that no row had the label, where only that part had none; and data.labels missed what was read as another."""
    parts = [*many("a"), *many("b"), ("x", "A")], [*many("a", 3)], [*many("b", 3), ("y", "B")]
    more = {"drop_overlap": True, "keep_duplicates": True, "near_duplicates": "ignore"}
    notes = split(*parts, labels=["a", "b", "A"], merge_labels={"A": "a", "B": "b", "C": "a"}, **more).notes
    assert [note for note in notes if "label" in note] == [
        "1 row with the label 'A' is read as 'a'", "1 row with the label 'B' is read as 'b'", "data.merge_labels: no row has the label 'C'",
    ]  # fmt: skip


def test_a_small_class_that_is_a_typing_error_is_told_with_its_mend(split):
    with pytest.raises(DataError) as caught:
        split([*many("positive"), *many("negative"), ("x", "postive"), ("y", "mixed")])
    first, second = caught.value.message.split("\n")
    assert first.endswith("need at least 3. Did you mean 'positive'? data.merge_labels={postive: positive}")
    assert second.endswith("need at least 3")


def test_conflicts_come_in_the_order_of_the_file(split):
    """They came in the order of their hashes."""
    twice = [(f"the same text {i} {i * 7919}", label) for i in range(6) for label in ("a", "b")]
    note = split([*many("a"), *many("b"), *twice], near_duplicates="ignore").notes[0]
    assert [int(line) for line in re.findall(r"jsonl:(\d+)", note)] == [41, 42, 43, 44, 45, 46]


def test_a_class_that_only_a_held_out_file_has_is_told(split):
    result = split(
        [*many("a"), *many("b")], many("a", 3), [*many("b", 3), ("something new", "c")], drop_overlap=False, near_duplicates="ignore", keep_duplicates=True
    )
    assert "label 'c' stands in a held-out file and in no training row" in result.notes


@pytest.mark.parametrize("shares", [(0.08, 0.15), (0, 0.15), (0.3, 0), (0.5, 0.39), (0.39, 0.5), (0.01, 0.01)])
def test_every_class_has_a_row_in_every_part_and_its_share(shares):
    for count in range(3, 500):
        ((tests,), (validates,)) = rows_for_each(np.array([count]), shares, True)
        assert bool(validates) is (shares[0] > 0)
        assert bool(tests) is (shares[1] > 0)
        assert tests + validates < count
        assert abs(validates - count * shares[0]) <= 1
        assert abs(tests - count * shares[1]) <= 1


@pytest.mark.data
def test_the_real_dialogue_acts(real_data):
    """ViGGO: nine classes, as given and drawn."""
    folder = Path(real_data) / "viggo"
    section = LabelData(kind="label", path=str(folder / "train.csv"), text_column="ref", label_column="mr", label_pattern=r"^(\w+)\(")
    readings = [(part, read_records(section, str(folder / f"{name}.csv"))) for part, name in enumerate(("train", "validation", "test"))]
    survey = survey_records(readings, near=True)
    assert sorted(survey.labels) == [
        "confirm",
        "give_opinion",
        "inform",
        "recommend",
        "request",
        "request_attribute",
        "request_explanation",
        "suggest",
        "verify_attribute",
    ]
    given = split_records(survey, section)
    assert dict(zip(*np.unique(survey.label[given.side == 2], return_counts=True), strict=True))[survey.labels.index("inform")] == 324
    assert not any("label" in note for note in given.notes)
    survey = survey_records(readings[:1], near=True)
    drawn = split_records(survey, section)
    for label in range(9):
        rows = (survey.label == label) & (drawn.side < 3)
        assert abs((drawn.side[rows] == 2).sum() - 0.15 * rows.sum()) <= 1
