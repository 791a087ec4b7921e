"""Proofs about rows, labels and text: what is trained is what was said, and what is asked is what was trained. No model is needed.

Conversations of our own are put through the user's template, because of these we know what was said. The user's rows are then held against
what these show: how a prompt opens an answer, what ends one, how a text begins.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import cast

import torch

from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.trial import Trial, documents_of, expected_labels, supervised_of
from halfbyte.data.batches import IGNORE, row_lengths
from halfbyte.data.records import Message
from halfbyte.data.tokens import Tokens
from halfbyte.errors import HalfbyteError

Talk = tuple[Message, ...]

ASKED = ("who lit the lamp", "is it 7 or 12?", "tell me of the sea.", "(why)", 'he said "so"', "a line\n", "a blank ", "naïve café 東京 🙂")
"""What users may say: it ends in a letter, a sign, a line end, a blank, in what has more bytes than letters."""
SAID = ("the keeper did, at dusk.", "it is 12: count again", "grey and wide, said the old man", "東京 🙂 é, of course!", "because the night is dark")
MOST_WRAPPED = 0.5
"""Of the rows: what a template writes around an answer may differ in a few, as where a prompt's end is drawn into a token of the template."""


def _talk(asked: str, said: str) -> Talk:
    return ({"role": "user", "content": asked}, {"role": "assistant", "content": said})


def _spans(row: Tokens) -> list[tuple[int, int]]:
    """Where what is trained without a gap begins and ends."""
    spans, place = [], 0
    for trained, group in groupby(row.trained):
        size = len(list(group))
        if trained:
            spans.append((place, place + size))
        place += size
    return spans


def _where(row: Tokens) -> str:
    return f"{row.file}:{row.line}" if row.file else "a row"


def _encoders(trial: Trial) -> tuple[Callable[[Sequence[Message]], Tokens], Callable[[Sequence[Message]], list[int]]]:
    subject = trial.subject
    if subject.encode_row is None or subject.encode_prompt is None:
        raise NotHere("plain text has no prompts and answers")
    return subject.encode_row, subject.encode_prompt


def _talks(trial: Trial) -> list[Talk]:
    """One turn each, and one of two turns where the template takes it."""
    encode_row, _ = _encoders(trial)
    talks = [_talk(asked, SAID[place % len(SAID)]) for place, asked in enumerate(ASKED)]
    two: Talk = (*_talk("who comes there?", "an old man."), *_talk("what do you want?", "let me in."))
    try:
        encode_row(two)
    except HalfbyteError:
        return talks
    return [*talks, two]


# Lengths and ids


def ids_and_lengths(trial: Trial) -> str:
    subject = trial.subject
    known, names = trial.vocabulary, len(subject.tokenizer)
    if names > known:
        raise Refuted(
            f"the tokenizer has {names:,} tokens, the model {known:,}", "tokens were added, or the tokenizer is another model's",
            "use the base's own tokenizer, without added tokens",
        )  # fmt: skip
    for what, ids in (("padding", [subject.pad_id]), ("an end mark", subject.end_ids), ("the begin mark", subject.begin_ids)):
        if any(not 0 <= token < known for token in ids):
            raise Refuted(f"{what} has id {max(ids)}, the model knows {known:,}", "the id is of no token of this model", "use an id that the model knows")
    if not len(subject.rows):
        raise Refuted("there are no rows", "every row was left out", "look at halfbyte prepare")
    highest, longest = -1, min(subject.context, subject.max_length)
    for row in trial.looked_at:
        if len(row.ids) != len(row.trained) or len(row.ids) < 2:
            raise Refuted(
                f"{_where(row)}: {len(row.ids)} ids, {len(row.trained)} of them told apart", "rows were put together wrongly", "prepare the data again"
            )
        if min(row.ids) < 0 or max(row.ids) >= known:
            raise Refuted(
                f"{_where(row)}: id {max(row.ids) if max(row.ids) >= known else min(row.ids)}, the model knows 0 to {known - 1:,}",
                "the rows were made by another tokenizer", "prepare the data again with the base's own tokenizer",
            )  # fmt: skip
        highest = max(highest, max(row.ids))
    most = int(row_lengths(subject.rows).max())
    if most > longest:
        limit = "data.max_length" if subject.max_length < subject.context else "the base's context"
        raise Refuted(
            f"the longest row has {most:,} tokens, {limit} is {longest:,}", "rows are not cut to the length", "lower data.max_length and prepare again"
        )
    return f"{len(subject.rows):,} rows of at most {most:,} of {longest:,} tokens; highest id {highest:,} of {known:,}"


