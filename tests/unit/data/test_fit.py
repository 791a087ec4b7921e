"""Length: the answer is never cut, the prompt loses its middle, old turns go first, and what is left out is counted."""

import random

import pytest

from halfbyte.data.fit import BILL_LENGTHS, FEWEST_PROMPT_TOKENS, LEFT_OUT, Bill, Fitted, Fitter
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_record
from halfbyte.data.tokens import Encoder
from halfbyte.errors import DataError
from toy_tokenizers import tokenizer_of

CHAT = Template("chat")
WORDS = ("the", "keeper", "lit", "lamp", "sea", "quiet", "door", "hills", "night", "road", "cold", "walked", "opened")


def talk(*turns: str, system: str | None = None) -> Record:
    """Turns of user and assistant by turns."""
    first = ({"role": "system", "content": system},) if system is not None else ()
    said = tuple({"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns))
    return Record("a.jsonl", 7, messages=first + said)


def words(count: int, draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def fitter(max_length: int, loss: str = "answers", template: Template = CHAT, kind: str = "bytes") -> Fitter:
    return Fitter(template, Encoder(tokenizer_of(kind, "chatml")), max_length, loss)


def length_of(record: Record, loss: str = "answers") -> int:
    return len(whole(record, loss).ids)


def whole(record: Record, loss: str = "answers"):
    tokenizer = tokenizer_of("bytes", "chatml")
    return Encoder(tokenizer).encode([render_record(record, CHAT, tokenizer, loss)])[0]


def said(one: Fitted) -> str:
    return tokenizer_of("bytes", "chatml").decode(one.tokens.ids)


def trained(one: Fitted) -> str:
    return tokenizer_of("bytes", "chatml").decode([token for token, flag in zip(one.tokens.ids, one.tokens.trained) if flag])


# One turn


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_row_as_long_as_the_limit_is_whole_and_one_more_is_shortened(over):
    """CORRECTNESS 1.8: a row of L - 1, L and L + 1 tokens."""
    record = talk(words(60, random.Random(0)), "the old man opened the door")
    limit = length_of(record) - over
    (one,) = fitter(limit).fit([record])
    assert one.shortened == (over > 0)
    assert trained(one) == "the old man opened the door<|im_end|>"
    if over <= 0:
        assert one.tokens == whole(record)
    else:
        assert len(one.tokens.ids) <= limit
        assert LEFT_OUT in said(one)


@pytest.mark.parametrize("kind", ["bytes", "llama", "embedded"])
@pytest.mark.parametrize("template", ["chat", "format"])
def test_every_length_keeps_the_whole_answer_or_leaves_the_row_out(kind, template):
    """CORRECTNESS 1.8: at each max_length from 8 to the whole row; no id of a user is ever trained."""
    form = CHAT if template == "chat" else Template("format", "Q: {prompt}\nA: ")
    record = talk(words(25, random.Random(1)), "he lit the lamp </s> and \u00e9t\u00e9")
    encoder = Encoder(tokenizer_of(kind, "chatml"))
    row = encoder.encode([render_record(record, form, encoder.tokenizer)])[0]
    answer = [token for token, flag in zip(row.ids, row.trained) if flag]
    outcomes = []
    for limit in range(8, len(row.ids) + 1):
        (one,) = Fitter(form, encoder, limit, "answers").fit([record])
        outcomes.append("out" if one.tokens is None else "shortened" if one.shortened else "whole")
        if one.tokens is None:
            assert one.reason == f"the answer does not fit into max_length {limit}"
        else:
            assert len(one.tokens.ids) <= limit
            assert [token for token, flag in zip(one.tokens.ids, one.tokens.trained) if flag] == answer
    assert outcomes == sorted(outcomes, key=["out", "shortened", "whole"].index), "a longer limit keeps more"
    assert set(outcomes) == {"out", "shortened", "whole"}
    # Not one token of room is wasted before a row is given up: what is left out really has no room for a prompt.
    least = len(answer) + len(row.ids) - len(answer) - len(encoder.places(record.messages[0]["content"])) + FEWEST_PROMPT_TOKENS + len(encoder.places(LEFT_OUT))
    assert abs(outcomes.index("shortened") + 8 - least) <= 3


def test_the_prompt_loses_its_middle():
    """What is asked stands at its beginning or its end."""
    middle = words(100, random.Random(2))
    record = talk(f"Read this tale: {middle} Who opened the door?", "the keeper")
    (one,) = fitter(60).fit([record])
    prompt = said(one).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    head, tail = prompt.split(LEFT_OUT)
    assert "Read this tale:".startswith(head[:12])
    assert tail.endswith("opened the door?")
    assert middle.startswith(head.removeprefix("Read this tale: "))
    assert 50 <= len(one.tokens.ids) <= 60


def test_a_prompt_of_marks_that_are_text_is_shortened_too():
    """`</s>` is one token in a template and several where a user types it: guards against places that were counted as marks."""
    (one,) = fitter(64).fit([talk("</s>" * 200, "no")])
    assert len(one.tokens.ids) <= 64
    assert one.tokens.ids.count(tokenizer_of("bytes", "chatml").eos_token_id) == 0


def test_a_system_text_and_an_instruction_stay():
    record = talk(words(80, random.Random(3)), "yes", system="be kind to the keeper")
    (one,) = fitter(130, template=Template("chat", instruction="name the class")).fit([record])
    assert "be kind to the keeper" in said(one)
    assert "name the class" in said(one)
    assert LEFT_OUT in said(one)


# Conversations


def test_the_oldest_turns_go_first():
    record = talk("first?", "one", "second?", "two", "third?", "three", system="be kind")
    lengths = [length_of(talk(*[m["content"] for m in record.messages[start:]], system="be kind")) for start in (1, 3, 5)]
    for limit in range(lengths[2], lengths[0] + 1):
        (one,) = fitter(limit).fit([record])
        kept = sum(limit >= length for length in lengths)
        assert [turn for turn in ("first?", "second?", "third?") if turn in said(one)] == ["first?", "second?", "third?"][3 - kept :]
        assert trained(one) == "".join(f"{answer}<|im_end|>" for answer in ("one", "two", "three")[3 - kept :])
        assert "be kind" in said(one)
        assert one.shortened == (kept < 3)


def test_when_the_last_turn_is_too_long_alone_its_prompt_gives_way():
    record = talk("first?", "one", words(90, random.Random(4)), "two")
    (one,) = fitter(64).fit([record])
    assert trained(one) == "two<|im_end|>"
    assert "first?" not in said(one)
    assert LEFT_OUT in said(one)


def test_a_later_system_text_takes_the_place_of_the_first():
    """Guards against two system texts in a row, which the template refuses, once the turns between them are gone."""
    record = Record("a.jsonl", 1, messages=(
        {"role": "system", "content": "be kind"}, *talk(words(40, random.Random(5)), "one").messages,
        {"role": "system", "content": "be brief"}, *talk("second?", "two").messages,
    ))  # fmt: skip
    (one,) = fitter(70).fit([record])
    assert said(one).count("<|im_start|>system") == 1
    assert "be brief" in said(one)
    assert trained(one) == "two<|im_end|>"


def test_a_conversation_of_a_thousand_turns_is_fitted_in_a_few_tries(monkeypatch):
    """Guards against a row that is tokenised once for each turn that is dropped: minutes for one long conversation."""
    fit = fitter(64)
    tries = []
    encode = fit.encoder.encode
    monkeypatch.setattr(fit.encoder, "encode", lambda examples: (tries.append(1), encode(examples))[1])
    (one,) = fit.fit([talk(*(f"turn {number}" for number in range(2000)))])
    assert trained(one).endswith("turn 1999<|im_end|>")
    assert len(tries) <= 15


def test_rows_are_given_back_in_order_with_those_that_are_refused():
    """The template's refusal of one row says which it is, and the others are kept."""
    tokenizer = tokenizer_of("bytes", "mistral")
    records = [talk("a", "b"), talk("a", "b", system="be kind"), talk("c", "d")]
    fitted = Fitter(CHAT, Encoder(tokenizer), 64, "answers").fit(records)
    assert [one.tokens is not None for one in fitted] == [True, False, True]
    assert isinstance(fitted[1].error, DataError)
    assert fitted[1].error.message.startswith("a.jsonl:7: the chat template of this base knows no system text")
    assert "data.system_as=user" in fitted[1].error.hint


@pytest.mark.parametrize(("loss", "trains"), [
    ("answers", "one<|im_end|>two<|im_end|>"), ("last", "two<|im_end|>"),
])  # fmt: skip
def test_what_is_trained_is_what_the_recipe_says(loss, trains):
    (one,) = fitter(200, loss).fit([talk("first?", "one", "second?", "two")])
    assert trained(one) == trains


def test_all_is_everything_but_the_first_id():
    (one,) = fitter(200, "all").fit([talk("first?", "one")])
    assert one.tokens.supervised == len(one.tokens.ids) - 1


# The bill


def random_talks(count: int, seed: int, turns: int = 1) -> list[Record]:
    draw = random.Random(seed)
    talks = []
    for _ in range(count):
        said = [words(round(draw.lognormvariate(4, 1.2)) + 1, draw) for _ in range(2 * draw.randint(1, turns))]
        talks.append(talk(*said, system=words(draw.randint(1, 20), draw) if draw.random() < 0.3 else None))
    return talks


def bill_of(records: list[Record], loss: str = "answers", max_length: int = 512) -> Bill:
    bill = Bill(max_length)
    fitter(max_length, loss).fit(records, bill)
    return bill


@pytest.mark.parametrize(("turns", "loss"), [(1, "answers"), (5, "answers"), (5, "last"), (5, "all")])
def test_the_bill_agrees_with_a_slow_count(turns, loss):
    """Every row really fitted at every length. The bill may be wrong only for rows within a turn's marks of a limit, and never promises more."""
    records = random_talks(150, seed=turns, turns=turns)
    bill = bill_of(records, loss)
    counted = "last" if loss == "last" else "answers"
    rows = [whole(record, counted) for record in records]
    assert bill.answer_tokens == sum(row.supervised for row in rows)
    assert bill.longest == max(len(row.ids) for row in rows)
    differing = 0
    for limit in BILL_LENGTHS:
        fitted = fitter(limit, counted).fit(records)
        really = sum(one.tokens.supervised for one in fitted if one.tokens)
        assert bill.cut_at_end[limit] == sum(sum(row.trained[1:limit]) for row in rows)
        assert 0 <= really - bill.kept[limit] <= 0.03 * bill.answer_tokens
        differing += really != bill.kept[limit]
        assert bill.kept[limit] >= bill.cut_at_end[limit] * 0.5
    assert bill.kept[512] < bill.kept[1024] < bill.kept[4096] <= bill.answer_tokens
    if turns == 1:
        assert differing <= 1, "with one turn the reckoning is all but exact"


def test_the_bill_has_a_column_for_the_recipe_s_own_length():
    """Guards against `100 %` at 512 and above, under a recipe of 64 that leaves half of the rows out."""
    records = random_talks(40, seed=9)
    bill = bill_of(records, max_length=64)
    assert list(bill.kept) == [64, *BILL_LENGTHS]
    fitted = fitter(64).fit(records)
    assert abs(bill.kept[64] - sum(one.tokens.supervised for one in fitted if one.tokens)) <= 0.03 * bill.answer_tokens
    assert list(bill.as_json()["kept"]) == ["64", "512", "1024", "2048", "4096"]


def test_a_length_that_keeps_99_percent_whole():
    """BAD_INPUTS 45; 256 tokens are enough for a row of 256 tokens."""
    bill = Bill(512)
    for length, count in ((256, 98), (257, 1), (3000, 1)):
        row = whole(talk("a", "b"))
        ids = row.ids[:1] * length
        for _ in range(count):
            bill.add(type(row)(ids, [False] * (length - 1) + [True], "", 1), 10)
    assert bill.enough(0.98) == 256
    assert bill.enough() == 512
    assert bill.enough(1.0) == 3072
    bill.add(type(row)(ids * 5, [True] * 15000, "", 1), 10)
    assert bill.enough(1.0) == bill.longest == 15000


def test_megabytes_are_not_tokenised(monkeypatch):
    """An answer of megabytes is left out and its prompt loses its middle, at the cost of a short row."""
    read = []
    one = fitter(64)
    places = one.encoder.places
    monkeypatch.setattr(one.encoder, "places", lambda text: (read.append(len(text)), places(text))[1])
    monkeypatch.setattr(one, "most_characters", 2000)
    long = "lamp " * 10_000
    bill = Bill(64)
    prompt, answer, both, early, short = one.fit(
        [talk(long, "yes"), talk("who?", long), talk("who?", "me", long, "yes"), talk("who?", long, "why?", "so"), talk("who?", "me")], bill
    )
    assert (prompt.shortened, both.shortened, early.shortened, short.shortened) == (True, True, True, False)
    assert trained(early) == "so<|im_end|>", "the oldest turns go first, and with them the answer that is too long"
    assert trained(prompt) == "yes<|im_end|>"
    assert len(prompt.tokens.ids) <= 64
    assert (answer.tokens, answer.reason, answer.shortened) == (None, "the answer does not fit into max_length 64", False)
    assert max(read) < 2100
    assert fitter(64).most_characters >= 1_000_000, "what may fit is always tokenised, and in the bill"
