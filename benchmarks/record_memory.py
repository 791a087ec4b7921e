"""Records what the allocator of a GPU is asked for in one training step of the plain path, operation by operation.

    python benchmarks/record_memory.py FOLDER [--layers 3]

The written recordings are what src/halfbyte/budget/step.py was made from, and tests/unit/budget compares its traces with them.
"""

import argparse
import gc
import json
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from halfbyte.model.adapter import add_adapter
from halfbyte.recipe.schema import Adapter
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.step import batch_logits, summed_loss, train_step
from random_base import build_random_base, config, random_batch

# name: shape, rows, tokens, other settings
CASES: dict[str, dict[str, Any]] = {
    "mistral-checkpointed": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": True},
    "mistral-kept": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": False},
    "mistral-odd": {"shape": "mistral-7b", "rows": 3, "tokens": 777, "checkpointing": True, "r": 64, "dropout": 0.1},
    "mistral-kept-odd": {"shape": "mistral-7b", "rows": 3, "tokens": 777, "checkpointing": False, "r": 8, "dropout": 0.1},
    "mistral-packed": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": True, "packed": 4},
    "mistral-packed-kept": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": False, "packed": 4},
    "mistral-accumulated": {"shape": "mistral-7b", "rows": 1, "tokens": 1024, "checkpointing": True, "accumulation": 2},
    "mistral-adamw": {"shape": "mistral-7b", "rows": 1, "tokens": 512, "checkpointing": True, "optimizer": "adamw_torch"},
    "mistral-8bit": {"shape": "mistral-7b", "rows": 1, "tokens": 512, "checkpointing": True, "optimizer": "adamw_8bit", "r": 64},
    "mistral-dora": {"shape": "mistral-7b", "rows": 1, "tokens": 1024, "checkpointing": False, "kind": "dora"},
    "mistral-dora-checkpointed": {"shape": "mistral-7b", "rows": 1, "tokens": 1024, "checkpointing": True, "kind": "dora"},
    "mistral-evaluated": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": False, "evaluation": True},
    "falcon-evaluated": {"shape": "falcon-7b", "rows": 2, "tokens": 512, "checkpointing": False, "evaluation": True},
    "mistral-16bit": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": True, "quantised": False},
    "mistral-16bit-kept": {"shape": "mistral-7b", "rows": 2, "tokens": 1024, "checkpointing": False, "quantised": False},
    "mistral-long": {"shape": "mistral-7b", "rows": 1, "tokens": 8192, "checkpointing": True},
    "mistral-rslora-few": {"shape": "mistral-7b", "rows": 1, "tokens": 1024, "checkpointing": False, "targets": ["q_proj", "v_proj"]},
    "llama-checkpointed": {"shape": "llama-8b", "rows": 1, "tokens": 1024, "checkpointing": True},
    "llama1b-kept": {"shape": "llama-1b", "rows": 2, "tokens": 512, "checkpointing": False},
    "qwen2-kept": {"shape": "qwen2-7b", "rows": 1, "tokens": 1024, "checkpointing": False},
    "qwen2-checkpointed": {"shape": "qwen2-7b", "rows": 1, "tokens": 1024, "checkpointing": True},
    "qwen3-kept": {"shape": "qwen3-8b", "rows": 1, "tokens": 1024, "checkpointing": False},
    "qwen3-checkpointed": {"shape": "qwen3-8b", "rows": 1, "tokens": 1024, "checkpointing": True},
    "falcon-kept": {"shape": "falcon-7b", "rows": 2, "tokens": 512, "checkpointing": False},
    "falcon-checkpointed": {"shape": "falcon-7b", "rows": 2, "tokens": 512, "checkpointing": True},
    "falcon-packed": {"shape": "falcon-7b", "rows": 2, "tokens": 512, "checkpointing": True, "packed": 4},
}


class Told(TorchDispatchMode):
    """Writes the name of each operation beside what it allocates."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [list(a.shape) for a in args if isinstance(a, torch.Tensor)]
        torch._C._cuda_setMemoryMetadata(f"{function} {shapes}")
        return function(*args, **(kwargs or {}))


def record(case: dict[str, Any], layers: int, told: bool) -> dict[str, Any]:
    settings = config(case["shape"], layers)
    torch.manual_seed(0)
    base = build_random_base(settings, quantised=case.get("quantised", True))
    weights = torch.cuda.memory_allocated()
    section = Adapter(
        r=case.get("r", 16), alpha=16, dropout=case.get("dropout", 0.0), kind=case.get("kind", "lora"), target_modules=case.get("targets", "all-linear")
    )
    model, _ = add_adapter(base, section, seed=0)
    adapters = torch.cuda.memory_allocated() - weights
    if case["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = make_optimizer(case.get("optimizer", "paged_adamw_32bit"), model.parameters(), 2e-4, 0.0)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    generator = torch.Generator().manual_seed(0)
    drawn = (settings["vocab_size"], case["rows"], case["tokens"], generator, case.get("packed", 0))
    given = [random_batch(*drawn) for _ in range(case.get("accumulation", 1))]

    def step() -> Any:
        return train_step(model, given, optimizer, 1.0, torch.bfloat16, scaler)

    def look() -> Any:
        with torch.no_grad():
            return summed_loss(batch_logits(model, given[0].to(torch.device("cuda")), torch.bfloat16), given[0].labels.cuda())

    if case.get("evaluation"):
        model.eval()
        step = look
    losses = [float(step().loss if step is not look else step()) for _ in range(2)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(max_entries=400_000, stacks="python")
    try:
        with Told() if told else nullcontext():
            step()
        torch.cuda.synchronize()
        history = torch.cuda.memory._snapshot()["device_traces"][0]
    finally:  # or the next case would begin with the events of this one
        torch.cuda.memory._record_memory_history(enabled=None)
    numbers: dict[int, int] = {}
    events: list[list[Any]] = []
    for one in history:
        if one["action"] == "alloc":
            numbers[one["addr"]] = len(events)
            event = [one["size"]]
            if told:
                places = [f"{frame['filename'].split('/')[-1]}:{frame['line']}:{frame['name']}" for frame in one.get("frames", [])]
                event += [one.get("user_metadata", ""), [place for place in places if "record_memory" not in place and "_python_dispatch" not in place][:5]]
            events.append(event)
        elif one["action"] == "free_completed" and one["addr"] in numbers:
            events.append([-1 - numbers.pop(one["addr"])])
        elif one["action"] == "segment_map":
            events.append([0, "map", one["size"]])
    return {
        **case, "layers": layers, "weights": weights, "adapters": adapters, "before": before, "losses": losses,
        "peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved(), "events": events,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    for told in (False, True):
        found = {}
        for name in args.only or CASES:
            try:
                found[name] = record(CASES[name], args.layers, told)
                print(told, name, {key: value for key, value in found[name].items() if key != "events"}, len(found[name]["events"]), flush=True)
            except Exception:  # noqa: BLE001
                print("FAILED", name, traceback.format_exc()[-1500:], flush=True)
            gc.collect()
            torch.cuda.empty_cache()
        (args.folder / f"recorded{'-told' if told else ''}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
