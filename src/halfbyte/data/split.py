"""Records -> train, validation and test records, without a page or a prompt on two sides.

A book is split where it stands: its end is the test part, what comes before that validates, so that
neighbouring pages do not tell on each other. Pairs and separate texts are drawn by the hash of their
prompt, so that adding or reordering rows moves few others and equal prompts stay together.
"""

import hashlib
from dataclasses import dataclass

from halfbyte.data.records import Reading, Record
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import TextData

SMALLEST_TRAIN_ROWS = 2


@dataclass(frozen=True)
class Split:
    train: list[Record]
    validation: list[Record]
    test: list[Record]
    decision: Decision


def split_records(reading: Reading) -> Split:
    """Raises DataError when too little is left to train on."""
    section = reading.section
    if isinstance(section, TextData) and section.rows == "book":
        split = _split_book(reading.records, section.validation_share, section.test_share)
    else:
        split = _split_by_hash(reading.records, section.validation_share, section.test_share)
    if len(split.train) < SMALLEST_TRAIN_ROWS:
        raise DataError(
            f"{section.path}: {len(reading.records)} rows leave {len(split.train)} to train on",
            hint="give more rows, or lower data.validation_share and data.test_share",
        )
    return split


def _split_book(records: list[Record], validation_share: float, test_share: float) -> Split:
    """Contiguous, measured in characters: train | validation | test."""
    total = sum(len(record.fields["text"]) for record in records)
    train_end, validation_end = total * (1 - validation_share - test_share), total * (1 - test_share)
    parts: tuple[list[Record], list[Record], list[Record]] = ([], [], [])
    read = 0
    for record in records:
        read += len(record.fields["text"])
        parts[0 if read <= train_end else 1 if read <= validation_end else 2].append(record)
    reason = "the end of the text is held out, so that no held-out page has a neighbour in training"
    return Split(*parts, Decision("split", _shares(*map(len, parts)), reason))


def _split_by_hash(records: list[Record], validation_share: float, test_share: float) -> Split:
    groups: dict[str, list[Record]] = {}
    for record in records:
        asked = " ".join(record.fields.get("prompt", record.fields.get("text", "")).lower().split())
        groups.setdefault(hashlib.sha256(asked.encode()).hexdigest(), []).append(record)
    wanted_test, wanted_validation = round(len(records) * test_share), round(len(records) * validation_share)
    side: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    for key in sorted(groups):
        if len(side["test"]) + len(groups[key]) <= wanted_test:
            side["test"] += groups[key]
        elif len(side["validation"]) + len(groups[key]) <= wanted_validation:
            side["validation"] += groups[key]
        else:
            side["train"] += groups[key]
    reason = "drawn by the hash of the prompt; equal prompts stay on one side"
    return Split(side["train"], side["validation"], side["test"], Decision("split", _shares(*map(len, side.values())), reason))


def _shares(train: int, validation: int, test: int) -> str:
    return f"{train} train, {validation} validation, {test} test rows"
