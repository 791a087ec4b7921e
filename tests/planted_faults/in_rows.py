"""Faults of what is trained on: marks, templates, labels, truncation, packing, padding. Most of them are copied from notebook to notebook."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.data.records import Message
from halfbyte.data.tokens import Tokens
from halfbyte.model.precision import compute_in
from planted_faults.planting import computed_with, fault, padding, spans, with_each_batch, with_each_row, with_rows
from toy_subjects import TALK

# Marks


@fault("1.1", "batches", toy="plain")
def padding_by_the_end_mark_and_labels_by_id(subject: Subject) -> Subject:
    """`tokenizer.pad_token = tokenizer.eos_token`, and a collator that takes the label off wherever the id is that of padding: the end mark is
    never learned, and the model talks until it is cut off."""
    end = subject.tokenizer.eos_token_id

    def change(batch: Batch) -> Batch:
        ids = batch.ids.masked_fill(padding(batch), end)
        return replace(batch, ids=ids, labels=batch.labels.masked_fill(ids == end, IGNORE))

    return replace(with_each_batch(subject, change), pad_id=end)


@fault("1.1", "batches")
def last_token_taken_for_padding(subject: Subject) -> Subject:
    """The mask of padding is built from lengths that are one too small, so that the last token of each row, the end mark, has no label."""

    def change(batch: Batch) -> Batch:
        labels = batch.labels.clone()
        for row, length in enumerate(batch.lengths):
            labels[row, length - 1 :] = IGNORE
        return replace(batch, labels=labels)

    return with_each_batch(subject, change)


@fault("1.1", "ids")
def rows_without_end_mark(subject: Subject) -> Subject:
    """The training text is prompt + answer; nobody appended the end mark."""

    def change(row: Tokens) -> Tokens:
        return replace(row, ids=row.ids[:-1], trained=row.trained[:-1]) if row.ids[-1] in subject.end_ids else row

    return with_each_row(subject, change)


@fault("1.1", "ends")
def turn_end_not_among_the_end_marks(subject: Subject) -> Subject:
    """The template ends a turn with a mark of its own (Llama 3's eot), generation stops at the tokenizer's end mark alone."""
    return replace(subject, end_ids=(subject.tokenizer.eos_token_id,))


@fault("1.2", "ids")
def begin_mark_twice(subject: Subject) -> Subject:
    """The template writes the begin mark and the tokenizer adds another, in training and in use."""
    ask, begin = subject.encode_prompt, list(subject.begin_ids)
    assert ask is not None
    twice = with_each_row(subject, lambda row: replace(row, ids=begin + row.ids, trained=[False, *row.trained]))
    return replace(twice, encode_prompt=lambda messages: begin + ask(messages))


@fault("1.2", "ids", toy="plain")
def begin_mark_twice_in_use(subject: Subject) -> Subject:
    """Training adds no special tokens to the template's text; the server tokenises the same text with them."""
    ask, begin = subject.encode_prompt, list(subject.begin_ids)
    assert ask is not None
    return replace(subject, encode_prompt=lambda messages: begin + ask(messages))


@fault("1.2", "ids", toy="plain")
def begin_mark_missing(subject: Subject) -> Subject:
    """add_special_tokens=False everywhere, for a template that leaves the begin mark to the tokenizer."""
    ask, marks = subject.encode_prompt, len(subject.begin_ids)
    assert ask is not None
    without = with_each_row(subject, lambda row: replace(row, ids=row.ids[marks:], trained=row.trained[marks:]))
    return replace(without, encode_prompt=lambda messages: ask(messages)[marks:])


# Template


@fault("1.3", "ids")
def prompt_without_last_line_end(subject: Subject) -> Subject:
    """The prompt of the demo is written by hand and stripped: the answer begins one token too early."""
    ask, tokenizer = subject.encode_prompt, subject.tokenizer
    assert ask is not None
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]

    def encode_prompt(messages: Sequence[Message]) -> list[int]:
        ids = ask(messages)
        return ids[: -len(line_end)] if ids[-len(line_end) :] == line_end else ids

    return replace(subject, encode_prompt=encode_prompt)


