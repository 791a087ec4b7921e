"""Puts a plan's placements into force: where the frozen weights of each decoder layer lie, and what is kept of it for the backward pass.

    load_base -> keep_in_16bit -> add_adapter or load_adapter -> place_layers

Linear layers are exchanged before the adapter is added, because peft wraps the kind that it finds. Layers are moved after it, because
DoRA reads all weights when it is made. No placement changes what is computed: "recomputed" and "cpu" give the same losses and gradients
to the bit, "16bit" the same to the rounding of a matrix product. offload.py is the machine behind "cpu".

transformers calls a layer that is to be recomputed through a function that it keeps on the layer; here it is `_run_twice`, for each layer
its own. Layers with weights in the computer's memory must be recomputed: the backward pass needs their weights once more, and it is by the
second run that they are known to be needed.
"""

import copy
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halfbyte.errors import ModelError
from halfbyte.model.load import decoder_layers
from halfbyte.model.offload import DOWN, UP, OffloadedWeights, WaitingInputs
from halfbyte.recipe.plan import Placement

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit
    from transformers import PreTrainedModel

Layer = Callable[..., Any]  # a decoder layer's forward: the hidden states (B, T, D) first
Fetch = Callable[[int], None]  # has a layer's weights in place before it runs; takes UP or DOWN


def keep_in_16bit(model: "PreTrainedModel", placements: Sequence[Placement], dtype: torch.dtype) -> None:
    """Layers placed "16bit" are dequantised once, as bitsandbytes does for every product: the same numbers, more memory, less time."""
    wanted = [layer for layer, placement in _placed(model, placements) if placement.weights == "16bit"]
    if not wanted:
        return
    from bitsandbytes.nn import Linear4bit

    for layer in wanted:
        for path, module in list(layer.named_modules()):
            if isinstance(module, Linear4bit):
                layer.set_submodule(path, _dequantised(module, dtype))


def place_layers(model: nn.Module, placements: Sequence[Placement], device: torch.device) -> None:
    """Once for a model, with its adapter: all is moved to `device` but the frozen weights of layers that are placed "cpu".

    So it may be loaded in the computer's memory and be larger than that of the device. Raises ModelError for layers that cannot be recomputed.
    """
    placed = _placed(model, placements)
    for layer, placement in placed:
        _check(layer, placement)
    offloaded = [layer for layer, placement in placed if placement.weights == "cpu"]
    weights = OffloadedWeights(offloaded, device)
    _move(model, device)
    fetches: dict[nn.Module, Fetch] = {layer: partial(weights.fetch, index) for index, layer in enumerate(offloaded)}
    inputs = WaitingInputs(device)
    for layer, placement in placed:
        recomputed = placement.activations != "kept"
        fetch = fetches.get(layer, _in_place)
        layer.gradient_checkpointing = recomputed
        layer._gradient_checkpointing_func = partial(_run_twice, fetch, inputs.away if placement.activations == "cpu" else _stays)
        if layer in fetches:
            layer.register_forward_pre_hook(partial(_fetch_for_use, fetch))
        if placement.weights == "16bit":
            _adapt_inputs_as_they_are(layer)


def can_recompute(model: nn.Module) -> bool:
    """Whether place_layers has been here, and transformers can recompute every layer."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return all(isinstance(layer, GradientCheckpointingLayer) and hasattr(layer, "_gradient_checkpointing_func") for layer in decoder_layers(model))


def place_activations(model: nn.Module, placements: Sequence[Placement], device: torch.device) -> None:
    """Changes, between steps, what becomes of the activations of a model that place_layers has placed. Weights stay where they are."""
    inputs = WaitingInputs(device)
    for layer, placement in _placed(model, placements):
        fetch = cast(Any, layer)._gradient_checkpointing_func.args[0]
        layer.gradient_checkpointing = placement.activations != "kept"
        layer._gradient_checkpointing_func = partial(_run_twice, fetch, inputs.away if placement.activations == "cpu" else _stays)


@contextmanager
def recomputing(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside, every layer's activations are recomputed in the backward pass, or no layer's; then each is as it was placed.

    Layers with weights in the computer's memory are recomputed in either case: they cannot be trained otherwise.
    """
    before = [(layer, layer.gradient_checkpointing, getattr(layer, "_gradient_checkpointing_func", None)) for layer in decoder_layers(model)]
    try:
        for layer, _, function in before:
            away = isinstance(function, partial) and function.args[0] is not _in_place
            layer.gradient_checkpointing = on or away
            if function is None:
                layer._gradient_checkpointing_func = partial(_run_twice, _in_place, _stays)
        yield
    finally:
        for layer, was_on, function in before:
            layer.gradient_checkpointing = was_on
            if function is None:
                del layer._gradient_checkpointing_func


