"""The plan: what will run. Whatever the program decides, it decides here or hands in a Decision, with its reason."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from halfbyte.recipe.schema import Train

# Of held-out rows, where a GPU's memory is not the limit.
ROWS_ON_CPU = 64
# Of what people train adapters with: QLoRA (arXiv 2305.14314, appendix B) has 1e-4 to 2e-4, and ten times that works on small models.
HIGH_RATE = 1e-2


@dataclass(frozen=True)
class Decision:
    """Shown by `halfbyte plan`, kept in plan.json."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Machine:
    """What the decisions need to know of the machine; found by model/machine.py."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    cores: int
    capability: tuple[int, int] | None
    """CUDA compute capability, None without a GPU."""
    memory_bytes: int
    """Of the GPU, or of the computer without one."""


@dataclass(frozen=True)
class Placement:
    """Where a decoder layer's frozen weights lie and what becomes of its activations."""

    weights: str = "4bit"
    """`4bit`: on the GPU as quantised; `16bit`: dequantised once and kept there; `cpu`: in the computer's memory, copied when the layer runs."""
    activations: str = "kept"
    """`kept` for the backward pass; `recomputed` there from the layer's input; `cpu`: recomputed, and the input waits in the computer's memory. On the fast
    path between these `thin`: all kept but gate and up; `attention`: the input and attention's result."""
    parked: bool = False
    """On the fast path: whatever is kept of it waits in the computer's memory."""


@dataclass(frozen=True)
class Computing:
    """How a step is computed in the memory that there is; it changes no number beyond rounding, which in FP8 is coarse. Chosen by budget/, on a CPU as the
    recipe has it."""

    micro_batch_size: int
    """Rows computed at a time."""
    gradient_accumulation_steps: int
    """How often in one optimizer step. The product is that of the recipe."""
    layers: tuple[Placement, ...] = ()
    """One for each decoder layer; none leaves the model as it is loaded."""
    evaluate_rows: int = 1
    """Rows or prompts computed at a time where nothing is trained."""
    load_on_cpu: bool = False
    """The base is larger than what it may take of the GPU while it is loaded."""
    limit_bytes: int | None = None
    """What PyTorch may take of the GPU, where the recipe has a budget."""
    predicted_bytes: int | None = None
    """Highest memory of the run."""
    predicted_step_seconds: float | None = None
    chosen: bool = False
    """Whether it was chosen to fit, or is what the recipe has."""
    path: str = "plain"
    """`plain`: transformers' layers and autograd; `fast`: the step by hand (fast/)."""
    plain_because: str | None = None
    """On a GPU: why the fast path is not taken."""
    record: bool = False
    """On the fast path: micro-batches of a shape that comes again are recorded and replayed as one launch."""
    tight: bool = False
    """On the fast path: one piece of memory for the 16-bit weights of all layers."""
    fp8: bool = False
    """On the fast path: products with the frozen weights in 8 bits."""


@dataclass(frozen=True)
class Plan:
    """Settled values that the stages take, and the decisions behind them."""

    precision: str
    optimizer: str
    computing: Computing
    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_steps: int
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def choose_precision(asked: str, machine: Machine) -> Decision:
    """bfloat16 needs compute capability 8.0; before it float16 with loss scaling. On CPU float32 is as fast here and exact."""
    chip = f"{machine.name} (capability {machine.capability[0]}.{machine.capability[1]})" if machine.capability else machine.name
    if asked != "auto":
        extra = " with loss scaling" if asked == "float16" and machine.device == "cuda" else ""
        if asked == "bfloat16" and machine.capability and machine.capability < (8, 0):
            extra = f"; {chip} only imitates it: float16 is faster there"
        return Decision("precision", asked, f"the recipe asks for it{extra}")
    if machine.capability is None:
        return Decision("precision", "float32", "no GPU found")
    if machine.capability >= (8, 0):
        return Decision("precision", "bfloat16", f"{chip} computes in bfloat16")
    return Decision("precision", "float16", f"{chip} has no bfloat16: float16 with loss scaling, adapters in float32")


