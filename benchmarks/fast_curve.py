"""Does the fast path learn what the plain path learns? 200 steps of the embedded base on real text, both ways, beside the plain path with other seeds.

    python benchmarks/fast_curve.py [SET ...] [--steps 6] [--data FOLDER] [--results FOLDER]

SETS: a novel, which the base has not seen, and instructions with answers, which it has (base/CARD.md; what is asked is whether two paths agree, not what
is new), read from HALFBYTE_DATA (default ../shared/data). Of each there are four runs of `halfbyte train`, in this process: plain and fast with seed 0,
plain with seeds 1 and 2, which are another order of the rows and another adapter to begin with; train, test and all else are the same. A run that is
finished is kept in results/fast_curve.json at once, and is not made again on the same machine with the same recipe. It is meant for a GPU; there the plan
takes bfloat16, and the fast path may replay recorded steps. Without one both compute in float32.

What must hold, for each set:
- Losses are smoothed (mean of 10 steps in a row). The mean absolute difference of fast and plain is at most that of the two plain seeds that differ least,
  and so is the largest. The claim fast-curve-loss-difference is the first as a share, of the worse set: at most 1. Other seeds see other rows in a step,
  so their difference holds what rows differ by, and 1 is lenient; how far fast and plain are apart in a single step, without smoothing, is kept too.
- The perplexity on the test part after the last step lies in the plain run's 95 % interval. The claim fast-curve-perplexity-ratio is fast over plain, of the
  set where it is farthest from 1. The interval of the paired difference on the same test rows, which is narrower, is kept too.
- The gradient's norm is above zero in every step of every run.

With other --steps raw results go into fast_curve_N_steps.json, and no claim is recorded. The pictures (fast_curve_SET.svg) lie beside.
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from claims import RESULTS, record, save_raw, versions, where

STEPS, SMOOTHED = 200, 10
TEST_EVERY = 7
RUNS = {"plain": ("off", 0), "fast": ("on", 0), "plain, seed 1": ("off", 1), "plain, seed 2": ("off", 2)}
PLAIN = [name for name in RUNS if name.startswith("plain")]
# The test part is the same for every seed: the end of the book, every seventh instruction. Nothing validates, so the last step's adapter is measured.
SETS = {
    "novel": """\
  kind: text
  path: {data}/frankenstein/frankenstein_pg84.txt
  licence: public domain in the USA (Project Gutenberg)
  rows: book
  test_share: 0.15
""",
    "instructions": """\
  kind: instruction
  path: {place}/train.jsonl
  test_path: {place}/test.jsonl
  licence: Apache-2.0 (LLaMA-Factory, alpaca_en_demo)
  instruction_column: instruction
  input_column: input
  output_column: output
  drop_overlap: true
""",
}
RECIPE = """\
name: curve
base: embedded
seed: {seed}
data:
{data}  max_length: 512
  validation_share: 0
adapter:
  r: 16
  alpha: 32
train:
  max_steps: {steps}
  eval_steps: {steps}
  batch_size: 4
  learning_rate: 1e-3
  fast_path: "{fast}"
evaluate:
  max_answers: 0
  max_new_tokens: 1
  prompts: [Once upon a time]
