"""Short trainings of toys: rows of random tokens, a quantised toy with an adapter, and a loop whose events are kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfbyte.data.batches import Batch, in_order, make_batch
from halfbyte.data.tokens import Tokens
from halfbyte.evaluate.loss import measure_loss
from halfbyte.model.adapter import add_adapter
from halfbyte.model.base import find_base
from halfbyte.model.load import Loaded, load_base
from halfbyte.model.placement import place_layers
from halfbyte.model.precision import DTYPES, compute_in
from halfbyte.recipe.plan import Plan, as_asked
from halfbyte.recipe.schema import FP4, NF4, Adapter, NoQuant, Train
from halfbyte.train.loop import Hooks, Outcome, run_training
from toys import VOCABULARY

CPU = torch.device("cpu")
PAD = 2
NONE = NoQuant(kind="none")
QUANT = NF4()
FIRST_WORD = 5  # the ids before it are the toy tokenizer's marks


def row(ids: list[int], untrained: int = 1) -> Tokens:
    """The first `untrained` ids are a prompt."""
    return Tokens(ids, [index >= untrained for index in range(len(ids))], "toy", 1)


def random_rows(lengths: list[int], seed: int = 0, untrained: int = 1) -> list[Tokens]:
    generator = torch.Generator().manual_seed(seed)
    return [row(torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator).tolist(), untrained) for length in lengths]


def load_toy(folder: Path, quant: NF4 | FP4 | NoQuant = QUANT, precision: str = "float32") -> Loaded:
    return load_base(find_base(str(folder)), quant, precision, CPU)


def adapted(
    folder: Path, section: Adapter | None = None, seed: int = 0, quant: NF4 | FP4 | NoQuant = QUANT, precision: str = "float32", stirred: bool = False
) -> nn.Module:
    """A base with its adapter. A new adapter changes nothing (B is 0), so tests that look for a change stir it."""
    model, _ = add_adapter(load_toy(folder, quant, precision).model, section or Adapter(r=4, alpha=8), seed)
    return stir(model) if stirred else model


def stir(model: nn.Module, seed: int = 7) -> nn.Module:
    """Moves every trained tensor a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model: nn.Module, ids: list[list[int]], precision: str = "float32") -> torch.Tensor:
    """(B, T, V) in eval mode; the mode is put back."""
    was = model.training
    model.eval()
    with compute_in(CPU, DTYPES[precision]):
        out = model(input_ids=torch.tensor(ids), use_cache=False).logits
    model.train(was)
    return out


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base: parameters and buffers that are not trained, and the scales of 4-bit weights."""
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "Params4bit":
            frozen[name + ".absmax"] = parameter.quant_state.absmax.clone()
    return frozen | {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit, name by name."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def gradients(model: nn.Module, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """What train_step hands to the optimizer: its gradients before the update. Nothing is updated."""
    from halfbyte.train.step import train_step

    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    keeper = KeepGradients([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.train()
    train_step(model, batches, keeper, 1e9, torch.float32, torch.amp.GradScaler("cpu", enabled=False))
    return dict(zip(names, keeper.seen, strict=True))


class KeepGradients(torch.optim.SGD):
    def step(self) -> None:
        self.seen = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]


@dataclass
class Course:
    """A training with what it told and what it left."""

    model: nn.Module
    outcome: Outcome | None
    events: list[dict[str, Any]] = field(default_factory=list)

    def told(self, kind: str, *keys: str) -> list[Any]:
        """The values of `keys` in the events of a kind."""
        rows = [tuple(event.get(key) for key in keys) for event in self.events if event["event"] == kind]
        return [values[0] for values in rows] if len(keys) == 1 else rows


def toy_plan(rows: int, section: Train, total: int, eval_steps: int = 4, precision: str = "float32", checkpointing: bool = False) -> Plan:
    per_epoch = -(-rows // (section.batch_size * section.gradient_accumulation_steps))
    computing = as_asked(section.model_copy(update={"gradient_checkpointing": checkpointing}), None, 2 if checkpointing else 0)
    return Plan(
        precision=precision, optimizer="adamw_torch", computing=computing, total_steps=total, steps_per_epoch=per_epoch,
        warmup_steps=2, eval_steps=eval_steps,
    )  # fmt: skip


def run_toy(
    folder: Path, checkpoints: Path, rows: list[Tokens], section: Train, plan: Plan, *, adapter: Adapter | None = None, seed: int = 0,
    stop_after: int | None = None, resume_from: Path | None = None, validate: Callable[[], tuple[float, int]] | str | None = "measure",
    model: nn.Module | None = None, run_id: str | None = None, device: torch.device = CPU, background: bool | None = None,
) -> Course:  # fmt: skip
    """run_training on a fresh toy. `stop_after` asks for a stop after that step, as Ctrl-C does; the course is returned all the same."""
    from halfbyte.errors import Interrupted

    model = model or adapted(folder, adapter, seed, precision=plan.precision)
    if plan.computing.layers:
        place_layers(model, plan.computing.layers, device)
    course = Course(model, None)
    held_out = in_order(random_rows([9, 14, 6], seed=99), 2, PAD)

    def measure() -> tuple[float, int]:
        measured = measure_loss(model, held_out, DTYPES[plan.precision])
        return measured.mean, measured.tokens

    def stop_asked() -> bool:
        return stop_after is not None and course.told("step", "step")[-1] >= stop_after

    hooks = Hooks(measure if validate == "measure" else validate, course.events.append, stop_asked)
    try:
        course.outcome = run_training(model, rows, plan, section, seed, PAD, checkpoints, hooks, resume_from, run_id=run_id, background=background)
    except Interrupted:
        assert stop_after is not None
    return course


def one_batch(rows: list[Tokens]) -> Batch:
    return make_batch(rows, PAD)
