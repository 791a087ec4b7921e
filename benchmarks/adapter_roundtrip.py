"""Is the adapter on disk the adapter that was trained? Trains a few steps on the embedded base, saves, and loads in a fresh process.

    python benchmarks/adapter_roundtrip.py      writes results/adapter_roundtrip.json

The fresh process knows nothing of halfbyte: transformers loads the base in NF4, peft.PeftModel loads the adapter. Compared are the logits
on fixed ids: with bitsandbytes' CPU repacking off on both sides (must be equal to the bit), with it on, and against the base alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from claims import save_raw
from halfbyte.data.batches import Batch
from halfbyte.model.adapter import add_adapter, save_adapter, without_adapter
from halfbyte.model.base import EMBEDDED_FOLDER, find_base
from halfbyte.model.load import load_base, load_tokenizer
from halfbyte.recipe.schema import NF4, Adapter
from halfbyte.train.optimizer import make_optimizer
from halfbyte.train.step import train_step

STEPS = 8
FRESH = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
base, adapter, ids, out, repack = sys.argv[1:]
quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quant, dtype=torch.float32, device_map={"": "cpu"})
model = PeftModel.from_pretrained(model, adapter).eval()
if repack == "off":
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
with torch.no_grad():
    save_file({"logits": model(input_ids=load_file(ids)["ids"], use_cache=False).logits.contiguous()}, out)
"""


def train_and_save(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (4, 128), logits tuned and logits base, both (4, 128, V)."""
    base = find_base("embedded")
    tokenizer = load_tokenizer(base)
    text = (EMBEDDED_FOLDER.parent / "samples" / "gothic_tale.txt").read_text()
    tokens = torch.tensor(tokenizer(text[:40_000], add_special_tokens=False, verbose=False)["input_ids"])
    rows = tokens[: len(tokens) // 128 * 128].view(-1, 128)
    model, _ = add_adapter(load_base(base, NF4(), "float32", torch.device("cpu")).model, Adapter(), seed=0)
    model.train()
    optimizer = make_optimizer("adamw_torch", model.parameters(), 1e-3, 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(STEPS):
        ids = rows[step * 4 : step * 4 + 4]
        train_step(model, [Batch(ids, ids, (ids.shape[1],) * ids.shape[0])], optimizer, 1.0, torch.float32, scaler)
    save_adapter(model, folder / "adapter", base.place)
    model.eval()
    ids = rows[-4:]
    with torch.no_grad():
        tuned = model(input_ids=ids, use_cache=False).logits
        with without_adapter(model):
            plain = model(input_ids=ids, use_cache=False).logits
    return ids, tuned, plain


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids, tuned, plain = train_and_save(folder)
        save_file({"ids": ids.contiguous()}, folder / "ids")
        fresh = {}
        for repack in ("off", "on"):
            out = folder / f"logits-{repack}"
            subprocess.run([sys.executable, "-c", FRESH, str(EMBEDDED_FOLDER), str(folder / "adapter"), str(folder / "ids"), str(out), repack], check=True)
            fresh[repack] = load_file(out)["logits"]
    spread = float((tuned - plain).abs().max())
    result = {
        "steps": STEPS, "logits": list(tuned.shape), "equal_to_the_bit_repacking_off": bool(torch.equal(tuned, fresh["off"])),
        "largest_difference_repacking_off": float((tuned - fresh["off"]).abs().max()),
        "largest_difference_repacking_on": float((tuned - fresh["on"]).abs().max()),
        "top1_agreement_repacking_on": float((tuned.argmax(-1) == fresh["on"].argmax(-1)).float().mean()),
        "largest_difference_to_the_base": spread,
    }  # fmt: skip
    save_raw("adapter_roundtrip.json", result)
    print(json.dumps(result, indent=1))
    if not result["equal_to_the_bit_repacking_off"] or spread == 0:
        sys.exit("the adapter on disk is not the one that was trained")


if __name__ == "__main__":
    main()
