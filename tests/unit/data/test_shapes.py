"""A row of each kind -> what it says, or why it says nothing."""

import re
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.data import shapes
from halfbyte.data.records import Record
from halfbyte.data.rows import Row
from halfbyte.data.shapes import LEFT_AWAY, Refused, label_meant, shape_for
from halfbyte.errors import DataError
from halfbyte.recipe.schema import (
    InstructionData,
    LabelData,
    MessagesData,
    PairData,
    SettledData,
    ShareGPTData,
    StructureData,
    TaggedData,
    TextData,
)  # fmt: skip

PAIR = PairData(kind="prompt_response", path="a", prompt_column="p", response_column="r")
LABEL = LabelData(kind="label", path="a", text_column="t", label_column="l")
MESSAGES = MessagesData(kind="messages", path="a")
SHAREGPT = ShareGPTData(kind="sharegpt", path="a")
TAGGED = TaggedData(kind="tagged", path="a", column="t")
OPENAI, HUMAN = ("role", "content"), ("from", "value")


def shaped(section: SettledData, cells: dict, told: Counter | None = None) -> Record | Refused:
    outcome = shape_for(section, Counter() if told is None else told)(Row(cells, "f", 7))
    assert (outcome.file, outcome.line) == ("f", 7)
    return outcome


def turns(section: SettledData, cells: dict) -> list[tuple[str, str]]:
    """The conversation that a row holds; it must hold one."""
    record = shaped(section, cells)
    assert isinstance(record, Record), record
    return [(message["role"], message["content"]) for message in record.messages]


def why(section: SettledData, cells: dict) -> tuple[str, bool]:
    refused = shaped(section, cells)
    assert isinstance(refused, Refused), refused
    return refused.seen, refused.bad


def listed(*said: tuple[str, str], keys: tuple[str, str] = OPENAI) -> list[dict]:
    return [dict(zip(keys, turn, strict=True)) for turn in said]


# Pairs and texts


@pytest.mark.parametrize("cell", ["NA", "N/A", "null", "None", "nan", "01", "1e5", "TRUE", " x ", "a\r\nb", "\u00e9\u2603"])
def test_a_text_stays_as_it_stands(cell):
    """CORRECTNESS 1.23: only what is empty counts as missing."""
    assert turns(PAIR, {"p": cell, "r": "b"}) == [("user", cell), ("assistant", "b")]
    assert turns(PAIR, {"p": "a", "r": cell}) == [("user", "a"), ("assistant", cell)]
    assert shaped(TextData(kind="text", path="a", column="t"), {"t": cell}) == Record("f", 7, text=cell)


def test_a_structure_is_a_pair():
    section = StructureData(kind="structure", path="a", prompt_column="ref", response_column="mr")
    assert turns(section, {"mr": "inform(name[A])", "ref": "A it is."}) == [("user", "A it is."), ("assistant", "inform(name[A])")]


@pytest.mark.parametrize(("cells", "seen"), [
    ({"p": "", "r": "b"}, "the prompt is empty"), ({"p": "a", "r": " \n"}, "the response is empty"), ({"p": "a"}, "the response is empty"),
    ({}, "the prompt is empty"),
])  # fmt: skip
def test_an_empty_cell_is_counted_and_not_refused(cells, seen):
    assert why(PAIR, cells) == (seen, False)
    assert why(TextData(kind="text", path="a", column="p"), {"p": " "}) == ("the text is empty", False)


@pytest.mark.parametrize(("cell", "what"), [(["a"], "a list"), ({"a": "b"}, "an object")])
def test_a_cell_that_is_no_text_is_malformed(cell, what):
    assert why(PAIR, {"p": cell, "r": "b"}) == (f"p is {what}, need text", True)
    assert why(PAIR, {"p": "a", "r": cell}) == (f"r is {what}, need text", True)
    assert why(LABEL, {"t": "a", "l": cell}) == (f"l is {what}, need text", True)
    assert why(TAGGED, {"t": cell}) == (f"t is {what}, need text", True)
    assert why(PAIR.model_copy(update={"group_column": "g"}), {"p": "a", "r": "b", "g": cell}) == (f"g is {what}, need text", True)


