"""Sizes that the fast path computes with and the plan counts with."""

from dataclasses import fields
from itertools import pairwise

import pytest

from halfbyte.budget.fast_sizes import LARGE, pair_columns, pieces, rows_at_a_time, thin_columns, tokens_at_once
from halfbyte.fast.block import Saved


@pytest.mark.parametrize(
    ("tokens", "at_once", "borders"),
    [(300, 256, [0, 256, 300]), (600, 256, [0, 256, 512, 600]), (16384, 8192, [0, 8192, 16384]), (2049, 1025, [0, 1152, 2049]), (77, None, [0, 77])],
)
def test_pieces(tokens, at_once, borders):
    found = pieces(tokens, at_once)
    assert [one.start for one in found] + [found[-1].stop] == borders
    assert all(before.stop == after.start for before, after in pairwise(found))


def test_tokens_of_an_mlp():
    assert [tokens_at_once(tokens, tight=False) for tokens in (1, 2048, 50_000)] == [8192] * 3
    assert [tokens_at_once(tokens, tight=True) for tokens in (1, 1500, 2048, 2049, 6000, 8191, 50_000)] == [1024, 1024, 1024, 1025, 3000, 4096, 4096]


def test_rows_of_logits():
    words = (320, 32_000, 65_024, 128_256, 152_064, 300_000)
    assert [rows_at_a_time(one) for one in words] == [2048, 2048, 1024, 512, 384, 256]
    assert [rows_at_a_time(one, tight=True) for one in words] == [512, 512, 256, 256, 256, 256]


def test_columns_for_adapters():
    assert [thin_columns(rank) for rank in (0, 1, 48, 64, 65)] == [0, 64, 64, 64, 128]
    assert [pair_columns(rank) for rank in (0, 1, 42, 43, 48)] == [0, 128, 128, 256, 256]


def test_all_tensors_that_a_layer_keeps_may_wait_elsewhere():
    """But for attention's sums, which are small, and x A', which is told apart."""
    assert set(LARGE) == {field.name for field in fields(Saved)} - {"kept", "low"}
