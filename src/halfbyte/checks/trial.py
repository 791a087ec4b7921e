"""What the proofs share: a few of the user's own rows, the ways to look at what the model makes of them, and that all is put back.

The rows are the shortest, of unequal length. They are taken whole unless two of them together would have more tokens than a micro-batch of
training has, or one has more than `LONGEST`; then their ends are taken. So no proof needs more memory than a training step.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfbyte.checks.proof import NotHere
from halfbyte.checks.subject import Subject
from halfbyte.checks.tolerance import TOLERANCES
from halfbyte.data.batches import IGNORE, Batch, row_lengths
from halfbyte.data.tokens import Tokens
from halfbyte.evaluate.loss import evaluating
from halfbyte.model.load import decoder_layers
from halfbyte.train.step import batch_logits

FEW = 3
"""Rows that the model is asked about."""
LONGEST = {"cpu": 64, "cuda": 192}
"""Tokens of such a row: on a CPU a pass takes its time by the token."""
MOST_LOGITS = 2**24
"""Of one row, in float32 64 MiB."""
MANY = 2000
"""Rows whose ids are looked at, evenly drawn, when there are more."""

Gradient = dict[str, Tensor]


class Trial:
    """One set-up on trial; `everything` looks at all rows, however many."""

    def __init__(self, subject: Subject, everything: bool = False) -> None:
        self.subject, self.model, self.everything = subject, subject.model, everything
        self.device = next(subject.model.parameters()).device
        self.tolerance = TOLERANCES[subject.dtype]
        self.trained = {name: parameter for name, parameter in subject.model.named_parameters() if parameter.requires_grad}
        self.values = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trained.items()}

    # Rows

    @cached_property
    def looked_at(self) -> list[Tokens]:
        """All rows, or MANY of them, evenly drawn."""
        rows = self.subject.rows
        if self.everything or len(rows) <= MANY:
            return [rows[index] for index in range(len(rows))]
        return [rows[index] for index in np.linspace(0, len(rows) - 1, MANY).astype(int).tolist()]

    @cached_property
    def micro_rows(self) -> int:
        """Rows of a micro-batch of training."""
        return len(next(self.subject.epoch(0))[0].ids)

    @cached_property
    def room(self) -> int:
        """Tokens of the largest micro-batch of training, padding included."""
        return self.micro_rows * int(row_lengths(self.subject.rows).max())

    @cached_property
    def rows(self) -> list[Tokens]:
        """Two to FEW rows of one document each, of unequal length, the shortest first."""
        longest = max(4, min(self.room // 2, LONGEST.get(self.device.type, 192), MOST_LOGITS // self.vocabulary))
        documents = [document for row in self._short_rows() for document in documents_of(row)]
        documents = sorted((document for document in documents if document.supervised), key=lambda document: len(document.ids))
        if not documents:
            raise NotHere("none of the shortest rows trains anything")
        chosen = [documents[0]]
        for document in documents[1:]:
            if len(chosen) < FEW and len(document.ids) >= 1.4 * len(chosen[-1].ids):
                chosen.append(document)
        others = [document for document in documents if not any(document is one for one in chosen)]
        chosen = sorted([*chosen, *others[: FEW - len(chosen)]], key=lambda document: len(document.ids))
        chosen = [ending(document, longest) for document in chosen]
        if len({len(document.ids) for document in chosen}) == 1:  # blocks of a text: unequal ones are needed
            chosen = [ending(document, max(3, len(document.ids) * (place + 2) // (len(chosen) + 1))) for place, document in enumerate(chosen)]
        if len(chosen) == 1:
            chosen = [ending(chosen[0], max(3, len(chosen[0].ids) // 2)), chosen[0]]
        return chosen

    def _short_rows(self) -> list[Tokens]:
        """Of the shorter half, evenly drawn by length; there are longer ones among them."""
        lengths = row_lengths(self.subject.rows)
        order = np.argsort(lengths, kind="stable")
        places = np.unique(np.concatenate([np.arange(min(8, len(order))), np.linspace(0, len(order) - 1, 32).astype(int)]))
        return [self.subject.rows[int(order[place])] for place in places]

    @cached_property
    def together(self) -> list[list[Tokens]]:
        """The same rows, as many at a time as a micro-batch of training has room for, but two or more."""
        longest = max(len(row.ids) for row in self.rows)
        size = max(2, min(len(self.rows), self.room // longest))
        return [self.rows[start : start + size] for start in range(0, len(self.rows), size)]

    @cached_property
    def special_ids(self) -> set[int]:
        return {*self.subject.tokenizer.all_special_ids, *self.subject.end_ids, *self.subject.begin_ids}

    # The model

    @cached_property
    def vocabulary(self) -> int:
        """Ids that the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def layers(self) -> nn.ModuleList:
        return decoder_layers(self.model)

    @cached_property
    def has_experts(self) -> bool:
        """A mixture: how many tokens an expert multiplies at once hangs on all tokens of the batch, and the rounding of a token's logits with it."""
        return any("expert" in name.lower() or "moe" in type(module).__name__.lower() for name, module in self.model.named_modules())

    def stay(self, seen: Tensor, truth: Tensor) -> bool:
        """seen, truth (T, V): the same bits; within rounding in a mixture of experts."""
        return torch.equal(seen, truth) or (self.has_experts and apart(seen, truth, self.tolerance.share) <= self.tolerance.logits)

    def batch(self, rows: Sequence[Tokens]) -> Batch:
        return self.subject.collate(rows)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V) float32, in eval mode."""
        with evaluating(self.model):
            return self.subject.logits(self.model, batch.to(self.device)).float()

    def alone(self, row: Tokens) -> Tensor:
        """(T, V) of a row in a batch of its own."""
        return self.logits(self.batch([row]))[0]

    @contextmanager
    def in_training(self, dropout: bool = False) -> Iterator[None]:
        """Training mode, without the dropout, which would make two passes two things; no gradients before and after."""
        self.model.train()
        self.clear()
        with ExitStack() as stack:
            if not dropout:
                stack.enter_context(_without_dropout(self.model))
            try:
                yield
            finally:
                self.clear()
                self.model.train()

    @cached_property
    def draws_in_training(self) -> bool:
        """In training mode the base itself draws random numbers that move its logits, and that we do not know how to switch off, as the noise of a router."""
        batch = self.batch([self.rows[0]]).to(self.device)

        def passed(seed: int) -> tuple[Tensor, bool]:
            torch.manual_seed(seed)
            before = _drawn(self.device)
            found = batch_logits(self.model, batch, self.subject.dtype).float()
            return found, not torch.equal(before, _drawn(self.device))

        with self.in_training(), torch.no_grad():
            one, drew = passed(0)
            if not drew:
                return False
            return bool((passed(1)[0] - one).abs().max() > 2 * (passed(0)[0] - one).abs().max())

    def clear(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def gradient(self, divisor: float = 1.0) -> Gradient:
        """What has been summed up, on the CPU; zeros where nothing arrived."""
        return {
            name: torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.detach().float().cpu() / divisor
            for name, parameter in self.trained.items()
        }

    @cached_property
    def reference(self) -> "Reference":
        """By the plain definition: each row by itself, the loss summed over its supervised tokens, all divided by the number of these once."""
        # float16 underflows without a factor, as training has one too.
        factor = 1024.0 if self.subject.dtype == torch.float16 else 1.0
        total, counts = 0.0, [supervised_of(row) for row in self.rows]
        losses = []
        with self.in_training():
            last: Gradient = {}
            for row in reversed(self.rows):
                logits = self.subject.logits(self.model, self.batch([row]).to(self.device))[0]
                loss = plain_loss(logits, torch.tensor(expected_labels(row), device=self.device))
                (loss * factor).backward()
                losses.append(float(loss.detach()))
                if not last:
                    last = self.gradient(factor * counts[-1])
            total = sum(losses)
            return Reference(self.gradient(factor * sum(counts)), total / sum(counts), sum(counts), last, losses[0] / counts[-1], counts[-1])

    @torch.no_grad()
    def put_values_back(self) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(self.values[name])

    @torch.no_grad()
    def stir(self, seed: int = 0) -> None:
        """Every trained tensor another, as after some training: a tenth of its own size, or a fiftieth where it is zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.trained.items():
            size = 0.1 * float(self.values[name].float().square().mean().sqrt()) or 0.02
            noise = torch.randn(parameter.shape, generator=generator) * size
            parameter.copy_(self.values[name] + noise.to(self.values[name].dtype))