@fault("1.3", "ids")
def system_text_put_in_by_the_server(subject: Subject) -> Subject:
    """The server's template puts in a default system text where none is given; no row of training has one."""
    ask = subject.encode_prompt
    assert ask is not None
    default = [{"role": "system", "content": "you are a kind old man."}]
    return replace(subject, encode_prompt=lambda messages: ask(messages if messages[0]["role"] == "system" else default + list(messages)))


@fault("1.24", "ids")
def rows_of_an_older_template(subject: Subject) -> Subject:
    """The cache of prepared rows is keyed by the data file alone, and serves the rows of the template before last."""
    tokenizer, begin = subject.tokenizer, list(subject.begin_ids)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = []
    for asked, said in TALK:
        prompt, answer = begin + ids(f"User: {asked}\nAssistant: "), [*ids(said), tokenizer.eos_token_id]
        rows.append(Tokens(prompt + answer, [False] * len(prompt) + [True] * len(answer), "talk.jsonl", 1))
    return with_rows(subject, rows)


# Labels


@fault("1.4", "ids")
def mask_one_late(subject: Subject) -> Subject:
    """The answer's start is counted from a prompt with the begin mark where the row's own was counted already: its first token has no label."""
    return with_each_row(subject, lambda row: replace(row, trained=[False, *row.trained[:-1]]))


@fault("1.4", "ids")
def mask_one_early(subject: Subject) -> Subject:
    """Labels are shifted in the collator's mask too: the prompt's last token is learned and the end mark is not."""
    return with_each_row(subject, lambda row: replace(row, trained=[*row.trained[1:], False]))


@fault("1.4", "ids")
def head_of_the_turn_trained(subject: Subject) -> Subject:
    """The template's generation block begins before the head of the assistant's turn, so that the name of the role is learned."""
    head = len(subject.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])

    def change(row: Tokens) -> Tokens:
        trained = list(row.trained)
        for start, _ in spans(row):
            trained[start - head : start] = [True] * head
        return replace(row, trained=trained)

    return with_each_row(subject, change)


@fault("1.5", "ids")
def prompts_trained(subject: Subject) -> Subject:
    """The mask comes back as all ones, and prompts are learned as well as answers."""
    return with_each_row(subject, lambda row: replace(row, trained=[False] + [True] * (len(row.ids) - 1)))


@fault("1.4", "ids")
def some_rows_without_labels(subject: Subject) -> Subject:
    """The mask is checked before truncation and not behind it: of every third row no label is left."""
    rows = [replace(row, trained=[False] * len(row.ids)) if place % 3 == 2 else row for place, row in enumerate(subject.rows)]
    return with_rows(subject, rows)


@fault("1.4", "ids", toy="conversations")
def trained_to_the_end_of_the_row(subject: Subject) -> Subject:
    """`end = ends[0] or None`: the first answer's part goes on to the end of the row, over later questions."""

    def change(row: Tokens) -> Tokens:
        first, more = spans(row)[0][0], len(spans(row)) > 1
        return replace(row, trained=[False] * first + [True] * (len(row.ids) - first)) if more else row

    return with_each_row(subject, change)


@fault("1.4", "ids", toy="conversations")
def first_answer_lost(subject: Subject) -> Subject:
    """Parts are found by the tokenizer's end mark, which the template writes behind the last turn only: earlier answers have no label."""

    def change(row: Tokens) -> Tokens:
        start, end = spans(row)[-1]
        return replace(row, trained=[start <= place < end for place in range(len(row.ids))])

    return with_each_row(subject, change)


@fault("1.7", "ids", toy="blank")
def prompt_and_answer_tokenised_as_one(subject: Subject) -> Subject:
    """Row = tokenise(prompt + answer), masked by the length of tokenise(prompt), which ends in a blank: the blank joins the answer's first word,
    and generation begins behind a blank that training never saw."""
    tokenizer, begin = subject.tokenizer, len(subject.begin_ids)

    def change(row: Tokens) -> Tokens:
        start = spans(row)[-1][0]
        prompt, answer = tokenizer.decode(row.ids[begin:start]), tokenizer.decode(row.ids[start:])
        ids = list(subject.begin_ids) + tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        return replace(row, ids=ids, trained=[False] * start + [True] * (len(ids) - start))

    return with_each_row(subject, change)


