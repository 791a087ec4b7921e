"""Classes: which one an answer names, and how often the answers are right.

An answer that names no class is None: it counts as wrong, is never left out, and has a column of its own in the confusion matrix.
The averages are scikit-learn's (precision_recall_fscore_support) over the classes that are either true or predicted somewhere.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# What may stand around an answer without belonging to it.
WRAPPING = " \t\r\n\"'`*\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
# What may follow a class that begins an answer: the end of its line, a bracket or a dash that stands apart, or a mark with no letter
# behind it: "1.5" does not begin with the class 1.
ENDS_A_CLASS = r"(?=[\"'`*\u2019\u201d\u00bb]*[^\S\n]*(?:\n|\r|$|[(\[]|[.,:;!?)\]\u2026]+(?!\w)|(?<=\s)[-\u2013\u2014](?=\s)))"


class ClassScore(NamedTuple):
    """0 where a quotient has nothing below it. `rows`: how many are truly of the class."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


class Average(NamedTuple):
    precision: float
    recall: float
    f1: float


class Majority(NamedTuple):
    """Who always says the commonest class of the training rows is right this often."""

    label: str
    accuracy: float


# Which class an answer names


def parse_label(answer: str, classes: Sequence[str]) -> str | None:
    """The class that an answer is, or begins with; None where it names none, or more than one.

    A class inside a sentence is not an answer ("this is not good" never names `good`). Capitals are looked over where that leaves one class only.
    """
    known, named = _reader(tuple(classes))
    bare = answer.strip(WRAPPING)
    for said in (answer, answer.strip(), bare, bare.removesuffix(".").strip(WRAPPING)):
        if said and (label := known.get(said) or known.get(_form(said))):
            return label
    begins = named.match(bare)
    if not begins or not re.compile(ENDS_A_CLASS).match(bare, begins.end()):
        return None
    label = _known(begins.group(), known)
    others = {_known(found.group(), known) for found in named.finditer(bare, begins.end())}
    return label if others <= {label} else None


@lru_cache(maxsize=8)
def _reader(classes: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """Class of each text that names it, and what finds any class as a word of its own: the longest first, since one may hold another."""
    forms: dict[str, list[str]] = {}
    for label in classes:
        forms.setdefault(_form(label), []).append(label)
    known = {form: alike[0] for form, alike in forms.items() if len(alike) == 1}
    words = "|".join(re.escape(label) for label in sorted(classes, key=len, reverse=True))
    return known | {label: label for label in classes}, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def _known(said: str, known: Mapping[str, str]) -> str | None:
    return known.get(said) or known.get(_form(said))


def _form(text: str) -> str:
    """Without capitals, and with letters of one kind in one code."""
    return unicodedata.normalize("NFKC", text).casefold()


# Sums for metrics: one row a test row


def accuracy_rows(gold: Sequence[str], predicted: Sequence[str | None]) -> np.ndarray:
    """(N, 2): whether the row is right, and 1."""
    right = np.array([one == said for one, said in zip(gold, predicted, strict=True)], np.float64)  # (N,)
    return np.stack([right, np.ones_like(right)], axis=1)


def macro_f1_rows(gold: Sequence[str], predicted: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
    """(N, 3C): of each class in turn, whether the row is rightly said to be of it, said to be of it, and of it."""
    numbers = np.arange(len(classes))
    true = _numbers(gold, classes)[:, None] == numbers  # (N, C)
    said = _numbers(predicted, classes)[:, None] == numbers  # (N, C)
    return np.stack([true & said, said, true], axis=2).reshape(len(true), 3 * len(classes)).astype(np.float64)


def _numbers(labels: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
    """(N,) place of each label among the classes; C where there is none."""
    places: dict[str | None, int] = {label: place for place, label in enumerate(classes)}
    return np.array([len(classes) if label is None else places[label] for label in labels], np.int64)


# Of all rows together


def confusion(gold: Sequence[str], predicted: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
    """(C, C+1) counts: true classes in rows, predicted ones in columns, answers that name none in the last column."""
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    np.add.at(matrix, (_numbers(gold, classes), _numbers(predicted, classes)), 1)
    return matrix


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[ClassScore]:
    """matrix (C, C+1) as `confusion` counts it."""
    right, said, true = _counts(matrix)
    columns = (_share(right, said), _share(right, true), _share(2 * right, said + true), true)
    return [ClassScore(label, *(column[place].item() for column in columns)) for place, label in enumerate(classes)]


def macro(matrix: np.ndarray) -> Average:
    """Every class weighs the same. A class that is neither true nor predicted in these rows says nothing and is left out."""
    right, said, true = (counts[matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) > 0] for counts in _counts(matrix))
    if not len(true):
        return Average(0.0, 0.0, 0.0)
    return Average(*(float(column.mean()) for column in (_share(right, said), _share(right, true), _share(2 * right, said + true))))


def micro(matrix: np.ndarray) -> Average:
    """Every row weighs the same. The three are the accuracy unless answers name no class: those lower the recall, not the precision."""
    right, said, true = (counts.sum() for counts in _counts(matrix))
    return Average(*(float(_share(*pair)) for pair in ((right, said), (right, true), (2 * right, said + true))))


def _counts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C,) rightly predicted, (C,) predicted, (C,) true."""
    return np.diagonal(matrix), matrix[:, :-1].sum(axis=0), matrix.sum(axis=1)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


# What needs no model


def majority_baseline(training: Mapping[str, int], gold: Sequence[str]) -> Majority:
    """training: rows of each class that were trained on; of equals, the first in the alphabet. Scored on the true classes of the test rows."""
    label = min(training, key=lambda one: (-training[one], one))
    return Majority(label, sum(one == label for one in gold) / len(gold) if gold else 0.0)


def unseen_labels(training: Mapping[str, int], gold: Sequence[str]) -> tuple[list[str], str]:
    """Classes of test rows that no training row has, and a note on them ("" if there are none)."""
    unseen = sorted({label for label in gold if not training.get(label)})
    rows = sum(label in unseen for label in gold)
    named = ", ".join(map(repr, unseen))
    note = f"{rows} of {len(gold)} test rows are of classes that no training row has ({named}); the model cannot know them, and they count as wrong"
    return unseen, note if unseen else ""
