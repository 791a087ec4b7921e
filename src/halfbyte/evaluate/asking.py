"""What held-out rows are asked: which of them, with which prompt, and which of them are no independent witnesses."""

from collections.abc import Sequence

import numpy as np

from halfbyte.data.near import connected, equal_keys, normalise
from halfbyte.data.records import Record
from halfbyte.data.render import Template
from halfbyte.data.survey import hash_of
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.evaluate.classify import answer_ids
from halfbyte.recipe.schema import SettledData, TextData


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the rows, evenly drawn, the same ones every time."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def prompt_of(section: SettledData, template: Template, encoder: Encoder, row: Tokens, record: Record) -> list[int]:
    """The ids of a row before its last answer: the row as it was fitted, so what is scored and what is answered have one prompt.

    Where prompts train too, the last answer is found by its own ids, behind which at most a few of the template stand.
    """
    assert not isinstance(section, TextData)
    if section.loss != "all":
        last = max(place for place, trained in enumerate(row.trained) if trained)
        return row.ids[: last + 1 - row.trained[last::-1].index(False)]
    (answer,) = answer_ids([record.reference], template, encoder)
    for start in range(len(row.ids) - len(answer), 0, -1):
        if row.ids[start : start + len(answer)] == answer:
            return row.ids[:start]
    raise AssertionError(f"{record.file}:{record.line}: its last answer does not stand in its row")


def last_ids(prompt: list[int], room: float) -> list[int]:
    """The end of a prompt that leaves no room for the longest class: a few ids less, if any."""
    return prompt if len(prompt) <= room else prompt[int(len(prompt) - room) :]


def units_of(records: Sequence[Record]) -> np.ndarray | None:
    """(N,) what is drawn together: rows of one group, and rows that ask the same. None where each row is on its own."""
    columns = [record.group for record in records], [normalise(record.asked) for record in records]
    edges = [equal_keys(np.array([hash_of(said) for said in column], np.uint64)) for column in columns]
    units = connected(len(records), *edges)
    return units if len(np.unique(units)) < len(units) else None
