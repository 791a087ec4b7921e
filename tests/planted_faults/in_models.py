"""Faults of the model and its adapter: dead, half dead, rounded, scaled wrongly, recomputed wrongly, drawn anew, saved so that another is loaded."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halfbyte.checks.subject import Subject
from halfbyte.model.load import decoder_layers
from planted_faults.planting import adapter_tensors, fault, with_model

Tensors = dict[str, Tensor]


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


# Dead or half dead


def _without_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.detach()


@fault("1.10", "gradients")
def one_projection_without_backward(subject: Subject) -> Subject:
    """A fused kernel for one projection has no backward pass: its adapter is in the loss and never gets a gradient."""

    def damage(model: PeftModel) -> None:
        layer = next(layer for name, layer in lora_layers(model).items() if "layers.1." in name and name.endswith("up_proj"))
        layer.lora_B["default"].register_forward_hook(_without_gradient)

    return with_model(subject, damage)


@fault("1.10", "updates")
def first_layer_left_frozen(subject: Subject) -> Subject:
    """The first layers are frozen 'to save memory', by a loop over parameters that runs after the adapter was added."""

    def damage(model: PeftModel) -> None:
        for name, parameter in model.named_parameters():
            if "layers.0." in name:
                parameter.requires_grad_(False)

    return with_model(subject, damage)


@fault("1.10", "updates", toy="plain")
def half_of_each_adapter_loaded_frozen(subject: Subject) -> Subject:
    """Training goes on from an adapter that was loaded for use; B is switched on again by its name and A forgotten."""

    def damage(model: PeftModel) -> None:
        for name, parameter in adapter_tensors(model).items():
            parameter.requires_grad_("lora_B" in name)

    return with_model(subject, damage)


@fault("1.10", "updates")
def norms_of_the_base_trained(subject: Subject) -> Subject:
    """The norms are made trainable, as a paper says, but not saved: the adapter alone is published, tuned for a base that nobody has."""

    def damage(model: PeftModel) -> None:
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.requires_grad_(True)

    return with_model(subject, damage)


@fault("1.10", "updates")
def adapter_of_zeros(subject: Subject) -> Subject:
    """The adapter was made on the meta device and filled with zeros when it came to the GPU: with A and B zero, no gradient ever comes."""

    def damage(model: PeftModel) -> None:
        for parameter in adapter_tensors(model).values():
            parameter.data.zero_()

    return with_model(subject, damage)


@fault("1.12", "updates")
def adapter_in_bfloat16(subject: Subject) -> Subject:
    """`model.to(torch.bfloat16)` behind the wrapping: updates below a 256th of a weight round away."""

    def damage(model: PeftModel) -> None:
        for parameter in adapter_tensors(model).values():
            parameter.data = parameter.data.bfloat16()

    return with_model(subject, damage)


@fault("1.31", "gradients", toy="loud")
def alpha_read_by_nothing(subject: Subject) -> Subject:
    """The recipe's alpha is lost on its way into the configuration, and the library's default of 8 is used."""

    def damage(model: PeftModel) -> None:
        for layer in lora_layers(model).values():
            layer.scaling["default"] = 8 / layer.r["default"]

    return with_model(subject, damage)


@fault("1.17", "reload")
def resumed_under_a_second_adapter(subject: Subject) -> Subject:
    """On resume the model is wrapped once more: a second adapter is trained, and the first is the one that is saved."""

    def damage(model: PeftModel) -> None:
        kept = model.peft_config["default"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.add_adapter("resumed", LoraConfig(r=kept.r, lora_alpha=kept.lora_alpha, target_modules=kept.target_modules, task_type="CAUSAL_LM"))
        model.set_adapter("resumed")

    return with_model(subject, damage)


# Recomputed


def _reentrant(layer: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(layer, *inputs, use_reentrant=True)


def _forgetful(layer: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


@fault("1.13", "recomputed gradients", toy="dropout")
def reentrant_over_frozen_inputs(subject: Subject) -> Subject:
    """Every other layer is recomputed the reentrant way, which sees inputs that need no gradient and gives none: only the last layers learn."""

    def damage(model: PeftModel) -> None:
        for layer in decoder_layers(model)[::2]:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _reentrant

    return with_model(subject, damage)


@fault("1.13", "recomputed gradients", toy="dropout")
def recomputed_with_other_dropout(subject: Subject) -> Subject:
    """`preserve_rng_state=False`, for speed: the backward pass goes through another dropout than the loss was computed with."""

    def damage(model: PeftModel) -> None:
        for layer in decoder_layers(model):
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _forgetful

    return with_model(subject, damage)


class _FromWorkspace(torch.autograd.Function):
    """A linear map that finds its input again in a workspace instead of among the saved tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, workspace: dict[torch.Size, Tensor]) -> Tensor:
        workspace[x.shape] = x.detach()
        ctx.weight, ctx.workspace, ctx.shape = weight, workspace, x.shape
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient @ ctx.weight, gradient.flatten(0, -2).T @ ctx.workspace[ctx.shape].flatten(0, -2), None


class _Workspace(nn.Linear):
    shared: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return _FromWorkspace.apply(x, self.weight, self.shared)


