"""The programs that the suite times: how each is set up, as its own documentation says, and how each takes one training step.

A program is given a 4-bit checkpoint and a rank and returns a model with a float32 adapter on the seven linear layers. Everything
else (adapter values, optimizer, tokens, clipping, timing) is the suite's and the same for all. Nothing heavy is imported before
it is needed: Unsloth must come before torch, and a program that is not installed must only cost a moment.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from halfbyte.data.batches import Batch

MAX_NORM = 1.0
# What is measured where nothing else is asked for: rows x tokens.
SHAPE, GRIDS, RANK = "mistral-7b", ("4x2048", "1x2048"), 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FALCON_LINEARS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
ALL = 10**9  # layers
FULL_ENOUGH = 0.9  # share of a packed row that documents fill at least


@dataclass(frozen=True)
class Configuration:
    shape: str
    rows: int
    tokens: int
    """A row; there is no padding, or, in a packed row, hardly any, which no program is given."""
    rank: int
    packed: str = ""
    """Rows are filled with documents whose lengths are drawn from these of row_lengths.json; none: a row is one document."""

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.rows}x{self.tokens}{'-' if self.packed else ''}{self.packed}-r{self.rank}"

    # What all programs are given lies in one folder.

    def base(self, scratch: Path) -> Path:
        return scratch / self.shape

    def adapter(self, scratch: Path) -> Path:
        return scratch / f"{self.shape}-adapter-r{self.rank}.safetensors"

    def ids(self, scratch: Path) -> Path:
        return scratch / f"{self.shape}-ids-{self.rows}x{self.tokens}{self.packed}.npy"

    def documents(self, scratch: Path) -> Path:
        return self.ids(scratch).with_suffix(".documents.npy")

    def is_written(self, scratch: Path) -> bool:
        needed = [self.base(scratch), self.adapter(scratch), self.ids(scratch), *([self.documents(scratch)] if self.packed else [])]
        return all(path.exists() for path in needed)


def configuration_of(shape: str, grid: str, rank: int) -> Configuration:
    """grid: ROWSxTOKENS, or ROWSxTOKENS:LENGTHS of packed rows."""
    size, _, packed = grid.partition(":")
    rows, tokens = size.split("x")
    return Configuration(shape, int(rows), int(tokens), rank, packed)


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
    """What a program is built from: the checkpoint's folder, the adapter's rank (alpha is the same), tokens a row at most, and where to run."""

    base: Path
    rank: int
    tokens: int
    device: str

    @property
    def linears(self) -> list[str]:
        return FALCON_LINEARS if self.base.name.startswith("falcon") else LINEARS


@dataclass(frozen=True)
class Rows:
    """Of one step, on the CPU, as a data loader would hand them over: made before anything is timed."""

    batch: "Batch"
    """As halfbyte takes them. In a packed row the first token of each document has no label."""
    flat: dict[str, "Tensor"] | None
    """Packed rows as transformers and Unsloth's trainer take them: one row without padding, (1, N) input_ids, labels and position_ids."""
    documents: "Tensor | None"
    """(N,) int32, the documents' lengths of `flat`."""

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    @property
    def supervised(self) -> int:
        return self.batch.supervised


# loss and gradient norm before clipping, as numbers or () tensors
Step = Callable[["nn.Module", Rows, "torch.optim.Optimizer"], tuple[Any, Any]]


