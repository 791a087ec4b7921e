"""No page, prompt, answer, group or near copy on two sides; shares and classes kept; and a split that stays when rows come."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.near import jaccard, normalise
from halfbyte.data.read import read_records
from halfbyte.data.records import Record
from halfbyte.data.shapes import Refused
from halfbyte.data.split import OUT, SIDES, TEST, TRAIN, VALIDATION, Split, split_records
from halfbyte.data.survey import Survey, survey_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import AutoData, TextData
from planted import BOOK, CHATS, LABELS, PAIRS, SEPARATE, near_copy, pair, pairs, shared, sides, split_of, text

# Nothing on two sides


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(["prompt", "response", "group", "near", "plain", "whole"]), min_size=30, max_size=80), st.integers(0, 3))
def test_nothing_planted_leaks(seed, kinds, split_seed):
    """CORRECTNESS 1.19: prompts but for case, blanks and Unicode's forms, responses, groups, near copies and exact ones, planted at random places."""
    rng = random.Random(seed)
    records = [pair(text((seed, i)), f"answer {text((seed, i, 'a'))}", group=f"author {i}") for i in range(60)]
    bound = []  # pairs of places that must not be parted
    for number, kind in enumerate(kinds):
        twin = rng.randrange(60)
        first = records[twin]
        new = pair(text((seed, number, "new")), f"answer to {text((seed, number))}", group=f"newcomer {number}")
        if kind == "prompt":
            disguised = first.asked.upper().replace(" ", "  ") if number % 2 else first.asked.replace("fi", "\ufb01") + " "
            new = pair(disguised, new.answered, group=new.group)
        elif kind == "response":
            new = pair(new.asked, f" {first.answered.upper()}", group=new.group)
        elif kind == "group":
            new = replace(new, group=first.group)
        elif kind == "near":
            new = pair(near_copy((seed, twin), number), new.answered, group=new.group)
            assert jaccard(new.asked, first.asked) > 0.8
        elif kind == "whole":
            new = pair(first.asked, first.answered, group=new.group)
        if kind != "plain":
            bound.append((twin, len(records)))
        records.append(new)
    split, _ = split_of(PAIRS, records, seed=split_seed, group_column="author", test_share=0.3, validation_share=0.2)
    for one, other in bound:
        if OUT not in (split.side[one], split.side[other]):
            assert split.side[one] == split.side[other]
    assert split.count(TEST) > 0
    assert split.left_out["exact duplicate"] == kinds.count("whole")


def test_no_prompt_stands_on_two_sides():
    records = [pair(prompt, text((prompt, i))) for i in range(60) for prompt in (f"What is {i}?", f"what  is {i}?", f" WHAT IS {i}? \n")]
    split, _ = split_of(PAIRS, records, near_duplicates="ignore", test_share=0.11)  # 20 rows, no multiple of three
    assert not shared(split, [normalise(record.asked) for record in records])
    assert all(sides(split, list(range(len(records)))))
    assert split.decision.reason == "drawn by hash; rows that share a prompt or a response stay on one side"


def test_no_response_stands_on_two_sides():
    """Guards against a test part whose answers were trained on: several sentences for one meaning, as in ViGGO."""
    records = [pair(text(i), f"Meaning {i // 3}" if i % 2 else f" meaning  {i // 3}") for i in range(300)]
    split, _ = split_of(PAIRS, records)
    assert not shared(split, [normalise(record.answered) for record in records])
    assert "share a prompt or a response, or are nearly the same, stay on one side" in split.decision.reason


def test_answers_that_many_rows_share_are_on_both_sides_and_that_is_said():
    records = [pair(text(i), "yes" if i % 3 else "no") for i in range(100)]
    split, _ = split_of(PAIRS, records)
    assert split.count(TEST) == 15
    assert split.decision.reason.endswith("15 of 15 test responses also stand in training")
    assert "response, or" not in split.decision.reason


def test_near_copies_stay_together_though_a_copy_between_them_is_left_out():
    """Near-duplicates were connected through an exact repetition that was then left out, and fell on two sides."""
    for number in range(30):
        chain = [near_copy(number, 1), near_copy(number, 1), near_copy(number, 2), near_copy(number, 3)]
        records = [pair(text((number, i)), text((number, i, "a"))) for i in range(20)] + [pair(chain[i], f"answer {i // 2}") for i in range(4)]
        split, _ = split_of(PAIRS, records, test_share=0.4, validation_share=0.2)
        assert len(set(split.side[20:].tolist()) - {OUT}) == 1


