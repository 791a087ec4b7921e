"""What the proofs before step 1 take on a 7B shape with random weights, beside the memory of a training step.

    python benchmarks/preflight_7b.py [--scratch FOLDER] [--results FOLDER]      on a GPU; about three minutes, 15 GB in the scratch folder
    python benchmarks/preflight_7b.py --toy --results FOLDER                     the same with the embedded base, anywhere

NF4 with double quantisation, r 16 on all linear layers, as the plan computes it: short replies (pairs), and blocks of 2,048 tokens (a tale). The base
is loaded for each. No network: tokenizer and data ship with halfbyte. Writes preflight_7b.json and, of the 7B shape, the claim preflight-7b-s: the
longer of the two.
"""

import argparse
import gc
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from claims import RESULTS, record, save_raw, versions, where
from halfbyte import api
from halfbyte.api.check import prove_planned, subject_planned
from halfbyte.api.memory import adapt_new, load_for
from halfbyte.model.base import EMBEDDED_FOLDER
from halfbyte.recipe.load import parse_recipe

SAMPLES = EMBEDDED_FOLDER.parent / "samples"
DATA = {
    "replies": f"data:\n  path: {SAMPLES / 'comment_replies.csv'}\n  max_length: 512\n",
    "blocks of a text": f"data:\n  path: {SAMPLES / 'gothic_tale.txt'}\n  kind: text\n  max_length: 2048\n",
}


def peak() -> int:
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def begin() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(base: str, data: str, most_tokens: int | None) -> dict[str, Any]:
    """Seconds and peak of the proofs; peak of two steps of training on the longest rows of the first epoch."""
    words = [f"data.max_length={most_tokens}"] if most_tokens else []
    planned = api.plan(parse_recipe(f"name: preflight\nbase: {base}\n{data}train:\n  batch_size: 4\n", "preflight.yaml", words))
    began = time.monotonic()
    model, _ = adapt_new(load_for(planned.recipe, planned.base, planned.machine, planned.plan), planned.recipe, planned.machine, planned.plan)
    load_seconds = time.monotonic() - began
    begin()
    events: list[dict[str, Any]] = []
    proofs = prove_planned(planned, model, events.append)
    proofs_peak = peak()
    begin()
    subject = subject_planned(planned, model)
    model.train()
    optimizer = subject.make_optimizer(model)
    for batches in sorted(subject.epoch(0), key=lambda batches: -max(batch.ids.shape[1] for batch in batches))[:2]:
        subject.step(model, batches, optimizer)
    return {
        "seconds": events[-1]["seconds"], "load_seconds": round(load_seconds, 1), "rows": len(subject.rows), 
        "longest_row": max(len(row.ids) for row in subject.rows),
        "failed": [proof.as_json() for proof in proofs if proof.passed is False], "proofs_peak_gb": proofs_peak / 1e9, "step_peak_gb": peak() / 1e9,
        "proofs": [proof.as_json() for proof in proofs],
    }  # fmt: skip


def write_base(scratch: Path) -> Path:
    from plain_7b import write_random_base

    folder = scratch / "random-mistral-7b"
    write_random_base("mistral", folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_FOLDER / file, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--toy", action="store_true", help="the embedded base instead of the 7B shape")
    args = parser.parse_args()
    base = "embedded" if args.toy else write_base(args.scratch)
    found: dict[str, Any] = {"base": "embedded" if args.toy else "mistral-7b shape, random weights", "where": where(), "versions": versions()}
    try:
        for name, data in DATA.items():
            found[name] = measure(str(base), data, 256 if args.toy else None)
            told = {key: value for key, value in found[name].items() if key != "proofs"}
            print(name, json.dumps(told), flush=True)
            for proof in found[name]["proofs"]:
                print(f"  {proof['seconds']:6.2f} s  {proof['name']:16} {proof['told']}", flush=True)
            begin()
    finally:
        if not args.toy:
            shutil.rmtree(base)
    save_raw("preflight_7b.json", found, args.results)
    if not args.toy:
        record("preflight-7b-s", max(found[name]["seconds"] for name in DATA), "s", args.results)


if __name__ == "__main__":
    main()
