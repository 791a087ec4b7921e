"""Meaning representations and JSON: order says nothing, every item counts, what does not parse is wrong."""

import csv
import random
from collections import Counter

import pytest

from halfbyte.evaluate.structure import count_unparsable, parse_structure, slot_table, structure_scores

GOLD = "verify_attribute(name[Little Big Adventure], rating[average], has_multiplayer[no], platforms[PlayStation, PC])"


def values(answers, references):
    return {score.metric.name: score.value for score in structure_scores(answers, references)}


@pytest.mark.parametrize(
    ("text", "act", "items"),
    [
        (GOLD, "verify_attribute", "name=Little Big Adventure|rating=average|has_multiplayer=no|platforms=PlayStation|platforms=PC"),
        (" inform ( name [Tetris] ,\n genres[ a ,b] )\n", "inform", "name=Tetris|genres=a|genres=b"),
        ("request()", "request", ""),
        ("request( )", "request", ""),
        ("request_attribute(developer[])", "request_attribute", "developer="),
        ("inform(esrb[E 10+ (for Everyone 10 and Older)], name[Dirt: Showdown])", "inform", "esrb=E 10+ (for Everyone 10 and Older)|name=Dirt: Showdown"),
        ("inform(name[Half-Life [Remastered]])", "inform", "name=Half-Life [Remastered]"),
        ("inform(customer rating[5 out of 5])", "inform", "customer rating=5 out of 5"),
        ("inform(a[x], a[x])", "inform", "a=x|a=x"),
        ("inform(date[August 14, 2018])", "inform", "date=August 14|date=2018"),
        ("inform(name[Eidos  Montréal])", "inform", "name=Eidos Montréal"),
        ('{"a": {"b": 1}, "c": ["x, y", true, null], "d": []}', "", '/a/b=1|/c[]="x, y"|/c[]=true|/c[]=null|/d=[]'),
        ("{}", "", "={}"),
        ('{"a/b": 1, "a": {"b": 1}}', "", "/a~1b=1|/a/b=1"),
        ('{"a": ["1"], "b": 1.0}', "", '/a[]="1"|/b=1.0'),
    ],
)
def test_a_structure_is_its_act_and_its_items(text, act, items):
    parsed = parse_structure(text)
    assert parsed.act == act
    assert parsed.items == Counter(tuple(item.split("=", 1)) for item in items.split("|") if item)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "inform", "inform(", "inform(name[Tetris]", "inform(name[Tetris)", "inform(name[Tetris]))x", "inform(name)", "inform(name[a] rating[b])",
        "inform(name[a],)", "inform(,name[a])", "inform(name[a]], b[c])", "inform([a])", "(name[a])", "in form(name[a])", "inform(name[a]) ### Target:",
        "Sure! inform(name[a])", "inform(name[a]); request()", "name[Tetris]", "[1, 2]", '"text"', '{"a": 1', '{"a": 1} and more', "{'a': 1}", '```{"a": 1}```',
        '{"a":' * 100_000, "inform(" + "a[" * 50_000, "inform(" + "a[b]," * 20_000 + "[",
    ],
)  # fmt: skip
def test_what_is_no_structure_from_end_to_end_is_none(text):
    assert parse_structure(text) is None


@pytest.mark.parametrize(
    "answer",
    [
        GOLD,
        "verify_attribute(platforms[PC, PlayStation], has_multiplayer[no], rating[average], name[Little Big Adventure])",
        "verify_attribute(name[Little Big Adventure],rating[average],has_multiplayer[no],platforms[PlayStation],platforms[PC])",
    ],
)
def test_order_and_blanks_change_nothing(answer):
    assert set(values([answer], [GOLD]).values()) == {1.0}


