"""The plan: what will run. Whatever the program decides, it decides here or hands in a Decision, with its reason."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from halfbyte.recipe.schema import Train


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
class Plan:
    """Settled values that the stages take, and the decisions behind them."""

    precision: str
    optimizer: str
    gradient_checkpointing: bool
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


def choose_optimizer(asked: str, machine: Machine) -> Decision:
    """Paged optimizer state moves to the computer's memory when the GPU's runs out; it exists on GPUs only."""
    if machine.device == "cpu" and asked in ("auto", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"):
        reason = "no GPU, so nothing to page" if asked == "auto" else f"{asked} of bitsandbytes needs a GPU"
        return Decision("optimizer", "adamw_torch", reason)
    if asked == "auto":
        return Decision("optimizer", "paged_adamw_32bit", "its state moves out of GPU memory when that runs short")
    return Decision("optimizer", asked, "the recipe asks for it")


def choose_checkpointing(asked: bool | None, machine: Machine) -> Decision:
    if asked is not None:
        return Decision("gradient checkpointing", "on" if asked else "off", "the recipe asks for it")
    if machine.device == "cpu":
        return Decision("gradient checkpointing", "off", "memory is not short on this device, and recomputing costs a third more time")
    return Decision("gradient checkpointing", "on", "activations are recomputed, which saves most of their GPU memory")


def choose_steps(train: Train, train_rows: int) -> tuple[Decision, int, int]:
    """Optimizer steps in all and in one epoch; the last, smaller step of an epoch counts as one."""
    rows_per_step = train.batch_size * train.gradient_accumulation_steps
    per_epoch = math.ceil(train_rows / rows_per_step)
    shape = f"{train_rows} rows, {train.batch_size} x {train.gradient_accumulation_steps} a step, {per_epoch} step{'s' * (per_epoch != 1)} an epoch"
    if train.max_steps is not None:
        return Decision("steps", str(train.max_steps), f"max_steps of the recipe ({shape})"), train.max_steps, per_epoch
    total = max(1, _up(per_epoch * train.num_epochs))
    return Decision("steps", str(total), f"{train.num_epochs:g} epochs ({shape})"), total, per_epoch


def _up(steps: float) -> int:
    """Rounded up, but not for an error in the last digits: 100 * 1.1 is 110.00000000000001 and means 110."""
    return math.ceil(round(steps, 6))


def make_plan(train: Train, machine: Machine, train_rows: int, has_validation: bool, decisions: list[Decision], notes: list[str]) -> Plan:
    """Settles what the recipe leaves open. `decisions` are those of the data and the model, in order."""
    precision = choose_precision(train.precision, machine)
    optimizer = choose_optimizer(train.optimizer, machine)
    checkpointing = choose_checkpointing(train.gradient_checkpointing, machine)
    steps, total, per_epoch = choose_steps(train, train_rows)
    asked_warmup = train.warmup_steps
    warmup = int(asked_warmup) if asked_warmup >= 1 else _up(asked_warmup * total)
    every = train.eval_steps or max(1, math.ceil(total / 10))
    if warmup > total:
        notes = [*notes, f"warm-up of {warmup} steps is longer than the run of {total}: the full learning rate is never reached"]
    if train.eval_steps and train.eval_steps > total:
        notes = [*notes, f"eval_steps {train.eval_steps} is beyond the last step: validated and saved at the end only"]
    validation = Decision(
        "validation", ("every step" if every == 1 else f"every {every} steps") if has_validation else "none",
        "best checkpoint kept by validation loss" if has_validation else "no validation rows: the last state is kept",
    )  # fmt: skip
    rate = Decision("learning rate", f"{train.learning_rate:g}", f"{train.schedule} after {warmup} warm-up steps")
    return Plan(
        precision=precision.value, optimizer=optimizer.value, gradient_checkpointing=checkpointing.value == "on",
        total_steps=total, steps_per_epoch=per_epoch, warmup_steps=warmup, eval_steps=every,
        decisions=[*decisions, precision, optimizer, checkpointing, steps, rate, validation], notes=notes,
    )  # fmt: skip
