"""Injects, saves and loads the adapter with peft, so that every tool of the field can load it. Kept in float32."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from halfbyte.errors import ModelError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import Adapter

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def add_adapter(model: nn.Module, section: Adapter, seed: int) -> tuple[nn.Module, Decision]:
    """Wraps the frozen base. The seed alone decides the new matrices, whatever was drawn before.

    Raises ModelError for modules that match nothing and for a whole module that shares its weight.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if section.init_from is not None:
        folder = adapter_folder(section.init_from)
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
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
        modules = "all linear layers" if section.target_modules == "all-linear" else ", ".join(section.target_modules)
        decision = Decision("adapter", section.kind, f"r {section.r}, alpha {section.alpha:g} on {modules}, float32")
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped, decision


def load_adapter(model: nn.Module, source: str) -> nn.Module:
    """Base plus a saved adapter, for use, not for training. Every key must fit."""
    from peft import PeftModel

    folder = adapter_folder(source)
    wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    return wrapped.eval()


def adapter_folder(source: str) -> Path:
    """A run folder or an adapter folder -> the folder with the adapter's files."""
    for folder in (Path(source) / "adapter", Path(source)):
        if all((folder / name).is_file() for name in ADAPTER_FILES):
            return folder
    raise ModelError(f"{source}: no adapter there; expected {' and '.join(ADAPTER_FILES)}", hint="give a run folder, such as runs/quickstart")


def save_adapter(model: nn.Module, folder: Path, base_name: str) -> None:
    """Writes peft's two files into `folder`, which must be new or ours."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    # Embeddings are saved when they were trained (modules_to_save); peft's own guess would ask the hub for the base's config.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    for name in ADAPTER_FILES:
        with open(folder / name, "rb") as stream:
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
                raise ModelError(f"the saved adapter does not fit: {name} is {tuple(tensor.shape)}, here {tuple(own[name].shape)}", hint="resume with the recipe of the run")
            own[name].copy_(tensor)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is the base alone."""
    with model.disable_adapter():
        yield model


def _check_modules(model: nn.Module, section: Adapter) -> None:
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "weight")}
    if section.target_modules != "all-linear":
        for wanted in section.target_modules:
            if wanted.rsplit(".", 1)[-1] not in names:
                raise ModelError(f"adapter.target_modules: {wanted!r} matches 0 modules", hint=f"this model has {', '.join(sorted(_linear_names(model)))}")
    for wanted in section.modules_to_save:
        if wanted not in names:
            raise ModelError(f"adapter.modules_to_save: {wanted!r} matches 0 modules", hint=f"this model has {', '.join(sorted(names))}")
    tied = model.config.get_text_config().tie_word_embeddings
    heads = {"lm_head", "embed_tokens", "wte", "word_embeddings", "embed_out"}
    if tied and heads & set(section.modules_to_save):
        raise ModelError(
            f"adapter.modules_to_save: {', '.join(sorted(heads & set(section.modules_to_save)))} shares its weight (embedding and head are tied)",
            hint="training one would part it from the other; put lm_head into adapter.target_modules instead",
        )


def _linear_names(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
