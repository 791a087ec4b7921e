"""Classes by likelihood: how likely the model finds each class as the answer, what that is worth, and the same for texts in production.

    texts --> prompts --> label_scores (N, C) --> Scorer.probabilities (N, C) --> Scorer.decide: a class, or None where it is not sure

A class is scored as it was trained: its own ids behind the prompt, with the end mark of the template, so that classes of unequal length
compare (without the mark `request` would be the beginning of `request_attribute` and never less likely).

All classes of a prompt are scored in one pass. They stand behind it as branches, each at the positions that it would have alone; a mask
lets a branch see the prompt and itself. This is tried on the loaded model first: one that takes no such mask, or does something else with
it (a sliding window, ALiBi), is asked for every class apart.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from halfbyte.data.batches import IGNORE, in_order
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_prompt, render_record
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.errors import DataError, IntegrityError, ModelError
from halfbyte.evaluate.calibration import Calibration, calibrate
from halfbyte.evaluate.loss import evaluating
from halfbyte.model.isolation import SAME_LOSS
from halfbyte.model.precision import compute_in
from halfbyte.model.room import AtATime
from halfbyte.runs.disk import write_whole
from halfbyte.train.step import batch_logits

# The mask of a pass and the logits of its branches grow with their number: hundreds of classes take several passes.
MOST_BRANCH_TOKENS = 256
# Attention that takes a mask of every query and key.
MASKED_ATTENTION = ("sdpa", "eager")
PROMPT, PADDING = 0, -1  # in `_Branches.owner` the classes are counted from 1


class Classified(TypedDict):
    """One text in production. `label` is None where the scorer abstains; what it would have said stands in `probabilities`."""

    label: str | None
    confidence: float
    probabilities: dict[str, float]
    abstained: bool


# The scorer


@dataclass(frozen=True)
class Scorer:
    """What evaluation fitted on validation rows, and production goes by."""

    classes: tuple[str, ...]
    calibration: Calibration
    instruction: str | None = None
    """Stood before every text when the scores were fitted; without it they mean something else."""

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """scores (N, C) of `label_scores` -> (N, C), each row summing to 1."""
        return self.calibration.probabilities(scores)

    def decide(self, probabilities: np.ndarray) -> list[str | None]:
        """probabilities (N, C) -> the most likely class of each row, or None where its probability is below the threshold."""
        threshold = math.inf if self.calibration.threshold is None else self.calibration.threshold
        best, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        return [self.classes[place] if sure >= threshold else None for place, sure in zip(best, confidence, strict=True)]

    def save(self, file: Path) -> None:
        write_whole(file, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def fit_scorer(classes: Sequence[str], scores: np.ndarray, gold: Sequence[str], instruction: str | None = None, wanted_accuracy: float = 0.9) -> Scorer:
    """scores (N, C) and true classes (N,) of validation rows. A true class that is not scored counts as wrong."""
    places = {label: place for place, label in enumerate(classes)}
    return Scorer(tuple(classes), calibrate(scores, [places.get(label, -1) for label in gold], wanted_accuracy), instruction)


def load_scorer(file: Path) -> Scorer:
    """Raises DataError where there is no such file, IntegrityError where it is not what `Scorer.save` writes."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no scorer there", hint="halfbyte evaluate RUN fits one, for data of kind label with validation rows") from error
    except (ValueError, OSError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(kept, dict) or kept.keys() != {"classes", "calibration", "instruction"}:
        raise _damaged(file, "its keys are others")
    classes, calibration, instruction = kept["classes"], kept["calibration"], kept["instruction"]
    if not (_is_list(classes, str) and len(classes) > 1 and len(set(classes)) == len(classes)):
        raise _damaged(file, "its classes are not at least two different texts")
    if not (instruction is None or isinstance(instruction, str)):
        raise _damaged(file, "its instruction is no text")
    return Scorer(tuple(classes), _read_calibration(file, calibration, len(classes)), instruction)


def _read_calibration(file: Path, kept: Any, classes: int) -> Calibration:
    if not isinstance(kept, dict) or kept.keys() != {"log_prior", "temperature", "threshold", "notes"}:
        raise _damaged(file, "its calibration has other keys")
    prior, temperature, threshold, notes = kept["log_prior"], kept["temperature"], kept["threshold"], kept["notes"]
    if not (prior is None or (_is_list(prior, float) and len(prior) == classes and all(map(math.isfinite, prior)))):
        raise _damaged(file, f"its log_prior is not {classes} numbers")
    if not (isinstance(temperature, float) and 0 < temperature < math.inf):
        raise _damaged(file, f"its temperature is {temperature!r}")
    if not (threshold is None or (isinstance(threshold, float) and 0 <= threshold <= 1)):
        raise _damaged(file, f"its threshold is {threshold!r}")
    if not _is_list(notes, str):
        raise _damaged(file, "its notes are no texts")
    return Calibration(None if prior is None else tuple(prior), temperature, threshold, tuple(notes))


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _damaged(file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file} is damaged: {what}", hint="halfbyte evaluate RUN fits it again")


# In production


def classify(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, template: Template, scorer: Scorer, texts: Sequence[str], dtype: torch.dtype,
    context: int, pad_id: int, batch_size: int = 16,
) -> list[Classified]:  # fmt: skip
    """One for each text, in order. Raises DataError for a text that the model has no room for, before any is scored."""
    if template.instruction != scorer.instruction:
        seen = f"the scorer was fitted with the instruction {scorer.instruction!r}, the model is asked with {template.instruction!r}"
        raise IntegrityError(seen, hint="halfbyte evaluate RUN fits it again")
    encoder = Encoder(tokenizer)
    prompts = [encoder.prompt(render_prompt([{"role": "user", "content": text}], template, tokenizer)) for text in texts]
    answers = answer_ids(scorer.classes, template, encoder)
    room = context - max(map(len, answers))
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > room:
            raise DataError(f"text {number} has {len(prompt)} tokens, room is {room} ({context} less the longest class)", hint="shorten it")
    probabilities = scorer.probabilities(label_scores(model, prompts, answers, dtype, batch_size, pad_id))
    return [
        Classified(label=label, confidence=max(row), probabilities=dict(zip(scorer.classes, row, strict=True)), abstained=label is None)
        for label, row in zip(scorer.decide(probabilities), probabilities.tolist(), strict=True)
    ]


def answer_ids(classes: Sequence[str], template: Template, encoder: Encoder) -> list[list[int]]:
    """The ids of each class as a row of training has them: tokenised apart from its prompt, and with the mark that ends an answer."""
    asked = {"role": "user", "content": "a"}  # whatever is asked, an answer is tokenised on its own
    records = [Record("", 0, messages=(asked, {"role": "assistant", "content": label})) for label in classes]
    rows = encoder.encode([render_record(record, template, encoder.tokenizer, loss="last") for record in records])
    return [[token for token, trained in zip(row.ids, row.trained, strict=True) if trained] for row in rows]


# Likelihood


@torch.no_grad()
def label_scores(
    model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]], dtype: torch.dtype, batch_size: int, pad_id: int,
    at_a_time: AtATime | None = None,
) -> np.ndarray:  # fmt: skip
    """(N, C) float64: log p(answer | prompt), summed over the ids of the answer. In eval mode, and back in the model's own mode afterwards.

    Once memory has run out fewer prompts are computed at a time, which `at_a_time` tells and keeps.
    """
    if not all(prompts) or not all(answers):
        raise DataError("a prompt or a class has no tokens, so there is nothing to score", hint="leave empty texts out")
    scores = np.zeros((len(prompts), len(answers)))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    with evaluating(model):
        score = _score_together if order and _can_score_together(model, [prompts[order[0]], prompts[order[-1]]], answers, dtype, pad_id) else _score_apart

        def score_some(some: list[int]) -> None:
            scores[some] = score(model, [prompts[number] for number in some], answers, dtype, pad_id)

        (at_a_time or AtATime(batch_size)).each(order, score_some, batch_size)
    if np.isnan(scores).any():
        number = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise ModelError(
            f"the scores of row {number + 1} are not numbers", hint="compute in bfloat16 or float32, or train again with a lower train.learning_rate"
        )
    return scores


