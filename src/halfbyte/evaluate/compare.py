"""Two runs against one another: their tuned models on the same test rows, metric by metric, as base and tuned of one run are compared.

Read `compare_runs` first. Rows are the same by what they hold, not by where they lie: two recipes, bases or tokenizers may share a test part.
Perplexity is per token, so it compares only where one tokenizer cut both; bits per byte compares across tokenizers.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import DataError
from halfbyte.evaluate.runs import ANSWERED, Answer, Measured, open_evaluated, read_answers, read_measured
from halfbyte.evaluate.uncertainty import Comparison, compare
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.words import counted

FEWEST_ROWS = 2
"""One row has no spread, so nothing could be said of chance."""
Key = tuple[str, str]
"""Group and name of a metric."""
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""(N, K) of the first run, (N, K) of the second, and the document of each row."""
BITS = "bits per byte"
WHAT = {"prompt": "the prompt", "reference": "the reference answer"}


@dataclass(frozen=True)
class Versus:
    """What came out. In every comparison `base` is the first run and `tuned` the second."""

    first: Path
    second: Path
    compared: list[tuple[str, Comparison]]
    """Group and comparison."""
    notes: list[str]
    """What was left out, and why."""

    @property
    def sentence(self) -> str:
        """On the first thing that was measured on test rows, which is what the report of a run opens with."""
        main = next(one for group, one in self.compared if group != "neutral text")
        word = {"better": f"{self.second} is better than {self.first}", "worse": f"{self.second} is worse than {self.first}"}
        return f"{word.get(main.verdict, f'No evidence that {self.second} and {self.first} differ')}: {main.sentence}"

    def as_json(self) -> dict[str, Any]:
        return {
            "first": str(self.first), "second": str(self.second), "notes": self.notes,
            "comparisons": [{"group": group, **_first_and_second(one.as_json())} for group, one in self.compared],
        }  # fmt: skip


def compare_runs(first: Path, second: Path, seed: int = 0) -> Versus:
    """Raises DataError where a run has no evaluation, where the test rows differ, and where nothing is left to compare."""
    runs = [open_evaluated(path) for path in (first, second)]
    if first.resolve() == second.resolve():
        raise DataError(f"{first} and {second} are one run", hint="name two runs")
    before, after = ({(one.group, one.metric.name): one for one in read_measured(run)} for run in runs)
    if not _same_rows(*runs):
        _check_same_texts(before, after)
    one_tokenizer = _tokenizer_of(runs[0]) == _tokenizer_of(runs[1])
    compared: list[tuple[str, Comparison]] = []
    notes: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        if one and other:
            found = _compared(one, other, one_tokenizer, seed)
        else:
            found = f"only the {'first' if one else 'second'} run has it"
        if isinstance(found, Comparison):
            compared.append((key[0], found))
        else:
            notes.append(f"{key[1]} on {key[0]} is left out: {found}")
    if all(group == "neutral text" for group, _ in compared):
        raise DataError(f"{first} and {second}: nothing can be compared: {'; '.join(notes) or 'nothing was measured'}", hint="measure both on more test rows")
    return Versus(first, second, compared, notes)


def _compared(first: Measured, second: Measured, one_tokenizer: bool, seed: int) -> Comparison | str:
    """The comparison of both tuned models, or why there is none."""
    if first.metric.kind == "exp_ratio" and not one_tokenizer:
        return f"it is per token and the tokenizers differ; {BITS} compares"
    pairs = _paired(first, second)
    if isinstance(pairs, str):
        return pairs
    before, after, units = pairs
    try:
        found = compare(first.metric, before, after, units, seed)
    except ValueError as error:  # nothing was counted in one of the runs
        return str(error)
    return replace(found, sentence=found.sentence.replace("base and tuned", "the two runs"))


def _same_rows(first: RunFolder, second: RunFolder) -> bool:
    """Whether the test rows are known to be the same; False for rows in other tokens without answers, whose bytes have to tell.

    Raises DataError where they differ.
    """
    hashes = [_test_hash(run) for run in (first, second)]
    if hashes[0] == hashes[1]:
        return True
    answers = [read_answers(run) for run in (first, second)]
    if not all(answers):
        return False
    if _content(answers[0]) != _content(answers[1]):
        raise DataError(
            f"{first.path} and {second.path} were tested on different rows: {_difference(*answers)}",
            hint="give both recipes the same data.test_path (or data, split and seed) and evaluate.max_answers",
        )
    return True


def _test_hash(run: RunFolder) -> str:
    """Of the test rows in tokens: the last of the three parts that rows_sha256 names."""
    return str(run.read_plan().get("rows_sha256", run.path)).split("-")[-1]


def _content(answers: list[Answer]) -> str:
    rows = [[answer.prompt, answer.reference] for answer in answers]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _difference(first: list[Answer], second: list[Answer]) -> str:
    if len(first) != len(second):
        return f"{len(first):,} rows and {len(second):,} rows"
    for one, other in zip(first, second, strict=True):
        for key, name in WHAT.items():
            said = [getattr(answer, key) for answer in (one, other)]
            if said[0] != said[1]:
                return f"{name} of {one.row} is {said[0][:60]!r}, that of {other.row} is {said[1][:60]!r}"
    raise AssertionError("the rows are the same")


def _check_same_texts(first: dict[Key, Measured], second: dict[Key, Measured]) -> None:
    """Texts in other tokens: as many documents, with as many bytes each."""
    shared = [key for key, one in first.items() if key in second and key[0] != "neutral text" and key[1] == BITS]
    reasons = [reason for key in shared if isinstance(reason := _paired(first[key], second[key]), str)]
    if reasons or not shared:
        reason = reasons[0] if reasons else "nothing that both measured tells how long they are"
        raise DataError(f"the two runs were tested on different texts: {reason}", hint="give both recipes the same data, split and seed")


def _paired(first: Measured, second: Measured) -> Pairs | str:
    """Statistics of the same rows, or of the same documents where the rows were cut differently; or why there are none."""
    if (first.metric.kind, first.metric.labels) != (second.metric.kind, second.metric.labels):
        return "the runs measured it in different ways or over different classes"
    pairs: Pairs = first.tuned, second.tuned, first.units
    if len(first.tuned) != len(second.tuned):
        if first.units is None or second.units is None or first.group in ANSWERED:  # answered rows are numbered by those that were drawn
            return f"{len(first.tuned):,} rows and {len(second.tuned):,} rows, and no documents to pair them by"
        pairs = _summed(first.tuned, first.units), _summed(second.tuned, second.units), None
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[0]):,} documents and {len(pairs[1]):,} documents"
    if first.metric.kind == "exp_ratio" or first.metric.name == BITS:
        one, other = (side[:, -1] for side in pairs[:2])
        if not np.array_equal(one, other):
            row = int(np.flatnonzero(one != other)[0])
            return f"row or document {row + 1} has length {one[row]:,.0f} in the first run and {other[row]:,.0f} in the second"
    if len(pairs[0]) < FEWEST_ROWS:
        return f"{counted(len(pairs[0]), 'test row')} cannot tell a change from chance"
    return pairs


def _summed(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(N, K) -> (documents, K)"""
    names, document = np.unique(units, return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, document, rows)
    return sums


def _tokenizer_of(run: RunFolder) -> str:
    """The tokenizer that is kept with the adapter; the base's fingerprint stands for one that is kept in another form."""
    file = run.adapter / "tokenizer.json"
    if not file.is_file():
        return str(run.read_plan().get("base_fingerprint"))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _first_and_second(comparison: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("base", "first").replace("tuned", "second"): value for key, value in comparison.items()}
