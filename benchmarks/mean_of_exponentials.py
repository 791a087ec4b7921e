"""Mean of exponentials beside exponential of the mean, in train and in eval mode, on the rows of the Frankenstein notebook.

    python benchmarks/mean_of_exponentials.py [--results FOLDER]    reads HALFBYTE_DATA (default ../shared/data), a minute of one core

The notebook (Rakshith-rak69/Finetuning-Mistral7B-QLoRA) prints the mean over its 97 test chunks of exp(loss of the chunk), the tuned model
scored in train mode, with dropout 0.05 in its adapter. Here: its 481 chunks, Project Gutenberg's included, 97 of them drawn for the test (its
own draw has no seed), the embedded base in NF4 with double quantisation, and its adapter (r 32, alpha 64, dropout 0.05, q_proj and v_proj),
trained for STEPS steps, since an adapter that was never trained adds nothing that dropout could change. Base weights are computed in float32.
"""

import argparse
import csv
import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from claims import RESULTS, save_raw, versions, where
from halfbyte.data.batches import make_batch
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.evaluate.loss import RowLosses, row_losses
from halfbyte.model.adapter import add_adapter
from halfbyte.model.base import find_base
from halfbyte.model.load import load_base, load_tokenizer
from halfbyte.recipe.schema import NF4, Adapter
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.step import batch_logits, summed_loss, train_step

DATA = Path(os.environ.get("HALFBYTE_DATA", "../shared/data"))
TEST_CHUNKS = 97
# Chunks of Project Gutenberg's header and licence, counted from 0 (reference notebook, weak point 4).
GUTENBERG = {0, 1, *range(462, 481)}
STEPS, CHUNKS_A_STEP, LEARNING_RATE = 24, 2, 1e-3
DRAWS = 10_000
# Test chunks that are joined before the exponential is taken: as if the text had been cut into longer pieces.
JOINED = (1, 2, 4, 8, TEST_CHUNKS)


def chunks() -> list[str]:
    with open(DATA / "frankenstein" / "frankenstein_chunks.csv", encoding="utf-8", newline="") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def encode(encoder: Encoder, texts: Sequence[str]) -> list[Tokens]:
    """Each with the begin mark and without an end mark, as the notebook tokenises."""
    rows = [encoder.text(text, begins=True) for text in texts]
    return [Tokens(ids, [False] + [True] * (len(ids) - 1), "frankenstein_chunks.csv", line) for line, ids in enumerate(rows, 1)]


