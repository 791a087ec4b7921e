"""Batches: every row once an epoch, an order that only seed and epoch decide, labels by position."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from halfbyte.data import batches as module
from halfbyte.data.batches import IGNORE, Batch, LabelSum, epoch_steps, in_order, labels_hash, make_batch, row_lengths, rows_digest
from halfbyte.data.pack import PackedRows, best_fit
from halfbyte.data.tokens import Tokens

PAD = 2
ROWS = [Tokens([100 + number, *range(1, 2 + number % 5)], [False] + [True] * (1 + number % 5), "a.csv", number) for number in range(23)]


def row_ids(steps: list[list[Batch]]) -> list[int]:
    return [first - 100 for step in steps for batch in step for first in batch.ids[:, 0].tolist()]


def epoch_of(epoch: int, seed: int = 0, batch_size: int = 4, accumulation: int = 1, rows: list[Tokens] = ROWS) -> list[list[Batch]]:
    return list(epoch_steps(rows, batch_size, accumulation, PAD, seed, epoch))


# One batch


def test_ids_labels_and_padding():
    rows = [Tokens([7, 8, 9], [False, True, True], "a", 1), Tokens([7, 8, 9, 5, 6], [False, False, False, True, True], "a", 2)]
    batch = make_batch(rows, PAD)
    assert batch.ids.tolist() == [[7, 8, 9, PAD, PAD], [7, 8, 9, 5, 6]]
    assert batch.labels.tolist() == [[IGNORE, 8, 9, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE, 5, 6]]
    assert (batch.ids.dtype, batch.labels.dtype) == (torch.long, torch.long)
    assert (batch.tokens, batch.supervised) == (8, 4)
    moved = batch.to(torch.device("cpu"))
    assert (moved.tokens, moved.supervised) == (8, 4)


def test_the_first_id_has_no_label():
    batch = make_batch([Tokens([7, 8], [True, True], "a", 1)], PAD)
    assert batch.labels.tolist() == [[IGNORE, 8]]


@pytest.mark.parametrize("pad", [PAD, 9, 7])
def test_labels_follow_position_and_never_the_id(pad):
    """Where pad and end mark share an id, a collator that looks at ids masks the end mark, and the model never learns to stop."""
    batch = make_batch([Tokens([7, 9, 9], [False, True, True], "a", 1), Tokens([7, 7, 7, 9], [False, True, True, True], "a", 2)], pad)
    assert batch.labels.tolist() == [[IGNORE, 9, 9, IGNORE], [IGNORE, 7, 7, 9]]
    assert batch.supervised == 5


@pytest.mark.parametrize("pad", [PAD, 9])
def test_the_end_mark_is_supervised_once_a_row_even_as_padding(pad):
    """A collator that masks the pad id never teaches a model to stop where the end mark pads (CORRECTNESS 1.1)."""
    rows = [Tokens([7, *range(20, 20 + length), 9], [False] + [True] * (length + 1), "a", 1) for length in (2, 7, 4)]
    labels = make_batch(rows, pad).labels
    assert [(row == 9).sum().item() for row in labels] == [1, 1, 1]
    assert [row[row != IGNORE][-1].item() for row in labels] == [9, 9, 9]


# A batch of packed rows

PACKED = Tokens([7, 8, 9, 5, 6, 4], [True] * 6, "a", 1, (3, 1, 2))


def test_positions_begin_anew_in_every_packed_document():
    batch = make_batch([PACKED, Tokens([7, 8], [False, True], "a", 2)], PAD)
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1]]
    assert batch.lengths == (6, 2)
    assert (batch.tokens, batch.positions.dtype, batch.documents.dtype) == (8, torch.long, torch.long)


def test_the_first_label_of_every_packed_document_is_left_out():
    """Even where the row says that it is trained (CORRECTNESS 1.6: labels that cross the border)."""
    batch = make_batch([PACKED], PAD)
    assert batch.labels.tolist() == [[IGNORE, 8, 9, IGNORE, IGNORE, 4]]
    assert batch.supervised == 3


def test_a_batch_without_a_packed_row_has_neither_positions_nor_documents():
    """One document alone in its pack is a row like any other: the plain path stays as it is."""
    batch = make_batch([Tokens([7, 8], [False, True], "a", 1), Tokens([7, 8, 9], [False, True, True], "a", 2, (3,))], PAD)
    assert (batch.positions, batch.documents) == (None, None)


# In file order


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_evaluation_takes_every_row_once_and_in_order(batch_size):
    batches = in_order(ROWS, batch_size, PAD)
    assert row_ids([list(batches)]) == list(range(23))
    assert row_ids([list(batches)]) == list(range(23)), "a second time"
    assert len(batches) == len(list(batches)) == -(-23 // batch_size)
    assert all(len(batch.ids) == batch_size for batch in batches[:-1])
    assert sum(batch.tokens for batch in batches) == sum(len(row.ids) for row in ROWS)
    assert sum(batch.supervised for batch in batches) == sum(row.supervised for row in ROWS)
    assert list(in_order([], batch_size, PAD)) == []
    assert not in_order([], batch_size, PAD)


def test_batches_of_evaluation_are_made_one_at_a_time():
    """Millions of rows as tensors would not fit into memory."""
    asked = []

    class Rows(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    batches = iter(in_order(Rows(ROWS), 4, PAD))
    assert asked == []
    next(batches)
    next(batches)
    assert asked == [slice(0, 4), slice(4, 8)]


# An epoch


@pytest.mark.parametrize(("batch_size", "accumulation", "steps"), [(4, 1, 6), (4, 2, 3), (1, 8, 3), (23, 1, 1), (50, 3, 1), (5, 5, 1)])
def test_an_epoch_takes_every_row_once(batch_size, accumulation, steps):
    """The last, smaller step is not dropped, and none is padded with rows taken twice (CORRECTNESS 1.36)."""
    epoch = epoch_of(3, batch_size=batch_size, accumulation=accumulation)
    assert sorted(row_ids(epoch)) == list(range(23))
    assert len(epoch) == steps
    assert all(len(step) == accumulation and all(len(batch.ids) == batch_size for batch in step) for step in epoch[:-1])
    assert all(len(batch.ids) <= batch_size for batch in epoch[-1])


def test_the_order_is_new_in_every_epoch_and_fixed_by_the_seed():
    orders = [row_ids(epoch_of(epoch)) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 5
    assert all(order != sorted(order) for order in orders)
    assert [row_ids(epoch_of(epoch)) for epoch in range(5)] == orders
    assert row_ids(epoch_of(0, seed=1)) not in orders
    assert row_ids(epoch_of(0, seed=2**32 - 1)) not in orders


def test_the_order_does_not_depend_on_what_was_drawn_before_and_draws_nothing_itself():
    """A run that is resumed has drawn other numbers; dropout must not see the order."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    order = row_ids(epoch_of(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert row_ids(epoch_of(1)) == order


