"""Proofs about the loss of a batch: what is in it, and that rows which share a row or a batch do not see each other."""

import torch
from torch import Tensor

from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.tolerance import SAME_SUM, off
from halfbyte.checks.trial import (
    Trial,
    apart,
    documents_of,
    ending,
    expected_labels,
    plain_loss,
    supervised_of,
)
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.data.tokens import Tokens

# The loss


def loss(trial: Trial) -> str:
    """Equal to the definition in float64, whatever is labelled; only what is labelled has a gradient."""
    subject = trial.subject
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    size = min(trial.vocabulary, 4096)
    logits = torch.randn(3, 7, size, generator=generator) * 3
    marks = [token for token in (subject.pad_id, 0, *subject.end_ids, *subject.begin_ids) if token < size]
    for number in range(6):
        made = torch.randint(size, (3, 7), generator=generator)
        made[0, 1 : 1 + len(marks)] = torch.tensor(marks[:6])
        labels = made.masked_fill(torch.rand(3, 7, generator=generator) < number / 6, IGNORE)
        if number == 1:
            labels = torch.full((3, 7), IGNORE).index_put((torch.tensor([1]), torch.tensor([6])), torch.tensor(3))
        seen = float(subject.loss(logits.to(trial.device), labels.to(trial.device)))
        truth = sum(float(plain_loss(one, label)) for one, label in zip(logits, labels, strict=True))
        worst = max(worst, _same_loss(seen, truth, int((labels[:, 1:] != IGNORE).sum()), "labels of ours"))
    batch = trial.batch(trial.together[0])
    some = torch.randn(*batch.ids.shape, size, generator=generator).requires_grad_()
    labels = torch.where(batch.labels == IGNORE, batch.labels, batch.labels % size)
    subject.loss(some, labels).backward()
    reached = torch.zeros_like(batch.labels, dtype=torch.bool) if some.grad is None else some.grad.abs().sum(-1) > 0
    wanted = torch.zeros_like(reached)
    for index, row in enumerate(trial.together[0]):
        wanted[index, : len(row.ids) - 1] = torch.tensor(expected_labels(row)[1:]) != IGNORE
    if not torch.equal(reached, wanted):
        missed, extra = int((wanted & ~reached).sum()), int((reached & ~wanted).sum())
        raise Refuted(
            f"{missed} of {int(wanted.sum())} supervised tokens do not move the loss, {extra} others do",
            "masked tokens are in the loss, or supervised ones are not",
            "sum over labelled tokens alone, each compared with the logits before it",
        )  # fmt: skip
    row = trial.rows[-1]
    logits = trial.alone(row)
    label = torch.tensor(expected_labels(row), device=trial.device)
    seen, truth, count = float(subject.loss(logits[None], label[None])), float(plain_loss(logits, label)), supervised_of(row)
    worst = max(worst, _same_loss(seen, truth, count, "a row of the data"))
    return f"{seen / count:.4f} a token over {count} tokens, as in float64 (within {worst:.1g}); {int(wanted.sum())} of {wanted.numel()} places move it"


def _same_loss(seen: float, truth: float, tokens: int, what: str) -> float:
    differs = off(seen, truth, tokens)
    if not differs <= SAME_SUM:
        raise Refuted(
            f"of {what} the loss is {seen:.6g}, by its definition {truth:.6g}", "labels are shifted twice or not at all, averaged, smoothed, or left out by id",
            "sum -log p(label | what stands before it) over what is labelled",
        )  # fmt: skip
    return differs


# Rows that share a row or a batch

APART = "let no row see another: positions that begin anew, and a mask by document"


