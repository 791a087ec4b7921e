"""What is claimed of training with FP8: from runs with figures set by the tests, and from those that are recorded."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_can_be_imported():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def runs_with(without, fp8):
    def run(loss, in_fp8):
        return {"test_loss": loss, "fp8": in_fp8, "rows": ["a", "b"], "losses": [loss, loss], "gradient_norms": [1.0, 1.0], "perplexity_of_base": 20.0}

    return {f"{kind}-{seed}": run(loss, kind == "fp8") for kind, losses in (("auto", without), ("fp8", fp8)) for seed, loss in enumerate(losses)}


def test_the_difference_is_a_share_of_what_seeds_differ_by():
    from fp8_quality import judge

    found = judge(runs_with([3.0, 3.1, 3.2], [3.02, 3.15, 3.18]))
    assert found["mean_difference"] == pytest.approx(0.05 / 3)
    assert found["seed_to_seed"] == pytest.approx(0.1)
    assert found["share"] == pytest.approx(0.5 / 3)
    assert all(found["holds"].values())


def test_runs_that_are_not_a_pair_are_told():
    from fp8_quality import judge

    runs = runs_with([3.0, 3.1, 3.2], [3.02, 3.15, 3.18])
    runs["fp8-1"] |= {"fp8": False, "rows": ["b", "a"], "gradient_norms": [1.0, 0.0]}
    assert not any(judge(runs)["holds"].values())


def test_the_worse_set_is_claimed_whatever_its_sign(tmp_path):
    from fp8_quality import claim, judge

    judged = {"better": judge(runs_with([3.0, 3.1, 3.2], [2.9, 3.0, 3.1])), "worse": judge(runs_with([3.0, 3.1, 3.2], [3.05, 3.15, 3.25]))}
    claim(judged, tmp_path)
    (found,) = json.loads((tmp_path / "claims.json").read_text())
    assert (found["claim"], found["value"], found["better"]["mean_difference_nats"]) == ("fp8-quality-difference", 1.0, -0.1)


def test_the_claim_is_what_the_recorded_runs_say(tmp_path):
    from fp8_quality import claim, judge

    kept = json.loads((BENCHMARKS / "results" / "fp8_quality.json").read_text())
    judged = {data_set: judge(runs) for data_set, runs in kept["runs"].items()}
    assert all(all(one["holds"].values()) for one in judged.values())
    claim(judged, tmp_path)
    (again,) = json.loads((tmp_path / "claims.json").read_text())
    recorded = next(one for one in json.loads((BENCHMARKS / "results" / "claims.json").read_text()) if one["claim"] == again["claim"])
    assert (again["value"], again["novel"]) == (recorded["value"], recorded["novel"])