# Length


@fault("1.8", "ids")
def answers_cut_at_the_length(subject: Subject) -> Subject:
    """`truncation=True, max_length=36`: what does not fit is cut off behind, the end of the answer and its mark."""
    limit = 36
    return replace(with_each_row(subject, lambda row: replace(row, ids=row.ids[:limit], trained=row.trained[:limit])), max_length=limit)


@fault("1.8", "ids")
def length_setting_lost(subject: Subject) -> Subject:
    """The recipe asks for rows of at most 40 tokens; on its way into the library's arguments the setting is lost and a default takes its place."""
    return replace(subject, max_length=40)


@fault("1.40", "batches")
def padding_outside_the_vocabulary(subject: Subject) -> Subject:
    """`add_special_tokens({"pad_token": ...})` gives the next free id, and nobody resized the embedding."""
    pad = len(subject.tokenizer)
    return replace(with_each_batch(subject, lambda batch: replace(batch, ids=batch.ids.masked_fill(padding(batch), pad))), pad_id=pad)


@fault("1.40", "batches")
def padding_with_labels(subject: Subject) -> Subject:
    """`labels = input_ids.clone()`, and the answer's mask says nothing of what comes behind the answer."""
    return with_each_batch(subject, lambda batch: replace(batch, labels=torch.where(padding(batch), batch.ids, batch.labels)))


@fault("1.9", "batches")
def padded_on_the_left_without_a_mask(subject: Subject) -> Subject:
    """The tokenizer's padding side was set to the left for generation and stays so for training, where no mask is handed on."""

    def change(batch: Batch) -> Batch:
        ids, labels, width = batch.ids.clone(), batch.labels.clone(), batch.ids.shape[1]
        for row, length in enumerate(batch.lengths):
            ids[row], labels[row] = ids[row].roll(width - length), labels[row].roll(width - length)
        return replace(batch, ids=ids, labels=labels)

    return with_each_batch(subject, change)


# Packing


@fault("1.6", "batches", toy="packed")
def packed_without_positions(subject: Subject) -> Subject:
    """Rows are joined to blocks and nothing tells the model where one ends: each answer is learned with strangers in sight."""
    return with_each_batch(subject, lambda batch: replace(batch, positions=None, documents=None))


def _asked_with(subject: Subject, **inputs: object) -> Subject:
    """Packed rows, with their positions and more."""

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        given = {"use_cache": False} | inputs
        if given.get("attention_mask") == "ones":
            given["attention_mask"] = (~padding(batch)).long()
        with compute_in(batch.ids.device, subject.dtype):
            return model(input_ids=batch.ids, position_ids=batch.positions, **given).logits

    return computed_with(subject, logits)


@fault("1.6", "loss", toy="packed")
def packed_with_a_mask_of_ones(subject: Subject) -> Subject:
    """Positions restart at each document, and the collator hands on the usual mask too: where one is given, transformers does not look at positions."""
    return _asked_with(subject, attention_mask="ones")


@fault("1.6", "loss", toy="qwen3")
def packed_with_a_cache(subject: Subject) -> Subject:
    """`use_cache` is left at its default, with which the borders of documents are not looked for."""
    return _asked_with(subject, use_cache=True)


@fault("1.6", "loss", toy="falcon")
def packed_for_a_model_that_ignores_positions(subject: Subject) -> Subject:
    """The patch for packed rows names the families that it knows; Falcon is none of them, and it has no effect at all."""
    return _asked_with(subject)


@fault("1.6", "batches", toy="packed")
def labels_across_borders(subject: Subject) -> Subject:
    """Labels are shifted over the whole block: the first token of a document is learned from the last of its neighbour."""

    def change(batch: Batch) -> Batch:
        if batch.documents is None:
            return batch
        border = torch.zeros_like(batch.ids, dtype=torch.bool)
        border[:, 1:] = (batch.documents[:, 1:] != batch.documents[:, :-1]) & (batch.documents[:, 1:] >= 0)
        return replace(batch, labels=torch.where(border, batch.ids, batch.labels))

    return with_each_batch(subject, change)