def plain_step(model: "nn.Module", rows: Rows, optimizer: "torch.optim.Optimizer", lengths: bool = False) -> tuple[Any, Any]:
    """The step that each peer's documentation shows: the model's own loss, the mean over the supervised tokens.

    `lengths`: packed rows come with their documents' lengths, as Unsloth's trainer hands them over; transformers finds them in the positions.
    """
    import torch

    trained = optimizer.param_groups[0]["params"]
    given = rows.flat or {"input_ids": rows.batch.ids, "labels": rows.batch.labels}
    on_device: dict[str, Any] = {name: tensor.to(trained[0].device, non_blocking=True) for name, tensor in given.items()}
    if lengths and rows.documents is not None:
        on_device["packed_seq_lengths"] = rows.documents  # from the CPU it takes them without waiting for the GPU
    with torch.autocast(trained[0].device.type, torch.bfloat16):
        loss = model(**on_device, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def our_step(model: "nn.Module", rows: Rows, optimizer: "torch.optim.Optimizer") -> tuple[Any, Any]:
    import torch

    from halfbyte.train.step import train_step

    result = train_step(model, [rows.batch], optimizer, MAX_NORM, torch.bfloat16, torch.amp.GradScaler(enabled=False))
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
    model, _ = add_adapter(loaded.model, Adapter(r=given.rank, alpha=given.rank, target_modules=given.linears), seed=0)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def by_hand(
    model: "nn.Module", keep: tuple[str, ...] = ("all",), parked: bool = False, last: int = 2, resident: int = 0, tight: bool = False,
    record: bool = True, fp8: bool = False,
) -> None:  # fmt: skip
    """halfbyte's fast path on the plain path's model, as `model.fast`.

    keep: what layers keep (fast/layer.py), one after the other and again from the first; parked: it waits in the computer's memory, but for that of the `last`
    layers, which is wanted at once; resident: of so many layers the weights stay in 16 bits; tight: one buffer for all other weights; record: steps of a
    shape that comes again are recorded; fp8: the frozen products are in 8 bits.
    """
    import torch

    from halfbyte.fast.decoder import FastDecoder

    layers = model.get_base_model().config.num_hidden_layers  # type: ignore[operator, union-attr]
    away = range(layers - last) if parked else range(0)
    stay = range(min(layers, resident))
    model.fast = FastDecoder(model, torch.bfloat16, list(islice(cycle(keep), layers)), away, stay, tight, record, fp8)  # type: ignore[assignment]


def fast_step(model: "nn.Module", rows: Rows, optimizer: "torch.optim.Optimizer") -> tuple[Any, Any]:
    import torch

    loss = model.fast.accumulate(rows.batch, 1 / rows.supervised)  # type: ignore[operator, union-attr]
    norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def hf(given: Given, loader: Any = None) -> "nn.Module":
    """transformers and peft by the book: prepare_model_for_kbit_training, checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    from halfbyte.model.load import falcon_linears_are_linears

    place = 0 if given.device == "cuda" else given.device
    with falcon_linears_are_linears():  # without it transformers leaves Falcon's layers as they are
        base = (loader or AutoModelForCausalLM).from_pretrained(str(given.base), dtype=torch.bfloat16, device_map={"": place}, attn_implementation="sdpa")
    if given.device == "cpu":  # bitsandbytes' repacked product for some CPUs has no gradient
        from halfbyte.model.load import set_cpu_repacking

        set_cpu_repacking(base, on=False)
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    section = LoraConfig(r=given.rank, lora_alpha=given.rank, lora_dropout=0.0, bias="none", target_modules=given.linears, task_type="CAUSAL_LM")
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
        model, r=given.rank, lora_alpha=given.rank, lora_dropout=0, bias="none", target_modules=given.linears, random_state=0,
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
    prepare: "Callable[[nn.Module], None] | None" = None
    """Sets up what `build` has built. Programs that differ in this alone can be timed one after the other on one model."""
    imported_first: str | None = None
    """A package that must be imported before torch."""
    hidden: tuple[str, ...] = ()
    """Packages that this program must not find."""
    environment: dict[str, str] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around all steps."""

    @property
    def process(self) -> tuple[Any, ...]:
        """Programs for which this is equal can share a process and the model in it."""
        return self.build, self.imported_first, self.hidden, tuple(self.environment.items())


ours_kept = partial(ours, checkpointing=False)
unsloth_step = partial(plain_step, lengths=True)


def by_hand_with(about: str, **how: Any) -> Program:
    return Program(ours_kept, f"halfbyte's fast path: {about}", step=fast_step, prepare=partial(by_hand, **how))


def unsloth_with(checkpointing: bool | str, about: str, **more: Any) -> Program:
    return Program(partial(unsloth, checkpointing=checkpointing), about, step=unsloth_step, imported_first="unsloth", **more)


# The fast path's ways, from the most memory to the least.
WAYS = {
    "fast-resident-all": by_hand_with("everything kept, and all weights in 16 bits", resident=ALL),
    "fast-resident": by_hand_with("everything kept, and the weights of 14 layers in 16 bits", resident=14),
    "fast": by_hand_with("everything kept"),
    "half": by_hand_with("every second layer computes gate and up again", keep=("all", "thin")),
    "thin": by_hand_with("all layers compute gate and up again", keep=("thin",)),
    "slim": by_hand_with("layer inputs and attention's results kept", keep=("attention",)),
    "lean-thin": by_hand_with("in the computer's memory all but gate and up", keep=("thin",), parked=True),
    "lean-thin-tight": by_hand_with("lean-thin, with one buffer for all weights and shorter pieces", keep=("thin",), parked=True, tight=True),
    "lean-half-tight": by_hand_with("of every second layer lean-thin, of the others lean, tight", keep=("attention", "thin"), parked=True, tight=True),
    "lean": by_hand_with("layer inputs and attention's results in the computer's memory", keep=("attention",), parked=True),
    "lean-tight": by_hand_with("lean, with one buffer for all weights and shorter pieces", keep=("attention",), parked=True, tight=True),
    "leanest": by_hand_with(
        "all layer inputs in the computer's memory, one buffer for all weights, not recorded", keep=("input",), parked=True, last=0, tight=True, record=False
    ),
}
# Ways that round the frozen products to 8 bits: whoever asks how fast the fast path is, with what it computes elsewhere, is not told of these.
FP8_WAYS = {"fp8": by_hand_with("everything kept, frozen products in FP8", fp8=True)}
PROGRAMS = {
    "ours": Program(ours, "halfbyte's plain path, checkpointing", step=our_step),
    "ours-kept": Program(ours_kept, "halfbyte's plain path, no checkpointing", step=our_step),
    **WAYS,
    **FP8_WAYS,
    "hf": Program(hf, "transformers + peft, prepare_model_for_kbit_training, checkpointing"),
    "hf-compile": Program(hf_compile, "hf, decoder layers compiled"),
    "liger": Program(liger, "hf, Liger kernels"),
    "unsloth": unsloth_with("unsloth", 'checkpointing "unsloth" (its default)'),
    "unsloth-true": unsloth_with(True, "checkpointing True"),
    "unsloth-off": unsloth_with(False, "checkpointing False"),
    "unsloth-off-graphs": unsloth_with(False, "checkpointing False, layers as CUDA graphs", environment={"UNSLOTH_BLOCK_CUDAGRAPHS": "1"}),
    # Its own attention reads torch's priority. xformers would stand before it. The rows all have one length, so padding them for cuDNN's plans
    # (its default bucket) would only cost.
    "unsloth-off-cudnn": unsloth_with(
        False, "checkpointing False, cuDNN attention preferred", hidden=("xformers",), environment={"UNSLOTH_SDPA_CUDNN_BUCKET": "0"}, around=cudnn_preferred
    ),
}


def family_of(name: str) -> str:
    """`ours`, `hf` or `unsloth`."""
    first = name.split("-")[0]
    return {"hf": "hf", "liger": "hf", "unsloth": "unsloth"}.get(first, "ours")
