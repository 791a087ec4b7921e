"""Ratios beside the rivals, budgets of memory, and the picture of the frontiers: from cells as the suite leaves them, with figures set by the tests."""

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


@pytest.fixture(scope="module")
def cell():
    """A function: program, grid, tokens/s, gigabytes -> a cell that passes its checks."""
    from programs import RANK, configuration_of

    recorded = json.loads((BENCHMARKS / "results" / "suite" / "mistral-7b-4x2048-r16--unsloth-off.json").read_text())

    def made(program, grid, speed, gigabytes, sitting="2026-11-22T04:00:00Z", shape="mistral-7b", **changes):
        configuration = configuration_of(shape, grid, RANK)
        asked = {"name": configuration.name, **vars(configuration)}
        peaks = {**recorded["peaks"], "reserved_bytes": round(gigabytes * 1e9), "allocated_bytes": round(gigabytes * 9e8)}
        return {
            **recorded, "configuration": asked, "program": program, "tokens_per_second": speed, "sitting": sitting, "peaks": peaks, "budget_bytes": None,
            "tokens_a_step": configuration.rows * configuration.tokens, **changes,
        }  # fmt: skip

    return made


def claims_in(folder):
    return {one["claim"]: one for one in json.loads((folder / "claims.json").read_text())}


# Ratios


def test_the_fastest_way_within_the_rivals_peak_is_claimed(cell, tmp_path):
    from suite_claims import record_ratios

    (tmp_path / "claims.json").write_text('[{"claim": "another", "value": 1}, {"claim": "packed-vs-unsloth", "value": 9}]')
    cells = [
        cell("unsloth-off", "4x2048", 16000, 38.06), cell("fast-resident-all", "4x2048", 21000, 45.0), cell("fast-resident", "4x2048", 20000, 38.06),
        cell("fast", "4x2048", 19000, 31.0), cell("unsloth", "4x2048", 11000, 7.39), cell("lean", "4x2048", 14000, 7.5), cell("leanest", "4x2048", 13200, 6.1),
        cell("ours-kept", "4x2048", 30000, 5.0),
    ]  # fmt: skip
    record_ratios(cells, tmp_path)
    claims = claims_in(tmp_path)
    assert set(claims) == {"another", "t8192-fast-vs-unsloth", "t8192-lean-vs-unsloth"}
    fast, lean = claims["t8192-fast-vs-unsloth"], claims["t8192-lean-vs-unsloth"]
    assert (fast["value"], fast["way"], fast["peer"], fast["peak_gb"], fast["peer_peak_gb"]) == (1.25, "fast-resident", "unsloth-off", 38.06, 38.06)
    assert (lean["value"], lean["way"], lean["peer"], lean["peak_gb"], lean["peer_peak_gb"]) == (1.2, "leanest", "unsloth", 6.1, 7.39)
    assert (lean["allocated_gb"], lean["date"]) == (5.49, "2026-11-22")


def test_cells_of_two_sittings_and_cells_that_fail_a_check_are_not_compared(cell, tmp_path):
    from suite_claims import record_ratios

    rival = cell("unsloth", "1x2048", 8000, 5.4)
    record_ratios([rival, cell("lean", "1x2048", 12000, 5.0, sitting="2026-11-22T05:00:00Z")], tmp_path)
    assert claims_in(tmp_path) == {}
    gradients = {"zero_b_in_step_1": [], "zero_a_in_step_2": [], "zero_in_step_3": ["layers.0.mlp.up_proj.A"]}
    record_ratios([rival, cell("lean", "1x2048", 12000, 5.0, gradients=gradients)], tmp_path)
    assert claims_in(tmp_path) == {}
    record_ratios([rival, cell("lean", "1x2048", 12000, 5.0)], tmp_path)
    assert claims_in(tmp_path)["t2048-lean-vs-unsloth"]["value"] == 1.5