# Labels


def labels(trial: Trial) -> str:
    """Also of rows in which padding and end mark are trained: a label goes by place, never by id."""
    subject = trial.subject
    marks = [subject.pad_id, *subject.end_ids, *subject.begin_ids]
    some = trial.looked_at[0]
    odd = Tokens([*some.ids[:1], *marks, *marks[::-1]], [False, *[place % 3 != 1 for place in range(2 * len(marks))]], some.file, some.line)
    whole = Tokens([*some.ids[:1], *marks], [True] * (1 + len(marks)), some.file, some.line)
    longest = subject.rows[int(row_lengths(subject.rows).argmax())]
    by_length = sorted(trial.looked_at, key=lambda row: len(row.ids))
    counted = 0
    for rows in ([odd, whole], [*by_length[:3], odd], [longest, by_length[0]], [by_length[len(by_length) // 2]]):
        batch = subject.collate(rows)
        width = max(len(row.ids) for row in rows)
        if tuple(batch.ids.shape) != (len(rows), width) or tuple(batch.labels.shape) != (len(rows), width):
            raise Refuted(
                f"{len(rows)} rows of at most {width} tokens became a batch of {tuple(batch.ids.shape)}", "the collator cuts or drops rows",
                "batch whole rows, padded to the longest",
            )  # fmt: skip
        if tuple(batch.lengths) != tuple(len(row.ids) for row in rows):
            raise Refuted(
                f"rows of {[len(row.ids) for row in rows]} tokens are counted as {list(batch.lengths)}", "padding is counted", "count without padding"
            )
        for row, ids, made in zip(rows, batch.ids.tolist(), batch.labels.tolist(), strict=True):
            size = len(row.ids)
            if ids[:size] != row.ids:
                raise Refuted(
                    f"{_where(row)}: other ids in the batch than in the row", "the collator moves or replaces tokens", "pad on the right, ids as they are"
                )
            wanted = [*expected_labels(row), *[IGNORE] * (width - size)]
            if made != wanted:
                place = next(index for index, (one, other) in enumerate(zip(made, wanted, strict=True)) if one != other)
                raise Refuted(*_wrong_label(trial, made[place], wanted[place], place, size, ids[place]))
            if not all(0 <= token < trial.vocabulary for token in ids[size:]):
                raise Refuted(f"padding has id {ids[size]}", "the model knows no such id", "pad with an id of the model")
            counted += sum(label != IGNORE for label in made)
    return f"{counted:,} labels stand at their tokens and nowhere else, those of end mark and padding id among them"


def _wrong_label(trial: Trial, made: int, wanted: int, place: int, size: int, token: int) -> tuple[str, str, str]:
    told = f"place {place} of a row of {size} tokens (id {token}) has label {made}, by the row it is {wanted}"
    if place >= size:
        return told, "padding is trained", "give padding the label -100"
    if made == IGNORE:
        is_mark = token in (trial.subject.pad_id, *trial.subject.end_ids)
        likely = "labels are left out by id, so that an end mark that shares the padding's id is never learned" if is_mark else "answers are masked"
        return told, likely, "leave labels out by place: where the row is not trained, and in padding"
    if wanted == IGNORE:
        return told, "what must not be trained has a label: a prompt, or the first token of a document", "take labels from what is trained of each row"
    return told, "labels are shifted, or stand for other tokens", "a label is the id of its own place; the loss compares it with the place before"


# Answers


def answers(trial: Trial) -> str:
    subject = trial.subject
    rows = trial.looked_at
    empty = [row for row in rows if not supervised_of(row)]
    if empty:
        raise Refuted(
            f"{len(empty)} of {len(rows)} rows train nothing; the first is {_where(empty[0])}", "the answer was cut off, or the mask of the answers is empty",
            "raise data.max_length, or look at halfbyte show",
        )  # fmt: skip
    share = sum(map(supervised_of, rows)) / sum(len(row.ids) for row in rows)
    if subject.encode_row is None or subject.encode_prompt is None:
        if subject.trained == "all" and any(len(row.documents) < 2 and not all(row.trained[1:]) for row in rows):
            raise Refuted("tokens of a text are not trained", "a mask of prompts is laid over plain text", "train every token of a text but the first")
        return f"{share:.1%} of all tokens are trained: every one of the texts"
    told = _answers_of_ours(trial)
    if subject.trained != "all":
        whole = [row for row in rows if all(row.trained[1:])]
        if whole:
            raise Refuted(
                f"{len(whole)} of {len(rows)} rows are trained from their first token; the first is {_where(whole[0])}", "prompts are in the loss",
                "train the answers alone, or say data.loss=all",
            )  # fmt: skip
        _same_as_rendered_again(trial)
        _answers_open_as_prompts_end(trial)
    return f"{told}; {share:.1%} of all tokens are trained"


def _answers_of_ours(trial: Trial) -> str:
    """Decoded, what is trained is the answer whole, and what a template writes around it is the same around every answer."""
    encode_row, encode_prompt = _encoders(trial)
    tokenizer, ends = trial.subject.tokenizer, trial.subject.end_ids
    wrappings: set[tuple[str, str]] = set()
    count = 0
    for talk in _talks(trial):
        row = encode_row(talk)
        spans = _spans(row)
        said = [message["content"] for message in talk if message["role"] == "assistant"]
        if len(spans) != len(said):
            raise Refuted(
                f"{len(said)} answers are {len(spans)} trained stretches",
                "the mask of the answers is not that of the turns",
                "train each answer, and nothing else",
            )
        for (start, end), answer in zip(spans, said, strict=True):
            ids = row.ids[start:end]
            while ids and ids[-1] in ends:
                ids = ids[:-1]
            text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if answer not in text:
                if not _survives(trial, answer):
                    continue  # the tokenizer itself loses something of it
                raise Refuted(f"of the answer {answer!r}, {text!r} is trained", "part of the answer is masked or cut", "train each answer from its first token")
            before, behind = text.split(answer, 1)
            wrappings.add((before.strip(), behind.strip()))
            count += 1
        asked = encode_prompt(talk[:-1])
        if spans[-1][0] != len(asked):
            seen = f"the last answer is trained from token {spans[-1][0]}, its prompt has {len(asked)}"
            raise Refuted(seen, "prompt and answer are not parted where generation parts them", "tokenise the prompt alone, and train all behind it")
    if len(wrappings) > 1:
        seen = f"around answers {sorted(wrappings)[0]!r} and {sorted(wrappings)[1]!r} are trained"
        raise Refuted(seen, "part of the prompt is trained", "train each answer with its end mark, and nothing else")
    return f"of {count} answers put through the template each is trained whole and no prompt is"


def _survives(trial: Trial, text: str) -> bool:
    tokenizer = trial.subject.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text in tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _openings(trial: Trial) -> tuple[list[int], list[int]]:
    """What all prompts begin and end with."""
    _, encode_prompt = _encoders(trial)
    prompts = [encode_prompt(({"role": "user", "content": asked},)) for asked in ASKED]
    return _shared(prompts), _shared([prompt[::-1] for prompt in prompts])[::-1]


def _shared(lists: list[list[int]]) -> list[int]:
    first = min(lists, key=len)
    size = next((place for place, token in enumerate(first) if any(other[place] != token for other in lists)), len(first))
    return first[:size]


def _answers_open_as_prompts_end(trial: Trial) -> None:
    """What is trained begins where a prompt ends: behind what all prompts end with."""
    opener = _openings(trial)[1]
    rows = [(row, spans[-1][0]) for row in trial.looked_at if (spans := _spans(row))]
    if not opener or not rows:
        return
    odd = [row for row, start in rows if row.ids[max(0, start - len(opener)) : start] != opener]
    if len(odd) > MOST_WRAPPED * len(rows):
        text = trial.subject.tokenizer.decode(opener)
        raise Refuted(
            f"in {len(odd)} of {len(rows)} rows the last answer does not begin behind {text!r}, with which prompts end; the first is {_where(odd[0])}",
            "rows were written with another template than prompts, or the mask of the answers begins elsewhere", "use one template for training and for use",
        )  # fmt: skip


def _same_as_rendered_again(trial: Trial) -> None:
    """A row of one turn is read back to text and encoded again: where that gives its ids, it must give what is trained of it too."""
    encode_row, _ = _encoders(trial)
    head, opener = _openings(trial)
    tokenizer, ends = trial.subject.tokenizer, trial.subject.end_ids
    for row in trial.looked_at[:20]:
        size = next((place for place in range(len(row.ids)) if row.ids[place : place + len(opener)] == opener), 0) if opener else 0
        if not size or row.ids[: len(head)] != head or len(row.documents) > 1:
            continue
        asked, said = row.ids[len(head) : size], [token for token in row.ids[size + len(opener) :] if token not in ends]
        try:
            again = encode_row(_talk(tokenizer.decode(asked), tokenizer.decode(said)))
        except HalfbyteError:
            continue
        if again.ids == row.ids and again.trained != row.trained:
            place = next(index for index, (one, other) in enumerate(zip(row.trained, again.trained, strict=True)) if one != other)
            seen = (
                f"{_where(row)}: token {place} is {'' if row.trained[place] else 'not '}trained, encoded again it is {'' if again.trained[place] else 'not '}"
            )
            raise Refuted(seen.rstrip(), "the mask of the rows is not that of their answers", "prepare the data again")


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
        for talk in _talks(trial):
            row = cast(Callable[[Talk], Tokens], subject.encode_row)(talk)
            if not all(row.ids[end - 1] in ends for _, end in _spans(row)):
                raise Refuted(*_no_end(f"an answer of ours ends in {_name(trial, row.ids[_spans(row)[-1][1] - 1])}"))
        odd = [document for document in documents if not (document.ids[-1] in ends and document.trained[-1])]
        if odd:
            last = _name(trial, odd[0].ids[-1])
            raise Refuted(*_no_end(f"{len(odd)} of {len(documents)} rows do not end with a trained end mark; {_where(odd[0])} ends with {last}"))
        if subject.trained != "all":
            inside = [row for row in rows for start, end in _spans(row) if len(row.documents) < 2 and any(token in ends for token in row.ids[start : end - 1])]
            if inside:
                seen = f"{_where(inside[0])}: an end mark stands inside an answer"
                raise Refuted(seen, "control marks in the text are read as marks, or end marks are doubled", "tokenise text as text; one end mark an answer")
    elif not ended and len(rows) == len(subject.rows):
        raise Refuted(*_no_end(f"none of {len(rows)} rows ends with an end mark"))
    else:
        _texts_are_cut_full(trial, [document for document in documents if document.ids[-1] not in ends])
    if not ended:
        raise NotHere(f"none of the {len(rows):,} rows looked at ends a text")
    _end_has_gradient(trial, min(ended, key=lambda row: len(row.ids)))
    what = f"each of {len(documents):,} answers" if talks else f"{len(ended)} of {len(documents):,} blocks, where a text ends,"
    return f"{what} end{'s' if talks else ''} with {_name(trial, ended[0].ids[-1])}, which is trained, has a gradient, and ends generation"


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


def _name(trial: Trial, token: int) -> str:
    return repr(trial.subject.tokenizer.convert_ids_to_tokens(token))


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
    talks = _talks(trial) if subject.encode_row is not None else []
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
                    f"{what} begins with {_name(trial, ids[0])}, not with {_name(trial, begin[0])}", "the begin mark is left out, or a row was cut on its left",
                    "begin every text with the mark once; cut none on the left",
                )  # fmt: skip
            if mark is None or is_end:
                doubled = mark is not None and ids[:2] == [mark, mark]
            else:
                doubled = any(one == other == mark for one, other in pairwise(ids)) or (not by_turn and ids.count(mark) > 1)
            if doubled:
                raise Refuted(
                    f"{what} holds {_name(trial, cast(int, mark))} {ids.count(mark)} times",
                    "template and tokenizer both write the begin mark, or texts share a row unmarked",
                    "let one of the two write it; pack documents with data.packing",
                )  # fmt: skip
    if not begin:
        return f"the tokenizer begins no text with a mark, and none of {len(texts):,} has one twice"
    return f"{_name(trial, begin[0])} stands once at the start of each of {len(texts) + len(encoded) + len(asked):,} texts and prompts"


# Prompts


def prompts(trial: Trial) -> str:
    encode_row, encode_prompt = _encoders(trial)
    count = 0
    for talk in _talks(trial):
        for turn in range(1, len(talk), 2):
            asked, row = encode_prompt(talk[:turn]), encode_row(talk[: turn + 1]).ids
            if row[: len(asked)] != asked:
                place = next((index for index, (one, other) in enumerate(zip(row, asked)) if one != other), min(len(row), len(asked)))
                seen = _name(trial, asked[place]) if place < len(asked) else "nothing"
                trained = _name(trial, row[place]) if place < len(row) else "nothing"
                raise Refuted(
                    f"at token {place} a prompt has {seen} where training has {trained}", "prompts are written or tokenised otherwise than rows",
                    "use one template, and tokenise prompts by themselves in both",
                )  # fmt: skip
            count += len(asked)
    return f"{count} ids of {len(_talks(trial))} prompts are, id for id, those that training puts before the answer"


def control_marks(trial: Trial) -> str:
    """A conversation that holds every control mark as text has the control ids of one that holds none."""
    encode_row, encode_prompt = _encoders(trial)
    tokenizer, special = trial.subject.tokenizer, trial.special_ids
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special] or [
        text for text in tokenizer.all_special_tokens if isinstance(text, str)
    ]
    harmless = _talk("what is a word, here?", "a word is a word")
    marked = _talk(f"what is {' and '.join(marks)}, here?", f"a {' or '.join(marks)} is a word")

    def controls(ids: list[int]) -> list[int]:
        return [token for token in ids if token in special]

    pairs = [(encode_row(talk).ids, encode_prompt(talk[:1])) for talk in (harmless, marked)]
    for what, place in (("a row", 0), ("a prompt", 1)):
        one, other = (controls(pair[place]) for pair in pairs)
        if one != other:
            extra = next(iter((Counter(other) - Counter(one)).elements()), None)
            seen = _name(trial, extra) if extra is not None else "another number of marks"
            raise Refuted(
                f"text in {what} became the control mark {seen}", "what people write is tokenised as control marks, so text can end a turn or open one",
                "tokenise contents with control marks as plain text",
            )  # fmt: skip
    return f"{len(marks)} control marks, written as text, stay text"


NO_ROWS = "the rows, or what makes and batches them"
PREPARE = "prepare the data again; halfbyte show shows the rows"

OF_ROWS = [
    Claim("ids and lengths", ids_and_lengths, NO_ROWS, PREPARE),
    Claim("labels", labels, "the collator", PREPARE),
    Claim("answers", answers, "the mask of the answers, or the template", PREPARE),
    Claim("end mark", end_marks, "the end mark, or the loss", PREPARE),
    Claim("begin mark", begin_marks, "the begin mark", PREPARE),
    Claim("prompts", prompts, "the template", PREPARE),
    Claim("control marks", control_marks, "the tokenizer", PREPARE),
]
