"""Proofs about text: what is trained is what was said, and what is asked in use is what was trained.

Conversations of our own are put through the user's template, because of these we know what was said. The user's rows are then held
against what these show: how a prompt opens an answer, what ends one.
"""

from collections import Counter

from halfbyte.checks.proof import Claim, Refuted
from halfbyte.checks.talks import PREPARE, encoders_of, name_of, openings_of, spans_of, talk_of, talks_of, where
from halfbyte.checks.trial import Trial, supervised_of
from halfbyte.errors import HalfbyteError

MOST_WRAPPED = 0.5
"""Of the rows: what a template writes around an answer may differ in a few, as where a prompt's end is drawn into a token of the template."""


# Answers


def answers(trial: Trial) -> str:
    subject = trial.subject
    rows = trial.looked_at
    empty = [row for row in rows if not supervised_of(row)]
    if empty:
        raise Refuted(
            f"{len(empty)} of {len(rows)} rows train nothing; the first is {where(empty[0])}", "the answer was cut off, or the mask of the answers is empty",
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
                f"{len(whole)} of {len(rows)} rows are trained from their first token; the first is {where(whole[0])}", "prompts are in the loss",
                "train the answers alone, or say data.loss=all",
            )  # fmt: skip
        _same_as_rendered_again(trial)
        _answers_open_as_prompts_end(trial)
    return f"{told}; {share:.1%} of all tokens are trained"


def _answers_of_ours(trial: Trial) -> str:
    """Decoded, what is trained is the answer whole, and what a template writes around it is the same around every last answer.

    Around an earlier one it may be less: Qwen 3 writes thoughts, empty ones too, before the last answer alone.
    """
    encode_row, encode_prompt = encoders_of(trial)
    tokenizer, ends = trial.subject.tokenizer, trial.subject.end_ids
    last: set[tuple[str, str]] = set()
    earlier: set[tuple[str, str, bool]] = set()
    count = 0
    for talk in talks_of(trial):
        row = encode_row(talk)
        spans = spans_of(row)
        said = [message["content"] for message in talk if message["role"] == "assistant"]
        if len(spans) != len(said):
            raise Refuted(
                f"{len(said)} answers are {len(spans)} trained stretches",
                "the mask of the answers is not that of the turns",
                "train each answer, and nothing else",
            )
        for turn, ((start, end), answer) in enumerate(zip(spans, said, strict=True), start=1):
            ids = row.ids[start:end]
            while ids and ids[-1] in ends:
                ids = ids[:-1]
            text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if answer not in text:
                if not _survives(trial, answer):
                    continue  # the tokenizer itself loses something of it
                raise Refuted(f"of the answer {answer!r}, {text!r} is trained", "part of the answer is masked or cut", "train each answer from its first token")
            before, behind = text.split(answer, 1)
            count += 1
            if turn == len(said):
                last.add((before.strip(), behind.strip()))
            else:
                earlier.add((before.strip(), behind.strip(), row.ids[:start] == encode_prompt(talk[: 2 * turn - 1])))
        asked = encode_prompt(talk[:-1])
        if spans[-1][0] != len(asked):
            seen = f"the last answer is trained from token {spans[-1][0]}, its prompt has {len(asked)}"
            raise Refuted(seen, "prompt and answer are not parted where generation parts them", "tokenise the prompt alone, and train all behind it")
    likely, hint = "part of the prompt is trained", "train each answer with its end mark, and nothing else"
    if len(last) > 1:
        raise Refuted(f"around answers {sorted(last)[0]!r} and {sorted(last)[1]!r} are trained", likely, hint)
    for before, behind, behind_its_prompt in earlier:
        if any(not (behind_its_prompt or one.endswith(before)) or not other.startswith(behind) for one, other in last):
            raise Refuted(f"around an earlier answer {(before, behind)!r} is trained, around the last one {next(iter(last))!r}", likely, hint)
    return f"of {count} answers put through the template each is trained whole and no prompt is"