@contextmanager
def limit_memory(device: torch.device, budget_bytes: int) -> Iterator[None]:
    """Inside, PyTorch takes at most this much of the GPU's memory and raises OutOfMemoryError beyond it. Without a GPU it does nothing."""
    if device.type != "cuda":
        yield
        return
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_per_process_memory_fraction(device)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total_bytes), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _run_twice(fetch: Fetch, away: Callable[[Tensor], AbstractContextManager[Any]], layer: Layer, *inputs: Any) -> Any:
    """What transformers calls a layer through in training: it runs now, keeping its inputs alone, and again in the backward pass."""
    direction = UP

    def run(*inputs: Any) -> Any:
        nonlocal direction
        fetch(direction)
        direction = DOWN
        return layer(*inputs)

    with away(inputs[0]):
        try:
            return checkpoint(run, *inputs, use_reentrant=False)
        except BaseException as error:
            _leave_checkpoint(error)
            raise


def _leave_checkpoint(error: BaseException) -> None:
    """torch's checkpoint stands in its own context until the frames of the error are let go of; what was saved next would be taken for its own."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        held = frame.f_locals.get("gen")
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint" and isinstance(held, Generator):
            held.close()


def _fetch_for_use(fetch: Fetch, layer: nn.Module, inputs: Any) -> None:
    """In use (evaluation, generation) a layer runs once. In training _run_twice has fetched its weights, and alone knows the direction."""
    if not layer.training:
        fetch(UP)


def _adapt_inputs_as_they_are(layer: nn.Module) -> None:
    """Over a plain linear layer peft copies the adapter's input (B, T, D) to float32 first, which autocast rounds back into a third tensor
    that is kept for the backward pass; over a 4-bit one on a GPU it does not. Without the copy the numbers are those of the 4-bit layer."""
    from peft.tuners.lora import LoraLayer

    for module in layer.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def _in_place(direction: int) -> None:
    """The weights lie on the device."""


def _stays(hidden: Tensor) -> AbstractContextManager[None]:
    """The input of the layer stays on the device."""
    return nullcontext()


def _placed(model: nn.Module, placements: Sequence[Placement]) -> list[tuple[nn.Module, Placement]]:
    return list(zip(decoder_layers(model), placements, strict=True))


def _check(layer: nn.Module, placement: Placement) -> None:
    """Raises ModelError for a layer that transformers cannot recompute."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    assert placement.weights != "cpu" or placement.activations != "kept", (
        "weights in the computer's memory are there for the backward pass only if it recomputes"
    )
    if placement.activations != "kept" and not isinstance(layer, GradientCheckpointingLayer):
        raise ModelError(f"base: {type(layer).__name__} cannot be recomputed in the backward pass", hint="use train.gradient_checkpointing=false")


def _move(model: nn.Module, device: torch.device) -> None:
    """Each tensor in place, so that whoever holds a parameter or a tied weight holds it still; what is there already stays."""
    for parameter in model.parameters():
        if type(parameter).__name__ == "Params4bit":
            cast(Any, parameter).quant_state.to(device)
        parameter.data = parameter.data.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _dequantised(module: "Linear4bit", dtype: torch.dtype) -> nn.Linear:
    """weight (N, D) in `dtype`, straight from 4 bits, as the 4-bit product makes it when it computes in `dtype`."""
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(module.weight.quant_state)
    state.dtype = dtype
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(dequantize_4bit(module.weight.data, state), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
    return linear.train(module.training)
