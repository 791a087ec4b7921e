"""Step time and peak memory of the plain path on 7B shapes with random weights (no trained weights are to be had here).

    python benchmarks/plain_7b.py mistral falcon [--steps 20] [--results FOLDER]

NF4 with double quantisation, r 16 on all linear layers, float32 adapters, paged AdamW, gradient
checkpointing, 4 x 2048 tokens without padding, new random tokens each step. Writes plain_7b.json and the
claims plain-7b-ms and plain-falcon-7b-ms. The first steps are warm-up and not counted; losses, gradient
norms and the count of adapters that moved are in the raw file, so that it can be seen to train.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch

from claims import RESULTS, record, save_raw
from halfbyte import api
from halfbyte.data.batches import Batch
from halfbyte.model.adapter import add_adapter
from halfbyte.model.base import EMBEDDED_FOLDER, find_base
from halfbyte.model.load import load_base
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import NF4, Adapter
from halfbyte.runs.folder import read_report
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.step import train_step

ROWS, TOKENS = 4, 2048
WARM_UP = 5
CLAIMS = {"mistral": "plain-7b-ms", "falcon": "plain-falcon-7b-ms"}


def shape(name: str):
    from transformers import FalconConfig, MistralConfig

    if name == "mistral":
        return MistralConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            max_position_embeddings=32768, sliding_window=None, rms_norm_eps=1e-5, tie_word_embeddings=False, dtype="bfloat16",
        )  # fmt: skip
    return FalconConfig(
        vocab_size=65024, hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, multi_query=True, parallel_attn=True,
        alibi=False, bias=False, new_decoder_architecture=False, max_position_embeddings=2048, dtype="bfloat16",
    )  # fmt: skip


def write_random_base(name: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape(name))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def measure(name: str, steps: int, scratch: Path) -> dict:
    folder = scratch / f"random-{name}-7b"
    write_random_base(name, folder)
    started = time.monotonic()
    loaded = load_base(find_base(str(folder)), NF4(), "bfloat16", torch.device("cuda", 0))
    load_seconds = time.monotonic() - started
    shutil.rmtree(folder)
    model, _ = add_adapter(loaded.model, Adapter(r=16, alpha=16), seed=0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = make_optimizer("paged_adamw_32bit", model.parameters(), 2e-4, 0.0)
    by_rows = {rows: time_steps(model, optimizer, rows, steps) for rows in (1, ROWS)}
    moved = [parameter for key, parameter in model.named_parameters() if "lora_B" in key]
    return {
        "model": f"{name}-7b shape, random weights", "parameters": loaded.parameters, "share_4bit": loaded.share_4bit,
        "weight_gb": loaded.weight_bytes / 1e9, "load_seconds": load_seconds, "tokens_a_row": TOKENS,
        "adapters_moved": f"{sum(bool(b.abs().max() > 0) for b in moved)} of {len(moved)}", "by_rows": by_rows,
    }  # fmt: skip


def time_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: int, steps: int) -> dict:
    """Steps of rows x TOKENS new random tokens; the first WARM_UP are trained and not counted."""
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator().manual_seed(0)
    times, results = [], []
    for _ in range(WARM_UP + steps):
        ids = torch.randint(3, 32000, (rows, TOKENS), generator=generator)
        torch.cuda.synchronize()
        began = time.perf_counter()
        results.append(train_step(model, [Batch(ids, ids, (ids.shape[1],) * ids.shape[0])], optimizer, 1.0, torch.bfloat16, scaler))
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e3)
    counted = sorted(times[WARM_UP:])
    return {
        "trained_steps": WARM_UP + steps, "median_ms": statistics.median(counted), "fastest_ms": counted[0], "slowest_ms": counted[-1],
        "tokens_per_second": rows * TOKENS / statistics.median(counted) * 1e3,
        "peak_allocated_gb": torch.cuda.max_memory_allocated() / 1e9, "peak_reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        "losses": [result.loss for result in results], "grad_norms": [result.grad_norm for result in results], "times_ms": times,
    }  # fmt: skip


def whole_run(name: str, scratch: Path, budget: str | None) -> dict:
    """`halfbyte train` from file to report on the same random base (the embedded tokenizer has no more ids), held to a budget where one is given."""
    folder = scratch / f"random-{name}-7b"
    write_random_base(name, folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_FOLDER / file, folder)
    tale = EMBEDDED_FOLDER.parent / "samples" / "gothic_tale.txt"
    held = f"memory_budget: {budget}\n" if budget else ""
    text = f"name: whole\nbase: {folder}\n{held}data:\n  path: {tale}\n  kind: text\n  max_length: {TOKENS}\ntrain:\n  max_steps: 4\n  batch_size: 1\n"
    run = api.train(parse_recipe(text, "whole.yaml", []), scratch / "runs", listener=lambda event: print(time.strftime("%X"), event["event"], flush=True))
    report = read_report(run.path)
    shutil.rmtree(folder)
    how = next(one for one in report["decisions"] if one["name"] == "memory")
    return {
        "budget": budget, "memory": report["memory"], "time": report["time"], "how": f"{how['value']}: {how['reason']}", "status": report["status"],
        "perplexity": report["perplexity"], "rows": 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", choices=sorted(CLAIMS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--whole-run", action="store_true", help="instead: the peak of a whole run of one row at a time, load, validation and answers included")
    parser.add_argument("--budget", help="memory_budget of the whole run, such as 6GB")
    args = parser.parse_args()
    file = args.results / "plain_7b.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if args.whole_run:
        found["whole_run"] = {name: whole_run(name, args.scratch, args.budget) for name in args.models}
        print(found["whole_run"])
        save_raw("plain_7b.json", found, args.results)
        return
    for name in args.models:
        found[name] = measure(name, args.steps, args.scratch)
        for rows, timed in found[name]["by_rows"].items():
            print(name, rows, {key: value for key, value in timed.items() if not isinstance(value, list)}, flush=True)
        save_raw("plain_7b.json", found, args.results)
        record(CLAIMS[name], round(found[name]["by_rows"][ROWS]["median_ms"], 1), "ms", args.results)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
