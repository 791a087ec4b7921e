"""Conversations of our own are put through the user's template, because of these we know what was said. Here they are, and what they show:
how prompts begin and end, and what a row of the user's trains."""

from collections.abc import Callable, Sequence
from itertools import groupby

from halfbyte.checks.proof import NotHere
from halfbyte.checks.trial import Trial
from halfbyte.data.records import Message
from halfbyte.data.tokens import Tokens
from halfbyte.errors import HalfbyteError

PREPARE = "prepare the data again; halfbyte show shows the rows"
Talk = tuple[Message, ...]

ASKED = ("who lit the lamp", "is it 7 or 12?", "tell me of the sea.", "(why)", 'he said "so"', "a line\n", "a blank ", "naïve café 東京 🙂")
"""What users may say: it ends in a letter, a sign, a line end, a blank, in what has more bytes than letters."""
SAID = ("the keeper did, at dusk.", "it is 12: count again", "grey and wide, said the old man", "東京 🙂 é, of course!", "because the night is dark")


def talk_of(asked: str, said: str) -> Talk:
    return ({"role": "user", "content": asked}, {"role": "assistant", "content": said})


def spans_of(row: Tokens) -> list[tuple[int, int]]:
    """Where what is trained without a gap begins and ends."""
    spans, place = [], 0
    for trained, group in groupby(row.trained):
        size = len(list(group))
        if trained:
            spans.append((place, place + size))
        place += size
    return spans


def where(row: Tokens) -> str:
    return f"{row.file}:{row.line}" if row.file else "a row"


def encoders_of(trial: Trial) -> tuple[Callable[[Sequence[Message]], Tokens], Callable[[Sequence[Message]], list[int]]]:
    subject = trial.subject
    if subject.encode_row is None or subject.encode_prompt is None:
        raise NotHere("plain text has no prompts and answers")
    return subject.encode_row, subject.encode_prompt


def talks_of(trial: Trial) -> list[Talk]:
    """One turn each, and one of two turns where the template takes it."""
    encode_row, _ = encoders_of(trial)
    talks = [talk_of(asked, SAID[place % len(SAID)]) for place, asked in enumerate(ASKED)]
    two: Talk = (*talk_of("who comes there?", "an old man."), *talk_of("what do you want?", "let me in."))
    try:
        encode_row(two)
    except HalfbyteError:
        return talks
    return [*talks, two]


def openings_of(trial: Trial) -> tuple[list[int], list[int]]:
    """What all prompts begin and end with."""
    _, encode_prompt = encoders_of(trial)
    prompts = [encode_prompt(({"role": "user", "content": asked},)) for asked in ASKED]
    return _shared(prompts), _shared([prompt[::-1] for prompt in prompts])[::-1]


def _shared(lists: list[list[int]]) -> list[int]:
    first = min(lists, key=len)
    size = next((place for place, token in enumerate(first) if any(other[place] != token for other in lists)), len(first))
    return first[:size]


def name_of(trial: Trial, token: int) -> str:
    return repr(trial.subject.tokenizer.convert_ids_to_tokens(token))
