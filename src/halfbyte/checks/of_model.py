"""Proofs about what is loaded: a base and an adapter that are finite, of their types, in their places, and change nothing yet."""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.checks.proof import Claim, Refuted
from halfbyte.checks.tolerance import SAME_SCALE
from halfbyte.checks.trial import Trial, apart, ending
from halfbyte.recipe.schema import FP4, NF4

BASE_AGAIN = "load the base again; halfbyte train starts from its files"
# Weights that are no trained matrices of peft have none of these in their names.
ADAPTER_NAMES = ("lora_", "modules_to_save", "trainable_tokens")

# What is loaded


@torch.no_grad()
def fingerprints(trial: Trial) -> dict[str, tuple[int, float]]:
    """Of every tensor that is not trained, 4-bit data, their scales and buffers among them: the sum of its bits, and a sum that tells NaN and infinity.

    Those of a layer are read when it runs: a layer that waits in the computer's memory has its weights in place only then.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    names = {id(module): name for name, module in trial.model.named_modules()}
    inner = {id(module) for layer in trial.layers for module in layer.modules()}

    def read(module: nn.Module) -> None:
        prefix = names[id(module)]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if not tensor.requires_grad:
                for part, held in _parts(name, tensor):
                    found[f"{prefix}.{part}"] = (_bits(held), held.sum(dtype=torch.float32) if held.is_floating_point() else torch.zeros(()))

    def when_it_runs(layer: nn.Module, inputs: Any) -> None:
        for module in layer.modules():
            read(module)

    hooks = [layer.register_forward_pre_hook(when_it_runs) for layer in trial.layers]
    try:
        trial.alone(ending(trial.rows[0], 4))
    finally:
        for hook in hooks:
            hook.remove()
    for module in trial.model.modules():
        if id(module) not in inner:
            read(module)
    return {name: (int(bits), float(total)) for name, (bits, total) in found.items()}


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, tensor.data
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        yield f"{name}.absmax", state.absmax
        yield f"{name}.code", state.code
        if state.nested:
            yield f"{name}.absmax2", state.state2.absmax
            yield f"{name}.offset", state.offset


def _bits(tensor: Tensor) -> Tensor:
    """Of whole words where the size allows."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return (flat.view(torch.int32) if len(flat) % 4 == 0 and flat.storage_offset() % 4 == 0 else flat).sum(dtype=torch.int64)


def weights(trial: Trial) -> str:
    from peft.tuners.lora import LoraLayer

    subject = trial.subject
    for name, parameter in trial.trained.items():
        if not bool(parameter.isfinite().all()):
            raise Refuted(f"{name} of the adapter holds NaN or infinity", "the adapter is damaged", "start with a new adapter")
        if parameter.dtype != torch.float32:
            seen = f"{name} is kept in {str(parameter.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "a 16-bit weight loses the updates that are small beside it", "keep what is trained in float32")
    found = fingerprints(trial)
    for name, (_, total) in found.items():
        if not math.isfinite(total):
            tensor = _tensor(trial.model, name)
            if tensor is None or not bool(tensor.isfinite().all()):
                raise Refuted(f"{name} of the base holds NaN or infinity", "the files of the base are damaged, or its type is too narrow", BASE_AGAIN)
    for name, module in trial.model.named_modules():
        if type(module).__name__ == "Linear4bit" and not isinstance(module, LoraLayer) and module.compute_dtype != subject.dtype:
            seen = f"{name} computes in {str(module.compute_dtype).removeprefix('torch.')}, the plan says {str(subject.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "the base brings a compute type of its own", "set the plan's precision on the 4-bit layers")
    for name, parameter in trial.model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (subject.dtype, torch.float32):
            seen = f"{name} is in {str(parameter.dtype).removeprefix('torch.')}, the plan says {str(subject.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "the base was loaded in another type", "load the base in the plan's precision")
    _kept_as_asked(trial)
    _tied(trial)
    row = trial.rows[0]
    if not bool(trial.alone(row).isfinite().all()):
        raise Refuted("the logits of the first row are not finite", "a product overflows in this type", "train in bfloat16, or in float32")
    count = sum(parameter.numel() for parameter in trial.trained.values())
    return f"{len(found):,} tensors of the base and {len(trial.trained):,} of the adapter are finite; {count:,} weights are trained, in float32"


def _kept_as_asked(trial: Trial) -> None:
    """Layers that the plan keeps in 16 bits have no 4-bit weights any more."""
    quant = trial.subject.quant
    for name, parameter in trial.model.named_parameters():
        if quant is None or type(parameter).__name__ != "Params4bit":
            continue
        state = cast(Any, parameter).quant_state
        seen = f"{state.quant_type}{', scales quantised too' if state.nested else ''}"
        wanted = f"{quant.kind}{', scales quantised too' if isinstance(quant, NF4 | FP4) and quant.double_quant else ''}"
        if seen != wanted:
            raise Refuted(f"{name} is kept as {seen}, the recipe asks for {wanted}", "quant.* does not reach what loads the base", BASE_AGAIN)


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    """None for what is not simply an attribute, such as scales."""
    owner, _, last = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(owner), last, None)
    except AttributeError:
        return None
    return found if isinstance(found, Tensor) else None


