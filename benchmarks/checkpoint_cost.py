"""What saving costs a run: the seconds in which no step is taken, and those by which steps are slower while a checkpoint is being written.

    python benchmarks/checkpoint_cost.py [--results FOLDER] [--steps 1000]     on a GPU, about 100 seconds; claim checkpoint-overhead-share
    python benchmarks/checkpoint_cost.py --toy                                 on any machine: a toy shape, no claim

Random weights of the Mistral-7B shape in NF4 with double quantisation, r 16 on all linear layers in float32, fused AdamW, 4 rows of 2048 tokens, the
layers recomputed in the backward pass. The keeper saves as it does for the loop (train/keeper.py): tensors are copied to the computer's memory, a
thread writes, hashes, syncs, renames and reads back, and after a step what is done is settled (pointers, pruning).

Lost per save = copying and settling + (mean of the steps that began while the thread wrote - median of the others) x how many of the first there
are to a save. The mean, since one step that is held up in three would not show in their median. Where they are not slower, nothing is taken off.
The share is that over the steps of a tenth of the run, which is the default interval.
Beside it stands what a save takes that is done before the next step, as without a GPU. Checkpoints go to the folder for results, so to a disk and
not to memory. The raw file is written anew after every save, so a call that is cut off leaves what it saw.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from claims import RESULTS, record, save_raw
from halfbyte.model.adapter import adapter_state, add_adapter
from halfbyte.recipe.schema import Adapter
from halfbyte.train.checkpoint import Checkpoint
from halfbyte.train.keeper import Keeper, Saved
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.random_state import random_states
from halfbyte.train.step import train_step
from random_base import build_random_base, config, random_batch

ROWS, TOKENS = 4, 2048
WARM_UP, BETWEEN, SAVES, AT_ONCE = 2, 3, 5, 2
LONGEST = 30
"""Steps that a save is waited for."""
SAVES_A_RUN = 10  # train.eval_steps, where it is not given
TOY = {
    "model_type": "mistral", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128, "max_position_embeddings": 512, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip


def measure(toy: bool, folder: Path, run_steps: int, seen: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """`seen` is told what is known after every save."""
    device = "cpu" if toy else "cuda"
    settings = TOY if toy else config("mistral-7b")
    base = build_random_base(settings, device, quantised=not toy)
    model, _ = add_adapter(base.float() if toy else base, Adapter(r=16, alpha=16), seed=0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = make_optimizer("adamw_torch", model.parameters(), 2e-4, 0.0)
    scaler, generator = torch.amp.GradScaler(device, enabled=False), torch.Generator().manual_seed(0)
    rows, tokens = (2, 64) if toy else (ROWS, TOKENS)
    run = "0" * 32

    def step() -> float:
        batch = random_batch(settings["vocab_size"], rows, tokens, generator)
        began = time.perf_counter()
        train_step(model, [batch], optimizer, 1.0, torch.float32 if toy else torch.bfloat16, scaler)
        if not toy:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def checkpoint() -> Checkpoint:
        return Checkpoint(adapter_state(model), optimizer.state_dict(), {"random": random_states()}, run)

    for _ in range(WARM_UP):
        step()
    found: dict[str, Any] = {
        "shape": "toy" if toy else "mistral-7b", "rows": rows, "tokens": tokens, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "run_steps": run_steps, "saves": SAVES_A_RUN, "clean_steps": [step() for _ in range(BETWEEN)], "steps_while_writing": [], "copy_seconds": [],
        "settle_seconds": [], "waited_seconds": [], "save_seconds": [], "at_once_seconds": [], "said": [],
    }  # fmt: skip
    saved: list[Saved] = []
    with Keeper(folder, 2, found["said"].append, run, background=True, on_saved=saved.append) as keeper:
        for number in range(1, SAVES + 1):
            began = time.perf_counter()
            keeper.save(number, checkpoint, number)
            found["copy_seconds"].append(time.perf_counter() - began)
            during, settling = [], 0.0
            while len(saved) < number and len(during) < LONGEST:
                during.append(step())
                began = time.perf_counter()
                keeper.settle(waiting=False)
                settling = time.perf_counter() - began  # the last of them is the one that found it done
            if len(saved) < number:
                raise SystemExit(f"save {number} is not done after {LONGEST} steps: {found['said']}")
            found["steps_while_writing"].append(during)
            found["settle_seconds"].append(settling)
            found["waited_seconds"].append(saved[-1].waited)
            found["save_seconds"].append(saved[-1].seconds)
            found["clean_steps"] += [step() for _ in range(BETWEEN)]
            found |= judge(found)
            seen(found)
    before_the_next_step = Keeper(folder, 2, found["said"].append, run)
    for number in range(SAVES + 1, SAVES + AT_ONCE + 1):
        began = time.perf_counter()
        path = before_the_next_step.insist(number, checkpoint, number)
        found["at_once_seconds"].append(time.perf_counter() - began)
    found["checkpoint_bytes"] = sum(file.stat().st_size for file in path.iterdir())
    found["disk_bytes_a_second"] = write_speed(folder, found["checkpoint_bytes"])
    seen(found)
    return found


def judge(found: dict[str, Any]) -> dict[str, float]:
    """Lost seconds of a save, of what kind, and their share of the run."""
    during = found["steps_while_writing"]
    clean = statistics.median(found["clean_steps"])
    slower = max(0.0, statistics.mean([one for of_a_save in during for one in of_a_save]) - clean) * statistics.mean(map(len, during))
    waited = statistics.mean(copy + settle for copy, settle in zip(found["copy_seconds"], found["settle_seconds"], strict=True))
    interval = found["run_steps"] / found["saves"] * clean
    return {
        "step_seconds": clean, "lost_waiting": waited, "lost_by_slower_steps": slower, "lost_seconds": waited + slower, "share": (waited + slower) / interval,
        "seconds_an_hour": (waited + slower) / interval * 3600,
    }  # fmt: skip


def write_speed(folder: Path, size: int) -> float:
    """Of this disk, for a plain file of that size: what no save can be faster than."""
    content = bytes(size)
    began = time.perf_counter()
    with open(folder / "plain", "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return size / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=1000, help="of the run that the share is said for")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    raw = "checkpoint_cost_toy.json" if args.toy else "checkpoint_cost.json"
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=args.results))
    try:
        found = measure(args.toy, folder, args.steps, lambda found: save_raw(raw, found, args.results))
    finally:
        shutil.rmtree(folder)
    print(f"{found['checkpoint_bytes'] / 1e6:.0f} MB in {statistics.mean(found['save_seconds']):.2f} s beside the steps, of {found['step_seconds']:.3f} s")
    print(f"lost are {found['lost_waiting']:.3f} s of waiting and {found['lost_by_slower_steps']:.3f} s of slower steps")
    print(f"a save that is done before the next step takes {statistics.mean(found['at_once_seconds']):.2f} s")
    print(f"{found['share']:.2%} of a run of {args.steps} steps, {found['seconds_an_hour']:.1f} s an hour")
    if not args.toy:
        record("checkpoint-overhead-share", round(found["share"], 5), f"of a run of {args.steps} steps", args.results)


if __name__ == "__main__":
    main()
