"""Figures as words."""

import math

import pytest

from halfbyte.runs.words import chance, count, decimals_of, duration, figure, fixed, interval, number, percent, percent_change, size, visible


def test_numbers_are_rounded_into_the_next_unit():
    assert [duration(value) for value in (0.04, 59.97, 92.1, 119.7, 3599.6, 19_221)] == [
        "0.0 s", "1 min 0 s", "1 min 32 s", "2 min 0 s", "1 h 0 min", "5 h 20 min",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 12_345_678, 999_999_999, 23_912_000_000)] == [
        "0 B",
        "999 B",
        "12.35 MB",
        "1000 MB",
        "23.91 GB",
    ]
    assert [figure(value) for value in (49.4, 31.268, 9999.7, 12_345.6)] == ["49.4", "31.27", "10,000", "12,346"]


def test_a_figure_of_anything_else_is_a_dash():
    for odd in (None, math.nan, math.inf, "7", True, [1], {}):
        assert number(odd) is None
        for write in (count, figure, percent, chance, size, duration):
            assert write(odd) == "–"
    assert [interval(odd) for odd in (None, [1, None], [1], [1, 2, 3], "ab", [1, math.inf])] == [None] * 6
    assert interval([1, 2.5]) == (1, 2.5)


def test_the_minus_sign_is_as_wide_as_a_digit():
    assert [fixed(-1.25, 1), fixed(1.25, 1, sign=True), fixed(-0.0004, 3, sign=True), fixed(0, 2, sign=True)] == ["−1.2", "+1.2", "0.000", "0.00"]
    assert figure(-3e-7) == "−3e−07"
    assert [percent_change(50, 40), percent_change(40, 40), percent_change(0, 1), percent_change(None, 1)] == ["−20.0\u00a0%", "0.0\u00a0%", "–", "–"]


@pytest.mark.parametrize(("half_width", "base", "decimals"), [(2.1, 43.1, 1), (21, 430, 0), (0.021, 0.86, 3), (0.0021, 0.86, 4), (1e-9, 0.5, 5), (200, 20, 1)])
def test_an_interval_says_how_many_decimals_are_worth_writing(half_width, base, decimals):
    assert decimals_of({"base": base, "tuned": base, "interval": [-half_width, half_width]}) == decimals


def test_decimals_without_an_interval():
    assert [decimals_of(one) for one in ({}, {"base": 0, "tuned": 0}, {"base": 40.0, "tuned": None}, {"base": 1, "interval": [2, 2]})] == [2, 3, 1, 2]


def test_what_cannot_be_seen_is_written_out():
    assert visible("a\u202eb\x00\ud800\t\n") == "a\\u202eb\\u0000\\ud800\t\n"
    assert visible(None) == "–"
