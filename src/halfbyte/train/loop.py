"""The training loop, in sight: what happens at step n is read from top to bottom. What varies is passed in."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halfbyte.data.batches import Batch, LabelSum, epoch_steps, rows_digest
from halfbyte.data.tokens import Tokens
from halfbyte.errors import IntegrityError, Interrupted
from halfbyte.model.adapter import adapter_state, set_adapter_state
from halfbyte.model.isolation import check_isolation
from halfbyte.model.machine import peak_bytes
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.plan import Plan
from halfbyte.recipe.schema import Train
from halfbyte.train.checkpoint import Checkpoint, checkpoint_of, load_checkpoint
from halfbyte.train.keeper import Keeper
from halfbyte.train.optimizer import learning_rate_at, make_optimizer, set_learning_rate
from halfbyte.train.random_state import random_states, seed_all, set_random_states
from halfbyte.train.retry import Room
from halfbyte.train.step import train_step

if TYPE_CHECKING:
    from peft import PeftModel

Event = dict[str, Any]


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    since_best: int = 0
    seconds: float = 0.0
    documents: int = 0
    labels: str = LabelSum().hex
    """Fingerprint of what the first epoch has trained on so far, and of how many documents."""


@dataclass(frozen=True)
class Outcome:
    """How training ended. The model holds the best adapter."""

    steps: int
    best_step: int | None
    stopped: str
    seconds: float


@dataclass(frozen=True)
class Hooks:
    """What the loop is handed: it imports no evaluation and prints nothing."""

    validate: Callable[[], tuple[float, int]] | None
    """Mean loss and number of tokens of the validation rows, None without any."""
    log: Callable[[Event], None]
    stop_asked: Callable[[], bool] = field(default=lambda: False)


def run_training(
    model: "PeftModel", rows: Sequence[Tokens], plan: Plan, section: Train, seed: int, pad_id: int, checkpoints: Path, hooks: Hooks,
    resume_from: Path | None = None, labels_expected: str | None = None, run_id: str | None = None, background: bool | None = None,
) -> Outcome:  # fmt: skip
    """Trains until the plan's last step, until early stopping, or until a stop is asked for (raises Interrupted, resumable).

    `run_id` goes into every checkpoint; those of another run are refused. `background`: whether checkpoints are written beside the steps (keeper.py);
    None: on a GPU they are.
    Raises IntegrityError when what the first epoch trained on is not what `labels_expected`, the fingerprint of the preview, says.
    """
    device = next(model.parameters()).device
    dtype = DTYPES[plan.precision]
    optimizer = make_optimizer(plan.optimizer, model.parameters(), section.learning_rate, section.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    seed_all(seed)  # dropout
    room = Room(model, optimizer, scaler, plan.computing, section.gradient_checkpointing is not False, hooks.log, dtype)
    progress = Progress()
    if resume_from is not None:
        progress = _restore(load_checkpoint(resume_from, run_id), model, optimizer, scaler)
        hooks.log({"event": "resume", "step": progress.step})
    keeper = Keeper(
        checkpoints, section.keep_checkpoints, lambda said: hooks.log({"event": "note", "message": said}), run_id,
        background=device.type == "cuda" if background is None else background, on_saved=lambda saved: hooks.log({
            "event": "checkpoint", "step": saved.step, "path": f"{checkpoints.name}/{saved.path.name}", "seconds": round(saved.seconds, 3),
            "waited": round(saved.waited, 3),
        }),
    )  # fmt: skip
    if resume_from is not None:
        keeper.saved_step = progress.step

    def freeze() -> Checkpoint:
        return _freeze(model, optimizer, scaler, progress, run_id)

    def validate() -> None:
        if hooks.validate is None:
            progress.best_step = progress.step or None  # without validation the last state is the one that is kept
            return
        loss, tokens = hooks.validate()
        better = math.isfinite(loss) and loss < progress.best_loss and progress.step > 0
        if better:
            progress.best_loss, progress.best_step, progress.since_best = loss, progress.step, 0
        elif progress.step > 0:
            progress.since_best += 1
        hooks.log({"event": "validation", "step": progress.step, "loss": loss, "tokens": tokens, "best": better})

    def given_up() -> bool:
        return section.early_stopping_patience is not None and progress.since_best >= section.early_stopping_patience

    with keeper:  # a save that is under way ends before the run does, however that ends
        if resume_from is None:
            validate()
        model.train()
        isolated = False
        began = time.monotonic() - progress.seconds
        while progress.step < plan.total_steps and not given_up():
            epoch, done = divmod(progress.step, plan.steps_per_epoch)
            at_a_time, times = room.computing.micro_batch_size, room.computing.gradient_accumulation_steps
            for batches in epoch_steps(rows, at_a_time, times, pad_id, seed, epoch, done):
                step = progress.step + 1
                if not isolated and any(batch.positions is not None for batch in batches):
                    check_isolation(model, dtype)
                    isolated = True
                rate = learning_rate_at(step, section.learning_rate, section.schedule, plan.warmup_steps, plan.total_steps)
                set_learning_rate(optimizer, rate)
                started = time.monotonic()
                result = room.attempt(step, batches, lambda batches: train_step(model, batches, optimizer, section.max_grad_norm, dtype, scaler, room.way))
                if result is None:  # memory ran out: the same step again, computed in less
                    break
                if device.type == "cuda":
                    torch.cuda.synchronize()
                took = time.monotonic() - started
                progress.step, progress.seconds = step, time.monotonic() - began
                if result.skipped:
                    reason = f"a float16 gradient overflowed; the loss is scaled by {scaler.get_scale():g} from here on"
                    hooks.log({"event": "skipped", "step": step, "reason": reason})
                hooks.log({
                    "event": "step", "step": step, "epoch": round(step / plan.steps_per_epoch, 4), "rows": rows_digest(batches), "loss": result.loss,
                    "learning_rate": rate, "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
                    "tokens": result.tokens, "supervised": result.supervised, "tokens_per_second": round(result.tokens / took, 1),
                    "seconds": round(progress.seconds, 3), "peak_bytes": peak_bytes(device.type),
                })  # fmt: skip
                if epoch == 0:
                    _count_labels(progress, batches)
                if step == plan.steps_per_epoch:
                    _compare_labels(progress, labels_expected, hooks)
                keeper.settle(waiting=False)
                last = step == plan.total_steps
                if step % plan.eval_steps == 0 or last:
                    validate()
                    keeper.save(step, freeze, progress.best_step)
                if last or given_up():
                    break
                if hooks.stop_asked():
                    keeper.settle()
                    if keeper.saved_step != step:
                        keeper.insist(step, freeze, progress.best_step)
                    hooks.log({"event": "interrupted", "step": step})
                    raise Interrupted(f"stopped after step {step} of {plan.total_steps}; saved {checkpoints.name}/step-{step}")
        keeper.settle()
        if keeper.saved_step != progress.step > 0:  # the last save failed, or was not due after others that failed
            keeper.insist(progress.step, freeze, progress.best_step)
        if progress.step < plan.steps_per_epoch:  # nothing to compare: not every document was seen
            hooks.log({"event": "labels", "rows": progress.documents, "sha256": progress.labels, "same_as_preview": None})
        _take_best(model, checkpoints, progress, hooks, keeper.unsaved_best, run_id)
    stopped = "finished" if progress.step >= plan.total_steps else "early stopping"
    return Outcome(progress.step, progress.best_step, stopped, progress.seconds)


def _count_labels(progress: Progress, batches: list[Batch]) -> None:
    seen = LabelSum(progress.documents, int(progress.labels, 16))
    for batch in batches:
        seen.add_batch(batch)
    progress.documents, progress.labels = seen.documents, seen.hex


def _compare_labels(progress: Progress, expected: str | None, hooks: Hooks) -> None:
    """The first epoch is complete: it saw every document once, with the labels that were prepared and shown."""
    same = None if expected is None else progress.labels == expected
    hooks.log({"event": "labels", "rows": progress.documents, "sha256": progress.labels, "same_as_preview": same})
    if same is False:
        raise IntegrityError(
            f"the tokens and labels of epoch 1 ({progress.documents} documents, {progress.labels}) are not the ones that were prepared ({expected})",
            hint="do not use this run; prepare the data again and train anew, and report it if it comes back",
        )


def _take_best(model: nn.Module, checkpoints: Path, progress: Progress, hooks: Hooks, unsaved: dict[str, torch.Tensor], run_id: str | None) -> None:
    """Without a best step (no validation loss was finite), or without its checkpoint, the last state stays.

    unsaved: the best adapter, where the disk was too full for its checkpoint.
    """
    if progress.best_step in (None, progress.step):
        return
    try:
        best = unsaved or load_checkpoint(checkpoint_of(checkpoints, progress.best_step), run_id).adapter
        set_adapter_state(model, best)
    except IntegrityError as error:
        hooks.log({"event": "note", "message": f"{error}: the adapter of the last step is kept instead of the best"})
        progress.best_step = None


def _freeze(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, progress: Progress, run_id: str | None) -> Checkpoint:
    where = {**vars(progress), "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None}
    state = {"progress": where, "scaler": scaler.state_dict(), "random": random_states()}
    return Checkpoint(adapter_state(model), optimizer.state_dict(), state, run_id)


def _restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Progress:
    set_adapter_state(model, checkpoint.adapter)
    optimizer.load_state_dict(checkpoint.optimizer)
    if checkpoint.state["scaler"]:
        scaler.load_state_dict(checkpoint.state["scaler"])
    set_random_states(checkpoint.state["random"])
    saved = dict(checkpoint.state["progress"])
    saved["best_loss"] = math.inf if saved["best_loss"] is None else saved["best_loss"]
    return Progress(**saved)
