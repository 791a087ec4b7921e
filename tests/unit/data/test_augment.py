"""Changed copies: what changes, what never does, and that the seed decides."""

import random
import string

import pytest

from halfbyte.data.augment import changed_copies, check_kinds
from halfbyte.data.records import Record
from halfbyte.errors import RecipeError
from halfbyte.recipe.schema import PairData, TextData

TALK = Record("a.csv", 3, messages=(
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who opened the door, and when?"}, {"role": "assistant", "content": "The Keeper, at 10:30."},
    {"role": "user", "content": "How far is it? 3.14 miles."}, {"role": "assistant", "content": "Yes!"},
))  # fmt: skip
USER_KINDS = ("case", "punctuation", "typos")


def copies(kinds, count=10, seed=0, record=TALK):
    return list(changed_copies(record, kinds, count, seed))


def by_role(record: Record, role: str) -> list[str]:
    return [message["content"] for message in record.messages if message["role"] == role]


@pytest.mark.parametrize("kind", USER_KINDS)
def test_only_what_the_user_says_changes(kind):
    made = [copy for seed in range(30) for copy in copies([kind], seed=seed)]
    assert made
    for copy in made:
        assert by_role(copy, "assistant") == by_role(TALK, "assistant")
        assert by_role(copy, "system") == ["Be kind."]
        assert by_role(copy, "user") != by_role(TALK, "user")
        assert (copy.file, copy.line, copy.label, copy.group) == (TALK.file, TALK.line, TALK.label, TALK.group)


def test_case_changes_nothing_but_case():
    for copy in copies(["case"]):
        assert [text.lower() for text in by_role(copy, "user")] == [text.lower() for text in by_role(TALK, "user")]


def test_punctuation_leaves_numbers_alone():
    """Guards against 3.14 becoming 314: the answer would no longer be right."""
    made = {text for seed in range(40) for copy in copies(["punctuation"], seed=seed) for text in by_role(copy, "user")}
    letters = str.maketrans("", "", string.punctuation)
    assert {text.translate(letters).strip() for text in made} == {text.translate(letters) for text in by_role(TALK, "user")}
    assert all("3.14" in text for text in made if "miles" in text)
    assert {"Who opened the door and when", "Who opened the door, and when", "Who opened the door, and when??"} <= made


def test_typing_errors_are_few():
    text = "the keeper lit the lamp and the sea was quiet while the old man walked over the hills at night " * 3
    for seed in range(20):
        (copy,) = copies(["typos"], 1, seed, Record("a", 1, messages=({"role": "user", "content": text}, {"role": "assistant", "content": "x"})))
        said = copy.messages[0]["content"]
        assert abs(len(said) - len(text)) <= len(text) / 20
        assert 0.8 * len(text.split()) <= sum(one == other for one, other in zip(said.split(), text.split())) < len(text.split())


def test_turns_end_at_an_earlier_answer():
    assert copies(["turns"]) == [Record(TALK.file, TALK.line, messages=TALK.messages[:3])]
    one_turn = Record("a", 1, messages=TALK.messages[1:3])
    assert copies(["turns"], record=one_turn) == []


def test_a_kind_that_finds_nothing_gives_way_to_another():
    """Guards against fewer copies than there could be: `turns` was drawn for conversations of one turn."""
    one_turn = Record("a", 1, messages=TALK.messages[1:3])
    assert sum(len(copies(["turns", "typos"], 1, seed, one_turn)) for seed in range(40)) > 35


def test_no_copy_stands_twice_and_none_is_the_original():
    made = copies([*USER_KINDS, "turns"], 10)
    said = [tuple(message["content"] for message in copy.messages) for copy in (*made, TALK)]
    assert len(set(said)) == len(said) > 5


def test_the_seed_and_the_row_decide_and_the_file_s_name_does_not():
    """A resumed run calls the file by its absolute path: other copies would be `other tokens`."""
    elsewhere = Record("/data/a.csv", 3, messages=TALK.messages)
    assert [copy.messages for copy in copies(["typos"], 5, 1, elsewhere)] == [copy.messages for copy in copies(["typos"], 5, 1)]
    assert copies(["typos"], 5, 1) != copies(["typos"], 5, 2)
    other = Record("a.csv", 4, messages=TALK.messages)
    assert [copy.messages for copy in copies(["typos"], 5, 1, other)] != [copy.messages for copy in copies(["typos"], 5, 1)]


@pytest.mark.parametrize("text", ["", "7", "\n", "???", "\u65e5\u672c\u8a9e", "\u0645\u0631\u062d\u0628\u0627", "a", "\U0001f600\u200d\U0001f525", "I"])
@pytest.mark.parametrize("kind", USER_KINDS)
def test_any_text_can_be_changed_or_is_left(kind, text):
    record = Record("a", 1, messages=({"role": "user", "content": text}, {"role": "assistant", "content": "x"}))
    for seed in range(20):
        for copy in copies([kind], 3, seed, record):
            assert copy.messages[0]["content"].strip()


def test_a_letter_is_mistyped_as_its_neighbour():
    draw = random.Random(0)
    from halfbyte.data.augment import _neighbour

    assert {_neighbour("g", draw) for _ in range(50)} == {"f", "h"}
    assert {_neighbour("Q", draw) for _ in range(50)} == {"W"}
    assert _neighbour("\u00e9", draw) == "\u00e9"


@pytest.mark.parametrize(("section", "words"), [
    (TextData(kind="text", path="a", augment=["typos", "shift"]), "data.augment: typos does not go with data of kind text"),
    (PairData(kind="prompt_response", path="a", prompt_column="p", response_column="r", augment=["shift"]), "data.augment: shift does not go with data"),
])  # fmt: skip
def test_a_kind_without_a_place_is_refused(section, words):
    """Guards against `augment: [typos]` on a book, accepted and never done."""
    with pytest.raises(RecipeError, match=words.replace(".", r"\.")) as caught:
        check_kinds(section)
    assert caught.value.exit_code == 2
    check_kinds(section.model_copy(update={"augment": ["shift" if section.kind == "text" else "typos"]}))
