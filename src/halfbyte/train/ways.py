"""The two ways to a micro-batch's gradient: through the model as it was loaded and autograd, or through the decoder blocks of fast/.

Both add `scale` times the gradient of the summed loss to that of each adapter and return scale * the summed loss. Evaluation and generation always go
through the model as it was loaded; checks/ holds one way against the other before the first step.
"""

from collections.abc import Callable

import torch
from torch import nn

from halfbyte.budget.fast_fit import FP8_CANNOT, FP8_HINT
from halfbyte.errors import ModelError
from halfbyte.fast.adopt import Unfit, adopt
from halfbyte.fast.decoder import FastDecoder
from halfbyte.fast.fp8 import in_fp8
from halfbyte.recipe.plan import Computing, Placement
from halfbyte.train.step import Accumulate, plain_way

KEPT = {"kept": "all", "thin": "thin", "attention": "attention", "recomputed": "input", "cpu": "input"}
"""A layer's activations in the plan, and what fast/layer.py calls them."""


def fast_way(model: nn.Module, computing: Computing, dtype: torch.dtype, record: bool | None = None) -> Accumulate:
    """What of each layer is kept, and where, is the plan's; steps are recorded as it says, unless `record` does. Raises Unfit (fast/adopt.py)."""
    layers = computing.layers
    return FastDecoder(
        model, dtype, [KEPT[layer.activations] for layer in layers] or None,
        parked=[number for number, layer in enumerate(layers) if _waits(layer)],
        resident=[number for number, layer in enumerate(layers) if layer.weights == "16bit"],
        tight=computing.tight, record=computing.record if record is None else record, fp8=computing.fp8,
    ).accumulate  # fmt: skip


def way_of(
    model: nn.Module, computing: Computing, dtype: torch.dtype, scaler: torch.amp.GradScaler, record: bool | None = None,
    tell: Callable[[str], None] | None = None,
) -> Accumulate:  # fmt: skip
    """As the plan has it; the plain one, which is told, where the loaded model is not what its config promised. What was asked for in FP8 is never computed
    without it: raises ModelError."""
    if computing.path == "fast":
        try:
            return fast_way(model, computing, dtype, record)
        except Unfit as reason:
            if computing.fp8:
                raise ModelError(FP8_CANNOT.format(reason), hint=FP8_HINT) from None
            if tell:
                tell(f"the plain path is taken after all: {reason}")
    return plain_way(model, dtype, scaler)


def why_not_fast(model: nn.Module, dtype: torch.dtype, fp8: bool = False) -> str | None:
    """The reason why the blocks cannot compute with this model, after all that is known before it is loaded; None where they can."""
    try:
        parts = adopt(model, dtype)
        if fp8:
            in_fp8(parts)
    except Unfit as reason:
        return str(reason)
    return None


def _waits(layer: Placement) -> bool:
    return layer.parked or layer.activations == "cpu"
