"""What training with FP8 costs in quality: the same runs with `train.compute: fp8` and without, on the embedded base.

    python benchmarks/fp8_quality.py [SET ...] [--data FOLDER] [--steps 40]      without a GPU FP8 is computed by its reference, in plain PyTorch

The two data sets of fast_curve.py, three seeds, both through the fast path in bfloat16: a pair of runs has the same rows in the same order, the same first
adapter and the same schedule. The test part is the same for every seed; what counts is the loss on it after the last step, in nats a token. The claim
fp8-quality-difference is, of the set where it is largest, the mean over the seeds of FP8's loss less that without, as a share of the standard deviation of
the three losses without FP8 from seed to seed. Finished runs are kept in fp8_quality.json and not run again.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from claims import RESULTS, record, save_raw, versions, where
from fast_curve import SETS, write_instructions

STEPS, SEEDS, KINDS = 40, (0, 1, 2), ("auto", "fp8")
FILE = "fp8_quality.json"
RECIPE = """\
name: quality
base: embedded
seed: {seed}
data:
{data}  max_length: 256
  validation_share: 0
adapter:
  r: 16
  alpha: 32
train:
  max_steps: {steps}
  eval_steps: {steps}
  batch_size: 4
  learning_rate: 1e-3
  precision: bfloat16
  fast_path: "on"
  compute: {compute}
evaluate:
  max_answers: 0
  max_new_tokens: 1
  prompts: [Once upon a time]
"""


def run_once(recipe: str, data: Path, place: Path, runs: Path) -> dict[str, Any]:
    from halfbyte import api
    from halfbyte.evaluate.runs import read_measured
    from halfbyte.recipe.load import parse_recipe
    from halfbyte.runs.folder import read_report
    from halfbyte.runs.report import read_events

    started = time.monotonic()
    run = api.train(parse_recipe(recipe.replace("{data}", str(data)).replace("{place}", str(place)), "fp8_quality.yaml", []), runs)
    steps = [event for event in read_events(run.events)[0] if event["event"] == "step"]
    computing = run.read_plan()["computing"]
    measured = next(one for one in read_measured(run) if (one.group, one.metric.name) == ("text", "perplexity"))
    told = next(one for one in read_report(run.path)["comparisons"] if (one["group"], one["metric"]) == ("text", "perplexity"))
    losses, tokens = (sum(float(row[column]) for row in measured.tuned) for column in (0, 1))
    return {
        "recipe": recipe, "where": where(), "versions": versions(), "path": computing["path"], "fp8": computing["fp8"],
        "seconds": round(time.monotonic() - started, 1), "rows": [step["rows"] for step in steps], "losses": [step["loss"] for step in steps],
        "gradient_norms": [step["grad_norm"] for step in steps], "test_loss": losses / tokens, "test_tokens": int(tokens),
        "perplexity_of_base": told["base"], "perplexity": told["tuned"], "interval": told["tuned_interval"],
    }  # fmt: skip


def judge(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The runs of one set, `KIND-SEED` -> run."""
    without, fp8 = ([runs[f"{kind}-{seed}"]["test_loss"] for seed in SEEDS] for kind in KINDS)
    differences = [mine - theirs for mine, theirs in zip(fp8, without, strict=True)]
    spread = stdev(without)
    holds = {
        "each computed as it was asked to": all(runs[f"{kind}-{seed}"]["fp8"] == (kind == "fp8") for kind in KINDS for seed in SEEDS),
        "pairs saw the same rows": all(runs[f"auto-{seed}"]["rows"] == runs[f"fp8-{seed}"]["rows"] for seed in SEEDS),
        "every gradient's norm above zero": all(norm is not None and norm > 0 for run in runs.values() for norm in run["gradient_norms"]),
    }  # fmt: skip
    return {
        "holds": holds, "loss": without, "loss_with_fp8": fp8, "loss_of_base": math.log(runs["auto-0"]["perplexity_of_base"]), "differences": differences,
        "mean_difference": mean(differences), "seed_to_seed": spread, "share": mean(differences) / spread,
        "training_loss_apart": mean(abs(a - b) for seed in SEEDS for a, b in zip(runs[f"fp8-{seed}"]["losses"], runs[f"auto-{seed}"]["losses"], strict=True)),
    }  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    words.add_argument("--steps", type=int, default=STEPS)
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    if unknown := set(asked.sets) - set(SETS):
        sys.exit(f"no such set: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    file = asked.results / FILE
    kept = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else {}
    judged = {}
    with tempfile.TemporaryDirectory(prefix="halfbyte-quality-") as folder:
        place = Path(folder)
        write_instructions(asked.data, place)
        for data_set in asked.sets:
            runs = kept.setdefault(data_set, {})
            for seed in SEEDS:
                for kind in KINDS:
                    recipe = RECIPE.format(seed=seed, data=SETS[data_set], steps=asked.steps, compute=kind)
                    name = f"{kind}-{seed}"
                    if name in runs and (runs[name]["recipe"], runs[name]["where"]) == (recipe, where()):
                        continue
                    runs[name] = run_once(recipe, asked.data.resolve(), place, place / "runs")
                    save_raw(FILE, {"runs": kept}, asked.results)
                    print(f"{data_set}, {name}: loss {runs[name]['test_loss']:.5f}, {runs[name]['seconds']:.1f} s", flush=True)
            judged[data_set] = judge(runs)
    save_raw(FILE, {"judged": judged, "runs": kept}, asked.results)
    print(json.dumps(judged, indent=1))
    if asked.steps == STEPS and set(judged) == set(SETS):
        claim(judged, asked.results)
    if failed := [f"{data_set}: not so: {what}" for data_set, one in judged.items() for what, so in one["holds"].items() if not so]:
        sys.exit("\n".join(failed))


def claim(judged: dict[str, dict[str, Any]], results: Path) -> None:
    worst = max(judged.values(), key=lambda one: abs(one["share"]))
    unit = f"of the standard deviation from seed to seed without FP8: |mean difference| of the test loss after {STEPS} steps, the worse of {len(judged)} sets"
    beside = {
        data_set: {
            "mean_difference_nats": float(f"{one['mean_difference']:.3g}"), "seed_to_seed_nats": float(f"{one['seed_to_seed']:.3g}"),
            "loss": [round(loss, 5) for loss in one["loss"]], "loss_with_fp8": [round(loss, 5) for loss in one["loss_with_fp8"]],
        }
        for data_set, one in judged.items()
    }  # fmt: skip
    record("fp8-quality-difference", float(f"{abs(worst['share']):.3g}"), unit, results, beside=beside)


if __name__ == "__main__":
    main()
