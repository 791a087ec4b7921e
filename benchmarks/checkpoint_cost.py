"""What saving costs: seconds of a checkpoint against the steps between two, at the default interval (a tenth of the run).

    python benchmarks/checkpoint_cost.py [--results FOLDER] [--steps 1000]     on a GPU, about 90 seconds; claim checkpoint-overhead-share
    python benchmarks/checkpoint_cost.py --toy                                 on any machine: a toy shape, no claim

Random weights of the Mistral-7B shape in NF4 with double quantisation, r 16 on all linear layers in float32, fused AdamW, 4 rows of 2048 tokens, the
layers recomputed in the backward pass. A save is all that the loop does: tensors to the computer's memory, files, hashes, fsync, rename, reading back,
pointers, pruning. It goes to the folder for results, so to a disk and not to memory. The share is the mean save over the steps of a tenth of the run.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from claims import RESULTS, record, save_raw
from halfbyte.model.adapter import adapter_state, add_adapter
from halfbyte.recipe.schema import Adapter
from halfbyte.train.checkpoint import Checkpoint
from halfbyte.train.keeper import Keeper
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.random_state import random_states
from halfbyte.train.step import train_step
from random_base import build_random_base, config, random_batch

ROWS, TOKENS = 4, 2048
WARM_UP, TIMED, SAVES = 2, 5, 5
SAVES_A_RUN = 10  # train.eval_steps, where it is not given
TOY = {
    "model_type": "mistral", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128, "max_position_embeddings": 512, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip


def measure(toy: bool, folder: Path) -> dict[str, Any]:
    device = "cpu" if toy else "cuda"
    settings = TOY if toy else config("mistral-7b")
    base = build_random_base(settings, device, quantised=not toy)
    model, _ = add_adapter(base.float() if toy else base, Adapter(r=16, alpha=16), seed=0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = make_optimizer("adamw_torch", model.parameters(), 2e-4, 0.0)
    scaler, generator = torch.amp.GradScaler(device, enabled=False), torch.Generator().manual_seed(0)
    rows, tokens = (2, 64) if toy else (ROWS, TOKENS)
    steps = []
    for _ in range(WARM_UP + TIMED):
        batch = random_batch(settings["vocab_size"], rows, tokens, generator)
        began = time.perf_counter()
        train_step(model, [batch], optimizer, 1.0, torch.float32 if toy else torch.bfloat16, scaler)
        if not toy:
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - began)
    said: list[str] = []
    keeper = Keeper(folder, 2, said.append)
    saves = []
    for step in range(1, SAVES + 1):
        began = time.perf_counter()
        path = keeper.insist(step, lambda: Checkpoint(adapter_state(model), optimizer.state_dict(), {"random": random_states()}), step)
        saves.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in path.iterdir())
    return {
        "shape": "toy" if toy else "mistral-7b", "rows": rows, "tokens": tokens, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "checkpoint_bytes": size, "step_seconds": steps[WARM_UP:], "save_seconds": saves, "said": said, "disk_bytes_a_second": write_speed(folder, size),
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
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=args.results))
    try:
        found = measure(args.toy, folder)
    finally:
        shutil.rmtree(folder)
    step, save = statistics.median(found["step_seconds"]), statistics.mean(found["save_seconds"])
    share = save / (args.steps / SAVES_A_RUN * step)
    an_hour = SAVES_A_RUN * save / (args.steps * step / 3600)
    found |= {"run_steps": args.steps, "saves": SAVES_A_RUN, "share": share, "seconds_an_hour": an_hour}
    print(f"{found['checkpoint_bytes'] / 1e6:.0f} MB in {save:.2f} s, a step takes {step:.3f} s")
    print(f"{share:.2%} of a run of {args.steps} steps, {an_hour:.1f} s an hour")
    save_raw("checkpoint_cost_toy.json" if args.toy else "checkpoint_cost.json", found, args.results)
    if not args.toy:
        record("checkpoint-overhead-share", round(share, 5), f"of a run of {args.steps} steps", args.results)


if __name__ == "__main__":
    main()