def _tied(trial: Trial) -> None:
    model = trial.model
    head, whole = model.get_output_embeddings(), any("modules_to_save" in name for name in trial.trained)
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or whole:
        return
    embedding, head_weight = model.get_input_embeddings().weight, getattr(head, "base_layer", head).weight
    if embedding.shape != head_weight.shape or not torch.equal(embedding, head_weight):
        raise Refuted("embedding and head differ, the config ties them", "the head was made anew when the base was loaded or its size changed", BASE_AGAIN)


# The adapter


def adapter(trial: Trial) -> str:
    """On every layer that was asked for, trained and nothing else, scaled as the recipe says, and without effect before the first step."""
    from peft.tuners.lora import LoraLayer

    subject, model = trial.subject, trial.model
    if not trial.trained:
        raise Refuted("no tensor is trained", "the adapter is frozen, or was not added", "add a new adapter, not a loaded one, for training")
    others = [name for name in trial.trained if not any(mark in name for mark in ADAPTER_NAMES)]
    if others:
        raise Refuted(f"{len(others)} tensors of the base are trained, the first is {others[0]}", "the base is not frozen", "train the adapter alone")
    frozen = [name for name, parameter in model.named_parameters() if "lora_" in name and not parameter.requires_grad]
    if frozen:
        raise Refuted(
            f"{len(frozen)} tensors of the adapter are frozen, the first is {frozen[0]}", "part of the adapter does not train", "add the adapter anew"
        )
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not adapted:
        raise Refuted("no layer has an adapter", "the names of the layers match nothing", "look at adapter.target_modules")
    active = model.active_adapter
    for name, module in adapted.items():
        if not (active in module.lora_A or active in module.lora_embedding_A) or module.disable_adapters or module.merged:
            raise Refuted(f"{name} does not use its adapter", "it is switched off, merged or of another name", "add the adapter anew")
        scale = float(module.scaling[active])
        if abs(scale - subject.scale) > SAME_SCALE * subject.scale:
            raise Refuted(
                f"{name} scales by {scale:g}, by the recipe it is {subject.scale:g}", "alpha, r or rslora do not reach the layers", "alpha/r, or alpha/sqrt(r)"
            )
    targets = model.peft_config[active].target_modules
    if not isinstance(targets, str):
        for name, module in model.named_modules():
            path = name.removeprefix("base_model.model.")
            wanted = any(path == target or path.endswith(f".{target}") for target in targets)
            if wanted and name not in adapted and type(module).__name__ in ("Linear", "Linear4bit", "Conv1D"):
                raise Refuted(f"{path} has no adapter", "the adapter was not added to every layer that was asked for", "look at adapter.target_modules")
    _as_asked(trial, adapted)
    row = trial.rows[-1]
    with_adapter = trial.alone(row)
    with model.disable_adapter():
        base = trial.alone(row)
    differs = apart(with_adapter, base, trial.tolerance.share)
    # A product of zero changes no bit; DoRA divides by the length of each row, and a module that is trained whole is one of another type.
    exact = not model.peft_config[active].use_dora and not model.peft_config[active].modules_to_save
    if subject.begins_as_base and not (torch.equal(with_adapter, base) if exact else differs <= trial.tolerance.logits):
        seen = f"the new adapter moves the logits by {differs:.2g} of their spread"
        raise Refuted(seen, "its matrices are not made so that their product is zero", "start with B at zero")
    told = f"moves the logits by {differs:.1g} before step 1"
    return f"{len(adapted)} layers, {len(trial.trained)} trained tensors, scale {subject.scale:g}; it {told}"


def _as_asked(trial: Trial, adapted: dict[str, Any]) -> None:
    """Rank, dropout, kind and layers are those of the recipe."""
    from peft.tuners.lora.layer import ParamWrapper

    asked, active = trial.subject.asked, trial.model.active_adapter
    if asked is None:
        return
    hint = "look at adapter.*"
    for name, module in adapted.items():
        # peft gives fused experts a multiple of the rank, as many as were fused.
        fused = isinstance(module, ParamWrapper) and module.r[active] % asked.r == 0
        dropout = module.lora_dropout[active].p if isinstance(module.lora_dropout[active], nn.Dropout) else 0.0
        for what, seen, wanted in (
            ("rank", asked.r if fused else module.r[active], asked.r),
            ("dropout", dropout, asked.dropout),
            ("magnitude of DoRA", active in module.lora_magnitude_vector, asked.kind == "dora"),
        ):
            if seen != wanted:
                raise Refuted(f"{name} has {what} {seen}, the recipe asks for {wanted}", "a key of the recipe does not reach the adapter", hint)
    if asked.target_modules == "all-linear":
        inner = {id(part) for module in adapted.values() for part in module.modules()}
        for place, layer in enumerate(trial.layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and id(module) not in inner:
                    raise Refuted(
                        f"{name} of layer {place} has no adapter, the recipe asks for all linear layers", "the names of the layers are narrower", hint
                    )


OF_MODEL = [
    Claim("weights", weights, "the base or the adapter, as loaded", BASE_AGAIN),
    Claim("adapter", adapter, "the adapter", "look at adapter.*"),
]