@fault("1.13", "gradients")
def workspace_written_over_before_the_backward_pass(subject: Subject) -> Subject:
    """A layer keeps its input in a buffer that layers of its shape share: the loss is exact, and earlier layers get gradients of a later input."""

    def damage(model: PeftModel) -> None:
        for layer in lora_layers(model).values():
            layer.lora_A["default"].__class__ = _Workspace

    return with_model(subject, damage)


# Drawn anew


@fault("1.18", "builds", deep=True)
def seed_set_after_the_adapter(subject: Subject) -> Subject:
    """The adapter is made before the seed is set: it is drawn from wherever the random numbers stand, and no run can be had twice."""

    def damage(model: PeftModel) -> None:
        for layer in lora_layers(model).values():
            nn.init.kaiming_uniform_(layer.lora_A["default"].weight, a=5**0.5)

    return with_model(subject, damage)


@fault("1.18", "builds", deep=True)
def head_drawn_at_random(subject: Subject) -> Subject:
    """The file lacks the head; the library warns, draws one at random and goes on: each load is another model."""

    def damage(model: PeftModel) -> None:
        head = model.get_base_model().get_output_embeddings()
        head.weight.data.normal_(std=0.02)

    return with_model(subject, damage)


# Saved and loaded


@contextmanager
def _as_the_library_loads(model: PeftModel, folder: Path, active: tuple[str, ...] = ("beside",)) -> Iterator[PeftModel]:
    """peft's own way, for which tensors that are missing or unknown are worth a warning."""
    own, trained = model.active_adapter, {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):
        model.add_adapter("beside", config)
    try:
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name="beside")
        model.base_model.set_adapter(list(active))
        yield model
    finally:
        model.set_adapter(own)
        model.delete_adapter("beside")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _saved_as(subject: Subject, change: Callable[[Tensors], Tensors]) -> Subject:
    """What is in the file is changed; whoever loads it is told nothing."""

    def save(model: nn.Module, folder: Path) -> None:
        subject.save(model, folder)
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return replace(subject, save=save, reloaded=_as_the_library_loads)


def _configured_as(subject: Subject, change: dict[str, object]) -> Subject:
    def save(model: nn.Module, folder: Path) -> None:
        subject.save(model, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")

    return replace(subject, save=save)


@fault("1.11", "reload")
def saved_under_other_names(subject: Subject) -> Subject:
    """The model was wrapped once more than the loader knows, so each name has a word too many: nothing fits, and the base answers."""
    return _saved_as(subject, lambda tensors: {name.replace("model.layers", "model.inner.layers"): tensor for name, tensor in tensors.items()})


@fault("1.11", "reload")
def half_of_the_layers_saved(subject: Subject) -> Subject:
    """Each process holds some of the layers, and the first one alone writes the file."""
    return _saved_as(subject, lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name})


@fault("1.11", "reload")
def not_a_number_in_the_file(subject: Subject) -> Subject:
    """The file is written while one tensor still comes from the GPU: what is in it are whatever bytes lay there."""

    def change(tensors: Tensors) -> Tensors:
        last = sorted(tensors)[-1]
        return tensors | {last: torch.full_like(tensors[last], torch.nan)}

    return _saved_as(subject, change)


@fault("1.12", "reload")
def saved_in_bfloat16(subject: Subject) -> Subject:
    """To halve the file the adapter is saved in bfloat16: the model that is loaded is not quite the one that was measured."""
    return _saved_as(subject, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})


@fault("1.14", "reload", toy="head")
def trained_head_not_saved(subject: Subject) -> Subject:
    """What is saved is chosen by `lora_` in the name and the configuration is written to fit: the head, trained whole, is left out, and the base's
    own answers."""
    return _configured_as(_saved_as(subject, lambda tensors: {name: tensor for name, tensor in tensors.items() if "lora_" in name}), {"modules_to_save": None})


@fault("1.31", "reload", toy="loud")
def alpha_missing_in_the_file(subject: Subject) -> Subject:
    """The configuration is written by hand without alpha, and whoever loads it takes 8."""
    return _configured_as(subject, {"lora_alpha": 8})


@fault("1.31", "reload", toy="rslora")
def scaled_by_the_rank_on_load(subject: Subject) -> Subject:
    """The loader knows no rsLoRA and divides alpha by r instead of its root."""
    return _configured_as(subject, {"use_rslora": False})


@fault("1.31", "reload")
def adapter_twice_in_use(subject: Subject) -> Subject:
    """The server loads the adapter into a model that has it already, and adds both."""

    @contextmanager
    def reloaded(model: PeftModel, folder: Path) -> Iterator[PeftModel]:
        with _as_the_library_loads(model, folder, ("default", "beside")):
            yield model

    return replace(subject, reloaded=reloaded)


@fault("1.32", "reload")
def other_base_under_the_adapter(subject: Subject) -> Subject:
    """The name of the base means a newer revision by now, of the same shapes; the adapter loads without a word."""

    @contextmanager
    def reloaded(model: PeftModel, folder: Path) -> Iterator[nn.Module]:
        norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
        before = [parameter.detach().clone() for parameter in norms]
        with subject.reloaded(model, folder) as inside:
            noise = torch.Generator().manual_seed(1)
            for parameter in norms:
                parameter.data *= 1 + 0.02 * torch.randn(parameter.shape, generator=noise)
            try:
                yield inside
            finally:
                for parameter, was in zip(norms, before, strict=True):
                    parameter.data.copy_(was)

    return replace(subject, reloaded=reloaded)
