"""The fastest that fits: in budgets of memory halfbyte's best beside Unsloth's best, both run again in just so much.

    python benchmarks/suite.py --together --no-anchors --warm-caches --warm-up 5 --timed 8 --repeats 1 --configurations 1x2048 2x2048 4x2048 8x2048
    python benchmarks/frontier.py [--budgets 8 10 12 16 24 40 80] [--peers FOLDER] [--budget-seconds 570]
    python benchmarks/frontier.py --choose      only says who would run

From the suite's cells of these configurations it takes, for each side and budget, the most tokens/s whose reserved peak fits. The winners run again, where
torch.cuda.set_per_process_memory_fraction allows PyTorch no more than the budget, before the model is loaded; who runs out of memory there gives way to the
next. A winner of several budgets runs in the smallest of them, and in a larger one only if that had slowed it (Unsloth moves what it can out of the way
where memory is tight). Ours share a process, smallest budget first; Unsloth's have one each, so that what it compiles for one shape is not in the way of
another's. Writes benchmarks/results/frontier.json and the claims budget-GB-vs-unsloth.
A budget is in units of 10^9 bytes and without the driver's own share, for both.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import suite
from claims import save_raw
from programs import FP8_WAYS, Configuration, Steps, configuration_of, family_of
from suite_claims import BUDGETS_GB, UNSLOTH, Comparison, claim_of, in_budget, put_claims, reserved, sound
from suite_table import Cell, faults, load_cells, reference_of

GRIDS = ("1x2048", "2x2048", "4x2048", "8x2048")
SIDES = ("ours", "unsloth")
NEVER = 1 << 30  # gigabytes: whoever failed for another reason than memory is not tried again
SLOWED = 0.97  # of the speed without a budget; one sitting differs from the next by 1 to 2 %
FILE = "frontier.json"


def name_of(cell: Cell) -> str:
    return f"{cell['configuration']['name']}--{cell['program']}"


def asked(cell: Cell) -> str:
    """As the suite's --cells has it."""
    return f"{cell['configuration']['rows']}x{cell['configuration']['tokens']}--{cell['program']}"


def fastest_that_fits(cells: list[Cell], side: str, budget: int, failed: dict[str, int]) -> Cell | None:
    """`failed`: name -> the most gigabytes in which it did not run."""
    exact = (one for one in cells if one["program"] not in FP8_WAYS)  # a budget says who is faster at the same numbers
    fitting = (one for one in exact if family_of(one["program"]) == side and reserved(one) <= budget * 10**9 and failed.get(name_of(one), 0) < budget)
    return max(fitting, key=lambda one: one["tokens_per_second"], default=None)


def job_of(cell: Cell, budget: int, steps: Steps) -> suite.Job:
    asked = {key: cell["configuration"][key] for key in ("shape", "rows", "tokens", "rank")}
    return suite.Job(Configuration(**asked), cell["program"], steps, budget_bytes=budget * 10**9)


Runs = dict[str, dict[int, Cell]]
"""name -> gigabytes -> the cell that was measured in them."""


def run_winners(args: Namespace, cells: list[Cell], deadline: float) -> dict[int, Comparison]:
    """Gigabytes -> the pair that was run; of a budget that nothing of one side fits there is none."""
    failed: dict[str, int] = {}
    runs: Runs = {}
    steps = Steps(args.warm_up, args.timed, args.repeats)
    while jobs := [job_of(cell, budget, steps) for budget, cell in wanted(cells, args.budgets, runs, failed)]:
        ours = sorted((job for job in jobs if family_of(job.program) == "ours"), key=lambda job: job.budget_bytes or 0)
        for group in [*([ours] if ours else []), *([job] for job in jobs if family_of(job.program) != "ours")]:
            for job, cell in suite.run_jobs(args, group, deadline):
                budget = (job.budget_bytes or 0) // 10**9
                print(f"{job.name} in {budget} GB: {suite.in_short(cell)}; {deadline - time.monotonic():.0f} s left", flush=True)
                if cell["reason"] == suite.BUDGET_SPENT:
                    return pairs(cells, args.budgets, runs, failed)
                wrong = faults(cell, reference_of(cells, job.configuration.name)) if cell["status"] == "measured" else [cell["status"]]
                if not wrong and reserved(cell) > budget * 10**9:
                    wrong = [f"{reserved(cell) / 1e9:.2f} GB were reserved"]
                if wrong:
                    print(f"{job.name} does not count: {'; '.join(wrong)}", flush=True)
                    failed[job.name] = budget if cell["status"] in ("out of memory", "measured") else NEVER
                else:
                    runs.setdefault(job.name, {})[budget] = cell
    return pairs(cells, args.budgets, runs, failed)