def test_a_group_is_kept():
    section = PAIR.model_copy(update={"group_column": "g"})
    assert shaped(section, {"p": "a", "r": "b", "g": "an author"}).group == "an author"
    assert shaped(section, {"p": "a", "r": "b"}).group == ""
    assert why(section, {"p": "", "r": "b", "g": "x"}) == ("the prompt is empty", False)


# Instructions


@pytest.mark.parametrize(("cells", "asked"), [
    ({"i": "Add.", "x": "1 and 2"}, "Add.\n\n1 and 2"), ({"i": "Add.", "x": ""}, "Add."), ({"i": "Add.", "x": " "}, "Add."), ({"i": "Add."}, "Add."),
    ({"i": "", "x": "1 and 2"}, "1 and 2"),
])  # fmt: skip
def test_an_instruction_has_an_input_or_none(cells, asked):
    section = InstructionData(kind="instruction", path="a", instruction_column="i", input_column="x", output_column="o")
    assert turns(section, {**cells, "o": "3"}) == [("user", asked), ("assistant", "3")]
    assert why(section, {"i": " ", "x": "", "o": "3"}) == ("the prompt is empty", False)
    assert why(section, {"i": "a", "x": ["b"], "o": "3"}) == ("x is a list, need text", True)
    assert turns(section.model_copy(update={"input_column": None}), {"i": "Add.", "x": "unused", "o": "3"})[0] == ("user", "Add.")


# Classes


@pytest.mark.parametrize("label", ["NA", "None", "null", "01", "1e5", "1.0", "TRUE", " good "])
def test_a_class_is_text(label):
    """CORRECTNESS 1.23 and BAD_INPUTS 15 and 16: `NA` vanished and `01` became 1."""
    record = shaped(LABEL, {"t": "a", "l": label})
    assert (record.label, record.answered) == (label.strip(), label.strip())


@pytest.mark.parametrize("cells", [{"t": "", "l": "x"}, {"t": "a", "l": " "}, {"t": "a"}])
def test_a_text_without_a_class_is_counted(cells):
    section = LABEL.model_copy(update={"labels": ["x"], "label_pattern": "(x)"})
    assert why(section, cells)[1] is False


def test_a_class_that_is_not_declared_is_refused_with_what_was_meant():
    """BAD_INPUTS 19."""
    section = LABEL.model_copy(update={"labels": ["negative", "neutral", "positive"]})
    assert why(section, {"t": "a", "l": "postive"}) == ("label 'postive' not in [negative, neutral, positive]. Did you mean 'positive'?", True)
    assert why(section, {"t": "a", "l": "xyz"}) == ("label 'xyz' not in [negative, neutral, positive]", True)
    many = LABEL.model_copy(update={"labels": [f"class {i}" for i in range(500)]})
    assert len(why(many, {"t": "a", "l": "x" * 5000})[0]) < 300


def test_a_pattern_takes_the_class_out_of_the_column():
    section = LABEL.model_copy(update={"label_pattern": r"^(\w+)\(|(other)", "merge_labels": {"confirm": "inform"}})
    told = Counter()
    assert shaped(section, {"t": "a", "l": "inform(name[A])"}, told).label == "inform"
    assert not told
    assert shaped(section, {"t": "a", "l": "confirm(name[A])"}, told).answered == "inform"
    assert told == {"confirm": 1}
    assert why(section, {"t": "a", "l": "no act"}) == ("data.label_pattern finds no class in 'no act'", True)
    assert why(section, {"t": "a", "l": "other"})[1], "the group of the class took no part: it was None"


def test_blanks_around_a_class_that_a_pattern_finds_are_none_of_it():
    """`inform (x)` gave the class 'inform ', another than that of `inform(x)`."""
    section = LABEL.model_copy(update={"label_pattern": r"(.*)\("})
    assert shaped(section, {"t": "a", "l": "inform (x)"}).label == "inform"
    assert why(section.model_copy(update={"label_pattern": r"x(.*)\("}), {"t": "a", "l": "x (y)"}) == ("data.label_pattern finds no class in 'x (y)'", True)


