"""Changed copies of training records, for small data sets. No model is needed, the answers stay as they are, and the seed decides.

What a user types is changed (case, punctuation, typing errors), or a conversation ends earlier. Held-out rows are never changed and
copies come after the split, so no copy of a held-out row trains.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from halfbyte.data.records import Message, Record
from halfbyte.errors import RecipeError
from halfbyte.recipe.schema import SettledData, TextData

# Neighbours on the keys of a QWERTY keyboard, row by row.
KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# One letter in so many is mistyped.
TYPO_EVERY = 25
MARKS = ".,!?;:"
WORD_ENDS = re.compile(f"[{MARKS}]+(?=\\s|$)")


def check_kinds(section: SettledData) -> None:
    """Raises RecipeError for a kind of change that data of this kind have no place for."""
    text = isinstance(section, TextData)
    wrong = [kind for kind in section.augment if (kind == "shift") != text]
    if wrong:
        of_users, of_texts = "a conversation takes case, punctuation, typos and turns", "a text takes shift"
        raise RecipeError(f"data.augment: {', '.join(wrong)} does not go with data of kind {section.kind}", hint=of_texts if text else of_users)


def changed_copies(record: Record, kinds: Sequence[str], copies: int, seed: int) -> Iterator[Record]:
    """Up to `copies` changed records; one that comes out unchanged, or as an earlier one, is not given."""
    draw = random.Random(f"{seed} {record.line} {record.asked}")  # not by its file, which a resumed run calls by another path
    seen = {_said(record)}
    for _ in range(copies):
        for kind in draw.sample(kinds, len(kinds)):
            changed = _fewer_turns(record, draw) if kind == "turns" else _retyped(record, kind, draw)
            if _said(changed) not in seen:
                seen.add(_said(changed))
                yield changed
                break


def _said(record: Record) -> tuple[str, ...]:
    return tuple(message["content"] for message in record.messages)


def _retyped(record: Record, kind: str, draw: random.Random) -> Record:
    change = {"case": _case, "punctuation": _punctuation, "typos": _typos}[kind]

    def one(message: Message) -> Message:
        if message["role"] != "user":
            return message
        content = change(message["content"], draw)
        return {**message, "content": content if content.strip() else message["content"]}

    return replace(record, messages=tuple(one(message) for message in record.messages))


def _fewer_turns(record: Record, draw: random.Random) -> Record:
    """The conversation up to an earlier answer."""
    ends = [place for place, message in enumerate(record.messages) if message["role"] == "assistant"][:-1]
    return replace(record, messages=record.messages[: draw.choice(ends) + 1]) if ends else record


def _case(text: str, draw: random.Random) -> str:
    return draw.choice((str.lower, str.upper, str.capitalize))(text)


def _punctuation(text: str, draw: random.Random) -> str:
    """Without the marks that end words and sentences, with the last one left away, or with it doubled. 3.14 and 10:30 stay."""
    bare = text.rstrip()
    last = bare[-1:] if bare.endswith(tuple(MARKS)) else ""
    return draw.choice((WORD_ENDS.sub("", text), bare.rstrip(MARKS), bare + (last or "!")))


def _typos(text: str, draw: random.Random) -> str:
    """A letter left out, doubled, swapped with the next, or its neighbour on the keyboard."""
    letters = list(text)
    places = [place for place, c in enumerate(letters) if c.isalpha()]
    for place in draw.sample(places, k=min(len(places), max(1, len(places) // TYPO_EVERY))):
        kind = draw.randrange(4)
        if kind == 0:
            letters[place] = ""
        elif kind == 1:
            letters[place] *= 2
        elif kind == 2 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        else:
            letters[place] = _neighbour(letters[place], draw)
    return "".join(letters)


def _neighbour(letter: str, draw: random.Random) -> str:
    for keys in KEY_ROWS:
        place = keys.find(letter.lower()) if letter else -1
        if place >= 0:
            near = keys[max(0, place - 1) : place] + keys[place + 1 : place + 2]
            return draw.choice(near) if letter.islower() else draw.choice(near).upper()
    return letter