def test_each_figure_by_hand():
    answers = [
        "verify_attribute(name[Little Big Adventure], rating[good], has_multiplayer[no])",  # 2 of 3 said, of 5 asked
        "inform(name[Tetris], name[Tetris])",  # under the wrong act, and one thing twice: 1 of 2 said, of 1 asked
        "leep_attribute(",  # misses both
    ]
    references = [GOLD, "confirm(name[Tetris])", "inform(name[Doom], rating[good])"]
    assert values(answers, references) == {
        "exact match": 0,
        "act accuracy": pytest.approx(1 / 3),
        "slot F1": pytest.approx(2 * 3 / (5 + 8)),
        "slot precision": pytest.approx(3 / 5),
        "slot recall": pytest.approx(3 / 8),
        "act and slots F1": pytest.approx(2 * 4 / (7 + 11)),
    }
    table = {row["slot"]: row for row in slot_table(answers, references)}
    assert list(table) == ["name", "platforms", "rating", "has_multiplayer"]
    assert table["name"] == {"slot": "name", "precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "gold": 3, "predicted": 3}
    assert table["rating"] == {"slot": "rating", "precision": 0, "recall": 0, "f1": 0, "gold": 2, "predicted": 1}
    assert count_unparsable(answers) == 1


def test_the_wrong_act_alone_is_no_exact_match():
    found = values([GOLD.replace("verify_attribute", "inform")], [GOLD])
    assert (found["exact match"], found["act accuracy"], found["slot F1"]) == (0, 0, 1)
    assert found["act and slots F1"] == pytest.approx(10 / 12)


def test_the_same_said_once_and_twice_differ():
    assert values(["inform(a[x], a[x])"], ["inform(a[x])"])["exact match"] == 0
    assert values(["inform(a[x])"], ["inform(a[x], a[x])"])["slot recall"] == 0.5
    assert values(["inform(a[x], a[x])"], ["inform(a[x], a[x])"])["slot F1"] == 1


def test_a_reference_that_does_not_parse_is_compared_as_text_and_has_no_slots():
    found = structure_scores([" no structure\n", "inform(a[x])", ""], ["no structure", "inform(a[x])", "none either"])
    assert {score.metric.name: score.value for score in found}["exact match"] == pytest.approx(2 / 3)
    slots = next(score for score in found if score.metric.name == "slot F1")
    assert slots.rows.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert slots.metric.unit == "1 answers"
    assert list(values(["a"], ["a"])) == ["exact match"]


def test_json_has_slots_and_no_act():
    found = values(['{"b": [2, 1], "a": "x"}', '{"a": "y"}', "x"], ['{"a": "x", "b": [1, 2]}', '{"a": "x"}', '{"a": 1}'])
    assert found == {"exact match": pytest.approx(1 / 3), "slot F1": pytest.approx(6 / 9), "slot precision": 3 / 4, "slot recall": 3 / 5}
    assert values(['{"a": 1}'], ['{"a": "1"}'])["exact match"] == 0
    assert values(['{"a": 1}'], ['{"a": true}'])["exact match"] == 0


def test_every_row_leaves_statistics_and_lengths_must_agree():
    found = structure_scores([GOLD, "x", GOLD], [GOLD] * 3)
    assert all(len(score.rows) == 3 for score in found)
    assert [score.rows.shape for score in structure_scores([], [])] == [(0, 2)]
    with pytest.raises(ValueError, match="zip"):
        structure_scores([GOLD], [])


@pytest.mark.data
@pytest.mark.parametrize(("part", "rows"), [("train", 5103), ("validation", 714), ("test", 1083)])
def test_every_meaning_representation_of_viggo_is_perfect_against_itself_in_any_order(real_data, part, rows):
    with open(real_data / "viggo" / f"{part}.csv", encoding="utf-8", newline="") as stream:
        gold = [row["mr"] for row in csv.DictReader(stream)]
    assert len(gold) == rows
    assert count_unparsable(gold) == 0
    draw, shuffled = random.Random(0), []
    for text in gold:
        act, inside = text[:-1].split("(", 1)
        items = inside.split("], ")
        items = [item.removesuffix("]") for item in items]
        draw.shuffle(items)
        shuffled.append(f"{act}({', '.join(f'{item}]' for item in items)})")
    for answers in (gold, shuffled):
        for score in structure_scores(answers, gold):
            assert score.value == 1, score.metric.name
    assert all(row["f1"] == 1 for row in slot_table(gold, gold))
    brackets = sum(text.count("[") for text in gold)
    assert sum(len(parse_structure(text).items) for text in gold) >= brackets
