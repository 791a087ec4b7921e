"""Proofs about the order of the rows, the number of the steps and the rate of each."""

import math
import random
from collections import Counter
from hashlib import sha256
from itertools import islice, pairwise

from halfbyte.checks.proof import Claim, Refuted
from halfbyte.checks.trial import MANY, Trial, expected_labels
from halfbyte.data.batches import Batch
from halfbyte.data.tokens import Tokens

BY_CHANCE = 1e-9
"""So many epochs are compared that they are all of one order by chance as rarely as this; where a few rows have few orders these are more."""
MOST_EPOCHS = 64
"""Where it takes more, the order is not looked at: nearly all of the rows are one."""
SHUFFLES = 64
STEPS = 50
"""Of each of them."""
# A fall to zero in closed form ends a step above zero; the rate of its last step is at most this share, or one step's of a line.
NEARLY_ZERO = 0.1
MOST_STEPS = 1_000_000


def epochs(trial: Trial) -> str:
    """Every row once an epoch with its own labels, in an order that the number of the epoch alone decides."""
    subject = trial.subject
    count, per_step = len(subject.rows), subject.rows_per_step
    whole = trial.everything or count <= MANY
    wanted = math.ceil(count / per_step)
    limit = wanted + 1 if whole else max(2, MANY // per_step)

    def order(epoch: int, most: int = limit) -> list[list[str]]:
        return [[key for batch in batches for key in _keys_of(batch)] for batches in islice(subject.epoch(epoch), most)]

    first = order(0)
    if order(0) != first:
        raise Refuted(
            "the same epoch came in two orders", "the order is drawn anew each time, so a resumed run has another", "draw the order from seed and epoch"
        )
    if whole:
        if len(first) != wanted:
            seen = f"an epoch has {len(first)} steps; {count:,} rows, {per_step} a step, make {wanted}"
            raise Refuted(
                seen, "the last rows of an epoch are dropped, or steps are counted for another number of rows", "count rows / rows a step, rounded up"
            )
        rows = Counter(_key(row) for row in trial.looked_at)
        for number in (0, 1):
            seen_rows = Counter(key for step in (first if number == 0 else order(1)) for key in step)
            if seen_rows != rows:
                missed, extra = sum((rows - seen_rows).values()), sum((seen_rows - rows).values())
                raise Refuted(
                    f"epoch {number + 1} leaves out {missed} of {count:,} rows and has {extra} that are none or come again",
                    "rows are dropped or repeated, or batches are not made as the rows are", "give every row once an epoch",
                )  # fmt: skip
    sizes = {len(step) for step in (first[:-1] if whole else first)}
    if sizes - {per_step}:
        seen = f"a step has {min(sizes - {per_step})} rows, not {per_step}"
        raise Refuted(seen, "micro-batches are left out or doubled", "batch_size x gradient_accumulation_steps rows a step")
    if wanted > 1 and count > 2:
        one = _order_of(first[:STEPS])
        most = _epochs_to_compare(first, [_key(row) for row in trial.looked_at] if whole else [key for step in first for key in step])
        if most <= MOST_EPOCHS and all(_order_of(order(number, STEPS)) == one for number in range(1, most)):
            raise Refuted(f"{most} epochs came in one order", "rows are not shuffled, or with the same seed in every epoch", "shuffle by seed and epoch")
    looked = f"{count:,} rows" if whole else f"the first {sum(map(len, first)):,} of {count:,} rows"
    return f"{looked}, each once, {per_step} a step; {'another order' if wanted > 1 else 'one step'} in each epoch, the same when it is repeated"


def _order_of(steps: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    """Which rows each step has; within a step their order is nothing."""
    return tuple(tuple(sorted(step)) for step in steps)


def _epochs_to_compare(steps: list[list[str]], keys: list[str]) -> int:
    """Shuffles of our own tell how often two orders are one: of three rows, two a step, every third time."""
    generator = random.Random(0)
    sizes = [len(step) for step in steps[:STEPS]]
    found: Counter[tuple[tuple[str, ...], ...]] = Counter()
    for _ in range(SHUFFLES):
        drawn = iter(generator.sample(keys, sum(sizes)))
        found[_order_of([list(islice(drawn, size)) for size in sizes])] += 1
    share = max(found.values()) / SHUFFLES
    return 1 + math.ceil(math.log(BY_CHANCE) / math.log(share)) if share < 1 else MOST_EPOCHS + 1


def _key(row: Tokens) -> str:
    documents = [number for number, size in enumerate(row.documents) for _ in range(size)] if len(row.documents) > 1 else [0] * len(row.ids)
    return _hash(row.ids, expected_labels(row), documents)


def _keys_of(batch: Batch) -> list[str]:
    keys = []
    for row, size in enumerate(batch.lengths):
        documents = [0] * size if batch.documents is None else batch.documents[row, :size].tolist()
        keys.append(_hash(batch.ids[row, :size].tolist(), batch.labels[row, :size].tolist(), documents))
    return keys


def _hash(*lists: list[int]) -> str:
    return sha256(repr(lists).encode()).hexdigest()


def learning_rate(trial: Trial) -> str:
    """Above zero at every step, up to the peak once, never over it, and down to nearly zero unless it stays."""
    subject = trial.subject
    total, peak = subject.total_steps, subject.peak_rate
    if subject.epochs is not None:
        wanted = max(1, math.ceil(round(math.ceil(len(subject.rows) / subject.rows_per_step) * subject.epochs, 6)))
        if total != wanted:
            seen = f"{total} steps; {subject.epochs:g} epochs of {len(subject.rows):,} rows, {subject.rows_per_step} a step, are {wanted}"
            raise Refuted(seen, "steps are counted for another number of rows a step", "count rows / rows a step, rounded up, times epochs")
    if total < 1:
        raise Refuted(f"{total} steps", "no step is planned", "raise train.num_epochs or train.max_steps")
    rates = [subject.rate(step) for step in range(1, min(total, MOST_STEPS) + 1)]
    for step, rate in enumerate(rates, start=1):
        if not math.isfinite(rate) or rate <= 0:
            raise Refuted(
                f"step {step} of {total} has rate {rate:g} and would train nothing", "the schedule counts from 0, or other steps", "count steps from 1"
            )
        if rate > peak * (1 + 1e-9):
            raise Refuted(f"step {step} has rate {rate:g}, above the peak of {peak:g}", "the schedule is scaled wrongly", "let the peak be the highest rate")
    highest = max(rates)
    cut_short = subject.warmup_steps is not None and subject.warmup_steps > total
    if highest < peak * (1 - 1e-6) and total <= MOST_STEPS and not cut_short:
        raise Refuted(
            f"the highest rate of {total} steps is {highest:g}, the peak is {peak:g}", "warm-up is longer than the run, or counts other steps",
            "lower train.warmup_steps",
        )  # fmt: skip
    top = rates.index(highest)
    rises = all(before <= after * (1 + 1e-9) for before, after in pairwise(rates[: top + 1]))
    falls = all(after <= before * (1 + 1e-9) for before, after in pairwise(rates[top:]))
    if not (rises and falls):
        raise Refuted("the rate falls before its peak or rises after it", "the schedule starts anew within the run", "one warm-up, one fall")
    falling = sum(rate < peak * (1 - 1e-9) for rate in rates[top:])
    if falling and total <= MOST_STEPS and rates[-1] > peak * max(NEARLY_ZERO, 2 / (falling + 1)):
        seen = f"the rate falls, but is {rates[-1] / peak:.0%} of its peak at the last of {total} steps"
        raise Refuted(seen, "the schedule counts more steps than the run has", "schedule over the steps of the run")
    told = f"; the warm-up of {subject.warmup_steps} steps is longer than the run" if cut_short else ""
    marked = dict.fromkeys((0, top, total - 1))  # without a warm-up the first step is the highest
    return ", ".join(f"{rates[at]:.3g} at step {at + 1}" for at in marked) + told


OF_ORDER = [
    Claim("epochs", epochs, "the order of the rows", "give every row once an epoch, in an order drawn from seed and epoch"),
    Claim("learning rate", learning_rate, "the schedule", "look at train.schedule and train.warmup_steps"),
]