def test_near_copies_may_stand_anywhere_when_the_recipe_says_so():
    records = [pair(near_copy(i // 10, i), text((i, "a"))) for i in range(100)]
    together, _ = split_of(PAIRS, records)
    apart, _ = split_of(PAIRS, records, near_duplicates="ignore")
    assert not shared(together, [i // 10 for i in range(100)])
    assert shared(apart, [i // 10 for i in range(100)])
    assert "nearly" not in apart.decision.reason


def test_near_copies_are_dropped_when_the_recipe_says_so():
    records = [pair(near_copy(i // 4, i), f"answer {i // 4}", i) for i in range(80)]
    split, _ = split_of(PAIRS, records, near_duplicates="drop")
    assert split.left_out == {"near-duplicate": 60}
    assert [i for i in range(80) if split.side[i] != OUT] == list(range(0, 80, 4)), "the first of each is kept"
    same = [pair(near_copy(i // 4, i), text((i, "a"))) for i in range(80)]
    assert not split_of(PAIRS, same, near_duplicates="drop")[0].left_out, "other answers are other rows"


def growing(turns: int, talks: int) -> list[Record]:
    """Each conversation in as many rows as it has turns, each row a turn longer."""

    def said(talk: int, turn: int) -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": text((talk, turn))}, {"role": "assistant", "content": text((talk, turn, "a"))})

    return [
        Record("a.jsonl", talk * turns + end + 1, messages=tuple(m for turn in range(end + 1) for m in said(talk, turn)), group=str(talk))
        for talk in range(talks) for end in range(turns)
    ]  # fmt: skip


@pytest.mark.parametrize(("turns", "talks"), [(4, 30), (25, 8), (30, 20)])
def test_conversations_that_grow_row_by_row_stay_whole(turns, talks):
    """A row of three turns trained what the row of four was tested on; with 21 rows and more of each their beginning passed for a greeting."""
    records = growing(turns, talks)
    split, _ = split_of(CHATS, [replace(record, group="") for record in records])
    assert not shared(split, [record.group for record in records])
    assert split.count(TEST) > 0
    assert "share a prompt, a first exchange or a response," in split.decision.reason


def test_a_greeting_binds_nothing():
    """Guards against one giant conversation where all begin with the same two sentences."""
    hello = ({"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "How can I help you?"})
    records = [replace(record, messages=hello + record.messages) for record in growing(1, 60)]
    split, _ = split_of(CHATS, records)
    assert [split.count(side) for side in (TRAIN, VALIDATION, TEST)] == [46, 5, 9]
    assert not split.notes


@pytest.mark.parametrize(("section", "more", "note"), [
    (BOOK, {"group_column": "author", "near_duplicates": "drop"}, "data.group_column, data.near_duplicates do nothing: a book is kept as it stands"),
    (SEPARATE, {"gap": 7, "separator": " "}, "data.gap, data.separator do nothing: the rows are texts of their own"),
    (BOOK, {"gap": 7}, None), (SEPARATE, {"near_duplicates": "drop"}, None), (PAIRS, {"near_duplicates": "drop"}, None),
])  # fmt: skip
def test_a_key_that_does_nothing_is_told(section, more, note):
    records = [Record("a", line, text=text(line)) for line in range(40)] if section is not PAIRS else pairs(*[(text(i), text((i, "a"))) for i in range(40)])
    split, _ = split_of(section, records, **more)
    assert [said[: len(note)] for said in split.notes] == [note] if note else split.notes == []


def test_groups_stay_whole():
    records = [pair(text(i), text((i, "a")), group=f"author {i % 25}") for i in range(200)]
    split, _ = split_of(PAIRS, records, group_column="author")
    assert not shared(split, [record.group for record in records])
    assert (split.count(TEST), split.count(VALIDATION)) == (24, 16)
    assert "or a group" in split.decision.reason


def test_a_part_that_would_stay_empty_takes_a_group_that_is_a_little_too_large():
    """Ten authors of ten rows each, and 8 % to validate with: nothing was validated."""
    records = [pair(text(i), text((i, "a")), group=f"author {i % 10}") for i in range(100)]
    split, _ = split_of(PAIRS, records, group_column="author")
    assert (split.count(TEST), split.count(VALIDATION)) == (10, 10)


def test_a_prompt_that_is_asked_often_goes_whole_to_the_training_rows():
    records = [pair("the same" if i < 50 else text(i), text((i, "a"))) for i in range(100)]
    split, _ = split_of(PAIRS, records)
    assert set(split.side[:50].tolist()) == {TRAIN}
    assert split.count(TEST) == 15


@pytest.mark.parametrize(("records", "more", "cause"), [
    ([pair(text(i), text((i, "a")), group="one author") for i in range(50)], {"group_column": "author"},
     "(data.group_column): name a column with smaller groups, or take it out, which parts them"),
    ([pair(near_copy(0, i), text((i, "a"))) for i in range(40)], {}, "(data.near_duplicates): data.near_duplicates=ignore parts them"),
    ([pair("Tell me a story.", text((i, "a"))) for i in range(50)], {}, "(they ask the same): give the part as a file of its own"),
    ([pair("Tell me a story.", text((i, "a")), group=str(i)) for i in range(50)], {"group_column": "author"},
     "(they ask the same): give the part as a file of its own"),
    ([pair("Tell me a story.", text((i, "a")), group=str(i)) for i in range(50)], {"near_duplicates": "ignore"},
     "(they ask the same): give the part as a file of its own"),
])  # fmt: skip
def test_one_giant_group_is_told(records, more, cause):
    """Nothing can be held out of it without a leak; neither does it leak in silence."""
    split, _ = split_of(PAIRS, records, **more)
    count = len(records)
    assert (split.count(VALIDATION), split.count(TEST)) == (0, 0)
    assert split.notes == [
        f"0 of {round(count * share)} {side} rows could be held out: {count} of {count} rows belong together {cause}"
        for side, share in (("test", 0.15), ("validation", 0.08))
    ]


# Shares


@pytest.mark.parametrize(("rows", "more"), [(59, {}), (172, {}), (10, {}), (3, {}), (2, {}), (40, {"validation_share": 0.5, "test_share": 0.3})])
def test_as_much_is_held_out_as_was_asked_for(rows, more):
    split, _ = split_of(PAIRS, [pair(text(i), text((i, "a"))) for i in range(rows)], **more)
    assert split.count(TEST) == round(rows * more.get("test_share", 0.15))
    assert split.count(VALIDATION) == round(rows * more.get("validation_share", 0.08))


@pytest.mark.parametrize("rows", range(2, 11))
def test_tiny_files(rows):
    split, _ = split_of(PAIRS, [pair(text(i), text((i, "a"))) for i in range(rows)])
    assert split.count(TRAIN) >= 2
    told = [] if rows > 6 else [f"nothing could be held out of {rows} rows"]
    assert [note.split(":")[0].removesuffix(" for validation") for note in split.notes] == told


@pytest.mark.parametrize("section", [PAIRS, BOOK, SEPARATE])
def test_no_share_holds_nothing_out(section):
    records = [pair(text(i), text((i, "a"))) if section is PAIRS else Record("a", i, text=text(i)) for i in range(20)]
    split, _ = split_of(section, records, validation_share=0.0, test_share=0.0)
    assert (split.count(TRAIN), split.decision.reason) == (20, "nothing is held out")
    split, _ = split_of(section, records, validation_share=0.0)
    assert (split.count(VALIDATION), split.count(TEST)) == (0, 3)


@pytest.mark.parametrize(("rows", "mend"), [(0, "give more rows: training needs at least 2"), (1, "give more rows: training needs at least 2"),
                                           (4, "give more rows, or lower data.validation_share and data.test_share")])  # fmt: skip
def test_too_few_rows_are_refused(rows, mend):
    """Lower shares help only where rows are held out: to one row alone they were the mend even at 0."""
    with pytest.raises(DataError, match=rf"a.csv: {rows} rows? leaves? \d to train on") as caught:
        split_of(PAIRS, [pair(text(i), text((i, "a"))) for i in range(rows)], validation_share=0.4, test_share=0.5)
    assert caught.value.hint == mend


def test_rows_that_are_all_equal():
    with pytest.raises(DataError, match="9 rows leave 1 to train on, 8 exact duplicate"):
        split_of(PAIRS, pairs(*[("a", "b")] * 9))
    split, _ = split_of(PAIRS, pairs(*[("a", "b")] * 9), keep_duplicates=True)
    assert split.count(TRAIN) == 9


def test_exact_copies_are_left_out_and_counted():
    said = [("a", "b"), ("a", "b"), ("A", "b"), ("a", "c"), ("a", "b")]
    split, _ = split_of(PAIRS, pairs(*said), near_duplicates="ignore")
    assert [place for place in range(5) if split.side[place] == OUT] == [1, 4]
    assert split.left_out == {"exact duplicate": 2}
    assert not split_of(PAIRS, pairs(*said), keep_duplicates=True)[0].left_out


def test_separate_texts_are_drawn_by_their_text():
    records = [Record("a.csv", i + 2, text=f"{text(i // 2)} {'.' * (i % 2)}") for i in range(100)]
    split, _ = split_of(SEPARATE, records)
    assert not shared(split, [i // 2 for i in range(100)])
    assert split.count(TEST) in (14, 15)
    assert np.flatnonzero(split.side == TEST).tolist() != list(range(100 - split.count(TEST), 100)), "the end of the file was held out"
    assert split.decision.reason == "drawn by hash; rows that share a text, or are nearly the same, stay on one side"


# Classes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=6), st.integers(0, 5), st.sampled_from([(0.08, 0.15), (0.2, 0.3), (0.0, 0.1)]))
def test_every_class_keeps_its_share(counts, seed, shares):
    records = [pair(text((label, i)), str(label), label=str(label)) for label, count in enumerate(counts) for i in range(count)]
    split, _ = split_of(LABELS, records, seed=seed, validation_share=shares[0], test_share=shares[1])
    for label, count in enumerate(counts):
        found = Counter(side for side, record in zip(split.side.tolist(), records, strict=True) if record.label == str(label))
        for side, share in ((VALIDATION, shares[0]), (TEST, shares[1])):
            assert abs(found[side] - share * count) <= 1
            assert bool(found[side]) is (share > 0)
        assert found[TRAIN]
    assert "every class has its share in each part" in split.decision.reason


def test_groups_of_several_classes_count_for_each():
    """A group was counted for the class of its first row alone."""
    records = [pair(text(i), "ab"[i % 2], label="ab"[i % 2], group=f"author {i // 4}") for i in range(400)]
    split, _ = split_of(LABELS, records, group_column="author")
    assert not shared(split, [record.group for record in records])
    for label in "ab":
        mine = np.array([record.label == label for record in records])
        assert abs((split.side[mine] == TEST).sum() - 30) <= 2
        assert abs((split.side[mine] == VALIDATION).sum() - 16) <= 2


# What stays


def drawn(records: list[Record], **more) -> dict[str, int]:
    split, _ = split_of(PAIRS, records, **more)
    return dict(zip((record.asked for record in records), split.side.tolist(), strict=True))


def test_a_class_that_only_one_group_has_is_told_where_it_is_not_trained():
    """Authors of one class each: two classes were tested and never trained, and the plan said that every class had its share."""
    records = [pair(text(i), f"class{i // 10}", group=str(i // 10), label=f"class{i // 10}") for i in range(100)]
    split, _ = split_of(LABELS, records, group_column="author")
    sides = [{record.label for record, side in zip(records, split.side.tolist(), strict=True) if side == one} for one in (TRAIN, VALIDATION, TEST)]
    lost = sorted(set().union(*sides) - sides[0])
    assert lost
    assert any(f"{len(lost)} of the classes" in note and repr(lost[0]) in note for note in split.notes)
    assert "every class has its share" not in split.decision.reason


def test_the_order_of_the_rows_does_not_matter():
    """CORRECTNESS 1.19: a split by content, not by place."""
    records = [pair(text(i), text((i // 3, "a")), group=f"author {i // 5}") for i in range(150)]
    shuffled = random.Random(1).sample(records, len(records))
    assert drawn(records, group_column="author") == drawn(shuffled, group_column="author")
    labelled = [replace(record, label="ab"[i % 2]) for i, record in enumerate(records)]
    first, second = (split_of(LABELS, rows)[0].side.tolist() for rows in (labelled, labelled[::-1]))
    assert first == second[::-1]


def test_groups_that_are_looked_at_in_parts_are_all_looked_at(monkeypatch):
    records = [pair(text(i), text((i, "a"))) for i in range(100)]
    at_once = drawn(records)
    monkeypatch.setattr("halfbyte.data.split.GROUPS_AT_ONCE", 3)
    assert drawn(records) == at_once


@pytest.mark.parametrize("added", [1, 10, 50])
def test_rows_that_are_added_move_few_others(added):
    """Each moves at most one row over each of the two borders; a split by place, or a fresh draw, would move a third of all."""
    records = [pair(text(i), text((i, "a"))) for i in range(1000)]
    before, after = drawn(records), drawn([pair(text(("new", i)), text((i, "b"))) for i in range(added)] + records)
    assert sum(after[prompt] != side for prompt, side in before.items()) <= 2 * added


def test_an_answer_that_is_edited_moves_no_row():
    records = [pair(text(i), text((i, "a"))) for i in range(100)]
    assert drawn(records) == drawn([pair(record.asked, f"{record.answered} edited") for record in records])


def test_another_seed_is_another_split():
    records = [pair(text(i), text((i, "a"))) for i in range(200)]
    tests = [{prompt for prompt, side in drawn(records, seed=seed).items() if side == TEST} for seed in range(6)]
    assert tests[0] == {prompt for prompt, side in drawn(records, seed=0).items() if side == TEST}
    assert all(len(one & other) < 15 for i, one in enumerate(tests) for other in tests[:i]), "30 of 200 each: 4.5 are shared by chance"


# Books


def book(lengths: list[int], **more) -> Split:
    return split_of(BOOK, [Record("a.txt", i + 1, text=chr(65 + i % 26) * length) for i, length in enumerate(lengths)], **more)[0]


@pytest.mark.parametrize("lengths", [[100] * 40, [10, 900, 30] * 20, list(range(1, 200)), [1000] * 5], ids=["even", "uneven", "growing", "five"])
@pytest.mark.parametrize("more", [{}, {"validation_share": 0.0, "test_share": 0.2}, {"validation_share": 0.3, "test_share": 0.0}, {"test_share": 0.5}])
@pytest.mark.parametrize("gap", [0, 50, 1000])
def test_a_book_is_cut_into_pieces_that_follow_one_another(lengths, more, gap):
    split = book(lengths, gap=gap, **more)
    order = [side for side in split.side.tolist() if side != OUT]
    assert order == sorted(order)
    for side in (VALIDATION, TEST):
        share = more.get(f"{SIDES[side]}_share", 0.08 if side == VALIDATION else 0.15)
        held_out = sum(length for length, one in zip(lengths, split.side, strict=True) if one == side)
        left = sum(length for length, one in zip(lengths, split.side, strict=True) if one == OUT)
        assert -left - max(lengths) <= held_out - share * sum(lengths) <= max(lengths)
        assert bool(share) or not held_out
    assert "the end of the text is held out" in split.decision.reason


def test_between_the_parts_of_a_book_is_a_gap():
    """Every piece of the gap stands right behind a border, as many characters as were asked for, and it is counted and told."""
    split = book([100] * 1000, gap=1000)
    sides_in_order = split.side.tolist()
    assert split.left_out == {"gap between the parts": 20}
    runs = [(side, end - start) for side, start, end in _runs(sides_in_order)]
    assert [side for side, _ in runs] == [TRAIN, OUT, VALIDATION, OUT, TEST]
    assert [length for _, length in runs] == [770, 10, 70, 10, 140]
    assert "2,000 characters between the parts left out" in split.decision.reason
    assert not book([100] * 1000, gap=0).left_out
    assert book([1000] * 100, gap=100).left_out == {"gap between the parts": 2}, "a row is no shorter than the gap: one is enough"


def _runs(values: list[int]):
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            yield values[start], start, end
            start = end


def test_a_gap_never_takes_a_part_whole():
    """2 % of the book at most, and less than half of the part behind it."""
    assert book([100] * 1000, gap=10**9).left_out == {"gap between the parts": 40}
    small = book([1000] * 10, gap=1000, validation_share=0.1, test_share=0.1)
    assert (small.left_out, small.count(VALIDATION), small.count(TEST)) == ({}, 1, 1)
    assert book([1000, 1000, 1000, 1000, 1000, 1000, 1000, 2900, 10, 10], gap=1000).left_out == {}, "one long row was most of the part"


def test_copies_in_a_book_are_kept():
    """A refrain, or three asterisks between scenes, belongs to the text."""
    assert not split_of(BOOK, [Record("a", i, text="* * *" if i % 2 else text(i)) for i in range(40)])[0].left_out


def test_shares_are_of_characters_not_of_rows():
    split = book([10] * 90 + [90] * 10)
    assert (split.count(VALIDATION), split.count(TEST)) == (2, 3)


def test_a_book_in_one_piece_is_refused_with_its_mend():
    """It left 0 rows to train on, and the mend was to give more rows."""
    with pytest.raises(DataError, match=r"a\.txt: the text is in one piece, so nothing can be held out of it") as caught:
        book([5000])
    assert caught.value.hint.startswith("put blank lines between its paragraphs, or hold nothing out")
    assert book([5000], validation_share=0.0, test_share=0.0).count(TRAIN) == 1
    with pytest.raises(DataError, match="2 rows leave 0 to train on") as caught:
        book([9000, 10])
    assert caught.value.hint == "put blank lines between its paragraphs"


def test_a_book_in_few_pieces_says_what_it_holds_out():
    """Three giant paragraphs: a third was the test part, nothing validated, and no word of it."""
    split = book([1000, 1000, 1000])
    cause = "because the text has only 3 paragraphs: put blank lines between its paragraphs"
    assert split.notes == [
        f"validation has 0% of the characters instead of 8%, {cause}", f"test has 33% of the characters instead of 15%, {cause}",
    ]  # fmt: skip
    assert not book([100] * 100).notes


@pytest.mark.parametrize(("records", "more", "hint"), [
    (pairs(*[("a", "b")] * 9), {}, "give more rows that differ, or keep repeated ones with data.keep_duplicates=true"),
    ([pair(near_copy(0, i), "b") for i in range(9)], {"near_duplicates": "drop"}, "give more rows that differ, or take out data.near_duplicates=drop"),
    ([Refused("a.csv", i, "empty prompt or response", "the response is empty") for i in range(9)], {},
     "fill the columns, or name others with data.prompt_column and data.response_column"),
])  # fmt: skip
def test_the_mend_follows_what_took_the_rows(records, more, hint):
    """Empty columns were to be mended with smaller shares."""
    with pytest.raises(DataError, match=r"9 rows leave [01] to train on") as caught:
        split_of(PAIRS, records, **more)
    assert caught.value.hint == hint


def test_the_mend_for_overlap_is_to_keep_it():
    train = pairs(*[(text(i), text((i, "a"))) for i in range(9)])
    with pytest.raises(DataError, match="leave 0 to train on") as caught:
        split_of(PAIRS, train, [], [replace(record, file="t.csv") for record in train[:9]], drop_overlap=True)
    assert caught.value.hint == "take out data.drop_overlap, or give files that differ"


# The real files


def real(path: Path, **more) -> tuple[Split, Survey]:
    readings = [(TRAIN, read_records(AutoData(path=str(path), **more)))]
    section = readings[0][1].section
    survey = survey_records(readings, near=not (isinstance(section, TextData) and section.rows == "book"))
    return split_records(survey, section), survey


@pytest.mark.data
def test_the_real_comments(real_data):
    split, _ = real(real_data / "youtube_comments" / "YT-comments.csv")
    assert [split.count(side) for side in (TRAIN, VALIDATION, TEST)] == [45, 5, 9]
    assert not split.left_out


@pytest.mark.data
def test_the_real_book_is_held_out_at_its_end(real_data):
    split, survey = real(real_data / "frankenstein" / "frankenstein_chunks.csv")
    order = [side for side in split.side.tolist() if side != OUT]
    assert order == sorted(order)
    held_out = sum(int(survey.characters[split.side == side].sum()) for side in (VALIDATION, TEST))
    assert 0.2 <= held_out / survey.characters.sum() <= 0.24
    assert split.left_out == {"Project Gutenberg header or licence": 21, "gap between the parts": 2}
