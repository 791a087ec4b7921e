"""The embedded base measured: held-out bits per byte against xz, minimal pairs, endings, and what 4 bits cost.

    python benchmarks/base_quality/measure.py --prepared FOLDER [--data DATA]

FOLDER is the output of scripts/embedded_base/prepare.py (it holds the held-out novels). Writes
results/base_quality.json and the claims nf4-ppl-cost and base-bits-per-byte.

Perplexity is exp of the summed loss over the summed tokens, blocks of CONTEXT ids that begin with <s>.
4-bit formats: NF4 and FP4 are bitsandbytes' own (blocks of 64, with and without double quantisation);
int4 is the absmax integer grid -7..7 with one scale per block of 64, quantised and dequantised here.
"""

import argparse
import csv
import gzip
import json
import lzma
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
import torch.nn.functional as F

from claims import record, save_raw
from halfbyte.generate.engine import Marks, Sampling, generate_batch
from halfbyte.model.base import find_base
from halfbyte.model.load import decoder_layers, load_base, load_tokenizer
from halfbyte.recipe.schema import FP4, NF4, NoQuant

HERE = Path(__file__).parent
CONTEXT = 1024
BLOCK = 64
# Table 2 of arXiv 2305.14314: mean perplexity on Pile Common Crawl, 125M to 13B models. int4, FP4 (E2M1), FP4 (E3M0), NF4+DQ.
PAPER_ORDER = "int4 34.34 > FP4 31.07 and 29.48 > NF4+DQ 27.41"
ANSWER_LIMIT = 256


@torch.no_grad()
def summed_loss(model, ids: list[int], bos: int) -> tuple[float, int]:
    """Every id once; blocks of CONTEXT begin with <s>. Returns nats and number of scored ids."""
    total, count = 0.0, 0
    room = CONTEXT - 1
    for start in range(0, len(ids), room):
        block = torch.tensor([[bos, *ids[start : start + room]]])
        logits = model(input_ids=block, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, block[0, 1:], reduction="sum").double())
        count += block.shape[1] - 1
    return total, count


def measure_text(model, tokenizer, text: str) -> dict[str, float]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    nats, count = summed_loss(model, ids, tokenizer.bos_token_id)
    return {"tokens": count, "perplexity": math.exp(nats / count), "bits_per_byte": nats / math.log(2) / len(text.encode())}


@torch.no_grad()
def quantise_int4(model) -> None:
    """Absmax int4 in blocks of BLOCK along the flat weight, in place, on the same matrices that bitsandbytes quantises."""
    for module in decoder_layers(model).modules():
        if isinstance(module, torch.nn.Linear):
            flat = module.weight.data.float().view(-1, BLOCK)
            scale = flat.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
            module.weight.data = (flat / scale).round().clamp(-7, 7).mul(scale).view_as(module.weight).to(module.weight.dtype)


@torch.no_grad()
def sentence_nats(model, tokenizer, sentence: str) -> float:
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return summed_loss(model, ids[:-1], tokenizer.bos_token_id)[0]


def minimal_pairs(model, tokenizer) -> dict:
    """A pair counts when the grammatical sentence has the higher summed log-probability (as BLiMP scores, arXiv 1912.00582)."""
    with open(HERE / "minimal_pairs.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    right: dict[str, list[bool]] = {}
    for row in rows:
        right.setdefault(row["phenomenon"], []).append(sentence_nats(model, tokenizer, row["good"]) < sentence_nats(model, tokenizer, row["bad"]))
    hits = sum(map(sum, right.values()))
    return {"pairs": len(rows), "right": hits, "share": hits / len(rows), "by_phenomenon": {name: sum(found) / len(found) for name, found in right.items()}}


def endings(model, tokenizer) -> dict:
    """Share of simple chat turns that the base answers, greedily, with an end of its own within ANSWER_LIMIT tokens."""
    turns = (HERE / "chat_turns.txt").read_text(encoding="utf-8").splitlines()
    prompts = [
        tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True), add_special_tokens=False)[
            "input_ids"
        ]
        for turn in turns
    ]
    marks = Marks([tokenizer.eos_token_id], tokenizer.pad_token_id)
    answers = generate_batch(model, prompts, marks, Sampling(ANSWER_LIMIT), torch.float32, batch_size=50)
    ended = sum(len(answer) < ANSWER_LIMIT for answer in answers)
    shown = [{"turn": turn, "answer": tokenizer.decode(answer)} for turn, answer in zip(turns, answers, strict=True)]
    return {"turns": len(turns), "ended": ended, "share": ended / len(turns), "limit_tokens": ANSWER_LIMIT, "answers": shown}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quick", action="store_true", help="a tenth of WikiText, no claims written")
    args = parser.parse_args()
    base = find_base(args.base)
    tokenizer = load_tokenizer(base)
    novels = (args.prepared / "held-out-novels.txt").read_text(encoding="utf-8")
    with gzip.open(args.data / "wikitext" / "wikitext2-raw.test.txt.gz", "rt", encoding="utf-8") as stream:
        wikitext = stream.read()
    if args.quick:
        novels, wikitext = novels[: len(novels) // 10], wikitext[: len(wikitext) // 10]

    formats = {"bf16": NoQuant(kind="none"), "nf4+dq": NF4(), "nf4": NF4(double_quant=False), "fp4+dq": FP4(kind="fp4"),
               "fp4": FP4(kind="fp4", double_quant=False), "int4": NoQuant(kind="none")}  # fmt: skip
    result: dict = {"formats": {}, "paper": PAPER_ORDER}
    for name, quant in formats.items():
        # The stored weights are bf16; float32 arithmetic on them leaves the format as the only difference.
        model = load_base(base, quant, "float32", torch.device("cpu")).model.eval()
        if name == "int4":
            quantise_int4(model)
        result["formats"][name] = {"wikitext": measure_text(model, tokenizer, wikitext)}
        if name in ("bf16", "nf4+dq"):
            result["formats"][name]["novels"] = measure_text(model, tokenizer, novels)
        if name == "bf16":
            result["minimal_pairs"], result["endings"] = minimal_pairs(model, tokenizer), endings(model, tokenizer)
        print(name, json.dumps(result["formats"][name]), flush=True)
    raw = novels.encode()
    result["xz_bits_per_byte"] = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(raw)
    perplexity = {name: found["wikitext"]["perplexity"] for name, found in result["formats"].items()}
    cost = perplexity["nf4+dq"] / perplexity["bf16"] - 1
    result["nf4_dq_cost"] = cost
    result["order_agrees_with_paper"] = perplexity["int4"] > min(perplexity["fp4"], perplexity["fp4+dq"]) > perplexity["nf4+dq"]
    print(
        json.dumps(
            {
                "pairs": result["minimal_pairs"]["share"],
                "ended": result["endings"]["share"],
                "nf4 cost": cost,
                "wikitext": perplexity,
                "novels bpb": result["formats"]["bf16"]["novels"]["bits_per_byte"],
                "xz": result["xz_bits_per_byte"],
            },
            indent=1,
        )
    )
    if not args.quick:
        save_raw("base_quality.json", result)
        record("nf4-ppl-cost", round(cost, 4), "share")
        record("base-bits-per-byte", round(result["formats"]["bf16"]["novels"]["bits_per_byte"], 4), "bits/byte")


if __name__ == "__main__":
    main()