def test_fp8_wins_its_own_target_and_no_other(cell, frontier, tmp_path):
    from suite_claims import record_ratios

    cells = [cell("unsloth-off", "4x2048", 16000, 38.06), cell("fp8", "4x2048", 26000, 33.0), cell("fast", "4x2048", 19000, 31.0)]
    record_ratios(cells, tmp_path)
    claims = claims_in(tmp_path)
    assert {name: (one["way"], one["value"]) for name, one in claims.items()} == {"t8192-fast-vs-unsloth": ("fast", 1.188), "fp8-vs-unsloth": ("fp8", 1.625)}
    assert claims["fp8-vs-unsloth"]["text"].startswith("fp8 is halfbyte's fastest way in FP8")
    record_ratios(cells[:2], tmp_path)
    assert set(claims_in(tmp_path)) == {"fp8-vs-unsloth"}
    assert ("4x2048--fp8", 40) not in frontier(cells, "--budgets", "40")


def test_fp8_on_weights_that_nobody_trained_may_be_further_away_and_not_broken(cell):
    from suite_table import faults

    reference = cell("unsloth-off", "4x2048", 16000, 38.06)

    def away(program, losses=0.0, norms=1.0):
        moved = {key: [loss + losses for loss in reference[key]] for key in ("warm_up_losses", "losses")}
        return faults(cell(program, "4x2048", 26000, 33.0, grad_norms=[norms * norm for norm in reference["grad_norms"]], **moved), reference)

    assert away("fp8", losses=0.02, norms=0.945) == []
    assert away("fast", losses=0.02, norms=0.945) != []
    assert away("fp8", losses=-0.1) != []
    assert away("fp8", norms=0.85) == ["a gradient's norm is 15% away from unsloth-off"]
    assert away("fp8", norms=float("nan")) != []


def test_of_packed_rows_the_least_ratio_is_claimed_beside_the_best_setting(cell, tmp_path):
    from suite_claims import record_ratios, targets_table

    cells = [
        cell("unsloth", "1x8192:alpaca", 7000, 8.0), cell("unsloth-off", "1x8192:alpaca", 10000, 38.0), cell("fast", "1x8192:alpaca", 18000, 32.0),
        cell("unsloth-off", "1x8192:replies", 9000, 38.0), cell("fast", "1x8192:replies", 14400, 32.0),
    ]  # fmt: skip
    record_ratios(cells, tmp_path)
    claim = claims_in(tmp_path)["packed-vs-unsloth"]
    assert (claim["value"], claim["peer"], claim["configuration"]) == (1.6, "unsloth-off", "mistral-7b-1x8192-replies-r16")
    assert claim["text"].endswith("mistral-7b-1x8192-alpaca-r16: 1.80")
    line = "| packed short rows, beside its best setting | 1.50 | **1.60** | fast 1 x 8,192 replies, 32.00 | unsloth-off 1 x 8,192 replies, 38.00 |"
    assert line in targets_table(cells, {})


# Budgets


@pytest.fixture
def frontier(monkeypatch, tmp_path, cell):
    """A function: cells, words -> what ran, as (name, gigabytes). Each runs as its cell says, but for `fates`: name -> least gigabytes it runs in,
    name -> {gigabytes: tokens/s}, or name -> broken."""
    import frontier
    import suite

    def run(cells, *words, fates=()):
        fates, ran = dict(fates), []
        (tmp_path / "suite").mkdir(exist_ok=True)
        for one in cells:
            (tmp_path / "suite" / f"{frontier.name_of(one)}.json").write_text(json.dumps(one))

        def run_jobs(args, jobs, deadline):
            for job in jobs:
                gigabytes = job.budget_bytes // 10**9
                ran.append((job.name.replace("mistral-7b-", "").replace("-r16", ""), gigabytes))
                found = next(one for one in cells if frontier.name_of(one) == job.name)
                fate = fates.get(job.name, 0)
                if fate == "broken":
                    yield job, {**found, "status": "failed", "reason": "RuntimeError: no such kernel"}
                    continue
                if isinstance(fate, int) and gigabytes < fate:
                    yield job, {**found, "status": "out of memory", "reason": "torch.OutOfMemoryError: CUDA out of memory."}
                    continue
                speed = fate.get(gigabytes, found["tokens_per_second"]) if isinstance(fate, dict) else found["tokens_per_second"]
                yield job, {**found, "tokens_per_second": speed, "budget_bytes": job.budget_bytes}

        monkeypatch.setattr(suite, "run_jobs", run_jobs)
        monkeypatch.setattr(suite, "write_given", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["frontier.py", "--results", str(tmp_path), *words])
        frontier.main()
        return ran

    return run


