"""The proof about the fast path: its gradients are those of the model as it was loaded, whose other proofs so hold for it too."""

from dataclasses import replace

import torch

from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.tolerance import FP8, FP8_TOGETHER, off
from halfbyte.checks.trial import Gradient, Trial, gradients_apart, together_apart
from halfbyte.data.batches import Batch
from halfbyte.train.step import Accumulate

LIKELY = "the fast blocks do not compute what this base does"
HINT = "set train.fast_path=off, and report it"
LIKELY_IN_FP8 = "8 bits are too few for this base, or its fast blocks compute something else"
HINT_IN_FP8 = "leave train.compute out; where the proof then fails too, report it"


def paths(trial: Trial) -> str:
    """Stirred, because the gradient of A is zero while B is: rows in one batch, one by one, and as documents of one row, against the plain path's."""
    if trial.subject.fast is None:
        raise NotHere("the plain path is taken")
    trial.stir()
    try:
        return _compared(trial, trial.subject.fast)
    finally:
        trial.put_values_back()


def _compared(trial: Trial, fast: Accumulate) -> str:
    ways = {"together": [trial.batch(trial.rows)], "one by one": [trial.batch([row]) for row in trial.rows]}
    if any(len(row.documents) > 1 for row in trial.looked_at):
        ways["as one packed row"] = [packed(trial)]
    fp8 = trial.subject.fp8
    likely, hint = (LIKELY_IN_FP8, HINT_IN_FP8) if fp8 else (LIKELY, HINT)
    tolerance = FP8 if fp8 else trial.tolerance
    most = tolerance.gradient * (1 if fp8 or trial.subject.dtype == torch.float32 else 3)
    worst, most_together, count = 0.0, 0.0, sum(batch.supervised for batch in ways["together"])
    for name, batches in ways.items():
        plain_loss, plain = _plain(trial, batches, 1 / count)
        with trial.in_training():
            loss = sum(float(fast(batch, 1 / count)) for batch in batches)
            gradient = trial.gradient()
        if not off(loss, plain_loss) <= tolerance.loss:
            raise Refuted(f"{name}: the loss is {loss:.6g}, on the plain path {plain_loss:.6g}", likely, hint)
        differs, where = gradients_apart(gradient, plain)
        if not differs <= most:
            raise Refuted(f"{name}: the gradient of {where} is {differs:.2g} of its length from the plain path's", likely, hint)
        together = together_apart(gradient, plain)
        if fp8 and not together <= FP8_TOGETHER:
            raise Refuted(f"{name}: all gradients together are {together:.2g} of their length from the plain path's", likely, hint)
        worst, most_together = max(worst, differs), max(most_together, together)
    told = f", in FP8, together {most_together:.1g}" if fp8 else ""
    return f"rows {', '.join(ways)}: gradients {worst:.1g} of their length from the plain path's{told}, loss {loss:.6g} for {plain_loss:.6g}"


def _plain(trial: Trial, batches: list[Batch], scale: float) -> tuple[float, Gradient]:
    """By the functions that the other proofs are led on."""
    total = 0.0
    with trial.in_training():
        for batch in batches:
            moved = batch.to(trial.device)
            loss = trial.subject.loss(trial.subject.logits(trial.model, moved), moved.labels) * scale
            loss.backward()
            total += float(loss.detach())
        return total, trial.gradient()


def packed(trial: Trial) -> Batch:
    """The rows, each a document of one."""
    rows = trial.rows
    joined = replace(rows[0], ids=[one for row in rows for one in row.ids], trained=[one for row in rows for one in row.trained])
    return trial.batch([replace(joined, documents=tuple(len(row.ids) for row in rows))])


OF_PATHS = [Claim("fast path", paths, LIKELY, HINT)]
