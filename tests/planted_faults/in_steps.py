"""Faults of the step, of the optimizer, of the schedule and of the order of rows: the loss falls in every case."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.errors import TrainingError
from halfbyte.train.step import StepResult
from planted_faults.planting import adapter_tensors, computed_with, fault, step_of, with_each_batch, with_own_model

# How a step is summed


def _supervised(batches: list[Batch]) -> int:
    return sum(batch.supervised for batch in batches)


@fault("1.0", "gradients")
def mean_of_means(subject: Subject) -> Subject:
    """Each micro-batch's loss is divided by its own tokens and the means are averaged: a token of a short answer weighs more than one of a long."""
    return replace(subject, step=step_of(subject.logits, subject.loss, lambda batches: [1 / batch.supervised / len(batches) for batch in batches]))


@fault("1.0", "gradients")
def last_window_divided_by_the_setting(subject: Subject) -> Subject:
    """The last window of an epoch holds fewer micro-batches, and its loss is divided as if it held all: its gradient is half of what it should be."""
    setting = len(next(subject.epoch(0)))
    return replace(subject, step=step_of(subject.logits, subject.loss, lambda batches: [len(batches) / setting / _supervised(batches)] * len(batches)))


@fault("1.0", "gradients")
def loss_grows_with_accumulation(subject: Subject) -> Subject:
    """The trainer no longer divides, because the model is told the number of tokens; the model ignores it and returns the mean: two micro-batches
    give twice the gradient."""
    return replace(subject, step=step_of(subject.logits, subject.loss, lambda batches: [1 / batch.supervised for batch in batches]))


@fault("1.0", "gradients")
def gradients_cleared_between_micro_batches(subject: Subject) -> Subject:
    """`zero_grad` stands inside the loop over micro-batches: all but the last are computed for nothing."""
    return replace(subject, step=step_of(subject.logits, subject.loss, clear="each"))


@fault("1.0", "updates")
def gradients_never_cleared(subject: Subject) -> Subject:
    """`zero_grad` is missing: each step goes on with the sum of all gradients before it."""
    return replace(subject, step=step_of(subject.logits, subject.loss, clear="never"))


@fault("1.12", "gradients", toy="window")
def clipped_at_each_micro_batch(subject: Subject) -> Subject:
    """Gradients are clipped behind every backward pass instead of before the update: the last micro-batch outweighs those before."""
    return replace(subject, step=step_of(subject.logits, subject.loss, max_norm=0.3, clip_each=True))


@fault("1.0", "loss")
def loss_averaged_over_padding(subject: Subject) -> Subject:
    """The loss is multiplied by the mask and averaged over all places of the batch: the more padding, the smaller the step."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:] != IGNORE
        each = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:].clamp(min=0), reduction="none")
        return (each * wanted).mean() * wanted.sum()  # handed on as a sum over tokens

    return computed_with(subject, loss=loss)


@fault("1.26", "batches")
def labels_shifted_twice(subject: Subject) -> Subject:
    """The data set shifts its labels by one and the loss shifts them again: each token is learned as the one after next."""

    def change(batch: Batch) -> Batch:
        labels = torch.full_like(batch.labels, IGNORE)
        labels[:, :-1] = batch.labels[:, 1:]
        return replace(batch, labels=labels)

    return with_each_batch(subject, change)


@fault("1.26", "loss")
def labels_not_shifted(subject: Subject) -> Subject:
    """A loss function of one's own takes logits and labels as they stand: each token is learned from itself, and the loss falls fast."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")

    return computed_with(subject, loss=loss)


