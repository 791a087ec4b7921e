"""Injects, saves and loads the adapter with peft, so that every tool of the field can load it. Kept in float32."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halfbyte.errors import ModelError
from halfbyte.model.base import Base
from halfbyte.model.load import falcon_linears_are_linears
from halfbyte.model.vetting import pickled_adapter, vet_adapter
from halfbyte.model.weight_files import check_weight_file
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import Adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

BESIDE = "beside"
"""Name of a second adapter on one base."""
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def add_adapter(model: "PreTrainedModel", section: Adapter, seed: int) -> tuple["PeftModel", Decision]:
    """Wraps the frozen base. The seed alone decides the new matrices, whatever was drawn before.

    Raises ModelError for modules that match nothing and for a whole module that shares its weight or is in 4 bits.
    """
    from peft import LoraConfig, get_peft_model

    if section.init_from is not None:
        folder = adapter_folder(section.init_from)
        wrapped = _wrap_with_saved(model, folder)
        kept = wrapped.peft_config["default"]
        decision = Decision("adapter", f"goes on from {folder}", f"r {kept.r} and alpha {kept.lora_alpha:g} of that adapter are kept")
    else:
        _check_modules(model, section)
        config = LoraConfig(
            r=section.r, lora_alpha=section.alpha, lora_dropout=section.dropout, bias="none", task_type="CAUSAL_LM",
            target_modules=section.target_modules, modules_to_save=section.modules_to_save or None,
            use_rslora=section.kind == "rslora", use_dora=section.kind == "dora",
        )  # fmt: skip
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            wrapped = get_peft_model(model, config)
        _keep_in_float32(wrapped)
        modules = "all linear layers" if section.target_modules == "all-linear" else ", ".join(section.target_modules)
        decision = Decision("adapter", section.kind, f"r {section.r}, alpha {section.alpha:g} on {modules}, float32")
    return wrapped, decision


def check_modules_of(base: Base, section: Adapter) -> None:
    """Names of modules, looked up in a model that is built from the base's config without weights. Raises ModelError."""
    if section.init_from is not None or (section.target_modules == "all-linear" and not section.modules_to_save):
        return
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base.place, revision=base.revision or "main", trust_remote_code=False)
        with torch.device("meta"), falcon_linears_are_linears():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # what is wrong with the config is told where the weights are loaded
    _check_modules(model, section)


def load_adapter(model: "PreTrainedModel", source: str) -> "PeftModel":
    """Base plus a saved adapter, for use, not for training. Raises ModelError unless every tensor fits."""
    wrapped = _wrap_with_saved(model, adapter_folder(source))
    wrapped.requires_grad_(False)
    return wrapped.eval()


def adapter_folder(source: str) -> Path:
    """A run folder or an adapter folder -> the folder with the adapter's files."""
    for folder in (Path(source) / "adapter", Path(source)):
        if all((folder / name).is_file() for name in ADAPTER_FILES):
            return folder
    if pickled := pickled_adapter(Path(source)):
        raise pickled
    raise ModelError(f"{source}: no adapter there; expected {' and '.join(ADAPTER_FILES)}", hint="give a run folder, such as runs/quickstart")


def save_adapter(model: "PeftModel", folder: Path, base_name: str, revision: str | None = None) -> None:
    """Writes peft's two files into `folder`, which must be new or ours. Other tools find the base by name and revision."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_name, revision
    # Embeddings are saved when they were trained (modules_to_save); peft's own guess would ask the hub for the base's config.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    for name in ADAPTER_FILES:
        with open(folder / name, "rb+") as stream:
            os.fsync(stream.fileno())


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained tensors by name, as the optimizer sees them."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_adapter_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Puts saved tensors back. Raises ModelError when a name or a shape does not fit."""
    own = dict(model.named_parameters())
    expected = {name for name, parameter in own.items() if parameter.requires_grad}
    if expected != set(state):
        odd = sorted(expected ^ set(state))
        raise ModelError(f"the saved adapter does not fit this model: {len(odd)} names differ, the first is {odd[0]}", hint="resume with the recipe of the run")
    with torch.no_grad():
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                raise ModelError(
                    f"the saved adapter does not fit: {name} is {tuple(tensor.shape)}, here {tuple(own[name].shape)}", hint="resume with the recipe of the run"
                )
            own[name].copy_(tensor)


@contextmanager
def without_adapter(model: "PeftModel") -> Iterator["PeftModel"]:
    """Inside, the model is the base alone."""
    with model.disable_adapter():
        yield model


