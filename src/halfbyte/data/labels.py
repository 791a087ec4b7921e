"""What can be wrong with classes before a model is trained on them: too few rows, two forms of one, the same text in two of them."""

import re
import unicodedata
from decimal import Decimal

import numpy as np

from halfbyte.data.rows import MOST_PROBLEMS
from halfbyte.data.shapes import label_meant
from halfbyte.data.survey import Survey
from halfbyte.errors import DataError
from halfbyte.recipe.schema import LabelData

# Pairs of lines in a note.
SHOWN_PAIRS = 3
SIDES_OF = {1: "train", 2: "train and a held-out part", 3: "train, validation and test"}


def check_labels(survey: Survey, section: LabelData, kept: np.ndarray, drawn: np.ndarray, parts: int) -> list[str]:
    """What is worth telling. `kept` rows are used, of which `drawn` are parted into `parts`; the others are given.

    Raises DataError for data of one class, and for classes that cannot be in each part.
    """
    classes = len(survey.labels)
    counts, to_part = (np.bincount(survey.label[rows], minlength=classes) for rows in (kept, drawn))
    present = np.flatnonzero(counts).tolist()
    if len(present) == 1:
        hint = "is data.label_column the right column?"
        raise DataError(f"{section.paths[0]}: every row has the label {survey.labels[present[0]]!r}: there is nothing to tell apart", hint=hint)
    small = [label for label in present if 0 < to_part[label] < parts]
    if small:
        large = [survey.labels[label] for label in present if to_part[label] >= parts]
        seen = [_too_small(survey, drawn, label, int(to_part[label]), parts, large) for label in small[:MOST_PROBLEMS]]
        raise DataError("\n".join(seen), hint="give more rows of it, or read it as another class with data.merge_labels")
    notes = [f"label {survey.labels[label]!r} stands in a held-out file and in no training row" for label in present if not to_part[label]]
    # A class that is read as another was met, but under the other's name.
    known = {survey.labels[label] for label in present} | section.merge_labels.keys()
    notes += [f"data.labels: no row has the label {label!r}" for label in section.labels if label not in known]
    forms: dict[str, list[str]] = {}
    for label in present:
        forms.setdefault(label_form(survey.labels[label]), []).append(survey.labels[label])
    notes += [f"labels {', '.join(map(repr, alike))} differ only in form; data.merge_labels makes them one" for alike in forms.values() if len(alike) > 1]
    return _merged(survey, section) + notes + _conflicts(survey, kept)


def check_trained(survey: Survey, trained: np.ndarray, drawn: np.ndarray) -> list[str]:
    """A note on the classes of which every row is held out, since their rows belong together."""
    lost = sorted(set(survey.label[drawn].tolist()) - set(survey.label[trained].tolist()))
    named = ", ".join(repr(survey.labels[label]) for label in lost[:SHOWN_PAIRS]) + ", ..." * (len(lost) > SHOWN_PAIRS)
    mend = "name a column with smaller groups, or give the parts as files"
    return [f"{len(lost)} of the classes {_are(len(lost))} only tested and never trained, since their rows belong together: {named}; {mend}"] if lost else []


def _merged(survey: Survey, section: LabelData) -> list[str]:
    """Which classes are read as others, over all parts: a file may well have no row of one."""
    counts = {label: survey.merged[label] for label in section.merge_labels}
    notes = [f"{_rows(count)} with the label {label!r} {_are(count)} read as {section.merge_labels[label]!r}" for label, count in counts.items() if count]
    return notes + [f"data.merge_labels: no row has the label {label!r}" for label, count in counts.items() if not count]


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def label_form(label: str) -> str:
    """One form of a class written in several: 1, 1.0 and 01; Good and good."""
    form = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return str(Decimal(form).normalize()) if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", form) else form


def rows_for_each(counts: np.ndarray, shares: tuple[float, float], labelled: bool) -> tuple[list[int], list[int]]:
    """Of each class (or of all rows, as one) how many test and how many validate. A class has at least a row in every part."""
    test, validation = [], []
    for count in counts.tolist():
        validates, tests = (max(labelled, round(count * share)) if share and count else 0 for share in shares)
        if labelled:
            tests = min(tests, max(0, count - 1 - (shares[0] > 0)))
            validates = min(validates, max(0, count - 1 - tests))
        test.append(tests)
        validation.append(validates)
    return test, validation


def _too_small(survey: Survey, drawn: np.ndarray, label: int, count: int, parts: int, large: list[str]) -> str:
    place = survey.place(drawn[np.argmax(survey.label[drawn] == label)])
    name = survey.labels[label]
    meant = label_meant(name, large)
    mend = f". Did you mean {meant!r}? data.merge_labels={{{name}: {meant}}}" if meant else ""
    return f"{place}: label {name!r} has {_rows(count)}: cannot be in {SIDES_OF[parts]}; need at least {parts}{mend}"


def _conflicts(survey: Survey, rows: np.ndarray) -> list[str]:
    """Rows whose text also stands with another class."""
    order = rows[np.lexsort((survey.label[rows], survey.asked[rows]))]
    text, label = survey.asked[order], survey.label[order]
    new_text = np.diff(text, prepend=text[:1]) != 0
    conflicts = np.flatnonzero(~new_text[1:] & (label[1:] != label[:-1]))
    if not len(conflicts):
        return []
    number = np.cumsum(new_text)
    count = int(np.isin(number, number[conflicts]).sum())
    in_file = np.sort(np.stack([order[conflicts], order[conflicts + 1]], axis=1), axis=1)
    pairs = in_file[np.lexsort(in_file.T[::-1])][:SHOWN_PAIRS]
    said = ", ".join(" and ".join(f"{survey.place(row)} {survey.labels[survey.label[row]]!r}" for row in pair) for pair in pairs)
    return [f"{count} rows have a text that also stands with another label: {said}{', ...' * (len(conflicts) > SHOWN_PAIRS)}; correct them"]
