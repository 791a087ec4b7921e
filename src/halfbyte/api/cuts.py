"""verify_resume: the first steps of a recipe twice, once left alone and once cut behind every step, each piece on a base loaded anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from halfbyte.api.identity import adapter_digest
from halfbyte.api.memory import adapt_new, load_for, within_budget
from halfbyte.checks.resume import ResumeProof, compare_steps
from halfbyte.data.batches import in_order
from halfbyte.errors import Interrupted
from halfbyte.evaluate.loss import measure_loss
from halfbyte.generate.prompts import pad_id
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.load import Loaded
from halfbyte.runs.events import Event
from halfbyte.train.checkpoint import newest_checkpoint
from halfbyte.train.loop import Hooks, run_training

if TYPE_CHECKING:
    from halfbyte.api import Planned

VALIDATION_BATCHES = 2
"""Enough that training goes through evaluation and back."""
RUN_ID = "verify-resume"
# What another process would have drawn before.
DRAWN_BETWEEN = 17


def shortened(loaded: Loaded, steps: int) -> Loaded:
    """The recipe, for its first steps: every rate and row is that of a run of so many steps."""
    train = loaded.recipe.train.model_copy(
        update={"max_steps": steps, "eval_steps": max(1, steps // 3), "early_stopping_patience": None, "keep_checkpoints": 2}
    )
    return Loaded(loaded.recipe.model_copy(update={"train": train}), loaded.notes, loaded.text)


def cut_everywhere(planned: "Planned", listener: Callable[[Event], None] | None = None) -> ResumeProof:
    """Leaves nothing behind. Where the courses differ, the whole one is run once more, to tell the cut from a machine that does not repeat itself."""
    with TemporaryDirectory(prefix="halfbyte-") as place, within_budget(planned.machine, planned.plan.computing), _deterministic(planned):
        alone, whole = _course(planned, Path(place) / "alone", listener)
        steps, adapter = [], ""
        for cut in range(1, planned.plan.total_steps + 1):
            torch.rand(DRAWN_BETWEEN)
            piece, adapter = _course(planned, Path(place) / "cut", listener, cut)
            steps += piece
        proof = ResumeProof(compare_steps(alone, steps), (whole, adapter), planned.plan.total_steps - 1)
        if proof.identical:
            return proof
        again, second = _course(planned, Path(place) / "again", listener)
        repeats = second == whole and not any(one.differs for one in compare_steps(alone, again))
        return ResumeProof(proof.steps, proof.adapters, proof.cuts, repeats)


def _course(planned: "Planned", checkpoints: Path, listener: Callable[[Event], None] | None, stop_after: int | None = None) -> tuple[list[Event], str]:
    """From the newest checkpoint there, or from the beginning, to the end or to the step behind which it is stopped: its steps, and the adapter's hash."""
    recipe, machine, prepared, plan = planned.recipe, planned.machine, planned.prepared, planned.plan
    model, _ = adapt_new(load_for(recipe, planned.base, machine, plan), recipe, machine, plan)
    dtype, pad = DTYPES[plan.precision], pad_id(planned.tokenizer)
    validation = in_order(prepared.validation, plan.computing.micro_batch_size, pad)[:VALIDATION_BATCHES]
    steps: list[Event] = []

    def hear(event: Event) -> None:
        if event["event"] == "step":
            steps.append(event)
            if listener:
                listener({**event, "cut": stop_after is not None})

    def validate() -> tuple[float, int]:
        measured = measure_loss(model, validation, dtype)
        return measured.mean, measured.tokens

    hooks = Hooks(validate if validation else None, hear, lambda: steps[-1]["step"] == stop_after)
    resume_from, _ = newest_checkpoint(checkpoints, RUN_ID)
    try:
        run_training(
            model, prepared.train, plan, recipe.train, recipe.seed, pad, checkpoints, hooks, resume_from, prepared.labels, RUN_ID,
        )  # fmt: skip
    except Interrupted:
        if stop_after is None:
            raise
    return steps, adapter_digest(model)


@contextmanager
def _deterministic(planned: "Planned") -> Iterator[None]:
    """On a GPU some sums are taken in any order unless it is asked otherwise; on a CPU they never are."""
    if planned.machine.device == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