def test_a_pattern_that_never_ends_is_told(monkeypatch):
    """Repetition inside repetition took more than a day for forty letters."""
    monkeypatch.setattr(shapes, "LONGEST_SEARCH_S", 0.2)
    section = LABEL.model_copy(update={"label_pattern": r"^(.*?,){25}(P)"})
    with pytest.raises(DataError, match=r"data\.label_pattern is not done with '1,1") as caught:
        shaped(section, {"t": "a", "l": "1," * 60})
    assert "one repetition inside another" in caught.value.hint


def test_a_merged_class_must_be_declared_too():
    section = LABEL.model_copy(update={"labels": ["a", "b"], "merge_labels": {"x": "b", "y": "z"}})
    assert shaped(section, {"t": "t", "l": "x"}).label == "b"
    assert why(section, {"t": "t", "l": "y"})[0].startswith("label 'z' not in")


@pytest.mark.parametrize(("label", "meant"), [
    ("postive", "positive"), ("godo", "good"), ("neu", None), ("unhappy", None), ("class 3", None), ("positive", None), ("posotive", "positive"),
])  # fmt: skip
def test_only_a_typing_error_is_taken_for_another_class(label, meant):
    """`neu` was asked whether it meant `neg`."""
    assert label_meant(label, ["positive", "good", "neg", "happy", "class 1", "class 2"]) == meant


# Tags


@pytest.mark.parametrize(("text", "expected"), [
    ("<HUMAN>: a?\n<ASSISTANT>: b", [("user", "a?"), ("assistant", "b")]),
    ("  <HUMAN>:a?<ASSISTANT>:b\n<HUMAN>: c?\n\n<ASSISTANT>:\nd\ne\n", [("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d\ne")]),
])  # fmt: skip
def test_tags_part_turns(text, expected):
    assert turns(TAGGED, {"t": text}) == expected


def test_a_tag_of_letters_parts_only_where_a_line_begins():
    section = TAGGED.model_copy(update={"user_tag": "User:", "assistant_tag": "Assistant:"})
    said = "User: what is an Assistant: a man?\n  Assistant: Ask the User: he knows."
    assert turns(section, {"t": said}) == [("user", "what is an Assistant: a man?"), ("assistant", "Ask the User: he knows.")]


def test_the_longer_of_two_tags_is_seen_first():
    section = TAGGED.model_copy(update={"user_tag": "<A", "assistant_tag": "<A>>"})
    assert turns(section, {"t": "<A x <A>> y"}) == [("user", "x"), ("assistant", "y")]


@pytest.mark.parametrize(("text", "seen", "bad"), [
    ("Hello <HUMAN>: a? <ASSISTANT>: b", "text stands before the first tag: 'Hello", True), ("no tags", "text stands before the first tag", True),
    ("<ASSISTANT>: b", "the first turn is the assistant's", False), ("<HUMAN>: a?", "ends with user: nothing to learn from", False),
    ("<HUMAN>: a? <ASSISTANT>: ", "assistant turn 1 is empty", False), ("", "the text is empty", False),
    ("<HUMAN>: a <HUMAN>: b <ASSISTANT>: c", "two user turns follow each other", True),
])  # fmt: skip
def test_tagged_rows_that_say_nothing(text, seen, bad):
    assert seen in why(TAGGED, {"t": text})[0]
    assert why(TAGGED, {"t": text})[1] is bad


TURN = st.text("ab<:> \n\u00e9", min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(TURN, TURN), min_size=1))
def test_tagged_turns_come_back(pairs):
    text = "\n".join(f"<HUMAN>: {asked}\n<ASSISTANT>: {answered}" for asked, answered in pairs)
    assert turns(TAGGED, {"t": text}) == [turn for asked, answered in pairs for turn in (("user", asked), ("assistant", answered))]


# Lists of messages


