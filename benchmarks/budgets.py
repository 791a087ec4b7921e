"""What a budget is worth: 7B shapes under an enforced limit, and the longest row that the plain path trains in 8 and in 24 GB, predicted and found.

    python benchmarks/budgets.py [--results FOLDER]      on a GPU; two to four minutes

Random weights of the Mistral-7B and Llama-8B shapes in NF4, r 16 on all linear layers. The limit is set_per_process_memory_fraction: the budget
less what CUDA takes outside PyTorch. Raw results in budgets.json.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from claims import RESULTS, record, save_raw, versions
from halfbyte.budget.choose import Bounds, smallest, smallest_way, tightest
from halfbyte.budget.forecast import make_forecast, target_of
from halfbyte.budget.rates import H200, rates_of
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work
from halfbyte.model.adapter import add_adapter
from halfbyte.model.machine import driver_bytes
from halfbyte.model.placement import keep_in_16bit, limit_memory, place_layers
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import Adapter
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.step import train_step
from random_base import build_random_base, config, random_batch

DEVICE = torch.device("cuda", 0)
GB = 10**9
RAW = "budgets.json"
STEP_TOKENS = 64
GROWTH = 1.03
"""From one length that fits to the next that is tried."""


class Training:
    """A random base with its adapter, placed as a plan has it; built anew for each."""

    def __init__(self, work: Work, settings: dict[str, Any]) -> None:
        torch.cuda.empty_cache()
        base = build_random_base(settings)
        keep_in_16bit(base, work.layers, torch.bfloat16)
        self.model, _ = add_adapter(base, Adapter(r=work.rank, alpha=work.rank), seed=0)
        place_layers(self.model, work.layers, DEVICE)
        self.model.train()
        self.optimizer = make_optimizer(work.optimizer, self.model.parameters(), 2e-4, 0.0)
        self.vocabulary = work.shape.vocabulary

    def steps(self, rows: int, tokens: int, accumulation: int, count: int) -> dict[str, Any]:
        """Raises OutOfMemoryError."""
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        generator = torch.Generator().manual_seed(0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds, losses, norms = [], [], []
        for _ in range(count):
            given = [random_batch(self.vocabulary, rows, tokens, generator) for _ in range(accumulation)]
            began = time.perf_counter()
            result = train_step(self.model, given, self.optimizer, 1.0, torch.bfloat16, scaler)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            losses.append(result.loss)
            norms.append(result.grad_norm)
        return {"seconds": seconds, "losses": losses, "grad_norms": norms, "peak_reserved": torch.cuda.max_memory_reserved(), "driver_bytes": driver_bytes()}


def longest_by_the_plan(work: Work, bounds: Bounds) -> int:
    """In tokens; idle memory may be handed back."""

    def fits(tokens: int) -> bool:
        longer = replace(work, tokens=tokens)
        return smallest(longer, bounds).fits or tightest(longer, 1, bounds) is not None

    low, high = 1, 4096
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * STEP_TOKENS) else (low, middle - 1)
    return low * STEP_TOKENS


def longest_row(budget: int) -> dict[str, Any]:
    """The longest row by the plan, and by trying: 3 % longer each time until it runs out, or shorter until it does not."""
    settings = config("mistral-7b")
    work = Work(read_shape(settings), 1, STEP_TOKENS, ())
    bounds = Bounds(budget, rates_of(H200))
    predicted = longest_by_the_plan(work, bounds)
    placed = replace(work, tokens=predicted, layers=smallest_way(work).placements(work.shape.layers))
    training = Training(placed, settings)
    limit = budget - bounds.driver_bytes
    found: dict[str, Any] = {"budget_gb": budget / GB, "predicted_tokens": predicted, "limit_bytes": limit, "tried": []}
    tokens, longest, too_long = predicted, 0, 0
    with limit_memory(DEVICE, limit):
        while tokens not in (longest, too_long):
            try:
                seen = training.steps(1, tokens, 1, 1)
            except torch.OutOfMemoryError:
                found["tried"].append({"tokens": tokens, "fits": False})
                too_long = tokens
                tokens = longest or int(tokens / GROWTH) // STEP_TOKENS * STEP_TOKENS
            else:
                found["tried"].append({"tokens": tokens, "fits": True, **seen})
                longest = tokens
                tokens = too_long or int(tokens * GROWTH) // STEP_TOKENS * STEP_TOKENS
    return found | {"found_tokens": longest}


def under_budget(name: str, budget: str, *changes: str) -> dict[str, Any]:
    """What the plan chooses for a recipe under a budget, or the change that it names where nothing fits; trained under the limit."""
    text = f"name: budget\nbase: embedded\ndata:\n  path: none.txt\n  kind: text\n  max_length: 2048\ntrain:\n  batch_size: 1\nmemory_budget: {budget}\n"
    settings = config(name)
    recipe = parse_recipe(text, "budget.yaml", list(changes)).recipe
    target = replace(target_of("H200"), budget_bytes=target_of(budget).budget_bytes)
    forecast = make_forecast(recipe, settings, target)
    found: dict[str, Any] = {"shape": name, "budget": budget, "changes": list(changes), "fits_as_asked": forecast.choice is not None}
    if forecast.choice is None:
        if forecast.change is None:
            return found | {"change": None}
        found["change"] = forecast.change.keys
        forecast = make_forecast(parse_recipe(text, "budget.yaml", [*changes, *forecast.change.keys.split()]).recipe, settings, target)
    choice = forecast.choice
    if choice is None:
        return found | {"change_fits": False}
    limit = target.budget_bytes - target.driver_bytes
    training = Training(choice.work, settings)  # built without the limit: an embedding is drawn before it is there
    with limit_memory(DEVICE, limit):
        seen = training.steps(choice.way.rows, choice.work.tokens, choice.accumulation, 5)
    return found | {
        "told": choice.told(), "tokens": choice.work.tokens, "predicted_bytes": choice.peak_bytes, "predicted_seconds": choice.step_seconds,
        "limit_bytes": limit, **seen,
    }  # fmt: skip


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "7b at 6 GB": lambda: under_budget("mistral-7b", "6GB"),
    "a change that fits": lambda: under_budget("llama-8b", "6GB"),
    "longest row at 8 GB": lambda: longest_row(8 * GB),
    "longest row at 24 GB": lambda: longest_row(24 * GB),
}


def record_claims(raw: dict[str, Any], results: Path) -> None:
    """Of the parts that were measured."""
    if "7b at 6 GB" in raw:
        taken = raw["7b at 6 GB"]["peak_reserved"] + raw["7b at 6 GB"]["driver_bytes"]
        record("7b-at-6gb-peak-gb", round(taken / GB, 2), "GB", results, place=raw["where"], taken_with=raw["versions"])
    for budget in (8, 24):
        if (found := raw.get(f"longest row at {budget} GB")) is not None:
            shape = read_shape(config("mistral-7b"))
            predicted = longest_by_the_plan(Work(shape, 1, STEP_TOKENS, ()), Bounds(budget * GB, rates_of(H200)))  # as the plan is now
            record(f"longest-row-{budget}gb-predicted", predicted, "tokens", results, place=raw["where"], taken_with=raw["versions"])
            record(f"longest-row-{budget}gb-found", found["found_tokens"], "tokens", results, place=raw["where"], taken_with=raw["versions"])


def measure(parts: list[str], results: Path) -> dict[str, Any]:
    """Each part is kept as it ends."""
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    file = results / RAW
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    raw |= {"where": torch.cuda.get_device_name(), "versions": versions()}
    for key in parts:
        raw[key] = PARTS[key]()
        print(key, {name: value for name, value in raw[key].items() if name != "tried"}, flush=True)
        print("   ", [(one["tokens"], one["fits"], round(one.get("peak_reserved", 0) / GB, 2)) for one in raw[key].get("tried", [])], flush=True)
        save_raw(RAW, raw, results)
        record_claims(raw, results)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    return raw


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--record", action="store_true", help="measure nothing: write the claims of what budgets.json holds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.record:
        record_claims(json.loads((args.results / RAW).read_text(encoding="utf-8")), args.results)
    else:
        measure(args.parts, args.results)


if __name__ == "__main__":
    main()
