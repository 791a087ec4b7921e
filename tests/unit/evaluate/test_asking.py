"""What held-out rows are asked is, id for id, what stands before their last answer in the row that is scored."""

import numpy as np
import pytest

from halfbyte.data.fit import Fitter
from halfbyte.data.records import Record
from halfbyte.data.render import choose_template, render_prompt
from halfbyte.data.tokens import Encoder
from halfbyte.evaluate.asking import evenly, last_ids, prompt_of, units_of
from halfbyte.evaluate.classify import answer_ids
from halfbyte.recipe.schema import MessagesData
from toys import WORDS, make_tokenizer

LOSSES = ["answers", "last", "all"]


def turns(*said: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said))


RECORDS = [
    Record("a", 1, messages=turns("the keeper lit the lamp", "and the sea was quiet")),
    Record("a", 2, messages=turns("who was old", "the man", "who was quiet", "the sea")),
    Record("a", 3, messages=turns("sea", "sea", "sea", "sea")),  # the answer stands in its prompt too
    Record("a", 4, messages=turns(" ".join(WORDS.split() * 3), "it was night")),  # is shortened
    Record("a", 5, messages=turns("one", "two", " ".join(WORDS.split() * 3), "three")),  # loses its first turn and is shortened
]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_prompt_is_the_row_before_its_last_answer(loss):
    tokenizer = make_tokenizer()
    encoder = Encoder(tokenizer)
    template, _ = choose_template("chat", None, tokenizer)
    section = MessagesData(kind="messages", path="a", loss=loss)
    fitted = Fitter(template, encoder, 48, loss).fit(RECORDS)
    seen = []
    for record, one in zip(RECORDS, fitted, strict=True):
        assert one.tokens is not None
        prompt = prompt_of(section, template, encoder, one.tokens, record)
        assert one.tokens.ids[: len(prompt)] == prompt
        (answer,) = answer_ids([record.reference], template, encoder)
        assert one.tokens.ids[len(prompt) :][: len(answer)] == answer
        assert len(one.tokens.ids) - len(prompt) <= len(answer) + 2, "no turn but the last answer stands behind it"
        assert record.reference in tokenizer.decode(one.tokens.ids[len(prompt) :])
        if not one.shortened:
            assert prompt == encoder.prompt(render_prompt(record.messages[:-1], template, tokenizer))
        seen.append(one.shortened)
    assert (seen[0], seen[2], seen[-2:]) == (False, False, [True, True])


def test_rows_that_ask_the_same_or_are_of_one_group_are_drawn_together():
    """Forty questions with five answers each counted as 200 witnesses: 26 % false alarms."""
    records = [
        Record("a", 1, messages=turns("Who lit the lamp?", "x")), Record("a", 2, messages=turns("who lit  the lamp?", "y")),
        Record("a", 3, messages=turns("b", "z"), group="g"), Record("a", 4, messages=turns("c", "z"), group="g"), Record("a", 5, messages=turns("d", "z")),
    ]  # fmt: skip
    units = units_of(records)
    assert units is not None
    assert [len(np.unique(units[places])) for places in ([0, 1], [2, 3], [0, 2, 4])] == [1, 1, 3]
    assert units_of(records[1:3]) is None


@pytest.mark.parametrize(("count", "most", "rows"), [(0, 5, []), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 0, []), (5, 1, [0])])
def test_rows_are_drawn_evenly(count, most, rows):
    assert evenly(count, most) == rows


def test_a_prompt_without_room_keeps_its_end():
    assert last_ids([1, 2, 3, 4], 3) == [2, 3, 4]
    assert last_ids([1, 2, 3], 3) == last_ids([1, 2, 3], float("inf")) == [1, 2, 3]
