"""Proofs about the marks: a text begins with one, and an answer ends with one that is learned and ends generation."""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch

from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.talks import PREPARE, Talk, name_of, spans_of, talks_of, where
from halfbyte.checks.trial import Trial, documents_of
from halfbyte.data.tokens import Tokens

# Marks


def end_marks(trial: Trial) -> str:
    """At the end of what is trained, among what ends generation, with a gradient."""
    subject = trial.subject
    ends = set(subject.end_ids)
    if not ends:
        raise Refuted("no id ends an answer", "the tokenizer has no end mark", "use a base whose tokenizer has one")
    rows = trial.looked_at
    talks = subject.encode_row is not None
    documents = [document for row in rows for document in documents_of(row)]
    ended = [document for document in documents if document.ids[-1] in ends and document.trained[-1]]
    if talks:
        for talk in talks_of(trial):
            row = cast(Callable[[Talk], Tokens], subject.encode_row)(talk)
            if not all(row.ids[end - 1] in ends for _, end in spans_of(row)):
                raise Refuted(*_no_end(f"an answer of ours ends in {name_of(trial, row.ids[spans_of(row)[-1][1] - 1])}"))
        odd = [document for document in documents if not (document.ids[-1] in ends and document.trained[-1])]
        if odd:
            last = name_of(trial, odd[0].ids[-1])
            raise Refuted(*_no_end(f"{len(odd)} of {len(documents)} rows do not end with a trained end mark; {where(odd[0])} ends with {last}"))
        if subject.trained != "all":
            inside = [
                row for row in rows for start, end in spans_of(row) if len(row.documents) < 2 and any(token in ends for token in row.ids[start : end - 1])
            ]
            if inside:
                seen = f"{where(inside[0])}: an end mark stands inside an answer"
                raise Refuted(seen, "control marks in the text are read as marks, or end marks are doubled", "tokenise text as text; one end mark an answer")
    elif not ended and len(rows) == len(subject.rows):
        raise Refuted(*_no_end(f"none of {len(rows)} rows ends with an end mark"))
    else:
        _texts_are_cut_full(trial, [document for document in documents if document.ids[-1] not in ends])
    if not ended:
        raise NotHere(f"none of the {len(rows):,} rows looked at ends a text")
    _end_has_gradient(trial, min(ended, key=lambda row: len(row.ids)))
    place = f"each of {len(documents):,} answers ends with" if talks else f"where a text ends, in {len(ended)} of {len(documents):,} blocks, stands"
    return f"{place} {name_of(trial, ended[0].ids[-1])}, which is trained, has a gradient, and ends generation"


def _texts_are_cut_full(trial: Trial, unfinished: list[Tokens]) -> None:
    """A text goes on in the next block only where this one is full."""
    most = max((len(row.ids) for row in unfinished), default=0)
    if len(unfinished) > 1 and most < trial.subject.max_length:
        seen = f"texts are cut at {most} tokens, data.max_length is {trial.subject.max_length}"
        raise Refuted(seen, "the length that was asked for does not reach what cuts", "prepare the data again")


def _no_end(seen: str) -> tuple[str, str, str]:
    return (
        seen,
        "answers are cut short, or their end mark is left out or not trained: the model would not learn to stop",
        "end every answer with a trained end mark",
    )


def _end_has_gradient(trial: Trial, row: Tokens) -> None:
    batch = trial.subject.collate([row])
    size = batch.ids.shape[1]
    logits = torch.randn(1, size, min(trial.vocabulary, max(row.ids) + 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    trial.subject.loss(logits, batch.labels).backward()
    end = len(row.ids) - 1
    if logits.grad is None or not bool(logits.grad[0, end - 1].abs().sum() > 0):
        raise Refuted(*_no_end("the logits before an end mark get no gradient"))


def begin_marks(trial: Trial) -> str:
    subject = trial.subject
    begin = list(subject.begin_ids)
    mark = begin[0] if begin else subject.tokenizer.bos_token_id
    talks = talks_of(trial) if subject.encode_row is not None else []
    encoded = [cast(Callable[[Talk], Tokens], subject.encode_row)(talk).ids for talk in talks]
    asked = [cast(Callable[[Talk], list[int]], subject.encode_prompt)(talk[:-1]) for talk in talks]
    texts = [document.ids for row in trial.looked_at for document in documents_of(row)]
    # Where each turn of a conversation begins with the mark, as some templates have it, it is there more than once.
    by_turn = bool(encoded) and any(ids.count(mark) > 1 for talk, ids in zip(talks, encoded, strict=True) if len(talk) > 2)
    is_end = mark in subject.end_ids
    for what, lists in (("a row", texts), ("a conversation of ours", encoded), ("a prompt", asked)):
        for ids in lists:
            if begin and ids[: len(begin)] != begin:
                raise Refuted(
                    f"{what} begins with {name_of(trial, ids[0])}, not with {name_of(trial, begin[0])}",
                    "the begin mark is left out, or a row was cut on its left",
                    "begin every text with the mark once; cut none on the left",
                )  # fmt: skip
            if mark is None or is_end:
                doubled = mark is not None and ids[:2] == [mark, mark]
            else:
                doubled = any(one == other == mark for one, other in pairwise(ids)) or (not by_turn and ids.count(mark) > 1)
            if doubled:
                raise Refuted(
                    f"{what} holds {name_of(trial, cast(int, mark))} {ids.count(mark)} times",
                    "template and tokenizer both write the begin mark, or texts share a row unmarked",
                    "let one of the two write it; pack documents with data.packing",
                )  # fmt: skip
    if not begin:
        return f"the tokenizer begins no text with a mark, and none of {len(texts):,} has one twice"
    return f"{name_of(trial, begin[0])} stands once at the start of each of {len(texts) + len(encoded) + len(asked):,} texts and prompts"


OF_MARKS = [
    Claim("end mark", end_marks, "the end mark, or the loss", PREPARE),
    Claim("begin mark", begin_marks, "the begin mark", PREPARE),
]