def packing(trial: Trial) -> str:
    """To the bit (experts: within rounding): a document's logits stay when its neighbours are others. Within rounding: they are what they are alone, so
    positions begin anew."""
    packed = [row for row in trial.looked_at if len(row.documents) > 1]
    if not packed:
        raise NotHere("no row holds more than one document")
    row = min(packed, key=lambda one: len(one.ids))
    if any(sum(one.documents) != len(one.ids) for one in packed):
        raise Refuted("the documents of a row do not add up to it", "rows were packed wrongly", "prepare the data again")
    _numbered(trial, trial.batch([row]), row)
    documents = _fitting(trial, documents_of(row))
    joined = Tokens(
        [token for one in documents for token in one.ids], [trained for one in documents for trained in one.trained], row.file, row.line,
        tuple(len(one.ids) for one in documents),
    )  # fmt: skip
    batch = trial.batch([joined])
    _numbered(trial, batch, joined)
    start = len(documents[0].ids)
    before = trial.logits(batch)[0]
    edited = batch.ids.clone()
    edited[0, :start] = (edited[0, :start] + 1) % trial.vocabulary
    after = trial.logits(_with_ids(batch, edited))[0]
    if not trial.stay(after[start:], before[start:]):
        leak = float((before[start:] - after[start:]).abs().max())
        seen = f"a document's logits move by {leak:.2g} when its neighbour in the row is another"
        raise Refuted(seen, "packed documents see each other", APART)
    place, worst = 0, 0.0
    for document in documents:
        alone = trial.alone(document)
        worst = max(worst, apart(before[place : place + len(document.ids)], alone, trial.tolerance.share))
        place += len(document.ids)
    if not worst <= trial.tolerance.logits:
        seen = f"in a shared row a document's logits are {worst:.2g} of their spread from what they are alone"
        raise Refuted(seen, "positions run on across documents", APART)
    return f"{len(documents)} documents in a row: no logit of one moves with another; {worst:.1g} from what each is alone"


def _numbered(trial: Trial, batch: Batch, row: Tokens) -> None:
    positions = torch.cat([torch.arange(size) for size in row.documents])
    numbers = torch.cat([torch.full((size,), number) for number, size in enumerate(row.documents)])
    for what, made, wanted in (("positions", batch.positions, positions), ("document numbers", batch.documents, numbers)):
        if made is None or not torch.equal(made[0, : len(row.ids)], wanted):
            seen = f"{what} of a packed row do not begin anew with each document" if made is not None else f"a packed row has no {what}"
            raise Refuted(seen, "the collator does not tell documents apart", APART)
    starts = (positions == 0).nonzero()[:, 0]
    if bool((batch.labels[0, starts] != IGNORE).any()):
        raise Refuted("the first token of a document has a label", "it would be predicted from another document", "leave out the first label of every document")


def _fitting(trial: Trial, documents: list[Tokens]) -> list[Tokens]:
    """The first two or three, their ends, so that together they are no longer than a row of ours."""
    some = documents[:3]
    longest = max(4, max(len(row.ids) for row in trial.rows) // len(some))
    return [ending(one, longest) for one in some]


def _with_ids(batch: Batch, ids: Tensor) -> Batch:
    return Batch(ids, batch.labels, batch.lengths, batch.positions, batch.documents)


def padding(trial: Trial) -> str:
    """Right: logits in a padded batch are those of the row alone, whatever stands in the padding. Left: see `generation`."""
    rows = [trial.rows[0], trial.rows[-1]]
    batch = trial.batch(rows)
    together = trial.logits(batch)
    worst = 0.0
    for index, row in enumerate(rows):
        worst = max(worst, apart(together[index, : len(row.ids)], trial.alone(row), trial.tolerance.share))
    if not worst <= trial.tolerance.logits:
        seen = f"in a padded batch logits are {worst:.2g} of their spread from those of the row alone"
        raise Refuted(seen, "rows of a batch, or padding, are seen", "pad on the right, behind what is trained")
    size = len(rows[0].ids)
    if size < batch.ids.shape[1]:
        edited = batch.ids.clone()
        edited[0, size:] = (edited[0, size:] + 1) % trial.vocabulary
        if not trial.stay(trial.logits(_with_ids(batch, edited))[0, :size], together[0, :size]):
            raise Refuted("logits move with the id that pads", "padding is seen", "pad on the right, behind what is trained")
    ids = trial.batch([rows[1]])
    edited = ids.ids.clone()
    edited[0, -1] = (edited[0, -1] + 1) % trial.vocabulary
    if not trial.stay(trial.logits(_with_ids(ids, edited))[0, :-1], trial.logits(ids)[0, :-1]):
        raise Refuted("logits move with a token that comes later", "the mask lets tokens look ahead", "use a causal mask")
    return f"a row of {size} tokens beside one of {len(rows[1].ids)}: logits within {worst:.1g} of their spread of those of each alone"


OF_BATCHES = [
    Claim("loss", loss, "the loss", "sum -log p(label | what stands before it) over what is labelled"),
    Claim("packing", packing, "packed rows", "set data.packing=none"),
    Claim("padding", padding, "padded batches", "pad on the right, behind what is trained"),
]