def test_conversations_come_as_they_stand():
    said = [("system", "Be brief."), ("user", " a? "), ("assistant", "b\n"), ("user", "c"), ("assistant", "d")]
    assert turns(MESSAGES, {"messages": listed(*said)}) == said
    human = [({"user": "human", "assistant": "gpt"}.get(role, role), content) for role, content in said]
    assert turns(SHAREGPT, {"conversations": listed(*human, keys=HUMAN)}) == said
    assert turns(SHAREGPT, {"conversations": listed(*human)}) == said, "ShareGPT's roles under OpenAI's keys"
    assert turns(MESSAGES, {"messages": listed(("User", "a"), ("ASSISTANT", "b"))}) == [("user", "a"), ("assistant", "b")]


def test_roles_that_sharegpt_does_not_know():
    """The mend named the kind that was already set."""
    assert why(SHAREGPT, {"conversations": listed(("human", "a"), ("bot", "b"), keys=HUMAN)}) == ("message 2: role 'bot' unknown", True)


def test_what_follows_the_last_answer_is_left_away_and_counted():
    told = Counter()
    record = shaped(MESSAGES, {"messages": listed(("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"))}, told)
    assert [message["content"] for message in record.messages] == ["a", "b"]
    assert told == {LEFT_AWAY: 1}


@pytest.mark.parametrize(("cell", "seen", "bad"), [
    (None, "messages is empty", False), ([], "holds no turn: nothing to learn from", False),
    ('[{"role": "user"}]', "messages is text, not a list: parse it once more", True), ("hello", "messages is text, not a list", True),
    ({"role": "user"}, "messages is an object, not a list", True),
    (["a"], "message 1: is text, need an object", True), ([None], "message 1: is nothing, need an object", True),
    ([{"content": "a"}], "message 1: 'role' is nothing, need text", True), ([{"role": "user"}], "message 1: 'content' is nothing, need text", True),
    ([{"role": "user", "content": [{"text": "a"}]}], "message 1: 'content' is a list, need text", True),
    (listed(("user", "a"), ("bot", "b")), "message 2: role 'bot' unknown", True),
    (listed(("user", "a"), ("gpt", "b")), "message 2: role 'gpt' unknown; ShareGPT data? set data.kind=sharegpt", True),
    (listed(("human", "a"), keys=HUMAN), "message 1: 'role' is nothing, need text; ShareGPT data? set data.kind=sharegpt", True),
    (listed(("user", "a")), "ends with user: nothing to learn from", False), (listed(("system", "a")), "ends with system: nothing to learn from", False),
    (listed(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " ")), "assistant turn 2 is empty", False),
    (listed(("user", ""), ("assistant", "b")), "user turn 1 is empty", False),
    (listed(("assistant", "a"), ("user", "b"), ("assistant", "c")), "the first turn is the assistant's, so it answers nothing", False),
    (listed(("user", "a"), ("assistant", "b"), ("assistant", "c")), "two assistant turns follow each other", True),
    (listed(("user", "a"), ("system", "b"), ("assistant", "c")), "a system turn stands behind another turn", True),
])  # fmt: skip
def test_lists_that_are_no_conversation(cell, seen, bad):
    """BAD_INPUTS 31, 33, 34 and 36."""
    found, malformed = why(MESSAGES, {} if cell is None else {"messages": cell})
    assert found == seen or (found.startswith(seen) and seen.startswith("a system"))
    assert malformed is bad


def said(content: object, **more) -> dict:
    return {"messages": [{"role": "user", "content": content, **more}, {"role": "assistant", "content": "b"}]}


def test_content_in_parts_is_joined():
    """OpenAI's list of parts was refused as a list."""
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    assert turns(MESSAGES, said(parts))[0] == ("user", "What is this?")
    assert why(MESSAGES, said([*parts, {"type": "image_url", "image_url": {"url": "x"}}])) == ("message 1: a part is 'image_url': images are not read", True)
    assert why(MESSAGES, said([{"type": "input_audio"}])) == ("message 1: a part is 'input_audio': only text is read", True)
    assert why(MESSAGES, said([{"type": "text"}])) == ("message 1: 'content' is a list, need text", True)
    assert why(MESSAGES, said([])) == ("message 1: 'content' is a list, need text", True)