def test_winners_run_again_in_the_smallest_budget_that_they_win(cell, frontier, tmp_path):
    cells = [
        cell("lean", "4x2048", 14000, 7.0), cell("fast", "1x2048", 15000, 12.0), cell("fast", "4x2048", 20000, 31.0), cell("hf", "4x2048", 99999, 1.0),
        cell("unsloth", "4x2048", 11000, 7.4), cell("unsloth-off", "1x2048", 13000, 13.5), cell("unsloth-off", "4x2048", 16000, 38.1),
    ]  # fmt: skip
    assert frontier(cells, "--budgets", "80", "8", "16", "24", "40") == [
        ("4x2048--lean", 8), ("1x2048--fast", 16), ("4x2048--fast", 40), ("4x2048--unsloth", 8), ("1x2048--unsloth-off", 16), ("4x2048--unsloth-off", 40),
    ]  # fmt: skip
    claims = claims_in(tmp_path)
    assert {name: one["value"] for name, one in claims.items()} == {
        "budget-8-vs-unsloth": 1.273, "budget-16-vs-unsloth": 1.154, "budget-24-vs-unsloth": 1.154, "budget-40-vs-unsloth": 1.25, "budget-80-vs-unsloth": 1.25,
    }  # fmt: skip
    assert (claims["budget-24-vs-unsloth"]["peak_gb"], claims["budget-24-vs-unsloth"]["peer_peak_gb"]) == (12.0, 13.5)
    assert claims["budget-24-vs-unsloth"]["command"].endswith("--cells 1x2048--fast=16 1x2048--unsloth-off=16")
    # Another call adds its budgets to the others'.
    frontier(cells, "--budgets", "12")
    assert len(claims_in(tmp_path)) == 6


def test_who_runs_out_of_memory_gives_way_to_the_next(cell, frontier, tmp_path):
    cells = [cell("lean", "4x2048", 14000, 7.9), cell("leanest", "4x2048", 12000, 6.0), cell("unsloth", "4x2048", 11000, 7.4)]
    ran = frontier(cells, "--budgets", "8", "10", fates={"mistral-7b-4x2048-r16--lean": 10})
    assert ran == [("4x2048--lean", 8), ("4x2048--unsloth", 8), ("4x2048--leanest", 8), ("4x2048--lean", 10)]
    claims = claims_in(tmp_path)
    assert (claims["budget-8-vs-unsloth"]["way"], claims["budget-10-vs-unsloth"]["way"]) == ("leanest", "lean")


def test_who_fails_for_another_reason_is_tried_once(cell, frontier):
    cells = [cell("lean", "4x2048", 14000, 7.9), cell("leanest", "4x2048", 12000, 6.0), cell("unsloth", "4x2048", 11000, 7.4)]
    ran = frontier(cells, "--budgets", "8", "10", "12", fates={"mistral-7b-4x2048-r16--lean": "broken"})
    assert ran == [("4x2048--lean", 8), ("4x2048--unsloth", 8), ("4x2048--leanest", 8)]