def _survives(trial: Trial, text: str) -> bool:
    tokenizer = trial.subject.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text in tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _answers_open_as_prompts_end(trial: Trial) -> None:
    """What is trained begins where a prompt ends: behind what all prompts end with."""
    opener = openings_of(trial)[1]
    rows = [(row, spans[-1][0]) for row in trial.looked_at if (spans := spans_of(row))]
    if not opener or not rows:
        return
    odd = [row for row, start in rows if row.ids[max(0, start - len(opener)) : start] != opener]
    if len(odd) > MOST_WRAPPED * len(rows):
        text = trial.subject.tokenizer.decode(opener)
        raise Refuted(
            f"in {len(odd)} of {len(rows)} rows the last answer does not begin behind {text!r}, with which prompts end; the first is {where(odd[0])}",
            "rows were written with another template than prompts, or the mask of the answers begins elsewhere", "use one template for training and for use",
        )  # fmt: skip


def _same_as_rendered_again(trial: Trial) -> None:
    """A row of one turn is read back to text and encoded again: where that gives its ids, it must give what is trained of it too."""
    encode_row, _ = encoders_of(trial)
    head, opener = openings_of(trial)
    tokenizer, ends = trial.subject.tokenizer, trial.subject.end_ids
    for row in trial.looked_at[:20]:
        size = next((place for place in range(len(row.ids)) if row.ids[place : place + len(opener)] == opener), 0) if opener else 0
        if not size or row.ids[: len(head)] != head or len(row.documents) > 1:
            continue
        asked, said = row.ids[len(head) : size], [token for token in row.ids[size + len(opener) :] if token not in ends]
        try:
            again = encode_row(talk_of(tokenizer.decode(asked), tokenizer.decode(said)))
        except HalfbyteError:
            continue
        if again.ids == row.ids and again.trained != row.trained:
            place = next(index for index, (one, other) in enumerate(zip(row.trained, again.trained, strict=True)) if one != other)
            seen = f"{where(row)}: token {place} is {'' if row.trained[place] else 'not '}trained, encoded again it is {'' if again.trained[place] else 'not '}"
            raise Refuted(seen.rstrip(), "the mask of the rows is not that of their answers", "prepare the data again")


# Prompts


def prompts(trial: Trial) -> str:
    encode_row, encode_prompt = encoders_of(trial)
    count = 0
    for talk in talks_of(trial):
        for turn in range(1, len(talk), 2):
            asked, row = encode_prompt(talk[:turn]), encode_row(talk[: turn + 1]).ids
            if row[: len(asked)] != asked:
                place = next((index for index, (one, other) in enumerate(zip(row, asked)) if one != other), min(len(row), len(asked)))
                seen = name_of(trial, asked[place]) if place < len(asked) else "nothing"
                trained = name_of(trial, row[place]) if place < len(row) else "nothing"
                raise Refuted(
                    f"at token {place} a prompt has {seen} where training has {trained}", "prompts are written or tokenised otherwise than rows",
                    "use one template, and tokenise prompts by themselves in both",
                )  # fmt: skip
            count += len(asked)
    return f"{count} ids of {len(talks_of(trial))} prompts are, id for id, those that training puts before the answer"


def control_marks(trial: Trial) -> str:
    """A conversation that holds every control mark as text has the control ids of one that holds none."""
    encode_row, encode_prompt = encoders_of(trial)
    tokenizer, special = trial.subject.tokenizer, trial.special_ids
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special] or [
        text for text in tokenizer.all_special_tokens if isinstance(text, str)
    ]
    harmless = talk_of("what is a word, here?", "a word is a word")
    marked = talk_of(f"what is {' and '.join(marks)}, here?", f"a {' or '.join(marks)} is a word")

    def controls(ids: list[int]) -> list[int]:
        return [token for token in ids if token in special]

    pairs = [(encode_row(talk).ids, encode_prompt(talk[:1])) for talk in (harmless, marked)]
    for what, place in (("a row", 0), ("a prompt", 1)):
        one, other = (controls(pair[place]) for pair in pairs)
        if one != other:
            extra = next(iter((Counter(other) - Counter(one)).elements()), None)
            seen = name_of(trial, extra) if extra is not None else "another number of marks"
            raise Refuted(
                f"text in {what} became the control mark {seen}", "what people write is tokenised as control marks, so text can end a turn or open one",
                "tokenise contents with control marks as plain text",
            )  # fmt: skip
    return f"{len(marks)} control marks, written as text, stay text"


OF_TALKS = [
    Claim("answers", answers, "the mask of the answers, or the template", PREPARE),
    Claim("prompts", prompts, "the template", PREPARE),
    Claim("control marks", control_marks, "the tokenizer", PREPARE),
]
