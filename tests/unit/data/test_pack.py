"""Texts are cut into blocks without losing or repeating a trained token; pairs stay whole or are counted."""

import random

import pytest

from halfbyte.data.pack import cut_blocks, keep_fitting
from halfbyte.data.tokens import Tokens

BEGIN, END = 0, 1


def text(length: int, begin: list[int], line: int = 1, first: int = 10) -> Tokens:
    """`length` different ids, behind the begin mark where there is one."""
    ids = begin + list(range(first, first + length))
    return Tokens(ids, [True] * len(ids), "a.txt", line)


def trained(blocks: list[Tokens]) -> list[int]:
    return [token for block in blocks for token, counts in zip(block.ids, block.trained, strict=True) if counts]


@pytest.mark.parametrize("begin", [[BEGIN], []])
@pytest.mark.parametrize("end", [END, None])
@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 14, 15, 63, 64, 100])
def test_every_token_of_a_text_is_trained_in_exactly_one_block(length, begin, end):
    """Guards against the end mark that was lost where it fell alone into a last block of a base without a begin mark."""
    blocks = cut_blocks([text(length, begin)], begin, end, max_length=8)
    said = list(range(10, 10 + length)) + ([end] if end is not None else [])
    assert trained(blocks) == (said if begin else said[1:]), "only the very first id has nothing before it"
    assert all(len(block.ids) <= 8 for block in blocks)
    assert all(len(block.ids) == 8 for block in blocks[:-1])
    assert sum(block.supervised for block in blocks) == len(trained(blocks))


def test_a_block_begins_with_the_begin_mark_which_is_not_trained():
    blocks = cut_blocks([text(20, [BEGIN])], [BEGIN], END, max_length=8)
    assert [block.ids[0] for block in blocks] == [BEGIN] * 3
    assert [block.trained for block in blocks] == [[False] + [True] * 7] * 3
    assert [token for block in blocks for token in block.ids[1:]] == [*range(10, 30), END]


def test_without_a_begin_mark_a_block_begins_with_the_id_before_it():
    blocks = cut_blocks([text(14, [])], [], END, max_length=8)
    assert [block.ids for block in blocks] == [[*range(10, 18)], [17, 18, 19, 20, 21, 22, 23, END]]
    assert all(block.trained == [False] + [True] * 7 for block in blocks)


@pytest.mark.parametrize("begin", [[BEGIN], []])
def test_texts_stay_apart_and_each_ends_with_the_end_mark(begin):
    texts = [text(length, begin, line, first=1000 * line) for line, length in enumerate(random.Random(0).choices(range(2, 40), k=30), start=1)]
    blocks = cut_blocks(texts, begin, END, max_length=8)
    for one in texts:
        own = [block for block in blocks if block.line == one.line]
        own_ids = {token for block in own for token in block.ids}
        assert own_ids == {*one.ids, *begin, END}
        assert own[-1].ids[-1] == END
        assert trained(own).count(END) == 1
    assert [block.line for block in blocks] == sorted(block.line for block in blocks)
    assert {block.file for block in blocks} == {"a.txt"}


def test_a_text_of_the_base_keeps_an_end_mark_of_its_own():
    """An id that happens to be the end mark inside the text is a token like any other."""
    one = Tokens([BEGIN, 10, END, 11], [True] * 4, "a.txt", 1)
    assert trained(cut_blocks([one], [BEGIN], END, 8)) == [10, END, 11, END]


def test_an_empty_text_makes_no_block_of_nothing():
    assert trained(cut_blocks([Tokens([BEGIN], [True], "a", 1)], [BEGIN], None, 8)) == []
    assert cut_blocks([], [BEGIN], END, 8) == []
    assert cut_blocks([Tokens([], [], "a", 1)], [], None, 8) == []


def pair(prompt: int, response: int) -> Tokens:
    return Tokens(list(range(prompt + response)), [False] * prompt + [True] * response, "a.csv", prompt)


def test_a_pair_stays_whole_or_is_left_out_and_counted():
    rows = [pair(4, 3), pair(5, 3), pair(6, 3), pair(90, 10)]
    kept, left_out = keep_fitting(rows, max_length=8)
    assert kept == rows[:2]
    assert left_out == {"longer than max_length 8": 2}


def test_a_row_with_nothing_to_learn_from_is_counted():
    kept, left_out = keep_fitting([pair(4, 0), pair(0, 1), pair(4, 3)], max_length=8)
    assert kept == [pair(4, 3)]
    assert left_out == {"nothing to learn from": 2}
    assert keep_fitting([pair(4, 3)], 8) == ([pair(4, 3)], {})