"""


def recipe_of(data_set: str, run: str, steps: int) -> str:
    """With {data} and {place} where folders stand, so that it is the same wherever they are."""
    fast, seed = RUNS[run]
    return RECIPE.format(seed=seed, data=SETS[data_set], steps=steps, fast=fast)


def write_instructions(data: Path, place: Path) -> None:
    lines = gzip.decompress((data / "instruct" / "alpaca_en_1k.jsonl.gz").read_bytes()).decode().splitlines(keepends=True)
    for part, chosen in (("test", lines[::TEST_EVERY]), ("train", [line for number, line in enumerate(lines) if number % TEST_EVERY])):
        (place / f"{part}.jsonl").write_text("".join(chosen), encoding="utf-8")


def run_once(recipe: str, data: Path, place: Path, runs: Path) -> dict[str, Any]:
    from halfbyte import api
    from halfbyte.evaluate.runs import read_measured
    from halfbyte.recipe.load import parse_recipe
    from halfbyte.runs.folder import read_report
    from halfbyte.runs.report import read_events

    started = time.monotonic()
    run = api.train(parse_recipe(recipe.replace("{data}", str(data)).replace("{place}", str(place)), "fast_curve.yaml", []), runs)
    seconds = time.monotonic() - started
    steps = [event for event in read_events(run.events)[0] if event["event"] == "step"]
    plan = run.read_plan()
    measured = next(one for one in read_measured(run) if (one.group, one.metric.name) == ("text", "perplexity"))
    told = next(one for one in read_report(run.path)["comparisons"] if (one["group"], one["metric"]) == ("text", "perplexity"))
    return {
        "recipe": recipe, "where": where(), "versions": versions(), "path": plan["computing"]["path"], "precision": plan["precision"],
        "recorded": plan["computing"]["record"], "seconds": round(seconds, 1), "seconds_of_steps": steps[-1]["seconds"],
        # Of the rows of every step in order: two runs with the same letters trained on the same.
        "rows": hashlib.sha256(" ".join(step["rows"] for step in steps).encode()).hexdigest()[:16],
        "losses": [step["loss"] for step in steps], "gradient_norms": [step["grad_norm"] for step in steps],
        "perplexity_of_base": told["base"], "perplexity": told["tuned"], "interval": told["tuned_interval"], "unit": told["unit"],
        "test_rows": [[round(float(loss), 4), int(tokens)] for loss, tokens in measured.tuned],
        "test_units": None if measured.units is None else measured.units.tolist(),
    }  # fmt: skip


def smoothed(losses: list[float], window: int = SMOOTHED) -> np.ndarray:
    """(S,) -> (S - window + 1,) means of as many steps in a row; of fewer steps than that one mean."""
    window = min(window, len(losses))
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def apart(one: list[float], other: list[float], window: int = SMOOTHED) -> dict[str, float]:
    """Mean and largest absolute difference of two smoothed curves, in nats a token."""
    differences = np.abs(smoothed(one, window) - smoothed(other, window))
    return {"mean": float(differences.mean()), "largest": float(differences.max())}


def judge(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The four runs of one set -> what is claimed of it."""
    plain, fast = runs["plain"], runs["fast"]
    away = apart(plain["losses"], fast["losses"])
    seeds = {f"{one} | {other}": apart(runs[one]["losses"], runs[other]["losses"]) for one, other in combinations(PLAIN, 2)}
    least = {figure: min(pair[figure] for pair in seeds.values()) for figure in away}
    low, high = plain["interval"]
    holds = {
        "each took its path, on the same rows": (plain["path"], fast["path"], fast["rows"]) == ("plain", "fast", plain["rows"]),
        "mean difference of losses at most that of seeds": away["mean"] <= least["mean"],
        "largest difference of losses at most that of seeds": away["largest"] <= least["largest"],
        "perplexity in the plain run's interval": None not in (low, high) and low <= fast["perplexity"] <= high,
        "every gradient's norm above zero": all(norm is not None and norm > 0 for run in runs.values() for norm in run["gradient_norms"]),
    }  # fmt: skip
    return {
        "holds": holds, "apart": away, "apart_in_single_steps": apart(plain["losses"], fast["losses"], 1), "seeds_apart": seeds,
        "share_of_seeds": {figure: away[figure] / least[figure] if least[figure] else float("inf") for figure in away},
        "perplexity": {name: run["perplexity"] for name, run in runs.items()}, "interval_of_plain": [low, high],
        "perplexity_ratio": fast["perplexity"] / plain["perplexity"], **paired(plain, fast),
        "least_gradient_norm": min((norm or 0.0) for run in runs.values() for norm in run["gradient_norms"]),
    }  # fmt: skip


def paired(plain: dict[str, Any], fast: dict[str, Any]) -> dict[str, Any]:
    """Fast less plain, in perplexity on the same test rows, with its 95 % interval."""
    from halfbyte.evaluate.metrics import Metric
    from halfbyte.evaluate.uncertainty import compare

    units = None if plain["test_units"] is None else np.array(plain["test_units"])
    metric = Metric("perplexity", "exp_ratio", higher_is_better=False, unit=plain["unit"])
    told = compare(metric, np.array(plain["test_rows"]), np.array(fast["test_rows"]), units).as_json()
    return {"paired_difference": told["difference"], "paired_interval": told["interval"]}