def choose_optimizer(asked: str, machine: Machine, pages: bool = False) -> Decision:
    """Paged optimizer state moves to the computer's memory when the GPU's runs out; it exists on GPUs only. `pages`: only so does the run fit."""
    if machine.device == "cpu" and asked in ("auto", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"):
        reason = "float32 state, torch's own" if asked == "auto" else f"{asked} of bitsandbytes needs a GPU"
        return Decision("optimizer", "adamw_torch", reason)
    if asked == "auto" and pages:
        return Decision("optimizer", "paged_adamw_32bit", "its state moves out of GPU memory, which is too small for it")
    if asked == "auto":
        return Decision("optimizer", "adamw_torch", "float32 state in one fused kernel; it fits")
    return Decision("optimizer", asked, "the recipe asks for it")


def as_asked(train: Train, evaluate_rows: int | None, layers: int) -> Computing:
    """Without a GPU: rows as the recipe has them, and recomputation only where it asks, for memory is not short and recomputing costs a third more time."""
    activations = "recomputed" if train.gradient_checkpointing else "kept"
    rows = evaluate_rows or max(train.batch_size, ROWS_ON_CPU)
    return Computing(train.batch_size, train.gradient_accumulation_steps, (Placement(activations=activations),) * layers, rows)


def tell_computing(computing: Computing) -> Decision:
    """The path, rows at a time, and what becomes of the layers."""
    rows, times = computing.micro_batch_size, computing.gradient_accumulation_steps
    parts = [f"{rows} row{'s' * (rows != 1)} at a time, {times} time{'s' * (times != 1)} a step", *tell_layers(computing.layers, computing.fp8)]
    if computing.tight:
        parts.append(f"one piece of memory for all weights in {8 if computing.fp8 else 16} bits")
    if computing.record:
        parts.append("recorded")
    told = ", ".join([f"fast path{' in FP8' * computing.fp8}", *parts] if computing.path == "fast" else parts)
    seconds = f", {computing.predicted_step_seconds:.2g} s a step" if computing.predicted_step_seconds else ""
    predicted = f"{computing.predicted_bytes / 1e9:.1f} GB{seconds}" if computing.predicted_bytes else ""
    because = f"; not the fast path: {computing.plain_because}" if computing.plain_because else ""
    if not computing.chosen:
        return Decision("memory", told, (f"as the recipe has it; {predicted}, roughly" if predicted else "as the recipe has it") + because)
    return Decision("memory", told, f"{predicted} predicted: the fastest way that fits{because}")


def tell_layers(layers: Sequence[Placement], fp8: bool = False) -> list[str]:
    """What becomes of them, in words such as `24 of 32 layers recomputed`."""

    def number(count: int) -> str:
        return "every layer" if count == len(layers) else f"{count} of {len(layers)} layers"

    count = sum(layer.activations in ("recomputed", "cpu") for layer in layers)
    thin, attention = (sum(layer.activations == kind for layer in layers) for kind in ("thin", "attention"))
    parts = [f"{number(count) if count else 'no layer'} recomputed"] if count or not (thin or attention) else []
    if attention:
        parts.append(f"{number(attention)} recomputed but for attention")
    if thin:
        parts.append(f"gate and up of {number(thin)} recomputed")
    if parked := sum(layer.parked for layer in layers):
        parts.append(f"what is kept of {number(parked)} waits in the computer's memory")
    if away := sum(layer.weights == "cpu" for layer in layers):
        parts.append(f"weights of {away} layers in the computer's memory")
    if sixteen := sum(layer.weights == "16bit" for layer in layers):
        parts.append(f"weights of {sixteen} layers kept in {'8 bits, both ways' if fp8 else '16 bits'}")
    return parts


def choose_steps(train: Train, train_rows: int) -> tuple[Decision, int, int]:
    """Optimizer steps in all and in one epoch; the last, smaller step of an epoch counts as one."""
    rows_per_step = train.batch_size * train.gradient_accumulation_steps
    per_epoch = math.ceil(train_rows / rows_per_step)
    shape = f"{train_rows} rows, {rows_per_step} a step, {per_epoch} step{'s' * (per_epoch != 1)} an epoch"
    if train.max_steps is not None:
        return Decision("steps", str(train.max_steps), f"max_steps of the recipe ({shape})"), train.max_steps, per_epoch
    total = max(1, _up(per_epoch * train.num_epochs))
    return Decision("steps", str(total), f"{train.num_epochs:g} epochs ({shape})"), total, per_epoch


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _up(steps: float) -> int:
    """Rounded up, but not for an error in the last digits: 100 * 1.1 is 110.00000000000001 and means 110."""
    return math.ceil(round(steps, 6))


def make_plan(
    train: Train, machine: Machine, train_rows: int, has_validation: bool, decisions: list[Decision], notes: list[str], computing: Computing,
    pages: bool = False,
) -> Plan:  # fmt: skip
    """Settles what the recipe leaves open. `decisions` are those of the data and the model, in order; `computing` that of the memory."""
    precision = choose_precision(train.precision, machine)
    optimizer = choose_optimizer(train.optimizer, machine, pages)
    steps, total, per_epoch = choose_steps(train, train_rows)
    if computing.predicted_step_seconds:
        steps = Decision(steps.name, steps.value, f"{steps.reason}; about {_time(total * computing.predicted_step_seconds)} by the plan")
    asked_warmup = train.warmup_steps
    warmup = int(asked_warmup) if asked_warmup >= 1 else _up(asked_warmup * total)
    every = train.eval_steps or max(1, math.ceil(total / 10))
    if warmup > total:
        notes = [*notes, f"warm-up of {warmup} steps is longer than the run of {total}: the full learning rate is never reached"]
    if train.learning_rate > HIGH_RATE:
        notes = [*notes, f"train.learning_rate {train.learning_rate:g} is high for an adapter and may diverge; 1e-4 to 1e-3 is usual"]
    if train.eval_steps and train.eval_steps > total:
        notes = [*notes, f"eval_steps {train.eval_steps} is beyond the last step: validated and saved at the end only"]
    validation = Decision(
        "validation", ("every step" if every == 1 else f"every {every} steps") if has_validation else "none",
        "best checkpoint kept by validation loss" if has_validation else "no validation rows: the last state is kept",
    )  # fmt: skip
    rate = Decision("learning rate", f"{train.learning_rate:g}", f"{train.schedule} after {warmup} warm-up step{'s' * (warmup != 1)}")
    return Plan(
        precision=precision.value, optimizer=optimizer.value, computing=computing,
        total_steps=total, steps_per_epoch=per_epoch, warmup_steps=warmup, eval_steps=every,
        decisions=[*decisions, precision, optimizer, tell_computing(computing), steps, rate, validation], notes=notes,
    )  # fmt: skip