class Reference:
    """Gradient and mean loss of all rows together, and of the last of them."""

    def __init__(self, gradient: Gradient, loss: float, supervised: int, last_gradient: Gradient, last_loss: float, last_supervised: int) -> None:
        self.gradient, self.loss, self.supervised = gradient, loss, supervised
        self.last_gradient, self.last_loss, self.last_supervised = last_gradient, last_loss, last_supervised


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The functions too, which models call with a probability of their own, as attention does. Exchanged for all threads: what is recomputed in the
    backward pass on a GPU is recomputed in another one."""
    kept_dropout, kept_attention = F.dropout, F.scaled_dot_product_attention

    def dropout(input: Tensor, *args: Any, **named: Any) -> Tensor:
        return input

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, *args: Any, **named: Any) -> Tensor:
        return kept_attention(query, key, value, attn_mask, 0.0, *args, **named)

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    F.dropout, F.scaled_dot_product_attention = dropout, attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = kept_dropout, kept_attention  # type: ignore[assignment]


def _drawn(device: torch.device) -> Tensor:
    """The state of the random numbers that a pass on the device may draw from."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(states)


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Afterwards modes, gradients, what is trained, random states and recomputation are what they were before. Values: `Trial.put_values_back`."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    layers = [(layer, layer.gradient_checkpointing) for layer in decoder_layers(model) if hasattr(layer, "gradient_checkpointing")]
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        try:
            yield
        finally:
            random.setstate(drawn)
            np.random.set_state(drawn_by_numpy)
            for module, training in modes:
                module.training = training
            for parameter, trained, gradient in parameters:
                parameter.requires_grad_(trained)
                parameter.grad = gradient
            for layer, recomputed in layers:
                layer.gradient_checkpointing = recomputed


