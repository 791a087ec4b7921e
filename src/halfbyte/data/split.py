"""Records -> train, validation and test records, without a page or a prompt on two sides.

A book is split where it stands: its end is the test part, what comes before that validates, so that
neighbouring pages do not tell on each other. Pairs and separate texts are drawn by hash, so that adding
or reordering rows moves few others; rows that share a prompt or a response stay together.
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
    """Rows that share a prompt or a response stay on one side; short answers that many rows share (labels) only by prompt."""
    wanted_test, wanted_validation = round(len(records) * test_share), round(len(records) * validation_share)
    groups = _groups(records, ("prompt", "response", "text"))
    reason = "drawn by hash; rows that share a prompt or a response stay on one side"
    if groups and max(map(len, groups.values())) > max(1, wanted_test):
        groups = _groups(records, ("prompt", "text"))
        reason = "drawn by the hash of the prompt; equal prompts stay on one side"
    side: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    for key in sorted(groups):
        if len(side["test"]) + len(groups[key]) <= wanted_test:
            side["test"] += groups[key]
        elif len(side["validation"]) + len(groups[key]) <= wanted_validation:
            side["validation"] += groups[key]
        else:
            side["train"] += groups[key]
    answers = {_alike(record.fields.get("response", "")) for record in side["train"]} - {""}
    known = sum(_alike(record.fields.get("response", "")) in answers for record in side["test"])
    if known:
        reason += f"; {known} of {len(side['test'])} test responses also stand in training, because many rows share one"
    return Split(side["train"], side["validation"], side["test"], Decision("split", _shares(*map(len, side.values())), reason))


def _groups(records: list[Record], fields: tuple[str, ...]) -> dict[str, list[Record]]:
    """Connected rows (union-find), by the smallest hash of their first field, so that an answer that is edited moves no row."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    keys = []
    for record in records:
        said = [f"{name}: {_alike(record.fields[name])}" for name in fields if name in record.fields]
        hashed = [hashlib.sha256(text.encode()).hexdigest() for text in said]
        keys.append(hashed[0])
        for other in hashed[1:]:
            first, second = sorted((find(hashed[0]), find(other)))
            root[second] = first
    smallest: dict[str, str] = {}
    for key in keys:
        smallest[find(key)] = min(key, smallest.get(find(key), key))
    groups: dict[str, list[Record]] = {}
    for key, record in zip(keys, records, strict=True):
        groups.setdefault(smallest[find(key)], []).append(record)
    return groups


def _alike(text: str) -> str:
    return " ".join(text.lower().split())


def _shares(train: int, validation: int, test: int) -> str:
    return f"{train} train, {validation} validation, {test} test records"
