"""A process that knows nothing but files: base and adapter are read, and the logits of one row are written. `check --deep` starts it.

python -m halfbyte.api.fresh FOLDER        with recipe.yaml and job.json; writes logits.safetensors
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from halfbyte.data.batches import Batch
from halfbyte.evaluate.loss import evaluating
from halfbyte.model.adapter import load_adapter
from halfbyte.model.base import find_base
from halfbyte.model.load import load_base
from halfbyte.model.machine import look_at_machine, torch_device
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.load import parse_recipe
from halfbyte.train.step import batch_logits


def answer(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    file = folder / "recipe.yaml"
    recipe = parse_recipe(file.read_text(encoding="utf-8"), str(file), []).recipe
    device = torch_device(look_at_machine())
    model = load_adapter(load_base(find_base(recipe.base), recipe.quant, job["precision"], device).model, job["adapter"])
    ids = torch.tensor([job["ids"]], device=device)  # (1, T)
    with torch.no_grad(), evaluating(model):
        logits = batch_logits(model, Batch(ids, ids, (ids.shape[1],)), DTYPES[job["precision"]])[0]
    save_file({"logits": logits.float().cpu().contiguous()}, folder / "logits.safetensors")


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