def worst(judged: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of all sets."""
    ratios = [one["perplexity_ratio"] for one in judged.values()]
    return {
        "mean": max(one["share_of_seeds"]["mean"] for one in judged.values()), "largest": max(one["share_of_seeds"]["largest"] for one in judged.values()),
        "ratio": max(ratios, key=lambda ratio: max(ratio, 1 / ratio)),
    }  # fmt: skip


def draw(data_set: str, runs: dict[str, dict[str, Any]]) -> str:
    """The smoothed curves as one picture that stands alone, for light and dark."""
    from halfbyte.runs.chart import CHART_CSS, Series, line_chart

    tones = {"plain": ("line", "plain"), "fast": ("dots", "fast")}
    window = min(SMOOTHED, len(runs["plain"]["losses"]))
    curves = []
    for name, run in runs.items():
        points = list(enumerate(smoothed(run["losses"]).tolist(), window))
        # Of fast a point in ten, or it would hide what it should lie on.
        curves.append(Series(name, points[::SMOOTHED] if name == "fast" else points, *tones.get(name, ("pale", "seed"))))
    chart = line_chart(f"curve-{data_set}", f"Training loss, {data_set}: plain and fast path", curves, "step", f"loss, mean of {window} steps")
    light = "svg{--quiet:#667085;--rule:#e4e7ec;--plain:#3b62b5;--fast:#b5541c;--seed:#667085;background:#fff;font-family:system-ui,sans-serif}"
    dark = "svg{--quiet:#98a2b3;--rule:#2b3342;--plain:#8fb1ff;--fast:#ffa467;--seed:#98a2b3;background:#12161f}"
    style = f"<style>{CHART_CSS}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>"
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("<title", f"{style}<title", 1) + "\n"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    words.add_argument("--steps", type=int, default=STEPS)
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    if unknown := set(asked.sets) - set(SETS):
        sys.exit(f"no such set: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    name = "fast_curve.json" if asked.steps == STEPS else f"fast_curve_{asked.steps}_steps.json"
    file = asked.results / name
    kept = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else {}
    judged = {}
    with tempfile.TemporaryDirectory(prefix="halfbyte-curve-") as folder:
        place = Path(folder)
        write_instructions(asked.data, place)
        for data_set in asked.sets:
            runs = kept.setdefault(data_set, {})
            for run in RUNS:
                recipe = recipe_of(data_set, run, asked.steps)
                if run in runs and (runs[run]["recipe"], runs[run]["where"]) == (recipe, where()):
                    continue
                runs[run] = run_once(recipe, asked.data.resolve(), place, place / "runs")
                save_raw(name, {"runs": kept}, asked.results)
                print(f"{data_set}, {run}: perplexity {runs[run]['perplexity']:.4f}, {runs[run]['seconds']:.1f} s", flush=True)
            judged[data_set] = judge(runs)
            (asked.results / file.name.replace(".json", f"_{data_set}.svg")).write_text(draw(data_set, runs), encoding="utf-8")
    save_raw(name, {"judged": judged, "runs": kept}, asked.results)
    print(json.dumps(judged, indent=1))
    if asked.steps == STEPS and set(judged) == set(SETS):
        claim(judged, asked.results)
    if failed := [f"{data_set}: not so: {what}" for data_set, one in judged.items() for what, so in one["holds"].items() if not so]:
        sys.exit("\n".join(failed))


def claim(judged: dict[str, dict[str, Any]], results: Path) -> None:
    of_all, holds = worst(judged), {data_set: one["holds"] for data_set, one in judged.items()}
    unit = f"of the mean absolute difference of the two plain seeds that differ least; losses smoothed over {SMOOTHED} steps, the worse of {len(judged)} sets"
    beside = {"largest_difference_as_share": float(f"{of_all['largest']:.3g}"), "holds": holds}
    record("fast-curve-loss-difference", float(f"{of_all['mean']:.3g}"), unit, results, beside=beside)
    unit = f"perplexity on the test part, fast over plain after {STEPS} steps, of the set where it is farthest from 1"
    intervals = {data_set: one["interval_of_plain"] for data_set, one in judged.items()}
    beside = {"perplexity": {data_set: one["perplexity"] for data_set, one in judged.items()}, "interval_of_plain": intervals}
    record("fast-curve-perplexity-ratio", round(of_all["ratio"], 7), unit, results, beside=beside)


if __name__ == "__main__":
    main()
