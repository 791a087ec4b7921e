"""How a fault is planted: what is wrong is put in place of the sound function of a Subject, wherever a real project would have it wrong."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import Batch, epoch_steps
from halfbyte.data.tokens import Tokens
from halfbyte.errors import TrainingError
from halfbyte.evaluate.loss import evaluating
from halfbyte.train.step import StepResult

Change = Callable[[Subject], Subject]
Logits = Callable[[nn.Module, Batch], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Weigh = Callable[[list[Batch]], list[float]]


@dataclass(frozen=True)
class Fault:
    """number: of CORRECTNESS.md. toy: of clean.py, on which it is planted. effect: of effects.py, what it changes.
    deep: it shows only when the model is built a second time."""

    number: str
    toy: str
    effect: str
    plant: Change
    deep: bool = False

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def told(self) -> str:
        return " ".join((self.plant.__doc__ or "").split())


FAULTS: list[Fault] = []


def fault(number: str, effect: str, toy: str = "chat", deep: bool = False) -> Callable[[Change], Change]:
    """Puts a fault on the list."""

    def listed(plant: Change) -> Change:
        FAULTS.append(Fault(number, toy, effect, plant, deep))
        return plant

    return listed


# Rows and batches


def with_rows(subject: Subject, rows: Sequence[Tokens]) -> Subject:
    """Trained on these rows instead."""
    first = next(subject.epoch(0))
    at_a_time, batches = len(first[0].ids), len(first)

    def epoch(number: int) -> Iterator[list[Batch]]:
        return epoch_steps(rows, at_a_time, batches, subject.pad_id, 0, number)

    return replace(subject, rows=rows, epoch=epoch)


def with_each_row(subject: Subject, change: Callable[[Tokens], Tokens]) -> Subject:
    """Rows are wrong from the moment when they are encoded."""
    encode = subject.encode_row
    changed = with_rows(subject, [change(row) for row in subject.rows])
    return replace(changed, encode_row=encode and (lambda messages: change(encode(messages))))


def with_each_batch(subject: Subject, change: Callable[[Batch], Batch]) -> Subject:
    """Batches are wrong, wherever they are made."""

    def epoch(number: int) -> Iterator[list[Batch]]:
        for batches in subject.epoch(number):
            yield [change(batch) for batch in batches]

    return replace(subject, collate=lambda rows: change(subject.collate(rows)), epoch=epoch)


def padding(batch: Batch) -> Tensor:
    """(B, T): True where a batch is padded."""
    return torch.arange(batch.ids.shape[1])[None] >= torch.tensor(batch.lengths)[:, None]


def spans(row: Tokens) -> list[tuple[int, int]]:
    """Where each trained part of a row begins and ends."""
    edges = [place for place in range(len(row.ids) + 1) if (row.trained[place : place + 1] == [True]) != (place > 0 and row.trained[place - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


# The step and what is measured, as they are written by hand


def by_supervised_tokens(batches: list[Batch]) -> list[float]:
    """What a micro-batch's summed loss is multiplied by, done rightly."""
    return [1 / sum(batch.supervised for batch in batches)] * len(batches)


def step_of(
    logits: Logits, loss: Loss, weigh: Weigh = by_supervised_tokens, max_norm: float = 1.0, checked: bool = True, clip_each: bool = False, clear: str = "after"
) -> Callable[[nn.Module, list[Batch], torch.optim.Optimizer], StepResult]:
    """clear: when gradients are set to nothing: "after" the update, after "each" micro-batch but the last, or "never"."""

    def step(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> StepResult:
        trained, total, norm = [parameter for parameter in model.parameters() if parameter.requires_grad], 0.0, 0.0
        for batch, weight in zip(batches, weigh(batches), strict=True):
            if clear == "each":
                optimizer.zero_grad(set_to_none=True)
            batch = batch.to(next(model.parameters()).device)
            value = loss(logits(model, batch), batch.labels) * weight
            value.backward()
            total += float(value)
            norm = float(nn.utils.clip_grad_norm_(trained, max_norm)) if clip_each else 0.0
        if checked and not math.isfinite(total):
            raise TrainingError(f"the loss is {total} before the update")
        if not clip_each:
            norm = float(nn.utils.clip_grad_norm_(trained, max_norm))
        if checked and not math.isfinite(norm):
            raise TrainingError(f"the gradient is {norm} before the update")
        optimizer.step()
        if clear != "never":
            optimizer.zero_grad(set_to_none=True)
        return StepResult(total, norm, sum(batch.supervised for batch in batches), sum(batch.tokens for batch in batches), skipped=False)

    return step


def mean_loss(logits: Logits, loss: Loss) -> Callable[[nn.Module, Sequence[Batch]], float]:
    """What validation measures, done rightly."""

    @torch.no_grad()
    def evaluate(model: nn.Module, batches: Sequence[Batch]) -> float:
        with evaluating(model):
            return sum(float(loss(logits(model, batch), batch.labels)) for batch in batches) / sum(batch.supervised for batch in batches)

    return evaluate


def computed_with(subject: Subject, logits: Logits | None = None, loss: Loss | None = None, weigh: Weigh = by_supervised_tokens) -> Subject:
    """Training and evaluation alike compute with these."""
    logits, loss = logits or subject.logits, loss or subject.loss
    return replace(subject, logits=logits, loss=loss, step=step_of(logits, loss, weigh), evaluate=mean_loss(logits, loss))


# The model


def with_model(subject: Subject, damage: Callable[[PeftModel], None]) -> Subject:
    """The model is wrong, however often it is built."""

    def build() -> PeftModel:
        model = subject.build()
        damage(model)
        return model

    return replace(subject, model=build(), build=build)


def with_own_model(subject: Subject) -> Subject:
    """A model that nobody else holds: what a fault does to it stays there."""
    return replace(subject, model=copy.deepcopy(subject.model))


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