# Rows


def documents_of(row: Tokens) -> list[Tokens]:
    """Each as a row of its own."""
    if len(row.documents) < 2:
        return [row]
    borders = np.cumsum([0, *row.documents]).tolist()
    return [Tokens(row.ids[start:end], [False, *row.trained[start + 1 : end]], row.file, row.line) for start, end in pairwise(borders)]


def ending(row: Tokens, longest: int) -> Tokens:
    """The last ids of a row; all of them where it is no longer."""
    if len(row.ids) <= longest:
        return row
    return Tokens(row.ids[-longest:], [False, *row.trained[-longest + 1 :]], row.file, row.line)


def expected_labels(row: Tokens) -> list[int]:
    """By the definition: the id where it is trained, IGNORE elsewhere and where a document begins."""
    labels = [token if trained else IGNORE for token, trained in zip(row.ids, row.trained, strict=True)]
    start = 0
    for length in row.documents or (len(row.ids),):
        labels[start] = IGNORE
        start += length
    return labels


def supervised_of(row: Tokens) -> int:
    return sum(label != IGNORE for label in expected_labels(row))


# Losses and distances


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (T, V), labels (T,) -> the sum over supervised tokens of -log p(label | what stands before it), (): the definition."""
    places = (labels[1:] != IGNORE).nonzero()[:, 0]
    chosen = logits[places].float() if logits.requires_grad else logits[places].double()  # (S, V)
    return -chosen.log_softmax(-1).gather(1, labels[places + 1][:, None]).sum()


def apart(seen: Tensor, truth: Tensor, share: float = 1.0) -> float:
    """seen, truth (T, V): at each token the distance as a share of the spread of all; that which `share` of the tokens keep within."""
    spread = (truth - truth.mean(-1, keepdim=True)).square().mean().sqrt()
    by_token = (seen - truth).square().mean(-1).sqrt() / spread
    return float(by_token.quantile(share)) if share < 1 else float(by_token.max())


def gradients_apart(seen: Gradient, truth: Gradient) -> tuple[float, str]:
    """The largest relative distance of a tensor and its name. One that is small beside the others is measured by a tenth of their mean length."""
    mean = length(truth) / len(truth) ** 0.5
    distances = {name: float((seen[name] - truth[name]).norm()) / max(float(truth[name].norm()), 0.1 * mean, 1e-30) for name in truth}
    worst = max(distances, key=lambda name: distances[name] if distances[name] == distances[name] else float("inf"))
    return distances[worst], worst


def together_apart(seen: Gradient, truth: Gradient) -> float:
    """The relative distance of all as one."""
    return length({name: seen[name] - truth[name] for name in truth}) / max(length(truth), 1e-30)


def length(gradient: Gradient) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in gradient.values()) ** 0.5
