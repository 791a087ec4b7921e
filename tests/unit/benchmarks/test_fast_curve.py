"""The curve of both paths: how far curves are apart is counted as the page says, each criterion can fail, and a finished run is not made again."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STEPS = 20


@pytest.fixture(scope="module")
def curve():
    sys.path.insert(0, str(BENCHMARKS))
    import fast_curve

    yield fast_curve
    sys.path.remove(str(BENCHMARKS))


def run(path, lift, rows="a", perplexity=20.0):
    """A curve that lies `lift` above 3 nats, but for its first step, which lies ten times as far."""
    return {
        "path": path, "rows": rows, "losses": [3 + 10 * lift, *[3 + lift] * (STEPS - 1)], "gradient_norms": [0.5] * STEPS, "perplexity": perplexity,
        "interval": [19.0, 21.0], "unit": "test text", "test_rows": [[30.0 + number, 10] for number in range(12)], "test_units": None,
    }  # fmt: skip


@pytest.fixture
def runs():
    return {
        "plain": run("plain", 0.0),
        "fast": run("fast", 0.02, perplexity=20.5),
        "plain, seed 1": run("plain", 0.1, "b"),
        "plain, seed 2": run("plain", 0.3, "c"),
    }


def test_smoothed_is_the_mean_of_ten_steps_in_a_row(curve):
    assert curve.smoothed(list(range(12))).tolist() == pytest.approx([4.5, 5.5, 6.5])
    assert curve.smoothed([1.0, 2.0, 6.0]).tolist() == pytest.approx([3.0])


def test_apart_is_counted_without_signs(curve):
    """Above in one step, as far below in the next: not the same."""
    assert curve.apart([1.0, 1.0, 1.0], [2.0, 0.0, 4.0], 1) == pytest.approx({"mean": 5 / 3, "largest": 3.0})


def test_the_share_is_of_the_two_seeds_that_differ_least(curve, runs):
    told = curve.judge(runs)
    assert all(told["holds"].values()), told["holds"]
    # 11 means of ten: the first holds the first step, (10 + 9) / 10 of the lift.
    assert told["apart"] == pytest.approx({"mean": 0.02 * (1.9 + 10) / 11, "largest": 0.02 * 1.9})
    assert told["apart_in_single_steps"]["largest"] == pytest.approx(0.2)
    assert told["share_of_seeds"] == pytest.approx({"mean": 0.2, "largest": 0.2})
    assert told["perplexity_ratio"] == pytest.approx(1.025)
    assert told["paired_difference"] == 0


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (
            lambda fast: fast.update(losses=[3.5] * STEPS),
            ["mean difference of losses at most that of seeds", "largest difference of losses at most that of seeds"],
        ),
        (lambda fast: fast.update(losses=[*[3.0] * (STEPS - 1), 6.0]), ["largest difference of losses at most that of seeds"]),
        (lambda fast: fast.update(perplexity=21.5), ["perplexity in the plain run's interval"]),
        (lambda fast: fast.update(path="plain"), ["each took its path, on the same rows"]),
        (lambda fast: fast.update(rows="b"), ["each took its path, on the same rows"]),
        (lambda fast: fast["gradient_norms"].__setitem__(7, 0.0), ["every gradient's norm above zero"]),
        (lambda fast: fast["gradient_norms"].__setitem__(7, None), ["every gradient's norm above zero"]),
    ],
)
def test_each_criterion_can_fail(curve, runs, change, fails):
    change(runs["fast"])
    assert [name for name, so in curve.judge(runs)["holds"].items() if not so] == fails


def test_without_an_interval_nothing_lies_in_it(curve, runs):
    runs["plain"]["interval"] = [None, None]
    assert not curve.judge(runs)["holds"]["perplexity in the plain run's interval"]


def test_the_worst_set_is_claimed(curve, runs, tmp_path):
    """A perplexity that fell by a tenth is farther from 1 than one that rose by a fortieth."""
    other = deepcopy(runs)
    other["fast"]["perplexity"] = 18.0
    other["fast"]["losses"] = [3.0] * STEPS
    judged = {"novel": curve.judge(runs), "instructions": curve.judge(other)}
    assert curve.worst(judged) == pytest.approx({"mean": 0.2, "largest": 0.2, "ratio": 0.9})
    curve.claim(judged, tmp_path)
    told = {one["claim"]: one["value"] for one in json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))}
    assert told == {"fast-curve-loss-difference": 0.2, "fast-curve-perplexity-ratio": 0.9}


def test_a_finished_run_is_not_made_again(curve, monkeypatch, tmp_path):
    """A run of another recipe is; and each is on the disk before the next begins."""
    made = []

    def pretend(recipe, data, place, runs):
        path = "fast" if 'fast_path: "on"' in recipe else "plain"
        found = {**run(path, 0.1 * int(recipe.split("seed: ")[1][0])), "recipe": recipe, "where": curve.where(), "seconds": 1.0}
        made.append(path)
        if len(made) == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(curve, "run_once", pretend)
    monkeypatch.setattr(curve, "write_instructions", lambda data, place: None)
    monkeypatch.setattr(sys, "argv", ["fast_curve.py", "--steps", "20", "--results", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        curve.main()
    assert list(json.loads((tmp_path / "fast_curve_20_steps.json").read_text(encoding="utf-8"))["runs"]["novel"]) == ["plain", "fast"]
    curve.main()
    assert made == ["plain", "fast", *["plain"] * 3, "plain", "fast", *["plain"] * 2]
    monkeypatch.setattr(curve, "RECIPE", curve.RECIPE.replace("1e-3", "2e-3"))
    curve.main()
    assert len(made) == 17
    assert not (tmp_path / "claims.json").exists(), "20 steps are a trial"


def test_both_ways_are_one_recipe_but_for_the_path(curve):
    plain, fast = (curve.recipe_of("novel", run, 200).splitlines() for run in ("plain", "fast"))
    assert [pair for pair in zip(plain, fast, strict=True) if pair[0] != pair[1]] == [('  fast_path: "off"', '  fast_path: "on"')]
