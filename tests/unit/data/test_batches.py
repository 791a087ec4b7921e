"""Batches: every row once an epoch, an order that only seed and epoch decide, labels by position."""

import pytest
import torch

from halfbyte.data.batches import IGNORE, Batch, epoch_steps, in_order, make_batch
from halfbyte.data.records import Record
from halfbyte.data.render import choose_template, render_pair
from halfbyte.data.tokens import Tokens, encode_example

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


@pytest.mark.parametrize("responses", [["Me.", "A much longer answer."], ["x"] * 3])
def test_the_end_mark_is_supervised_once_a_row_even_as_padding(toy_tokenizer, responses):
    template = choose_template("{prompt}:", None, toy_tokenizer)[0]
    rows = [encode_example(render_pair(Record({"prompt": "Who?", "response": said}, "a", 1), template, toy_tokenizer), toy_tokenizer) for said in responses]
    end = toy_tokenizer.eos_token_id
    labels = make_batch(rows, pad_id=end).labels
    assert [(row == end).sum().item() for row in labels] == [1] * len(rows)
    assert [row[row != IGNORE][-1].item() for row in labels] == [end] * len(rows)


# In file order


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_evaluation_takes_every_row_once_and_in_order(batch_size):
    batches = in_order(ROWS, batch_size, PAD)
    assert row_ids([batches]) == list(range(23))
    assert all(len(batch.ids) == batch_size for batch in batches[:-1])
    assert sum(batch.tokens for batch in batches) == sum(len(row.ids) for row in ROWS)
    assert sum(batch.supervised for batch in batches) == sum(row.supervised for row in ROWS)
    assert in_order([], batch_size, PAD) == []


# An epoch


@pytest.mark.parametrize(("batch_size", "accumulation", "steps"), [(4, 1, 6), (4, 2, 3), (1, 8, 3), (23, 1, 1), (50, 3, 1), (5, 5, 1)])
def test_an_epoch_takes_every_row_once(batch_size, accumulation, steps):
    """The last, smaller step is not dropped, and none is padded with rows taken twice."""
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
