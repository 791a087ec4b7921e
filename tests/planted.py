"""Rows for the tests of the split: texts unlike any other, near copies of them, and what they are split into."""

import random
from collections import Counter
from dataclasses import dataclass, field

from halfbyte.data.records import Record
from halfbyte.data.split import TEST, TRAIN, VALIDATION, Split, split_records
from halfbyte.data.survey import Survey, survey_records
from halfbyte.recipe.schema import LabelData, MessagesData, PairData, SettledData, TextData

PAIRS = PairData(kind="prompt_response", path="a.csv", prompt_column="p", response_column="r")
LABELS = LabelData(kind="label", path="a.csv", text_column="t", label_column="l")
CHATS = MessagesData(kind="messages", path="a.jsonl", column="messages")
BOOK = TextData(kind="text", path="a.txt", rows="book", gap=0)
SEPARATE = TextData(kind="text", path="a.csv", rows="separate")


@dataclass
class Given:
    """What a survey needs of a Reading."""

    section: SettledData
    records: list[Record]
    merged: Counter[str] = field(default_factory=Counter)

    def outcomes(self):
        return iter(self.records)


def pair(prompt: str, response: str, line: int = 0, group: str = "", file: str = "train.csv", label: str = "") -> Record:
    return Record(file, line, messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), group=group, label=label)


def pairs(*said: tuple[str, str], file: str = "train.csv") -> list[Record]:
    return [pair(prompt, response, line, file=file) for line, (prompt, response) in enumerate(said, 2)]


def surveyed(section: SettledData, *parts: list[Record]) -> Survey:
    near = section.near_duplicates != "ignore" and not (isinstance(section, TextData) and section.rows == "book")
    return survey_records([(part, Given(section, records)) for part, records in enumerate(parts)], near)


def split_of(section: SettledData, *parts: list[Record], seed: int = 0, **more) -> tuple[Split, list[Record]]:
    """The split, and the records in the order of its sides."""
    section = section.model_copy(update=more)
    split = split_records(surveyed(section, *parts), section, seed)
    records = [record for part in parts for record in part]
    assert len(split.side) == len(records)
    assert sum(split.count(side) for side in (TRAIN, VALIDATION, TEST)) + split.left_out.total() == len(records), "the bins add up"
    assert split.decision.value == f"{split.count(TRAIN)} train, {split.count(VALIDATION)} validation, {split.count(TEST)} test records"
    return split, records


def sides(split: Split, values: list) -> list[set]:
    """What stands in train, in validation and in test."""
    return [{value for value, side in zip(values, split.side.tolist(), strict=True) if side == one} for one in (TRAIN, VALIDATION, TEST)]


def shared(split: Split, values: list) -> set:
    """What stands on two sides."""
    train, validation, test = sides(split, values)
    return train & validation | train & test | validation & test


def words(seed: object, count: int = 40) -> list[str]:
    """Unlike any other seed's."""
    rng = random.Random(str(seed))
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(count)]


def text(seed: object) -> str:
    return " ".join(words(seed))


def near_copy(seed: object, number: int) -> str:
    """Of text(seed), one word changed."""
    found = words(seed)
    found[number % len(found)] = f"changed{number}"
    return " ".join(found)
