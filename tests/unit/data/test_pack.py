"""Texts are cut into blocks without losing or repeating a trained token; documents are packed whole, each once, and tightly."""

import random

import numpy as np
import pytest

from halfbyte.data.pack import BlockCutter, PackedRows, Packs, best_fit, cut_blocks, join_documents
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


@pytest.mark.parametrize("begin", [[BEGIN], []])
@pytest.mark.parametrize("end", [END, None])
@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 15, 100])
@pytest.mark.parametrize("piece", [1, 3, 7, 8, 1000])
def test_a_text_that_comes_in_pieces_gives_the_same_blocks(length, begin, end, piece):
    """A 5 GB text is never one list; where its pieces end must not show, with or without a begin mark of its own."""
    for own in {(), tuple(begin)}:
        one = text(length, list(own))
        cutter = BlockCutter(begin, end, 8, one.file, one.line)
        blocks = [block for start in range(0, len(one.ids), piece) for block in cutter.feed(one.ids[start : start + piece])]
        full, blocks = len(blocks), [*blocks, *cutter.close()]
        assert blocks == cut_blocks([one], begin, end, max_length=8)
        assert len(blocks) - full <= 2, "what is full is handed over at once"
        assert len(one.ids) == length + len(own), "the caller's list stays"


@pytest.mark.parametrize("begin", [[BEGIN], []])
@pytest.mark.parametrize("skip", [1, 5, 30, 31, 40])
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_blocks_with_a_later_start_are_those_of_the_text_from_there(begin, skip, piece):
    """A text that ends before its blocks begin makes none: a begin mark and an end mark alone would teach to say nothing."""
    one = text(30, begin)
    cutter = BlockCutter(begin, END, 8, one.file, one.line, skip=skip)
    blocks = [block for start in range(0, len(one.ids), piece) for block in cutter.feed(one.ids[start : start + piece])] + cutter.close()
    rest = Tokens(one.ids[skip:], one.trained[skip:], one.file, one.line)
    assert blocks == (cut_blocks([rest], begin, END, 8) if rest.ids else [])
    assert all(block.supervised for block in blocks)


def test_a_length_without_room_for_a_trained_id_is_refused():
    with pytest.raises(ValueError, match="no room"):
        BlockCutter([BEGIN], END, max_length=1)


# Packing


def packed_lengths(lengths: np.ndarray, packs: Packs) -> list[list[int]]:
    return [lengths[packs.members[start:end]].tolist() for start, end in zip(packs.offsets, packs.offsets[1:], strict=False)]


DRAWS = {
    "uniform": lambda random, size: random.integers(1, 513, size),
    "short": lambda random, size: random.integers(1, 60, size),
    "as answers are": lambda random, size: np.clip(random.lognormal(4.5, 0.9, size), 1, 512).astype(np.int64),
    "all alike": lambda random, size: np.full(size, 200),
    "more than half": lambda random, size: random.integers(257, 513, size),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", [1, 2, 50, 3000])
def test_every_row_is_packed_once_and_no_pack_is_too_long(draw, size):
    lengths = DRAWS[draw](np.random.default_rng(size), size)
    packs = best_fit(lengths, 512)
    assert sorted(packs.members.tolist()) == list(range(size))
    sizes = packed_lengths(lengths, packs)
    assert all(sizes), "no pack is empty"
    assert max(map(sum, sizes)) <= 512
    assert len(sizes) == len(packs)


@pytest.mark.parametrize(("draw", "within"), [("uniform", 0.02), ("short", 0.01), ("as answers are", 0.01)])
def test_packs_are_as_few_as_can_be(draw, within):
    """Against the least that any packing needs: all tokens over max_length, and a row for each that is longer than half of it."""
    lengths = DRAWS[draw](np.random.default_rng(0), 5000)
    least = max(-(-lengths.sum() // 512), (lengths > 256).sum())
    assert len(best_fit(lengths, 512)) <= (1 + within) * least


@pytest.mark.parametrize("draw", DRAWS)
def test_it_is_best_fit_decreasing(draw):
    """The definition, written the slow way: the longest first, each into the fullest pack that has room."""
    lengths = DRAWS[draw](np.random.default_rng(1), 400)
    packs: list[list[int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [pack for pack in packs if sum(pack) + length <= 512]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            packs.append([length])
    assert sorted(map(sum, packs)) == sorted(map(sum, packed_lengths(lengths, best_fit(lengths, 512))))


def test_packing_depends_on_nothing_but_the_lengths():
    lengths = np.random.default_rng(3).integers(1, 100, 500)
    first, again = best_fit(lengths, 128), best_fit(lengths.copy(), 128)
    assert first.members.tolist() == again.members.tolist()
    assert first.offsets.tolist() == again.offsets.tolist()


def test_nothing_to_pack_and_rows_that_cannot_be():
    assert len(best_fit(np.zeros(0, np.int64), 8)) == 0
    assert list(PackedRows([], best_fit(np.zeros(0, np.int64), 8))) == []
    for wrong in ([3, 9], [0, 3]):
        with pytest.raises(ValueError, match="do not fit"):
            best_fit(np.array(wrong), 8)


def documents() -> list[Tokens]:
    return [Tokens([100 * n + place for place in range(n % 6 + 1)], [place != 1 for place in range(n % 6 + 1)], f"{n}.csv", n) for n in range(1, 40)]


def test_a_packed_row_is_its_documents_whole():
    rows = documents()
    lengths = np.array([len(row.ids) for row in rows])
    packs = best_fit(lengths, 10)
    packed = PackedRows(rows, packs)
    assert len(packed) == len(packs) < len(rows)
    assert packed.lengths.tolist() == [len(row.ids) for row in packed]
    found = []
    for row, members in zip(packed, np.split(packs.members, packs.offsets[1:-1]), strict=True):
        assert (row.file, row.line) == (rows[members[0]].file, rows[members[0]].line)
        start = 0
        for length, member in zip(row.documents, members, strict=True):
            assert row.ids[start : start + length] == rows[member].ids
            found.append(row.ids[start : start + length])
            start += length
        assert start == len(row.ids) == len(row.trained)
    assert sorted(found) == sorted(row.ids for row in rows)


def test_the_first_id_of_every_packed_document_is_untrained():
    """It would be predicted from the end of another document (CORRECTNESS 1.6)."""
    row = join_documents([Tokens([1, 2, 3], [True, False, True], "a", 1), Tokens([4], [True], "a", 2), Tokens([5, 6], [True, True], "b", 3)])
    assert row == Tokens([1, 2, 3, 4, 5, 6], [False, False, True, False, False, True], "a", 1, (3, 1, 2))


def test_packed_rows_are_a_sequence():
    packed = PackedRows(documents(), best_fit(np.array([len(row.ids) for row in documents()]), 10))
    assert packed[-1] == list(packed)[-1]
    assert packed[1:3] == list(packed)[1:3]
    with pytest.raises(IndexError):
        packed[len(packed)]
