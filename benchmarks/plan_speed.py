"""How long `halfbyte plan RECIPE --gpu 24GB` takes: fresh processes, from the recipe and the base's config.json alone.

python benchmarks/plan_speed.py     writes results/plan_speed.json, claim plan-s

A hook refuses every import of torch and transformers, no GPU is visible, and neither weights nor data exist: what answers needs none of them.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from claims import record, save_raw
from random_base import config

SHAPES = {"mistral-7b": "MistralForCausalLM", "llama-70b": "LlamaForCausalLM"}
REPEATS = 5
GPU = "24GB"
RECIPE = "base: ./{shape}\ndata:\n  kind: text\n  path: not-there.txt\n  max_length: 2048\ntrain:\n  batch_size: 4\n  gradient_accumulation_steps: 4\n"
# Before anything else of the process; sitecustomize is imported by Python itself.
HOOK = """\
import sys
REFUSED = {"torch", "transformers"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} is not to be imported by the plan")
sys.meta_path.insert(0, Refuse())
"""


def plan(folder: Path, shape: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds of one process, from its start to its end, those of the processor in it, and what it printed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]), "CUDA_VISIBLE_DEVICES": ""}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", "plan", f"{shape}.yaml", "--gpu", GPU, "--json"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"plan of {shape} left with {done.returncode}:\n{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(done.stdout)


def check_hook(folder: Path) -> None:
    """The hook would be worth nothing if it were not there."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", "import torch"], env=env, capture_output=True, text=True, check=False)
    if "not to be imported by the plan" not in done.stderr:
        raise RuntimeError(f"torch could be imported: {done.stderr}")


def main() -> None:
    measured = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "sitecustomize.py").write_text(HOOK)
        check_hook(folder)
        for shape, architecture in SHAPES.items():
            (folder / shape).mkdir()
            (folder / shape / "config.json").write_text(json.dumps({**config(shape), "architectures": [architecture]}))
            (folder / f"{shape}.yaml").write_text(RECIPE.format(shape=shape))
            plan(folder, shape)  # compiles what is not compiled yet
            seconds, busy, plans = zip(*(plan(folder, shape) for _ in range(REPEATS)), strict=True)
            measured[shape] = {
                "seconds": seconds, "median": statistics.median(seconds), "processor_seconds": busy, "chosen": plans[0]["chosen"],
                "weighed": len(plans[0]["considered"]),
            }  # fmt: skip
            print(f"{shape}: median {statistics.median(seconds):.3f} s, {statistics.median(busy):.3f} s of a processor; {plans[0]['reason']}")
    slower = max(one["median"] for one in measured.values())
    save_raw("plan_speed.json", {"gpu": GPU, "repeats": REPEATS, "plans": measured})
    record("plan-s", round(slower, 3), "s")


if __name__ == "__main__":
    main()