def test_who_was_slowed_by_a_small_budget_runs_again_in_a_larger_one(cell, frontier, tmp_path):
    cells = [cell("lean", "4x2048", 14000, 7.0), cell("unsloth", "4x2048", 11000, 7.4)]
    ran = frontier(cells, "--budgets", "8", "10", "12", fates={"mistral-7b-4x2048-r16--unsloth": {8: 9000, 10: 11000}})
    assert ran == [("4x2048--lean", 8), ("4x2048--unsloth", 8), ("4x2048--unsloth", 10)]
    claims = claims_in(tmp_path)
    assert [claims[f"budget-{budget}-vs-unsloth"]["value"] for budget in (8, 10, 12)] == [1.556, 1.273, 1.273]


def test_cells_of_the_suite_that_ran_under_a_limit_count_for_every_budget_that_holds_it(cell, tmp_path):
    from frontier import load_pairs

    cells = [
        cell("lean", "4x2048", 14000, 7.4, budget_bytes=8 * 10**9), cell("fast", "1x2048", 17000, 11.8, budget_bytes=12 * 10**9),
        cell("unsloth", "4x2048", 11000, 7.2, budget_bytes=8 * 10**9), cell("unsloth-off", "1x2048", 13000, 12.9, budget_bytes=16 * 10**9),
        cell("thin", "1x2048", 90000, 7.9), cell("half", "1x2048", 80000, 9.0, sitting="2026-11-22T07:00:00Z", budget_bytes=10 * 10**9),
    ]  # fmt: skip
    (tmp_path / "suite").mkdir()
    for number, one in enumerate(cells):
        (tmp_path / "suite" / f"a--{number}.json").write_text(json.dumps(one))
    pairs = {budget: (pair.ours["program"], pair.rival["program"]) for budget, pair in load_pairs(tmp_path).items()}
    assert pairs == {
        8: ("lean", "unsloth"), 10: ("lean", "unsloth"), 12: ("fast", "unsloth"), **dict.fromkeys((16, 24, 40, 80), ("fast", "unsloth-off"))
    }  # fmt: skip


def test_where_nothing_of_one_side_fits_there_is_no_claim(cell, frontier, tmp_path):
    assert frontier([cell("lean", "4x2048", 14000, 7.0), cell("unsloth", "4x2048", 11000, 9.4)], "--budgets", "8") == [("4x2048--lean", 8)]
    assert claims_in(tmp_path) == {}


# The picture


def test_the_frontiers_rise_and_are_labelled_where_they_do(cell):
    import xml.etree.ElementTree as ElementTree

    from suite_chart import draw, panels

    cells = [
        cell("lean", "1x2048", 12000, 5.0), cell("lean", "4x2048", 14000, 7.0), cell("leanest", "4x2048", 11500, 6.0), cell("fast", "4x2048", 20000, 31.0),
        cell("unsloth", "1x2048", 8000, 5.4), cell("unsloth", "4x2048", 11000, 7.4), cell("unsloth-off", "4x2048", 16000, 38.0),
        cell("hf", "4x2048", 6700, 14.2),
    ]  # fmt: skip
    first, *others = panels(cells)
    assert [point.label for point in first.lines["ours"]] == ["lean 1x", "lean 4x", "fast 4x"]
    assert [point.label for point in first.lines["unsloth"]] == ["unsloth 1x", "unsloth 4x", "unsloth-off 4x"]
    assert len([point for point in first.points if not point.label]) == 1
    assert len(others) == 2
    picture = ElementTree.fromstring(draw(cells))
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_memory_doubles_along_the_axis_of_the_frontiers():
    from suite_chart import doubling

    assert doubling(5.0, 38.0) == [4, 6, 8, 12, 16, 24, 32, 48]
    assert doubling(4.0, 4.0) == [3, 4, 6]


def test_a_configuration_alone_has_no_frontiers(cell):
    from suite_chart import panels

    assert len(panels([cell("lean", "4x2048", 14000, 7.0), cell("unsloth", "4x2048", 11000, 7.4)])) == 1