def wanted(cells: list[Cell], budgets: Iterable[int], runs: Runs, failed: dict[str, int]) -> list[tuple[int, Cell]]:
    """What is still to be run: each winner once at a time, in the smallest budget that it was not run in."""
    least: dict[str, tuple[int, Cell]] = {}
    for budget in sorted(budgets):
        for side in SIDES:
            winner = fastest_that_fits(cells, side, budget, failed)
            if winner is None:
                continue
            ran = fastest_run(runs, name_of(winner), budget)
            slowed = ran is not None and ran["tokens_per_second"] < SLOWED * winner["tokens_per_second"] and budget not in runs[name_of(winner)]
            if ran is None or slowed:
                least.setdefault(name_of(winner), (budget, winner))
    return list(least.values())


def fastest_run(runs: Runs, name: str, budget: int) -> Cell | None:
    return max((cell for limit, cell in runs.get(name, {}).items() if limit <= budget), key=lambda cell: cell["tokens_per_second"], default=None)


def pairs(cells: list[Cell], budgets: Iterable[int], runs: Runs, failed: dict[str, int]) -> dict[int, Comparison]:
    found = {}
    for budget in sorted(budgets):
        winners = [fastest_that_fits(cells, side, budget, failed) for side in SIDES]
        ours, rival = (fastest_run(runs, name_of(winner), budget) if winner else None for winner in winners)
        if ours and rival:
            found[budget] = Comparison(ours, rival)
    return found


def load_pairs(results: Path) -> dict[int, Comparison]:
    """What frontier.json holds, and what the suite ran under limits (--cells), where that is newer."""
    file = results / FILE
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = {int(budget): Comparison(pair["ours"], pair["rival"]) for budget, pair in stored.items()}
    cells = load_cells(results / "suite")
    for budget in BUDGETS_GB:
        pair = in_budget(cells, budget)
        if pair is not None and (budget not in found or pair.ours["sitting"] > found[budget].ours["sitting"]):
            found[budget] = pair
    return found


def save_pairs(found: dict[int, Comparison], results: Path) -> None:
    """Budgets that were not run now stay as they were. The claims are those of the file."""
    everything = {**load_pairs(results), **found}
    save_raw(FILE, {str(budget): {"ours": pair.ours, "rival": pair.rival} for budget, pair in sorted(everything.items())}, results)
    record_budgets(results)


def record_budgets(results: Path) -> None:
    """The claims of frontier.json; no other of these stays."""
    put_claims(claims_of(load_pairs(results)), {f"budget-{budget}-vs-unsloth" for budget in BUDGETS_GB}, results)


def claims_of(found: dict[int, Comparison]) -> Iterable[dict[str, Any]]:
    for budget, pair in found.items():
        text = (
            f"times per token of the fastest of halfbyte's ways ({name_of(pair.ours)}) and of Unsloth's ({name_of(pair.rival)}) that fit into {budget} GB, "
            f"run again where PyTorch may take {pair.ours['budget_bytes'] / 1e9:g} and {pair.rival['budget_bytes'] / 1e9:g} GB"
        )
        cells = " ".join(f"{asked(cell)}={cell['budget_bytes'] / 1e9:g}" for cell in (pair.ours, pair.rival))
        yield claim_of(f"budget-{budget}-vs-unsloth", pair, f"python benchmarks/suite.py --together --no-anchors --warm-caches --cells {cells}", text)


def main() -> None:
    parser = suite.parser()
    parser.description = __doc__.split("\n")[0]
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS_GB), metavar="GB")
    parser.add_argument("--choose", action="store_true", help="run nothing")
    parser.set_defaults(configurations=list(GRIDS), warm_up=5, timed=8, repeats=1, warm_caches=True)
    args = parser.parse_args()
    args.scratch = args.scratch.resolve()
    deadline = time.monotonic() + args.budget_seconds
    configurations = [configuration_of(args.shape, grid, args.rank) for grid in args.configurations]
    cells = load_cells(args.results / "suite")
    known = [one for configuration in configurations for one in sound(cells, configuration.name)]
    known = [one for one in known if family_of(one["program"]) == "ours" or one["program"] in UNSLOTH]
    for budget in sorted(args.budgets):
        for side in SIDES:
            best = fastest_that_fits(known, side, budget, {})
            print(f"{budget} GB, {side}: " + (f"{name_of(best)}, {suite.in_short(best)}" if best else "nothing fits"))
    if args.choose:
        return
    if failed := suite.write_given(args, set(configurations)):
        sys.exit(f"what the programs are given could not be written: {failed}")
    sitting = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = run_winners(args, known, deadline)
    for pair in found.values():
        for cell in (pair.ours, pair.rival):
            cell["sitting"] = sitting
    save_pairs(found, args.results)
    for budget, pair in found.items():
        sides = " beside ".join(f"{name_of(cell)}, {reserved(cell) / 1e9:.2f} GB" for cell in (pair.ours, pair.rival))
        print(f"{budget} GB: {pair.ratio:.2f}: {sides}")


if __name__ == "__main__":
    main()