def _keep_in_float32(model: nn.Module) -> None:
    """A 16-bit weight loses updates that are small beside it; peft makes whole modules in the type of the base."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapter_beside(model: "PeftModel", folder: Path) -> Iterator["PeftModel"]:
    """Inside, `model` answers with the adapter of `folder`, read as load_adapter reads it, beside the base that is loaded; then with its own again.

    Raises ModelError unless every tensor fits.
    """
    config, stored = _read_saved(folder)
    own = model.active_adapter
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=cuda):
            model.add_adapter(BESIDE, config)
        for name, parameter in model.named_parameters():
            if f".{BESIDE}." in name:
                parameter.data = parameter.data.float()
        _put(model, stored, folder, BESIDE, {name for name, _ in model.named_parameters() if f".{BESIDE}." in name})
        model.set_adapter(BESIDE)
        yield model
    finally:
        model.set_adapter(own)
        model.delete_adapter(BESIDE)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _read_saved(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """peft's configuration and the tensors of an adapter. Raises ModelError for what is not whole, no LoRA or not finite."""
    from peft import PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    vet_adapter(folder)
    check_weight_file(folder / ADAPTER_FILES[0])
    try:
        kind = json.loads((folder / ADAPTER_FILES[1]).read_text(encoding="utf-8")).get("peft_type")
        if kind != "LORA":
            raise ModelError(f"{folder}: is an adapter of kind {kind}", hint="give a LoRA, rsLoRA or DoRA adapter")
        config, stored = PeftConfig.from_pretrained(str(folder)), load_file(folder / ADAPTER_FILES[0])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: the adapter cannot be read: {error}", hint="copy it again, or take one from checkpoints/ by resuming the run") from error
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        some = ", ".join(broken[:3]) + ", ..." * (len(broken) > 3)
        raise ModelError(
            f"{folder}: {len(broken)} tensor{'s' * (len(broken) > 1)} with NaN or infinity: {some}", hint="train again with a lower train.learning_rate"
        )
    _check_rank(config, stored, folder)
    config.inference_mode, config.base_model_name_or_path = False, None
    return config, stored


def check_start(section: Adapter) -> None:
    """The adapter that a recipe goes on from is there and whole. Raises ModelError or IntegrityError."""
    if section.init_from is not None:
        _read_saved(adapter_folder(section.init_from))


def _check_rank(config: Any, stored: dict[str, torch.Tensor], folder: Path) -> None:
    """The two files of an adapter belong together."""
    odd = [(name, tensor) for name, tensor in stored.items() if ".lora_A." in name and tensor.shape[0] != config.r]
    if odd and not config.rank_pattern:
        name, tensor = odd[0]
        seen = f"{folder}: {ADAPTER_FILES[1]} says r {config.r}, but {name} is {_shape(tensor.shape)}, of rank {tensor.shape[0]}"
        raise ModelError(seen, hint="take both files from the same run")


def _shape(shape: Iterable[object]) -> str:
    return " x ".join(map(str, shape))


def _wrap_with_saved(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """The base with the adapter of `folder`."""
    from peft import get_peft_model

    config, stored = _read_saved(folder)
    wrapped = get_peft_model(model, config)
    _keep_in_float32(wrapped)  # before the values are put in: those of whole modules would be rounded
    _put(wrapped, stored, folder, "default", {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad})
    return wrapped


def _put(wrapped: "PeftModel", stored: dict[str, torch.Tensor], folder: Path, name: str, trained: set[str]) -> None:
    """peft's own loader only warns of tensors that are missing or unknown, and answers as the base would; here they are errors."""
    from peft import set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(wrapped, stored, adapter_name=name)
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: the adapter does not fit this base: {_misfits(error)}", hint="load it with the base that it was trained on") from error
    odd = sorted(trained & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if odd:
        raise ModelError(
            f"{folder}: {len(odd)} tensors of the adapter are missing or have no place in this base: {', '.join(odd[:3])}{', ...' * (len(odd) > 3)}",
            hint="load it with the base that it was trained on",
        )


def _misfits(error: Exception) -> str:
    """Of torch's many lines the count and the first."""
    shapes = r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)"
    found = re.findall(shapes, str(error))
    if not found:
        return str(error).strip().splitlines()[0]
    name, saved, here = found[0]
    name = name.removeprefix("base_model.model.")
    return f"{len(found)} tensors are of another shape, the first {name}: {saved.replace(', ', ' x ')}, here {here.replace(', ', ' x ')}"


def _check_modules(model: "PreTrainedModel", section: Adapter) -> None:
    """peft is silent about a name that matches nothing as long as another one matches."""
    linear = {path for path, module in model.named_modules() if type(module).__name__ in ("Linear", "Linear4bit", "Conv1D")}
    names = {path: module for path, module in model.named_modules() if hasattr(module, "weight")}
    if section.target_modules != "all-linear":
        for wanted in section.target_modules:
            if not _matches(wanted, linear):
                raise ModelError(f"adapter.target_modules: {wanted!r} matches 0 linear layers", hint=f"this model has {_last_words(linear)}")
    for wanted in section.modules_to_save:
        matched = _matches(wanted, names)
        if not matched:
            raise ModelError(f"adapter.modules_to_save: {wanted!r} matches 0 modules", hint=f"this model has {_last_words(names)}")
        if others := [path for path in names if path.endswith(wanted) and path not in matched]:
            raise ModelError(f"adapter.modules_to_save: {wanted!r} also ends {others[0]}, which peft would train too", hint=f"write {matched[0]!r}")
        if any(not names[path].weight.is_floating_point() for path in matched):
            raise ModelError(
                f"adapter.modules_to_save: {wanted!r} is in 4 bits and cannot be trained whole",
                hint="put it into adapter.target_modules, or use quant.kind=none",
            )
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if ends[1] is not None and ends[0].weight is ends[1].weight and any(names[path] in ends for path in matched):
            raise ModelError(
                f"adapter.modules_to_save: {wanted!r} shares its weight (embedding and head are tied)",
                hint="training one would part it from the other; put lm_head into adapter.target_modules instead",
            )


def _matches(wanted: str, paths: Iterable[str]) -> list[str]:
    """As peft matches: the whole path of a module, or its last words."""
    return [path for path in paths if path == wanted or path.endswith("." + wanted)]


def _last_words(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
