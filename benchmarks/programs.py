"""The programs that the suite times: how each is set up, as its own documentation says, and how each takes one training step.

A program is given a 4-bit checkpoint and a rank and returns a model with a float32 adapter on the seven linear layers. Everything
else (adapter values, optimizer, tokens, clipping, timing) is the suite's and the same for all. Nothing heavy is imported before
it is needed: Unsloth must come before torch, and a program that is not installed must only cost a moment.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_NORM = 1.0
# What is measured where nothing else is asked for: rows x tokens.
SHAPE, GRIDS, RANK = "mistral-7b", ("4x2048", "1x2048"), 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Configuration:
    shape: str
    rows: int
    tokens: int
    """A row; there is no padding."""
    rank: int

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.rows}x{self.tokens}-r{self.rank}"

    # What all programs are given lies in one folder.

    def base(self, scratch: Path) -> Path:
        return scratch / self.shape

    def adapter(self, scratch: Path) -> Path:
        return scratch / f"{self.shape}-adapter-r{self.rank}.safetensors"

    def ids(self, scratch: Path) -> Path:
        return scratch / f"{self.shape}-ids-{self.rows}x{self.tokens}.npy"

    def is_written(self, scratch: Path) -> bool:
        return all(path.exists() for path in (self.base(scratch), self.adapter(scratch), self.ids(scratch)))


def configuration_of(shape: str, grid: str, rank: int) -> Configuration:
    rows, tokens = grid.split("x")
    return Configuration(shape, int(rows), int(tokens), rank)


@dataclass(frozen=True)
class Steps:
    warm_up: int
    timed: int
    repeats: int

    @property
    def total(self) -> int:
        return self.warm_up + self.timed * self.repeats


@dataclass(frozen=True)
class Given:
    """What a program is built from: the checkpoint's folder, the adapter's rank (alpha is the same), tokens a row, and where to run."""

    base: Path
    rank: int
    tokens: int
    device: str


# ids (B, T) on the CPU -> loss and gradient norm before clipping, as numbers or () tensors
Step = Callable[["nn.Module", "Tensor", "torch.optim.Optimizer"], tuple[Any, Any]]


def plain_step(model: "nn.Module", ids: "Tensor", optimizer: "torch.optim.Optimizer") -> tuple[Any, Any]:
    """The step that each peer's documentation shows: the model's own loss, the mean over the T - 1 supervised tokens of each row."""
    import torch

    trained = optimizer.param_groups[0]["params"]
    ids = ids.to(trained[0].device, non_blocking=True)
    with torch.autocast(ids.device.type, torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def our_step(model: "nn.Module", ids: "Tensor", optimizer: "torch.optim.Optimizer") -> tuple[Any, Any]:
    import torch

    from halfbyte.data.batches import Batch
    from halfbyte.train.step import train_step

    scaler = torch.amp.GradScaler(enabled=False)
    result = train_step(model, [Batch(ids, ids, (ids.shape[1],) * ids.shape[0])], optimizer, MAX_NORM, torch.bfloat16, scaler)
    return result.loss, result.grad_norm


def ours(given: Given, checkpointing: bool = True) -> "nn.Module":
    """halfbyte's plain path: its loading, its adapter, its step. Every layer is recomputed or none, where api.train lets the plan choose."""
    import torch

    from halfbyte.model.adapter import add_adapter
    from halfbyte.model.base import find_base
    from halfbyte.model.load import load_base
    from halfbyte.recipe.schema import NF4, Adapter

    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device(given.device)
    loaded = load_base(find_base(str(given.base)), NF4(), "bfloat16", device)
    model, _ = add_adapter(loaded.model, Adapter(r=given.rank, alpha=given.rank, target_modules=LINEARS), seed=0)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def fast(given: Given, **how: Any) -> "nn.Module":
    """halfbyte's fast path: the plain path's model, computed by fast/decoder.py. `how`: what of each layer is kept, and where."""
    import torch

    from halfbyte.fast.decoder import FastDecoder

    model = ours(given, checkpointing=False)
    layers = len(model.get_base_model().model.layers)  # type: ignore[operator, union-attr]
    keep = [how.pop("keep", "all")] * layers
    if how.pop("away", False):
        how["parked"] = range(layers - 2)  # those of the last two are wanted at once
    if "resident" in how:
        how["resident"] = range(min(layers, how["resident"]))
    model.fast = FastDecoder(model, torch.bfloat16, keep, **how)  # type: ignore[assignment]
    return model


