"""Records of the held-out rows on disk, one JSON line each, in the order of their tokens: what was asked and what the file answers.

Evaluation needs the words beside the ids: the question to show, the answer to compare with, the class to score.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.data.records import Record
from halfbyte.data.store import writing


class RecordWriter:
    """Appends records to a file of JSON lines. Lone surrogates, which are no UTF-8, are escaped like everything beyond ASCII."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        with writing(self.folder):
            self.stream = open(file, "w", encoding="ascii")  # noqa: SIM115 - closed by close

    def append(self, records: Sequence[Record]) -> None:
        with writing(self.folder):
            self.stream.writelines(json.dumps(asdict(record)) + "\n" for record in records)

    def close(self) -> None:
        with writing(self.folder):
            self.stream.close()


class StoredRecords(Sequence[Record]):
    """The records of such a file; each is read when it is asked for. No file, no records: texts have none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.starts = np.cumsum([0, *_line_lengths(file)]) if file.is_file() else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        with open(self.file, "rb") as stream:
            stream.seek(int(self.starts[place]))
            return _record(stream.readline())

    def __iter__(self) -> Iterator[Record]:
        if len(self):
            with open(self.file, "rb") as stream:
                for line in stream:
                    yield _record(line)


def _line_lengths(file: Path) -> Iterator[int]:
    with open(file, "rb") as stream:
        for line in stream:
            yield len(line)


def _record(line: bytes) -> Record:
    said = json.loads(line)
    return Record(**{**said, "messages": tuple(said["messages"])})
