"""Verdicts: silent where nothing happened, found where something was planted, the same in any order, and honest where rows are few."""

import functools
import itertools
import json
import math

import numpy as np
import pytest

from halfbyte.evaluate.metrics import VALUES, Metric, value_of
from halfbyte.evaluate.uncertainty import DRAWS, FEWEST_UNITS, MCNEMAR, compare, power_at, sign_test

PERPLEXITY = Metric("perplexity", "exp_ratio", higher_is_better=False, unit="test text")
ACCURACY = Metric("accuracy", "mean", higher_is_better=True, unit="test rows")
F1 = Metric("slot F1", "f1", higher_is_better=True)
FAST = 399


def losses(rows, seed, gain=0.0):
    """Base and tuned statistics of perplexity; tuned is better by `gain` nats a token."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(20, 200, rows).astype(float)
    rate = draw.gamma(12, 0.3, rows)
    moved = rate - gain + draw.normal(0, 0.15, rows)
    return np.stack([tokens * rate, tokens], -1), np.stack([tokens * moved, tokens], -1)


def answers(*right):
    return np.stack([np.array(right, float), np.ones(len(right))], -1)


def slots(rows, seed):
    draw = np.random.default_rng(seed)
    gold = draw.integers(1, 6, rows)

    def told():
        found = draw.binomial(gold, 0.6)
        return np.stack([found, found + draw.poisson(1, rows), gold], -1).astype(float)

    return told(), told()


# Test


@pytest.mark.parametrize(("metric", "make"), [(PERPLEXITY, losses), (F1, slots)])
@pytest.mark.parametrize("rows", [2, 6, 9])
def test_few_rows_are_swapped_in_every_way(metric, make, rows):
    base, tuned = make(rows, seed=rows)
    found = compare(metric, base, tuned)
    observed, extreme = abs(value_of(metric, tuned) - value_of(metric, base)), 0
    for swap in itertools.product([False, True], repeat=rows):
        swapped = np.where(np.array(swap)[:, None], base, tuned), np.where(np.array(swap)[:, None], tuned, base)
        extreme += abs(value_of(metric, swapped[0]) - value_of(metric, swapped[1])) >= observed - 1e-9
    assert found.p_value == extreme / 2**rows
    assert found.test.startswith("paired randomisation, all ")


def test_all_rows_better_is_the_most_extreme_of_all_swaps_in_spite_of_rounding():
    """0.1 + 0.2 is not 0.3: the swap of every row must count as extreme as what was seen."""
    for seed in range(40):
        base = answers(*np.random.default_rng(seed).random(8))
        found = compare(ACCURACY, base, base + np.array([0.1, 0]), draws=FAST)
        assert (found.p_value, found.verdict) == (2 / 2**8, "better")


def test_many_draws_agree_with_all_swaps():
    base, tuned = losses(12, seed=5, gain=0.05)
    exact = compare(PERPLEXITY, base, tuned)
    drawn = compare(PERPLEXITY, base, tuned, draws=4_000)
    assert "all 4,096" in exact.test
    assert "4,000 draws" in drawn.test
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.03)


@pytest.mark.parametrize(("wins", "losses", "p"), [(6, 0, 2 / 64), (5, 0, 2 / 32), (9, 1, 22 / 1024), (4, 4, 1), (0, 0, 1), (1, 9, 22 / 1024), (3, 1, 10 / 16)])
def test_sign_test_by_hand(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, abs=1e-12)


def test_right_or_wrong_rows_get_mcnemar():
    """Nine gained, one lost, ten the same: 2 (1 + 10) / 2^10."""
    base, tuned = answers(*[0] * 9, 1, *[1] * 5, *[0] * 5), answers(*[1] * 9, 0, *[1] * 5, *[0] * 5)
    found = compare(ACCURACY, base, tuned)
    assert (found.test, found.p_value, found.verdict, found.differing) == (MCNEMAR, pytest.approx(22 / 1024), "better", 10)
    assert compare(ACCURACY, tuned, base).verdict == "worse"
    assert compare(ACCURACY, base, tuned, units=np.arange(20) // 2).test != MCNEMAR
    assert compare(ACCURACY, base / [2, 1], tuned / [2, 1]).test != MCNEMAR


@pytest.mark.parametrize(("metric", "make", "lowest"), [(PERPLEXITY, losses, 0.02), (F1, slots, 0.02)])
def test_nothing_planted_nothing_found(metric, make, lowest):
    """400 comparisons whose rows are swapped at random: 5 % +- 3 standard errors of alarms."""
    alarms = 0
    for seed in range(400):
        base, tuned = make(60, seed)
        turned = np.random.default_rng(seed + 10_000).random(60)[:, None] < 0.5
        alarms += compare(metric, np.where(turned, tuned, base), np.where(turned, base, tuned), draws=FAST).verdict != "no evidence"
    assert lowest <= alarms / 400 <= 0.085


def test_what_is_planted_is_found_with_the_power_that_is_reported():
    """And the interval holds the truth in 95 % of cases, within three standard errors of 300 comparisons."""
    gain = 0.055
    truth = value_of(PERPLEXITY, losses(400_000, 1, gain)[1]) - value_of(PERPLEXITY, losses(400_000, 1, gain)[0])
    found = [compare(PERPLEXITY, *losses(60, seed, gain), draws=FAST) for seed in range(300)]
    reported = np.mean([power_at(truth, one) for one in found])
    assert 0.6 < reported < 0.95
    assert np.mean([one.verdict == "better" for one in found]) == pytest.approx(reported, abs=0.08)
    assert np.mean([one.interval[0] <= truth <= one.interval[1] for one in found]) == pytest.approx(0.95, abs=0.04)


# Power


def test_the_smallest_effect_is_found_four_times_in_five():
    base, tuned = losses(70, seed=3)
    found = compare(PERPLEXITY, base, tuned)
    assert power_at(found.smallest_effect, found) == pytest.approx(0.8)
    assert power_at(-found.smallest_effect, found) == pytest.approx(0.8)
    assert power_at(found.smallest_effect / 2, found) < 0.5
    # Bloom's multiple, (1.99 + 0.85) standard errors of 70 rows, within what 9,999 draws know of a percentile
    assert found.smallest_effect / found.standard_error == pytest.approx(1.995 + 0.847, rel=0.05)


def test_power_of_mcnemar_is_that_of_simulated_rows():
    """60 rows of which 12 differ."""
    found = compare(ACCURACY, answers(*[0] * 6, *[1] * 54), answers(*[1] * 6, *[0] * 6, *[1] * 48))
    assert found.differing == 12
    effect = found.smallest_effect
    draw = np.random.default_rng(0)
    share = max(0.2, effect)
    outcomes = draw.multinomial(60, [(share + effect) / 2, (share - effect) / 2, 1 - share], 5000)
    p_value = functools.cache(sign_test)
    shown = np.mean([p_value(int(won), int(lost)) <= 0.05 for won, lost, _ in outcomes])
    assert shown == pytest.approx(power_at(effect, found), abs=0.03)
    assert power_at(effect, found) == pytest.approx(0.8, abs=1e-3)


# Intervals


def test_the_bootstrap_interval_of_a_mean_is_the_one_by_formula():
    draw = np.random.default_rng(0)
    base = np.stack([draw.normal(0, 1, 50), np.ones(50)], -1)
    tuned = base + np.stack([draw.normal(0.1, 0.5, 50), np.zeros(50)], -1)
    found = compare(Metric("score", "mean", True), base, tuned)
    change = tuned[:, 0] - base[:, 0]
    error = change.std(ddof=1) / math.sqrt(50)
    t_of_49 = 2.0096
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.interval == pytest.approx((change.mean() - t_of_49 * error, change.mean() + t_of_49 * error), abs=0.1 * error)


def test_a_share_of_zero_is_not_certain():
    never = answers(*[0] * 59)
    found = compare(ACCURACY, never, never)
    assert found.base_interval == pytest.approx((0, 1.96**2 / (59 + 1.96**2)), abs=1e-4)  # Wilson by hand
    assert found.interval[0] == -found.interval[1] < 0
    assert 6 / 59 < found.smallest_effect < 9 / 59  # six rows gained and none lost is the least evidence
    assert found.p_value == 1


# Units, order, refusals


def test_rows_of_one_document_count_as_one():
    """Ten documents copied seven times are no 70 witnesses."""
    base, tuned = losses(10, seed=2, gain=0.03)
    once = compare(PERPLEXITY, base, tuned)
    copied = compare(PERPLEXITY, np.repeat(base, 7, 0), np.repeat(tuned, 7, 0), units=np.repeat([f"book {n}" for n in range(10)], 7))
    naive = compare(PERPLEXITY, np.repeat(base, 7, 0), np.repeat(tuned, 7, 0))
    assert (copied.rows, copied.units) == (70, 10)
    assert copied.p_value == once.p_value > naive.p_value
    assert copied.interval == pytest.approx(once.interval, abs=0.1 * once.standard_error)
    assert copied.smallest_effect == pytest.approx(once.smallest_effect, rel=0.05)
    assert copied.smallest_effect > 2 * naive.smallest_effect


def test_order_and_grouping_of_rows_change_nothing():
    base, tuned = losses(80, seed=4, gain=0.02)
    order = np.random.default_rng(0).permutation(80)
    found = compare(PERPLEXITY, base, tuned)
    assert compare(PERPLEXITY, base[order], tuned[order]) == found
    names = np.random.default_rng(1).permutation(80) // 2
    paired, shuffled = compare(PERPLEXITY, base, tuned, units=names), compare(PERPLEXITY, base[order], tuned[order], units=names[order])
    assert shuffled.interval == pytest.approx(paired.interval)
    assert shuffled.sentence == paired.sentence


@pytest.mark.parametrize("rows", [1, 2, FEWEST_UNITS - 1])
@pytest.mark.parametrize("metric", [PERPLEXITY, ACCURACY])
def test_too_few_rows_say_so(metric, rows):
    base, tuned = losses(rows, seed=1, gain=0.5) if metric is PERPLEXITY else (answers(*[0] * rows), answers(*[1] * rows))
    found = compare(metric, base, tuned)
    assert found.verdict == "no evidence"
    assert found.smallest_effect == math.inf
    assert power_at(100, found) == 0
    assert found.sentence.endswith(f"{rows} {'rows are' if rows > 1 else 'row is'} too few to show any (at least 6).")
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["smallest_effect"] is None


def test_nothing_differs():
    same = slots(30, seed=0)[0]
    found = compare(F1, same, same)
    assert (found.p_value, found.difference, found.smallest_effect, found.differing) == (1, 0, math.inf, 0)
    assert found.sentence.endswith("no evidence of a difference; base and tuned do not differ on any of 30 rows.")
    assert power_at(1, found) == 0


def test_what_cannot_be_compared_is_refused():
    base, tuned = losses(4, seed=0)
    with pytest.raises(ValueError, match="no rows"):
        compare(PERPLEXITY, base[:0], tuned[:0])
    for broken in (math.nan, math.inf):
        spoilt = tuned.copy()
        spoilt[2, 0] = broken
        with pytest.raises(ValueError, match="row 2 has a statistic"):
            compare(PERPLEXITY, base, spoilt)
    with pytest.raises(ValueError, match="3 document numbers for 4 rows"):
        compare(PERPLEXITY, base, tuned, units=np.arange(3))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(PERPLEXITY, base * 0, tuned * 0)
    with pytest.raises(ValueError):
        compare(PERPLEXITY, base, tuned[:3])


@pytest.mark.parametrize("kind", VALUES)
def test_no_kind_of_metric_trips_over_empty_draws(kind):
    """One row of eight holds everything: a third of the draws counts nothing at all."""
    columns = {"macro_f1": 9, "bleu": 10, "chrf": 18, "calibration": 21, "f1": 3}.get(kind, 2)
    base = np.zeros((8, columns))
    base[0] = 1
    with np.errstate(all="raise"):
        found = compare(Metric("score", kind, True), base, base.copy())
    assert all(map(math.isfinite, found.interval))
    assert found.verdict == "no evidence"


# Words


def test_sentences():
    assert compare(PERPLEXITY, *losses(200, seed=1, gain=0.3)).sentence == (
        "perplexity on the test text fell from 34.8 to 25.4 (95 % interval of the difference -10.9 to -8.1; p < 0.001): better."
    )
    assert compare(PERPLEXITY, *losses(70, seed=1, gain=-0.3)).sentence.endswith("p < 0.001): worse.")
    assert compare(PERPLEXITY, *losses(70, seed=2)).sentence == (
        "perplexity on the test text fell from 33.6 to 33.1 (95 % interval of the difference -2.1 to 1.1; p = 0.506): "
        "no evidence of a difference; this test set would have shown one of 2.2 or more (4 times in 5)."
    )
    assert compare(ACCURACY, answers(*[0] * 59), answers(*[0] * 59)).sentence == (
        "accuracy on the test rows stayed at 0 (95 % interval of the difference -0.045 to 0.045; p = 1.000): "
        "no evidence of a difference; this test set would have shown one of 0.13 or more (4 times in 5)."
    )
    assert compare(ACCURACY, answers(*[0, 1] * 500), answers(*[1, 1, 0, 1] * 250)).sentence == (
        "accuracy on the test rows rose from 0.500 to 0.750 (95 % interval of the difference 0.223 to 0.276; p < 0.001): better."
    )


def test_a_p_value_is_never_rounded_onto_the_other_side():
    """32 of 50 votes: 0.0649 is told as 0.065, and nothing above 0.05 as 0.050."""
    found = compare(ACCURACY, answers(*[0] * 32, *[1] * 18), answers(*[1] * 32, *[0] * 18))
    assert "p = 0.065" in found.sentence
    assert found.verdict == "no evidence"


def test_a_comparison_as_json():
    base, tuned = losses(50, seed=0, gain=0.1)
    told = json.loads(json.dumps(compare(PERPLEXITY, base, tuned).as_json(), allow_nan=False))
    assert told["metric"] == "perplexity"
    assert told["test"] == f"paired randomisation, {DRAWS:,} draws"
    assert told["difference"] == told["tuned"] - told["base"]
    assert {"unit", "kind", "higher_is_better", "base_interval", "interval", "rows", "units", "smallest_effect", "verdict", "sentence"} < set(told)
