"""How far the adapters' gradients turn when the frozen products are in 8 bits: cosines with the gradients of 16 bits, beside what 16 bits alone do.

    python benchmarks/fp8_gradient.py [--results FOLDER]      on a GPU that has such products; half a minute

Without a GPU the embedded base alone is measured, by the reference of FP8, into fp8_gradient_cpu.json.

Bases: Mistral-7B's shape with random weights, of 1 to 32 layers; the same of 32 layers whose projections into the residual stream are drawn smaller by
sqrt(2 * layers), as trained models begin; and the embedded base, which is trained, on a page of this project's documentation. B of the adapters is random,
not zero. For each base, all adapter gradients together:

    fp8         8 bits beside 16
    other path  16 bits by transformers' layers and autograd beside 16 bits by the fast path
    itself      16 bits beside 16 bits with what the layers open computed again

The last two say how much a base makes of rounding alone: the first of it can be no closer than they are. Writes fp8_gradient.json and the claim
fp8-gradient-cosine, of the whole 7B shape with random weights.
"""

import argparse
import gc
import math
from pathlib import Path
from typing import Any

import torch

from claims import RESULTS, record, save_raw, versions, where
from halfbyte.data.batches import Batch
from halfbyte.fast.decoder import FastDecoder
from halfbyte.model.adapter import add_adapter
from halfbyte.recipe.schema import NF4, Adapter
from halfbyte.train.step import batch_logits, summed_loss
from random_base import build_random_base, config, random_batch

RANK, TOKENS, B_SPREAD = 16, 2048, 0.01
DEPTHS = (1, 2, 4, 8, 16, 32)
WHOLE = "mistral-7b, 32 layers"
PAGE = Path(__file__).parent.parent / "docs" / "design.md"


def adapted(base: torch.nn.Module) -> torch.nn.Module:
    model, _ = add_adapter(base, Adapter(r=RANK, alpha=RANK), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data.copy_(B_SPREAD * torch.randn(parameter.shape, generator=generator))
    return model.train()


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All in one row, and none is left."""
    found = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters() if parameter.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def by_hand(model: torch.nn.Module, batch: Batch, keep: str = "all", **how: Any) -> tuple[float, torch.Tensor]:
    layers = model.get_base_model().config.num_hidden_layers  # type: ignore[operator, union-attr]
    loss = FastDecoder(model, torch.bfloat16, [keep] * layers, **how).accumulate(batch, 1 / batch.supervised)
    return float(loss), gradients(model)


def by_autograd(model: torch.nn.Module, batch: Batch) -> tuple[float, torch.Tensor]:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    on_device = batch.to(next(model.parameters()).device)
    loss = summed_loss(batch_logits(model, on_device, torch.bfloat16), on_device.labels) / batch.supervised
    loss.backward()
    model.gradient_checkpointing_disable()  # type: ignore[operator]
    return float(loss.detach()), gradients(model)


def compare(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    loss, truth = by_hand(model, batch)
    ways = {"fp8": by_hand(model, batch, fp8=True), "other path": by_autograd(model, batch), "itself": by_hand(model, batch, "thin")}
    found: dict[str, Any] = {"loss": loss}
    for name, (its_loss, ours) in ways.items():
        cosine = float(torch.nn.functional.cosine_similarity(ours, truth, 0))
        found[name] = {"loss": its_loss, "cosine": cosine, "off": float((ours - truth).norm() / truth.norm())}
    return found


def random_weights(layers: int, residual: float = 1.0) -> dict[str, Any]:
    model = adapted(build_random_base(config("mistral-7b", layers), residual=residual))
    return compare(model, random_batch(32000, 1, TOKENS, torch.Generator().manual_seed(2)))


def embedded() -> dict[str, Any]:
    from halfbyte.model.base import find_base
    from halfbyte.model.load import load_base, load_tokenizer

    base = find_base("embedded")
    model = adapted(load_base(base, NF4(), "bfloat16", torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")).model)
    ids = torch.tensor(load_tokenizer(base).encode(PAGE.read_text(encoding="utf-8"))[:1024])[None]
    return compare(model, Batch(ids, ids.clone(), (ids.shape[1],)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        content = {"where": where(), "versions": versions(), "rank": RANK, "case": embedded()}
        print("embedded base", {way: round(one["cosine"], 5) for way, one in content["case"].items() if way != "loss"}, f"loss {content['case']['loss']:.4f}")
        save_raw("fp8_gradient_cpu.json", content, args.results)
        return
    found: dict[str, Any] = {}
    cases = {
        "embedded base": embedded,
        **{f"mistral-7b, {depth} layers": (lambda depth=depth: random_weights(depth)) for depth in DEPTHS},
        "mistral-7b, 32 layers, small residual projections": lambda: random_weights(32, 1 / math.sqrt(64)),
    }
    for name, case in cases.items():
        found[name] = case()
        print(name, {way: round(one["cosine"], 5) for way, one in found[name].items() if way != "loss"}, f"loss {found[name]['loss']:.4f}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    save_raw("fp8_gradient.json", {"where": where(), "versions": versions(), "rank": RANK, "tokens": TOKENS, "cases": found}, args.results)
    whole = found[WHOLE]
    beside = {
        "other_path": round(whole["other path"]["cosine"], 4), "itself": round(whole["itself"]["cosine"], 4),
        "embedded": round(found["embedded base"]["fp8"]["cosine"], 4),
        "small_residual": round(found["mistral-7b, 32 layers, small residual projections"]["fp8"]["cosine"], 4),
    }  # fmt: skip
    record("fp8-gradient-cosine", round(whole["fp8"]["cosine"], 4), "cosine, random weights", args.results, beside=beside)


if __name__ == "__main__":
    main()
