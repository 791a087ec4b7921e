"""The longest row that trains in so many gigabytes: the fast path's leanest way and Unsloth's default, found in the same way.

    python benchmarks/longest_rows.py [--budgets 8 24] [--programs leanest unsloth] [--peers FOLDER] [--tries 5]      on a GPU

Mistral-7B's shape in NF4 with random weights, r 16 on all linear layers, one row, batch size 1. PyTorch may take no more than the budget
(set_per_process_memory_fraction), for both. Each program has a process of its own and loads the model once. From a first guess (ours by the plan's memory,
Unsloth's by a line through its measured peaks) a row grows by GROWTH until it runs out of memory, or shrinks until it does not; a length counts when a whole
step (forward, backward, clipping, AdamW) was taken with finite loss and gradient. Writes longest_rows.json and the claims longest-row-GBgb-fast and
longest-row-GBgb-unsloth.
"""

import argparse
import gc
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import suite
from claims import RESULTS, record, save_raw
from programs import PROGRAMS, RANK, SHAPE, Given, Rows, configuration_of, family_of

RAW = "longest_rows.json"
GROWTH = 1.06
STEP = 256
WRITTEN = "1x2048"  # its base and adapter serve all lengths
UNSLOTH_BYTES, UNSLOTH_BYTES_A_TOKEN = 4.87e9, 0.268e6  # measured peaks of its default lie on this line


def guess(program: str, budget: int) -> int:
    """Tokens that should just fit."""
    if family_of(program) == "unsloth":
        return int((budget - UNSLOTH_BYTES) / UNSLOTH_BYTES_A_TOKEN) // STEP * STEP
    from halfbyte.budget.fast import fast_peak
    from halfbyte.budget.fast_work import FastWork
    from halfbyte.budget.shape import read_shape
    from halfbyte.budget.step import Work
    from halfbyte.recipe.plan import Placement
    from random_base import config

    shape = read_shape(config(SHAPE))
    layers = tuple(Placement(activations="recomputed", parked=True) for number in range(shape.layers))

    def fits(tokens: int) -> bool:
        return fast_peak(FastWork(Work(shape, 1, tokens, layers, rank=RANK), (tokens,), tight=True)).reserved_bytes <= budget

    low, high = 1, 4096
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * STEP) else (low, middle - 1)
    return low * STEP


def search(name: str, budgets: list[int], tries: int, scratch: Path, out: Path) -> None:
    """In a process of its own."""
    program = PROGRAMS[name]
    if program.imported_first:
        importlib.import_module(program.imported_first)
    import torch

    from claims import versions, where
    from random_base import config, random_batch
    from suite_cell import LEARNING_RATE, limit_memory, load

    configuration = configuration_of(SHAPE, WRITTEN, RANK)
    starts = {budget: guess(name, budget * 10**9) for budget in budgets}
    given = Given(configuration.base(scratch), RANK, 2 * max(starts.values()), "cuda")
    loaded = load(program, given, configuration.adapter(scratch))
    model, parameters = loaded.model, list(loaded.parameters.values())
    generator = torch.Generator().manual_seed(0)

    def one_step(tokens: int) -> dict[str, Any]:
        """Raises OutOfMemoryError."""
        if program.prepare is not None:
            program.prepare(model)
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        batch = random_batch(config(SHAPE)["vocab_size"], 1, tokens, generator)
        with program.around():
            loss, norm = program.step(model, Rows(batch, None, None), optimizer)
        return {"loss": float(loss), "grad_norm": float(norm), "reserved_bytes": torch.cuda.max_memory_reserved()}

    def attempt(tokens: int) -> dict[str, Any]:
        torch.cuda.reset_peak_memory_stats()
        try:
            seen = one_step(tokens)
        except torch.OutOfMemoryError:
            seen = None
        for parameter in parameters:
            parameter.grad = None
        if hasattr(model, "fast"):
            del model.fast
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        if seen is None:
            return {"tokens": tokens, "fits": False}
        return {"tokens": tokens, "fits": math.isfinite(seen["loss"]) and 0 < seen["grad_norm"] < math.inf, **seen}

    found: dict[str, Any] = {"where": where(), "versions": versions(), "program": name, "budgets": {}}
    for budget in sorted(budgets):
        limit_memory(budget * 10**9)
        tokens, tried = starts[budget], []
        while len(tried) < tries and not {True, False} <= {one["fits"] for one in tried}:
            tried.append(attempt(tokens))
            print(name, budget, "GB", tried[-1], flush=True)
            tokens = int(tokens * GROWTH if tried[-1]["fits"] else tokens / GROWTH) // STEP * STEP
        fitting = [one["tokens"] for one in tried if one["fits"]]
        found["budgets"][budget] = {"tried": tried, "longest": max(fitting, default=0), "ran_out": any(not one["fits"] for one in tried)}
        out.write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 24], metavar="GB")
    parser.add_argument("--programs", nargs="+", default=["leanest", "unsloth"], choices=list(PROGRAMS), metavar="PROGRAM")
    parser.add_argument("--tries", type=int, default=5, help="lengths at most, of each program and budget")
    parser.add_argument("--peers", type=Path, help="folder with packages that are not installed")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/halfbyte-suite"))
    parser.add_argument("--seconds", type=float, default=300, help="of one program at most; what was found by then counts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.scratch = args.scratch.resolve()
    if args.search:
        search(args.search, args.budgets, args.tries, args.scratch, args.scratch / f"longest-{args.search}.json")
        return
    args.device, args.limit_seconds, args.warm_caches = "cuda", 300, True
    if failed := suite.write_given(args, {configuration_of(SHAPE, WRITTEN, RANK)}):
        sys.exit(f"what the programs are given could not be written: {failed}")
    file = args.results / RAW
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in args.programs:
        out = args.scratch / f"longest-{name}.json"
        out.unlink(missing_ok=True)
        work = args.scratch / "longest"
        work.mkdir(exist_ok=True)
        environment = suite.environment(args, {"program": name}, work)
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).resolve().parent)])
        words = [*map(str, args.budgets), "--tries", str(args.tries), "--scratch", str(args.scratch)]
        command = [sys.executable, str(Path(__file__).resolve()), "--search", name, "--budgets", *words]
        try:
            subprocess.run(command, cwd=work, env=environment, timeout=args.seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {args.seconds:.0f} s", flush=True)
        if not out.is_file():
            print(f"{name}: nothing was found", flush=True)
            continue
        raw[name] = json.loads(out.read_text(encoding="utf-8"))
        save_raw(RAW, raw, args.results)
        side = "unsloth" if family_of(name) == "unsloth" else "fast"
        for budget, seen in raw[name]["budgets"].items():
            if seen["longest"] and seen["ran_out"]:
                place, taken = raw[name]["where"], raw[name]["versions"]
                record(
                    f"longest-row-{budget}gb-{side}", seen["longest"], f"tokens, {GROWTH:g} times as many ran out", args.results, place=place, taken_with=taken
                )


if __name__ == "__main__":
    main()
