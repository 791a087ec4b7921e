"""Packed rows: what a model is given so that the documents of a row see only themselves, and the proof that it works.

transformers (masking_utils.py) finds the borders in `position_ids` that restart at 0 and builds the mask itself, sliding
windows included, but only where no attention mask is given and no cache is used: either one silently leaks (CORRECTNESS 1.6).
Falcon does not hand its positions to the mask, so it is given a mask of ours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfbyte.errors import ModelError
from halfbyte.model.precision import compute_in

BLIND_MASKS = ("falcon",)  # model types whose own mask does not look at the positions
HINT = "set data.packing=none"
# Alone and packed, the same sums are taken in another order: hundreds of roundings, of 6e-8 in float32, 4e-3 in bfloat16 and 5e-4 in float16.
SAME_LOSS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def model_inputs(model: nn.Module, ids: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> dict[str, Any]:
    """What training and evaluation hand to `model`: ids, positions and document numbers are (B, T), the latter two None where no row is packed."""
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if positions is None or documents is None:
        return inputs
    inputs["position_ids"] = positions
    if model.config.model_type in BLIND_MASKS:
        inputs["attention_mask"] = _document_mask(model, documents)
    return inputs


def _document_mask(model: nn.Module, documents: Tensor) -> Tensor:
    """documents (B, T) -> (B, 1, T, T): True where a query may look; eager attention adds its mask to the scores."""
    may_look = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
    if model.config._attn_implementation != "eager":
        return may_look
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(may_look.shape, dtype=dtype, device=documents.device).masked_fill(~may_look, torch.finfo(dtype).min)


@torch.no_grad()
def check_isolation(model: nn.Module, dtype: torch.dtype) -> None:
    """Raises ModelError unless two documents in one row are to the loaded model what each is alone; leaves its mode and all random states.

    To the bit: the second document's logits stay when every token of the first is another. Within rounding: the loss of each
    is what it is in a row of its own, so positions begin anew.
    """
    device, was_training = next(model.parameters()).device, model.training
    some = torch.randint(model.get_input_embeddings().num_embeddings, (35,), generator=torch.Generator().manual_seed(0))
    first, edited, second = some.split([11, 11, 13])

    def logits(*documents: Tensor) -> Tensor:
        """(T, V) of the documents in one row; dropout draws the same at every call."""
        torch.manual_seed(0)
        positions = torch.cat([torch.arange(len(document)) for document in documents])
        numbers = torch.cat([torch.full((len(document),), number) for number, document in enumerate(documents)])
        row = (tensor[None].to(device) for tensor in (torch.cat(documents), positions, numbers))
        with compute_in(device, dtype):
            return model(**model_inputs(model, *row)).logits[0].float().cpu()

    def loss(logits: Tensor, document: Tensor) -> float:
        return float(F.cross_entropy(logits[:-1], document[1:]))

    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for training in (True, False):
                model.train(training)
                before, after = (logits(neighbour, second)[len(neighbour) :] for neighbour in (first, edited))
                if not torch.equal(before, after):
                    leak = float((before - after).abs().max())
                    raise ModelError(f"packed rows: with this base a document's logits move by {leak:.2g} when its neighbour in the row is another", hint=HINT)
            together = logits(first, second).split([len(first), len(second)])
            for document, packed in zip((first, second), together, strict=True):
                alone = loss(logits(document), document)
                if abs(loss(packed, document) - alone) > SAME_LOSS[dtype] * alone:
                    raise ModelError(f"packed rows: with this base a document has a loss of {loss(packed, document):.4g} and of {alone:.4g} alone", hint=HINT)
    except (TypeError, ValueError) as error:
        raise ModelError(f"packed rows: this base cannot keep the documents of a row apart ({error})", hint=HINT) from error
    finally:
        model.train(was_training)
