"""What a fault changes, measured straight on the functions of a Subject: two subjects differ in an effect by more than rounding, or the fault is none.

These are no proofs: they compare with the sound subject, which a proof does not have.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import Batch
from halfbyte.errors import HalfbyteError
from toy_training import KeepGradients, frozen_tensors, stir, trained_tensors

CONVERSATION = [
    {"role": "user", "content": "who lit the lamp?"}, {"role": "assistant", "content": "the keeper."}, {"role": "user", "content": "was the sea quiet?"},
    {"role": "assistant", "content": "yes, the sea was quiet."},
]  # fmt: skip


def _new(subject: Subject, stirred: bool = True) -> nn.Module:
    """A model of its own, in training; seeded, because some are drawn anew."""
    torch.manual_seed(0)
    model = subject.build().train()
    return stir(model) if stirred else model


def differ(one: Any, other: Any) -> bool:
    """Numbers and tensors by more than a thousandth of the largest, a hundred times what another order of summing does; the rest at all."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape:
            return True
        return bool((one - other).abs().max() > 1e-3 * torch.maximum(one.abs().max(), other.abs().max()))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) > 1e-3 * max(abs(one), abs(other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) != len(other) or any(map(differ, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(value, other[key]) for key, value in one.items())
    return bool(one != other)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def _batch(batch: Batch) -> list[Any]:
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values()]


def ids(subject: Subject, folder: Path) -> Any:
    rows = [(row.ids, row.trained, len(row.ids) <= subject.max_length) for row in subject.rows]
    encoded = subject.encode_row and subject.encode_row(CONVERSATION)
    return rows, encoded and (encoded.ids, encoded.trained), subject.encode_prompt and subject.encode_prompt(CONVERSATION[:-1])


def ends(subject: Subject, folder: Path) -> Any:
    return {row.ids[-1] in subject.end_ids for row in subject.rows}


def batches(subject: Subject, folder: Path) -> Any:
    return _batch(subject.collate(subject.rows[:4])), [_batch(batch) for batch in next(subject.epoch(0))]


def loss(subject: Subject, folder: Path) -> Any:
    """And the logits of each place that is no padding."""
    model, batch = _new(subject), subject.collate(subject.rows[:4])
    logits = subject.logits(model.eval(), batch).detach()
    return float(subject.loss(logits, batch.labels)), [logits[row, :length].float() for row, length in enumerate(batch.lengths)]


def gradients(subject: Subject, folder: Path) -> Any:
    """Of the first step of an epoch and of the last, and their norm before they are clipped."""
    found = []
    for window in (0, -1):
        model = _new(subject)
        keeper = KeepGradients([parameter for parameter in model.parameters() if parameter.requires_grad])
        try:
            norm = subject.step(model, list(subject.epoch(0))[window], keeper).grad_norm
            found.append([norm, *(gradient.float() for gradient in keeper.seen)])
        except AttributeError:  # one has none
            found.append([])
    return found


def recomputed_gradients(subject: Subject, folder: Path) -> Any:
    model, batch = _new(subject), subject.collate(subject.rows[:2])
    with subject.recompute(model, True):
        subject.loss(subject.logits(model, batch), batch.labels).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def told_loss(subject: Subject, folder: Path) -> Any:
    model = _new(subject)
    return subject.step(model, next(subject.epoch(0)), subject.make_optimizer(model)).loss


def updates(subject: Subject, folder: Path) -> Any:
    """How far each tensor of the model has moved behind two steps."""
    model = _new(subject, stirred=False)
    before = frozen_tensors(model) | trained_tensors(model)
    optimizer = subject.make_optimizer(model)
    for window in list(subject.epoch(0))[:2]:
        subject.step(model, window, optimizer)
    after = frozen_tensors(model) | trained_tensors(model)
    return {name: after[name].float() - tensor.float() for name, tensor in before.items()}


def a_damaged_step(subject: Subject, folder: Path) -> Any:
    model = _new(subject)
    next(parameter for parameter in model.parameters() if parameter.requires_grad).data.fill_(torch.nan)
    try:
        subject.step(model, next(subject.epoch(0)), subject.make_optimizer(model))
    except HalfbyteError:
        return "refused"
    return "passed"


def rates(subject: Subject, folder: Path) -> Any:
    return [subject.rate(step) for step in range(1, subject.total_steps + 1)]


def order(subject: Subject, folder: Path) -> Any:
    return [[[batch.ids.tolist() for batch in window] for window in subject.epoch(number)] for number in (0, 1)]


def builds(subject: Subject, folder: Path) -> Any:
    """Whether two builds are the same when random numbers were drawn between them."""
    first, second = ([_bytes(parameter) for parameter in subject.build().parameters()] for _ in range(2))
    return first == second


def reload(subject: Subject, folder: Path) -> Any:
    """Whether the model answers as before with what was saved of it, 1e-6 being no difference."""
    model, batch = _new(subject).eval(), subject.collate(subject.rows[:2])
    before = subject.logits(model, batch)
    subject.save(model, folder / "saved")
    with subject.reloaded(model, folder / "saved") as again:
        after = subject.logits(again.eval(), batch)
    return float((after - before).abs().max()) <= 1e-6


def evaluation(subject: Subject, folder: Path) -> Any:
    """And the mode in which it leaves the model."""
    model = _new(subject)
    return subject.evaluate(model, [subject.collate(subject.rows[:3]), subject.collate(subject.rows[3:5])]), model.training


def answers(subject: Subject, folder: Path) -> Any:
    assert subject.encode_prompt is not None
    prompts = [subject.encode_prompt([{"role": "user", "content": said}]) for said in ("who?", "was the sea quiet at this hour of the night?", "is it?")]
    return subject.generate(_new(subject), prompts, 16)


EFFECTS: dict[str, Callable[[Subject, Path], Any]] = {
    effect.__name__.replace("_", " "): effect
    for effect in (
        ids, ends, batches, loss, gradients, recomputed_gradients, told_loss, updates, a_damaged_step, rates, order, builds, reload, evaluation, answers
    )
}  # fmt: skip
