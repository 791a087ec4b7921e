"""What each format of the weights costs: perplexity, bytes and seconds of the embedded base in bf16, int8, NF4 and FP4.

    python benchmarks/quantisation.py [--results FOLDER]    reads HALFBYTE_DATA (default ../shared/data), under 4 minutes on one core

The text is the first CHARACTERS of WikiText-2's raw test part, cut where a line ends, in blocks of CONTEXT ids that begin with <s>. Weights are
stored as bf16, or quantised by bitsandbytes (4 bits in blocks of 64, DQ: their scales quantised too; int8: LLM.int8(), arXiv 2208.07339, with its
threshold of 6 for outliers). Arithmetic is float32, so that nothing but the format differs (int8 also rounds what is multiplied, by way of float16);
seconds are those of this CPU and say nothing of a GPU.
"""

import argparse
import gzip
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from claims import RESULTS, save_raw, versions, where
from halfbyte.data.pack import cut_blocks
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.evaluate.bits_per_byte import bits_per_byte, row_bytes, token_bytes
from halfbyte.evaluate.loss import perplexity_scores, row_losses
from halfbyte.model.base import Base, find_base
from halfbyte.model.load import load_base, load_tokenizer, quiet_loading
from halfbyte.recipe.schema import FP4, NF4, NoQuant

DATA = Path(os.environ.get("HALFBYTE_DATA", "../shared/data"))
CHARACTERS = 60_000
CONTEXT = 512
DRAWS = 10_000
CPU = torch.device("cpu")
FORMATS = {
    "bf16": NoQuant(kind="none"), "int8": None, "NF4+DQ": NF4(), "NF4": NF4(double_quant=False), "FP4": FP4(kind="fp4", double_quant=False),
}  # fmt: skip


def first_part(characters: int) -> str:
    with gzip.open(DATA / "wikitext" / "wikitext2-raw.test.txt.gz", "rt", encoding="utf-8") as stream:
        text = stream.read(characters)
    return text[: text.rindex("\n") + 1]


def load_int8(base: Base) -> torch.nn.Module:
    """halfbyte itself trains on 4-bit and 16-bit bases only, so transformers loads it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says at every layer and batch that it casts to float16
    with quiet_loading():
        quant = BitsAndBytesConfig(load_in_8bit=True)
        return AutoModelForCausalLM.from_pretrained(base.place, quantization_config=quant, dtype=torch.float32, device_map={"": CPU})


def weight_bytes(model: torch.nn.Module) -> int:
    """Quantised weights with their scales; whatever is not quantised in the bf16 of the file, though computed in float32 here."""
    total = sum(parameter.numel() * 2 for parameter in model.parameters() if parameter.is_floating_point())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales = [state.absmax, state.state2.absmax] if state.nested else [state.absmax]
            total += sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *scales))
        elif not parameter.is_floating_point():
            total += parameter.numel() + parameter.shape[0] * 4  # int8: a float32 scale for each row
    return total


def ratio_interval(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Middle 95 % of the change of perplexity when the blocks (N, 2) are drawn again with replacement, the same for both."""
    draws = np.random.default_rng(0).integers(0, len(before), (DRAWS, len(before)))
    first, second = (np.exp(one[draws, 0].sum(1) / one[draws, 1].sum(1)) for one in (before, after))
    return np.quantile(second / first - 1, (0.025, 0.975)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    args = parser.parse_args()
    base = find_base("embedded")
    tokenizer = load_tokenizer(base)
    encoder, text = Encoder(tokenizer), first_part(args.characters)
    ids = encoder.text(text, begins=True)
    rows = cut_blocks([Tokens(ids, [True] * len(ids), "wikitext2-raw.test", 1)], encoder.begin, None, CONTEXT)
    counted = row_bytes(rows, token_bytes(tokenizer))
    assert counted.sum() == len(text.encode())
    scores, table = {}, {}
    for name, quant in FORMATS.items():
        model = load_int8(base) if quant is None else load_base(base, quant, "float32", CPU).model
        started = time.monotonic()
        losses = row_losses(model, rows, torch.float32, 1, tokenizer.pad_token_id)
        seconds = time.monotonic() - started
        scores[name] = perplexity_scores(losses)
        bits, size = bits_per_byte(losses, counted).sum(0)
        perplexity = losses.total.perplexity
        plain = scores["bf16"]  # the first
        table[name] = {
            "perplexity": perplexity, "bits_per_byte": bits / size, "weight_bytes": weight_bytes(model), "seconds": round(seconds, 1),
            "change": perplexity / table["bf16"]["perplexity"] - 1 if table else 0.0, "interval": ratio_interval(plain, scores[name]),
        }  # fmt: skip
    result = {
        "base": "embedded", "text": f"the first {len(text.encode()):,} bytes of WikiText-2's raw test part", "tokens": int(scores["bf16"][:, 1].sum()),
        "blocks": len(rows), "formats": table, "nats_by_block": {name: [round(nats, 3) for nats in one[:, 0].tolist()] for name, one in scores.items()},
        "arithmetic": "float32", "where": where(), "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip
    save_raw("quantisation.json", result, args.results)
    print(f"{result['text']}, {result['tokens']:,} tokens in {len(rows)} blocks\n")
    print("| weights | perplexity | against bf16 (95 %) | bits a byte | MB of weights | seconds |\n|---|---|---|---|---|---|")
    for name, one in table.items():
        low, high = one["interval"]
        against = "" if name == "bf16" else f"{one['change']:+.2%} ({low:+.2%} to {high:+.2%})"
        print(f"| {name} | {one['perplexity']:.1f} | {against} | {one['bits_per_byte']:.4f} | {one['weight_bytes'] / 1e6:.1f} | {one['seconds']:.0f} |")
    assert all(math.isfinite(one["perplexity"]) for one in table.values())


if __name__ == "__main__":
    main()