@fault("1.40", "loss")
def smoothing_over_what_is_masked(subject: Subject) -> Subject:
    """Label smoothing sets masked labels to 0 for its gather, and puts the mask back for the sharp part of the loss only: the smooth part learns
    from prompts and padding."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        log_p, wanted = logits[:, :-1].float().log_softmax(-1), labels[:, 1:] != IGNORE
        sharp = -log_p.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0].masked_fill(~wanted, 0.0).sum()
        return 0.9 * sharp + 0.1 * -log_p.mean(-1).sum()

    return computed_with(subject, loss=loss)


@fault("1.12", "gradients")
def step_in_another_precision(subject: Subject) -> Subject:
    """`fp16=True` in one place and a compute type in another: the step runs under an autocast that nobody asked for and nothing else uses."""

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16):
            return model(input_ids=batch.ids, use_cache=False).logits

    return replace(subject, step=step_of(logits, subject.loss))


@fault("1.12", "a damaged step")
def step_that_is_not_finite_passed_over(subject: Subject) -> Subject:
    """`if not torch.isfinite(loss): continue`, with a loss of 0.0 in the log: thousands of steps pass and nothing is learned."""

    def step(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> StepResult:
        try:
            return subject.step(model, batches, optimizer)
        except TrainingError:
            optimizer.zero_grad(set_to_none=True)
            return StepResult(0.0, math.nan, _supervised(batches), sum(batch.tokens for batch in batches), skipped=False)

    return replace(subject, step=step)


@fault("1.12", "a damaged step")
def step_that_is_not_finite_taken(subject: Subject) -> Subject:
    """Nothing looks at the loss before the update: after one overflow every weight of the adapter is NaN."""
    return replace(subject, step=step_of(subject.logits, subject.loss, checked=False))


@fault("1.37", "told loss")
def loss_of_the_last_micro_batch_told(subject: Subject) -> Subject:
    """The log has the loss of the last micro-batch of each step, not that of the step."""

    def step(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> StepResult:
        with torch.no_grad():
            last = float(subject.loss(subject.logits(model, batches[-1]), batches[-1].labels)) / batches[-1].supervised
        return replace(subject.step(model, batches, optimizer), loss=last)

    return replace(subject, step=step)


# Optimizer


@fault("1.10", "updates")
def optimizer_over_other_tensors(subject: Subject) -> Subject:
    """The optimizer was made before the model was wrapped anew and moved: it updates tensors that no model holds any more."""
    return replace(subject, make_optimizer=lambda model: subject.make_optimizer(copy.deepcopy(model)))


@fault("1.10", "updates")
def optimizer_without_half_of_the_adapter(subject: Subject) -> Subject:
    """Two groups for two learning rates (LoRA+), the second chosen by a name that matches nothing: B stays zero and the adapter does nothing."""

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        groups = [[parameter for name, parameter in adapter_tensors(model).items() if part in name] for part in ("lora_A", "lora_B.weight")]
        return torch.optim.AdamW([{"params": group, "lr": subject.peak_rate * scale} for group, scale in zip(groups, (1, 16)) if group], weight_decay=0.0)

    return replace(subject, make_optimizer=make_optimizer)


# Schedule


@fault("1.28", "rates")
def schedule_stepped_for_each_micro_batch(subject: Subject) -> Subject:
    """The scheduler is stepped at every micro-batch: the rate is down to zero in the middle of the run."""
    each = len(next(subject.epoch(0)))
    return replace(subject, rate=lambda step: subject.rate(step * each) if step * each <= subject.total_steps else 0.0)


@fault("1.28", "rates")
def warm_up_that_never_ends(subject: Subject) -> Subject:
    """Warm-up is counted in micro-batches of the whole run: the rate rises to the last step and never reaches what was asked for."""
    warm_up = subject.total_steps * len(next(subject.epoch(0)))
    return replace(subject, rate=lambda step: subject.peak_rate * step / warm_up)


@fault("1.28", "rates")
def rate_of_the_library(subject: Subject) -> Subject:
    """The recipe's learning rate is lost when arguments are handed on: a quarter of it, the library's default, is used."""
    return replace(subject, rate=lambda step: subject.rate(step) / 4)


@fault("1.28", "rates")
def schedule_begun_anew_each_epoch(subject: Subject) -> Subject:
    """The schedule is made for the steps of one epoch: the rate falls to zero and jumps back at each."""
    steps = len(list(subject.epoch(0)))
    return replace(subject, rate=lambda step: subject.peak_rate * 0.5 * (1 + math.cos(math.pi * ((step - 1) % steps) / steps)))


# Order


@fault("1.36", "order")
def same_order_every_epoch(subject: Subject) -> Subject:
    """`set_epoch` is never called: every epoch has the order of the first."""
    return replace(subject, epoch=lambda number: subject.epoch(0))


@fault("1.36", "order")
def last_rows_dropped(subject: Subject) -> Subject:
    """`drop_last=True`: the rows that fill no step are not trained on."""

    def epoch(number: int) -> Iterator[list[Batch]]:
        return (batches for batches in subject.epoch(number) if sum(len(batch.ids) for batch in batches) == subject.rows_per_step)

    return replace(subject, epoch=epoch)


@fault("1.36", "order")
def rows_doubled_to_fill_a_step(subject: Subject) -> Subject:
    """The sampler fills the last step up with the first rows, as it does to give every process the same number."""

    def epoch(number: int) -> Iterator[list[Batch]]:
        for batches in subject.epoch(number):
            missing = subject.rows_per_step - sum(len(batch.ids) for batch in batches)
            yield [*batches, subject.collate(subject.rows[:missing])] if missing else batches

    return replace(subject, epoch=epoch)


@fault("1.36", "order")
def rows_drawn_with_replacement(subject: Subject) -> Subject:
    """`random.choices` where a permutation was meant: a third of the rows is not seen in an epoch, others twice or more."""
    size = len(next(subject.epoch(0))[0].ids)

    def epoch(number: int) -> Iterator[list[Batch]]:
        drawn = torch.randint(len(subject.rows), (len(subject.rows),), generator=torch.Generator().manual_seed(number)).tolist()
        for start in range(0, len(drawn), subject.rows_per_step):
            chosen = [subject.rows[place] for place in drawn[start : start + subject.rows_per_step]]
            yield [subject.collate(chosen[at : at + size]) for at in range(0, len(chosen), size)]

    return replace(subject, epoch=epoch)


# The base in the step


@fault("1.15", "updates")
def base_changed_by_merging_and_back(subject: Subject) -> Subject:
    """To draw samples while training, the adapter is merged and taken out again after each step: over 4-bit weights that rounds the base anew."""

    def step(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> StepResult:
        result = subject.step(model, batches, optimizer)
        model.merge_adapter()
        model.unmerge_adapter()
        return result

    return replace(with_own_model(subject), step=step)