@pytest.mark.parametrize("turn", [
    {"role": "tool", "content": "21 degrees"}, {"role": "function", "content": "21"}, {"role": "Function_Call", "content": "21"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "assistant", "content": "", "function_call": {"name": "f"}},
    {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "1"}]}, {"role": "assistant", "content": "So.", "function_call": {"name": "f"}},
])  # fmt: skip
def test_tool_calls_are_refused_by_name(turn):
    """They were an unknown role, or nothing where text was needed, with no word of what to do; a call behind some words was lost."""
    seen, bad = why(MESSAGES, {"messages": [*listed(("user", "a?")), turn, *listed(("assistant", "b"))]})
    assert seen.startswith(f"message 2: role {turn['role']!r}: tool calls are not supported: drop those turns, or set data.on_bad_row=skip")
    assert bad


def test_an_answer_without_tool_calls_may_have_an_empty_key_for_them():
    for nothing in (None, [], {}):
        assert turns(MESSAGES, said("a", tool_calls=nothing)) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(("weights", "loss", "refused"), [
    ("1", "answers", None), ("0", "answers", (2, False)), ("0", "last", (2, False)), ("01", "answers", (2, True)), ("01", "all", (2, True)),
    ("01", "last", None), ("00", "last", (4, False)), ("10", "answers", (4, False)), ("010", "last", (6, False)), ("001", "last", None),
])  # fmt: skip
def test_an_answer_that_is_not_to_be_trained_is_refused(weights, loss, refused):
    """OpenAI's `"weight": 0` was read over: what was marked as bad was trained. It does no harm on what the user says."""
    cell = [turn for weight in weights for turn in ({**listed(("user", "a"))[0], "weight": "0"}, {**listed(("assistant", "b"))[0], "weight": weight})]
    section = MESSAGES.model_copy(update={"loss": loss})
    if refused is None:
        assert len(turns(section, {"messages": cell})) == len(cell)
    else:
        number, by_loss = refused
        mend = f"drop the key{', set data.loss=last' * by_loss}, or set data.on_bad_row=skip"
        assert why(section, {"messages": cell}) == (f"message {number}: weight 0 (a turn that is not trained) is not supported: {mend}", True)


ROLES = st.sampled_from(["system", "user", "assistant", "human", "gpt", "bot", ""])
LEAF = st.one_of(st.text("ab \n"), st.none(), st.lists(st.text("a"), max_size=2))
ANY_TURN = st.one_of(LEAF, st.dictionaries(st.sampled_from([*OPENAI, *HUMAN]), st.one_of(ROLES, LEAF)))


@given(st.one_of(LEAF, st.lists(ANY_TURN, max_size=5)))
def test_any_cell_is_a_conversation_or_has_its_reason(cell):
    for section in (MESSAGES, SHAREGPT, TAGGED, PAIR, LABEL):
        for outcome in [shaped(section, {name: cell for name in ("messages", "conversations", "t", "p", "r", "l")})]:
            if isinstance(outcome, Refused):
                assert outcome.reason
                assert re.search(r"\w", outcome.seen)
            else:
                spoken = [message["role"] for message in outcome.messages if message["role"] != "system"]
                assert spoken == ["user", "assistant"] * (len(spoken) // 2)
                assert all(message["content"].strip() for message in outcome.messages if message["role"] != "system")


@pytest.mark.parametrize(("section", "column"), [(MESSAGES, "messages"), (SHAREGPT, "conversations")])
def test_only_what_can_be_learned_from_is_kept(section, column):
    """All sequences of up to four turns: a record alternates and ends with an answer, and nothing that does is refused."""
    for length in range(5):
        for roles in product(["system", "user", "assistant"], repeat=length):
            outcome = shaped(section, {column: listed(*((role, "x") for role in roles))})
            last = max((place for place, role in enumerate(roles) if role == "assistant"), default=-1)
            spoken = [role for role in roles[: last + 1] if role != "system"]
            good = bool(spoken) and spoken == ["user", "assistant"] * (len(spoken) // 2) and "system" not in roles[1 : last + 1]
            assert isinstance(outcome, Record) is good, roles