def train(model: torch.nn.Module, rows: list[Tokens], pad: int) -> None:
    model.train()
    optimizer = make_optimizer("adamw_torch", model.parameters(), LEARNING_RATE, 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    torch.manual_seed(0)
    for step in range(STEPS):
        chosen = rows[step * CHUNKS_A_STEP : (step + 1) * CHUNKS_A_STEP]
        train_step(model, [make_batch(chosen, pad)], optimizer, 1.0, torch.float32, scaler)


@torch.no_grad()
def losses_in_train_mode(model: torch.nn.Module, rows: list[Tokens], pad: int, seed: int) -> RowLosses:
    """As the notebook: one chunk at a time, dropout on."""
    model.train()
    torch.manual_seed(seed)
    batches = [make_batch([row], pad) for row in rows]
    loss = [float(summed_loss(batch_logits(model, batch, torch.float32), batch.labels)) for batch in batches]
    return RowLosses(np.array(loss), np.array([batch.supervised for batch in batches], np.int64))


def both(losses: RowLosses, chosen: np.ndarray | None = None) -> dict[str, float]:
    """Perplexity by the two formulas; `chosen` rows only, where given."""
    loss, tokens = (losses.loss, losses.tokens) if chosen is None else (losses.loss[chosen], losses.tokens[chosen])
    return {"exp_of_mean": math.exp(loss.sum() / tokens.sum()), "mean_of_exp": float(np.exp(loss / tokens).mean())}


def joined(losses: RowLosses, size: int) -> RowLosses:
    """The same losses of the same tokens, `size` chunks at a time."""
    places = np.arange(0, len(losses.loss), size)
    return RowLosses(np.add.reduceat(losses.loss, places), np.add.reduceat(losses.tokens, places))


def by_chance(base: RowLosses, tuned: RowLosses) -> dict[str, list[float]]:
    """What 97 chunks drawn again with replacement give: the middle 95 % of the change by each formula."""
    draws = np.random.default_rng(0).integers(0, len(base.loss), (DRAWS, len(base.loss)))
    exp_of_mean = [np.exp(one.loss[draws].sum(1) / one.tokens[draws].sum(1)) for one in (base, tuned)]
    mean_of_exp = [np.exp(one.loss / one.tokens)[draws].mean(1) for one in (base, tuned)]
    changes = {"exp_of_mean": exp_of_mean, "mean_of_exp": mean_of_exp}
    return {name: np.quantile(after / before - 1, (0.025, 0.975)).tolist() for name, (before, after) in changes.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    started = time.monotonic()
    base = find_base("embedded")
    tokenizer = load_tokenizer(base)
    pad = tokenizer.pad_token_id
    rows = encode(Encoder(tokenizer), chunks())
    drawn = random.Random(0).sample(range(len(rows)), len(rows))
    test = sorted(drawn[:TEST_CHUNKS])
    test_rows, train_rows = [rows[index] for index in test], [rows[index] for index in drawn[TEST_CHUNKS:]]
    of_novel = np.array([index not in GUTENBERG for index in test])

    adapter = Adapter(r=32, alpha=64, dropout=0.05, target_modules=["q_proj", "v_proj"])
    model, _ = add_adapter(load_base(base, NF4(), "float32", torch.device("cpu")).model, adapter, seed=0)
    before = row_losses(model, test_rows, torch.float32, 8, pad)
    train(model, train_rows, pad)
    after = row_losses(model, test_rows, torch.float32, 8, pad)
    dropped = losses_in_train_mode(model, test_rows, pad, seed=1)

    figures = {"base, eval": both(before), "tuned, eval": both(after), "tuned, train mode": both(dropped)}
    change = {
        name: {formula: figures[name][formula] / figures["base, eval"][formula] - 1 for formula in ("exp_of_mean", "mean_of_exp")}
        for name in ("tuned, eval", "tuned, train mode")
    }
    result = {
        "base": "embedded, NF4 with double quantisation, float32 arithmetic", "adapter": adapter.model_dump(), "trained_on_chunks": STEPS * CHUNKS_A_STEP,
        "test_chunks": len(test), "of_them_project_gutenberg": int((~of_novel).sum()), "tokens": int(before.tokens.sum()),
        "perplexity": figures, "change": change, "interval_of_the_change_eval": by_chance(before, after),
        "base_by_chunks_joined": {str(size): both(joined(before, size)) for size in JOINED},
        "without_project_gutenberg": {"base, eval": both(before, of_novel), "tuned, eval": both(after, of_novel)},
        "chunks": [
            {"chunk": index, "tokens": int(count), "base": round(b, 4), "tuned": round(a, 4), "tuned_train_mode": round(d, 4)}
            for index, count, b, a, d in zip(test, before.tokens, *(one.loss / one.tokens for one in (before, after, dropped)), strict=True)
        ],
        "seconds": round(time.monotonic() - started, 1), "processor_seconds": round(time.process_time(), 1),
        "where": where(), "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip
    save_raw("mean_of_exponentials.json", result, args.results)
    print("| model | exp of the mean (halfbyte) | mean of exp (notebook) |\n|---|---|---|")
    for name, one in figures.items():
        print(f"| {name} | {one['exp_of_mean']:.2f} | {one['mean_of_exp']:.2f} |")
    for name, one in change.items():
        print(f"| change, {name} | {one['exp_of_mean']:+.1%} | {one['mean_of_exp']:+.1%} |")
    told = ("tokens", "interval_of_the_change_eval", "base_by_chunks_joined", "without_project_gutenberg", "seconds", "processor_seconds")
    print(json.dumps({key: result[key] for key in told}, indent=1))


if __name__ == "__main__":
    main()
