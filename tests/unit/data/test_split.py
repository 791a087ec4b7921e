"""No page and no prompt on two sides, no more held out than was asked for, and a split that stays when rows come."""

import random

import pytest

from halfbyte.data.records import Reading, Record
from halfbyte.data.split import Split, split_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import PairData, TextData


def split_book(lengths: list[int], **shares) -> Split:
    records = [Record({"text": chr(65 + i % 26) * length}, "a.txt", i + 1) for i, length in enumerate(lengths)]
    return split_records(Reading(TextData(kind="text", path="a.txt", rows="book", **shares), records))


def split_pairs(prompts: list[str], **shares) -> Split:
    records = [Record({"prompt": prompt, "response": f"answer {i}"}, "a.csv", i + 2) for i, prompt in enumerate(prompts)]
    section = PairData(kind="prompt_response", path="a.csv", prompt_column="p", response_column="r", **shares)
    return split_records(Reading(section, records))


def sides(split: Split) -> dict[str, list[Record]]:
    return {"train": split.train, "validation": split.validation, "test": split.test}


def side_of(split: Split) -> dict[str, str]:
    return {record.fields["response"]: name for name, records in sides(split).items() for record in records}


# Books


@pytest.mark.parametrize("lengths", [[100] * 40, [10, 900, 30] * 20, list(range(1, 200)), [1000] * 5], ids=["even", "uneven", "growing", "five"])
@pytest.mark.parametrize("shares", [{}, {"validation_share": 0, "test_share": 0.2}, {"validation_share": 0.3, "test_share": 0}, {"test_share": 0.5}])
def test_a_book_is_cut_into_three_pieces_that_follow_one_another(lengths, shares):
    split = split_book(lengths, **shares)
    assert [record.line for records in sides(split).values() for record in records] == list(range(1, len(lengths) + 1))
    longest, total = max(lengths), sum(lengths)
    for name, share in (("validation", shares.get("validation_share", 0.08)), ("test", shares.get("test_share", 0.15))):
        held_out = sum(len(record.fields["text"]) for record in sides(split)[name])
        assert abs(held_out - share * total) <= longest
        assert bool(share) or not held_out
    assert split.decision.value == f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test records"
    assert "the end of the text is held out" in split.decision.reason


@pytest.mark.parametrize("rows", range(50, 120, 7))
def test_at_most_a_quarter_of_a_book_is_held_out(rows):
    split = split_book([random.Random(rows + i).randint(50, 150) for i in range(rows)])
    held_out = sum(len(record.fields["text"]) for record in split.validation + split.test)
    assert held_out <= 0.25 * (held_out + sum(len(record.fields["text"]) for record in split.train))


def test_shares_are_of_characters_not_of_rows():
    split = split_book([10] * 90 + [90] * 10)
    assert (len(split.validation), len(split.test)) == (2, 3)


@pytest.mark.data
def test_the_real_book_is_held_out_at_its_end(real_data):
    from halfbyte.data.records import read_records
    from halfbyte.recipe.schema import AutoData

    reading = read_records(AutoData(path=str(real_data / "frankenstein" / "frankenstein_chunks.csv")))
    split = split_records(reading)
    assert split.train + split.validation + split.test == reading.records
    assert 0.2 <= (len(split.validation) + len(split.test)) / len(reading.records) <= 0.25


# Pairs


def test_no_prompt_stands_on_two_sides():
    prompts = [prompt for i in range(60) for prompt in (f"What is {i}?", f"what  is {i}?", f" WHAT IS {i}? \n")]
    split = split_pairs(prompts)
    sets = [{" ".join(record.fields["prompt"].lower().split()) for record in records} for records in sides(split).values()]
    assert all(sets)
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    assert sum(map(len, sides(split).values())) == len(prompts)
    assert "rows that share a prompt or a response stay on one side" in split.decision.reason


@pytest.mark.parametrize(("rows", "shares"), [(59, {}), (172, {}), (10, {}), (3, {}), (40, {"validation_share": 0.5, "test_share": 0.3})])
def test_no_more_is_held_out_than_was_asked_for(rows, shares):
    split = split_pairs([f"prompt {i}" for i in range(rows)], **shares)
    assert len(split.test) == round(rows * shares.get("test_share", 0.15))
    assert len(split.validation) == round(rows * shares.get("validation_share", 0.08))
    assert shares or len(split.test) + len(split.validation) <= rows / 4 + 1, "a quarter, and the row that rounding may add"


def split_answers(responses: list[str]) -> Split:
    records = [Record({"prompt": f"prompt {i}", "response": response}, "a.csv", i + 2) for i, response in enumerate(responses)]
    return split_records(Reading(PairData(kind="prompt_response", path="a.csv", prompt_column="p", response_column="r"), records))


def test_no_response_stands_on_two_sides():
    """Guards against a test part whose answers were trained on: several sentences for one meaning, as in ViGGO."""
    split = split_answers([f"Meaning {i // 3}" if i % 2 else f" meaning  {i // 3}" for i in range(300)])
    sets = [{" ".join(record.fields["response"].lower().split()) for record in records} for records in sides(split).values()]
    assert all(sets)
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]


def test_labels_are_on_both_sides_and_that_is_said():
    split = split_answers(["yes" if i % 3 else "no" for i in range(100)])
    assert len(split.test) == 15
    assert "15 of 15 test responses also stand in training" in split.decision.reason


def test_a_prompt_that_is_asked_often_goes_whole_to_the_training_rows():
    split = split_pairs(["the same"] * 50 + [f"prompt {i}" for i in range(50)])
    assert {side_of(split)[f"answer {i}"] for i in range(50)} == {"train"}
    assert len(split.test) == 15


def test_the_order_of_the_rows_does_not_matter():
    prompts = [f"prompt {i}" for i in range(100)]
    ordered, shuffled = split_pairs(prompts), split_pairs(random.Random(1).sample(prompts, 100))
    for name, records in sides(ordered).items():
        assert {r.fields["prompt"] for r in records} == {r.fields["prompt"] for r in sides(shuffled)[name]}


@pytest.mark.parametrize("added", [1, 10, 50])
def test_rows_that_are_added_move_few_others(added):
    """Each moves at most one row over each of the two borders; a split by place, or a fresh draw, would move a third of all."""
    prompts = [f"prompt {i}" for i in range(1000)]
    before, after = side_of(split_pairs(prompts)), side_of(split_pairs(prompts + [f"new {i}" for i in range(added)]))
    moved = [row for row, side in before.items() if after[row] != side]
    assert len(moved) <= 2 * added


def test_separate_texts_are_drawn_by_their_text():
    records = [Record({"text": f"text {i // 2}"}, "a.csv", i + 2) for i in range(100)]
    split = split_records(Reading(TextData(kind="text", path="a.csv", rows="separate"), records))
    places = {name: {record.fields["text"] for record in side} for name, side in sides(split).items()}
    assert not places["train"] & places["test"] | places["train"] & places["validation"] | places["validation"] & places["test"]
    assert len(split.test) in (14, 15)
    assert [record.line for record in split.train] != sorted(record.line for record in split.train), "the end of the file was held out"


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "b", "c"]])
def test_too_few_rows_are_refused(prompts):
    with pytest.raises(DataError, match=rf"{len(prompts)} rows leave \d to train on") as caught:
        split_pairs(prompts, validation_share=0.3, test_share=0.4)
    assert "data.test_share" in caught.value.hint