def _score_apart(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]], dtype: torch.dtype, pad_id: int) -> np.ndarray:
    """The definition: each class of each prompt is a row, and its loss is that of training."""
    device = next(model.parameters()).device
    rows = [Tokens(prompt + answer, [False] * len(prompt) + [True] * len(answer), "", 0) for answer in answers for prompt in prompts]
    losses = []
    for batch in in_order(rows, len(prompts), pad_id):  # a class at a time
        batch = batch.to(device)
        logits = batch_logits(model, batch, dtype)[:, :-1].float()  # (B, T-1, V)
        each = F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=IGNORE, reduction="none")  # (B, T-1)
        losses.append(each.double().sum(dim=1).cpu())
    return -torch.stack(losses, dim=1).numpy()


def _score_together(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]], dtype: torch.dtype, pad_id: int) -> np.ndarray:
    return np.concatenate([_score_branches(model, prompts, group, dtype, pad_id) for group in _groups(answers)], axis=1)


def _groups(answers: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Answers in their order, as many in each group as fit into MOST_BRANCH_TOKENS."""
    group: list[list[int]] = []
    for answer in answers:
        if group and sum(map(len, group)) + len(answer) > MOST_BRANCH_TOKENS:
            yield group
            group = []
        group.append(answer)
    yield group


class _Branches(NamedTuple):
    """A ids behind a prompt: every answer without its last id, which nothing follows; and the M ids that are predicted, the last ones too.

    Column 0 is the last id of the prompt, which predicts the first id of every answer; the ids of the branches are columns 1 to A.
    """

    ids: Tensor  # (A,)
    depth: Tensor  # (A,) place in the answer
    owner: Tensor  # (A,) number of the answer, from 1
    column: Tensor  # (M,) which predicts
    target: Tensor  # (M,) what is predicted
    scored: Tensor  # (M,) for which answer, from 0

    @classmethod
    def of(cls, answers: Sequence[list[int]]) -> "_Branches":
        ids: list[int] = []
        depth: list[int] = []
        owner, column, target, scored = [], [], [], []
        for number, answer in enumerate(answers):
            column += [0, *range(len(ids) + 1, len(ids) + len(answer))]
            target += answer
            scored += [number] * len(answer)
            ids += answer[:-1]
            depth += range(len(answer) - 1)
            owner += [number + 1] * (len(answer) - 1)
        return cls(*(torch.tensor(values, dtype=torch.long) for values in (ids, depth, owner, column, target, scored)))


def _score_branches(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]], dtype: torch.dtype, pad_id: int) -> np.ndarray:
    """Prompts are padded on the left, so that the branches stand in the same columns of every row."""
    device = next(model.parameters()).device
    branches = _Branches.of(answers)
    width, keep = max(map(len, prompts)), 1 + len(branches.ids)
    shape = (len(prompts), width + len(branches.ids))  # (B, T)
    ids, positions, owner = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long), torch.full(shape, PADDING)
    ids[:, width:], owner[:, width:] = branches.ids, branches.owner
    for row, prompt in enumerate(prompts):
        start = width - len(prompt)
        ids[row, start:width], owner[row, start:width] = torch.tensor(prompt), PROMPT
        positions[row, start:width], positions[row, width:] = torch.arange(len(prompt)), len(prompt) + branches.depth
    with compute_in(device, dtype):
        logits = model(
            input_ids=ids.to(device), attention_mask=_branch_mask(model, owner.to(device)), position_ids=positions.to(device), use_cache=False,
            logits_to_keep=keep,
        ).logits[:, -keep:].float()  # (B, 1+A, V)  # fmt: skip
    predicted = logits[:, branches.column.to(device), branches.target.to(device)] - logits.logsumexp(dim=-1)[:, branches.column.to(device)]  # (B, M)
    scores = torch.zeros(len(prompts), len(answers), dtype=torch.float64)
    return scores.index_add_(1, branches.scored, predicted.cpu().double()).numpy()


def _branch_mask(model: nn.Module, owner: Tensor) -> Tensor:
    """owner (B, T) -> (B, 1, T, T): True where a query may look. Padding looks at padding, since attention to nothing at all is not a number."""
    may_look = ((owner[:, :, None] == owner[:, None, :]) | (owner == PROMPT)[:, None, :]).tril()[:, None]
    if model.config._attn_implementation != "eager":
        return may_look
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(may_look.shape, dtype=dtype, device=owner.device).masked_fill(~may_look, torch.finfo(dtype).min)


def _can_score_together(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]], dtype: torch.dtype, pad_id: int) -> bool:
    """Whether both ways agree on these prompts, the shortest and the longest, within what the order of sums changes."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)  # our mask would take its place
    if model.config._attn_implementation not in MASKED_ATTENTION or (window and max(map(len, prompts)) + max(map(len, answers)) > window):
        return False
    try:
        together = _score_together(model, prompts, answers, dtype, pad_id)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        logging.getLogger(__name__).info("classes are scored one by one: %s", error)
        return False
    apart = _score_apart(model, prompts, answers, dtype, pad_id)
    farthest = float(np.abs(together - apart).max())
    agrees = farthest <= SAME_LOSS[dtype] * (1 + float(np.abs(apart).max()))  # one that is nearly certain has a log of nearly 0
    if not agrees:
        logging.getLogger(__name__).info("classes are scored one by one: together they differ by %.2g", farthest)
    return agrees