def fast_step(model: "nn.Module", ids: "Tensor", optimizer: "torch.optim.Optimizer") -> tuple[Any, Any]:
    import torch

    from halfbyte.data.batches import Batch

    labels = ids.clone()
    loss = model.fast.accumulate(Batch(ids, labels, (ids.shape[1],) * ids.shape[0]), 1 / (ids.numel() - len(ids)))  # type: ignore[operator]
    norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def hf(given: Given, loader: Any = None) -> "nn.Module":
    """transformers and peft by the book: prepare_model_for_kbit_training, checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    place = 0 if given.device == "cuda" else given.device
    base = (loader or AutoModelForCausalLM).from_pretrained(str(given.base), dtype=torch.bfloat16, device_map={"": place}, attn_implementation="sdpa")
    if given.device == "cpu":  # bitsandbytes' repacked product for some CPUs has no gradient
        from halfbyte.model.load import set_cpu_repacking

        set_cpu_repacking(base, on=False)
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    section = LoraConfig(r=given.rank, lora_alpha=given.rank, lora_dropout=0.0, bias="none", target_modules=LINEARS, task_type="CAUSAL_LM")
    return get_peft_model(prepared, section).train()


def hf_compile(given: Given) -> "nn.Module":
    """`hf` with every decoder layer compiled."""
    model = hf(given)
    for layer in model.get_base_model().model.layers:
        layer.compile()
    return model


def liger(given: Given) -> "nn.Module":
    from liger_kernel.transformers import AutoLigerKernelForCausalLM

    return hf(given, AutoLigerKernelForCausalLM)


def unsloth(given: Given, checkpointing: bool | str) -> "nn.Module":
    """`checkpointing`: "unsloth", True or False, as its get_peft_model takes it."""
    import torch
    from unsloth import FastLanguageModel  # was imported before torch: see `imported_first`

    model, _ = FastLanguageModel.from_pretrained(
        str(given.base), max_seq_length=given.tokens, dtype=torch.bfloat16, load_in_4bit=True, use_gradient_checkpointing=checkpointing
    )
    wrapped = FastLanguageModel.get_peft_model(
        model, r=given.rank, lora_alpha=given.rank, lora_dropout=0, bias="none", target_modules=LINEARS, random_state=0,
        use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    return wrapped.train()


def cudnn_preferred() -> AbstractContextManager[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


@dataclass(frozen=True)
class Program:
    build: Callable[[Given], "nn.Module"]
    about: str
    step: Step = plain_step
    imported_first: str | None = None
    """A package that must be imported before torch."""
    hidden: tuple[str, ...] = ()
    """Packages that this program must not find."""
    environment: dict[str, str] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around all steps."""


PROGRAMS = {
    "ours": Program(ours, "halfbyte's plain path, checkpointing", step=our_step),
    "ours-kept": Program(lambda given: ours(given, checkpointing=False), "halfbyte's plain path, no checkpointing", step=our_step),
    "fast": Program(lambda given: fast(given, record=True), "halfbyte's fast path, everything kept", step=fast_step),
    "fast-resident": Program(lambda given: fast(given, record=True, resident=10), "the same, weights of 10 layers kept in 16 bits", step=fast_step),
    "lean": Program(
        lambda given: fast(given, keep="attention", away=True, record=True), "fast path, layer inputs and attention results in the computer's memory",
        step=fast_step,
    ),
    "leanest": Program(
        lambda given: fast(given, keep="input", away=True, record=True, tight=True), "fast path, layer inputs in the computer's memory", step=fast_step
    ),
    "hf": Program(hf, "transformers + peft, prepare_model_for_kbit_training, checkpointing"),
    "hf-compile": Program(hf_compile, "hf, decoder layers compiled"),
    "liger": Program(liger, "hf, Liger kernels"),
    "unsloth": Program(lambda given: unsloth(given, "unsloth"), 'checkpointing "unsloth" (its default)', imported_first="unsloth"),
    "unsloth-true": Program(lambda given: unsloth(given, True), "checkpointing True", imported_first="unsloth"),
    "unsloth-off": Program(lambda given: unsloth(given, False), "checkpointing False", imported_first="unsloth"),
    # Its own attention reads torch's priority. xformers would stand before it. The rows all have one length, so padding them for cuDNN's plans
    # (its default bucket) would only cost.
    "unsloth-off-cudnn": Program(
        lambda given: unsloth(given, False), "checkpointing False, cuDNN attention preferred", imported_first="unsloth", hidden=("xformers",),
        environment={"UNSLOTH_SDPA_CUDNN_BUCKET": "0"}, around=cudnn_preferred,
    ),
}  # fmt: skip