def test_the_order_does_not_depend_on_how_rows_are_batched():
    """1 x 8 and 8 x 1 see the same rows in the same step."""
    steps = [[sorted(row_ids([step])) for step in epoch_of(2, batch_size=size, accumulation=8 // size)] for size in (1, 2, 8)]
    assert steps[0] == steps[1] == steps[2]


def test_steps_that_are_done_are_passed_over():
    """What a resume at step n trains is what the run would have trained."""
    whole = [row_ids([step]) for step in epoch_of(1, accumulation=2)]
    for done in range(len(whole) + 1):
        rest = epoch_steps(ROWS, 4, 2, PAD, seed=0, epoch=1, done=done)
        assert [row_ids([step]) for step in rest] == whole[done:]


def many(size: int, seed: int = 0) -> list[Tokens]:
    """Rows of the lengths that answers have."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(3, 0.8, size), 2, 200).astype(int)
    return [Tokens([100 + number] + [3] * (length - 1), [False] + [True] * (length - 1), "a", number) for number, length in enumerate(lengths.tolist())]


def padding(steps: list[list[Batch]]) -> float:
    places = sum(batch.ids.numel() for step in steps for batch in step)
    return 1 - sum(batch.tokens for step in steps for batch in step) / places


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 4)])
def test_rows_of_a_batch_have_about_one_length(monkeypatch, batch_size, accumulation):
    rows = many(2000)
    drawn = [rows[index] for index in torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist()]
    before = padding([list(in_order(drawn, batch_size, PAD))])
    assert before > 0.4
    epoch = epoch_of(0, 0, batch_size, accumulation, rows)
    assert padding(epoch) < before / 4
    monkeypatch.setattr(module, "WINDOW", 7)  # windows that do not divide the epoch
    assert sorted(row_ids(epoch_of(0, 0, batch_size, accumulation, rows))) == sorted(row_ids(epoch)) == list(range(2000))


def test_batches_come_in_no_order_of_length():
    """Short rows first would be a course of its own (CORRECTNESS 1.36)."""
    steps = epoch_of(0, rows=many(2000))
    longest = np.array([step[0].ids.shape[1] for step in steps])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.1


def test_other_rows_meet_in_every_epoch():
    """Sorted as a whole, an epoch would put the same rows of one length together every time, and its last step would always be the longest."""
    rows = many(403)
    first, second = ([frozenset(row_ids([step])) for step in epoch_of(epoch, rows=rows)] for epoch in (0, 1))
    assert len(set(first) & set(second)) < 3
    last = [len(rows[number].ids) for epoch in range(40) for number in row_ids([epoch_of(epoch, rows=rows)[-1]])]
    assert np.mean(last) == pytest.approx(np.mean([len(row.ids) for row in rows]), rel=0.3)


def test_lengths_are_taken_from_rows_that_know_them():
    class OnDisk(list):
        lengths = np.array([5, 6])

    assert row_lengths(OnDisk(ROWS[:2])) is OnDisk.lengths
    assert row_lengths(ROWS[:3]).tolist() == [len(row.ids) for row in ROWS[:3]]
    assert row_lengths([]).tolist() == []


# The fingerprint of what trains


def seen(steps: list[list[Batch]]) -> LabelSum:
    found = LabelSum()
    for step in steps:
        for batch in step:
            found.add_batch(batch)
    return found


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (4, 2), (50, 1)])
@pytest.mark.parametrize("pad", [PAD, 1])
def test_what_an_epoch_trains_is_what_the_preview_said(batch_size, accumulation, pad):
    found = seen(list(epoch_steps(ROWS, batch_size, accumulation, pad, seed=3, epoch=0)))
    assert found.hex == labels_hash(ROWS) == labels_hash(ROWS[::-1])
    assert found.documents == 23


def test_packing_does_not_change_the_fingerprint():
    packed = PackedRows(ROWS, best_fit(row_lengths(ROWS), 9))
    assert len(packed) < len(ROWS)
    found = seen(list(epoch_steps(packed, 3, 2, PAD, seed=0, epoch=0)))
    assert found.hex == labels_hash(packed) == labels_hash(ROWS)
    assert found.documents == 23


def spoilt(batch: Batch, name: str, row: int, place: int, value: int) -> Batch:
    tensor = getattr(batch, name).clone()
    tensor[row, place] = value
    return replace(batch, **{name: tensor})


@pytest.mark.parametrize(
    ("name", "place", "value"), [("labels", 2, IGNORE), ("labels", 2, 77), ("labels", 0, 7), ("ids", 1, 77), ("labels", 3, 5), ("documents", 3, 0)]
)
def test_one_wrong_label_shows(name, place, value):
    """Also a label on the first id of a packed document, and a border in another place."""
    batch = make_batch([PACKED, ROWS[4]], PAD)
    right, wrong = LabelSum(), LabelSum()
    right.add_batch(batch)
    wrong.add_batch(spoilt(batch, name, 0, place, value))
    assert right.hex == labels_hash([PACKED, ROWS[4]])
    assert wrong.hex != right.hex


def test_a_row_lost_or_taken_twice_shows():
    assert len({labels_hash(ROWS), labels_hash(ROWS[1:]), labels_hash([*ROWS, ROWS[0]]), labels_hash([ROWS[0], *ROWS[:-1]])}) == 4
    assert labels_hash([]) == "0" * 32
    assert len(labels_hash(ROWS)) == 32


def test_the_fingerprint_does_not_change_between_versions():
    """It is stored with prepared data."""
    assert labels_hash([Tokens([5, 6], [False, True], "a", 1)]) == "3e4791de8097aa7ad6898ce7497238e0"


def test_the_digest_of_a_step_tells_rows_order_and_labels_and_not_how_the_step_is_split():
    told = rows_digest(in_order(ROWS[:6], 6, PAD))
    assert {rows_digest(in_order(ROWS[:6], size, PAD)) for size in (1, 2, 3, 4)} == {told}
    other_label = replace(ROWS[5], trained=[True, *ROWS[5].trained[1:-1], False])
    changed = [ROWS[1:7], [ROWS[1], ROWS[0], *ROWS[2:6]], ROWS[:5], [*ROWS[:5], other_label], [*ROWS[:5], replace(ROWS[5], ids=[9, *ROWS[5].ids[1:]])]]
    assert told not in {rows_digest(in_order(rows, 6, PAD)) for rows in changed}
    assert len(told) == 16
