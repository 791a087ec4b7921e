"""Rows -> train, validation and test, without a page, a prompt or a near copy on two sides.

A book is split where it stands: its end is the test part, what comes before that validates, with a gap between, so that
neighbouring pages do not tell on each other. Other rows are drawn by hash, so that adding or reordering rows moves few others;
rows that share a prompt, a response or a group, or are nearly the same, stay together; classes keep their shares.
Parts that are given as files are compared with each other, and what they share is told with its lines.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from halfbyte.data.labels import check_labels, rows_for_each
from halfbyte.data.near import connected, equal_keys
from halfbyte.data.survey import Survey, left_out
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import LabelData, SettledData, TextData

SMALLEST_TRAIN_ROWS = 2
TRAIN, VALIDATION, TEST, OUT = 0, 1, 2, 3
SIDES = ("train", "validation", "test")
# A gap never takes more than this share of a book.
LARGEST_GAP_SHARE = 0.02
# Pairs of lines in a note.
SHOWN_PAIRS = 3
# Groups that are looked at as Python numbers at a time.
GROUPS_AT_ONCE = 1 << 16


@dataclass
class Split:
    """`side` has an entry a row: TRAIN, VALIDATION, TEST or OUT; `left_out` says what became of those that are OUT."""

    side: np.ndarray
    decision: Decision
    left_out: Counter[str]
    notes: list[str] = field(default_factory=list)

    def count(self, side: int) -> int:
        return int((self.side == side).sum())


def split_records(survey: Survey, section: SettledData, seed: int = 0) -> Split:
    """Raises DataError when too little is left to train on, or a class is too small to be on all sides."""
    book = isinstance(section, TextData) and section.rows == "book"
    split = Split(np.where(survey.refused > 0, OUT, survey.part).astype(np.uint8), Decision("split", "", ""), left_out(survey))
    if not book:
        _leave_out_copies(survey, section, split)
    given = [part for part in (VALIDATION, TEST) if (survey.part == part).any()]
    if given:
        _compare_given(survey, section, split)
    shares = (0.0 if VALIDATION in given else section.validation_share, 0.0 if TEST in given else section.test_share)
    rows = np.flatnonzero(split.side == TRAIN)
    if isinstance(section, LabelData):
        split.notes += check_labels(survey, section, np.flatnonzero(split.side != OUT), rows, 1 + sum(share > 0 for share in shares))
    reasons = ["as given"] if given else []
    if not any(shares):
        reasons += [] if given else ["nothing is held out"]
    elif isinstance(section, TextData) and book:
        reasons.append(_split_book(survey, split, rows, shares, section.gap))
    else:
        reasons += _draw(survey, section, split, rows, shares, seed)
    known = 0 if isinstance(section, LabelData | TextData) else _known_answers(survey, split)
    if known:
        reasons.append(f"{known} of {split.count(TEST)} test responses also stand in training")
    sizes = [split.count(side) for side in (TRAIN, VALIDATION, TEST)]
    split.decision = Decision("split", f"{sizes[0]} train, {sizes[1]} validation, {sizes[2]} test records", "; ".join(reasons))
    if sizes[TRAIN] < SMALLEST_TRAIN_ROWS:
        said = "".join(f", {count} {what}" for what, count in split.left_out.items())
        raise DataError(
            f"{section.paths[0]}: {len(survey)} rows leave {sizes[TRAIN]} to train on{said}",
            hint="give more rows, or lower data.validation_share and data.test_share",
        )
    return split


def _drop(split: Split, rows: np.ndarray, reason: str) -> None:
    if len(rows):
        split.side[rows] = OUT
        split.left_out[reason] += len(rows)


def _leave_out_copies(survey: Survey, section: SettledData, split: Split) -> None:
    """Only among the rows of one part: a test row that is also trained on is a leak, which is told."""
    if not section.keep_duplicates:
        for part in range(len(SIDES)):
            rows = np.flatnonzero(split.side == part)
            _drop(split, rows[_repeated(survey.whole[rows])], "exact duplicate")
    if section.near_duplicates == "drop":
        rows = np.flatnonzero(split.side != OUT)
        alike = connected(len(survey), survey.near_whole)[rows]
        # With another class a near copy is a contradiction, which is told.
        alike = (alike * len(survey.labels) + survey.label[rows]) * len(SIDES) + survey.part[rows]
        _drop(split, rows[_repeated(alike)], "near-duplicate")


def _repeated(keys: np.ndarray) -> np.ndarray:
    """(N,) bool: True where a key stood before."""
    again = np.ones(len(keys), dtype=bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _same(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Edges between the rows of equal keys, of those that `among` (N,) bool lets in."""
    return equal_keys(np.where(among, keys, 0).astype(np.uint64))


# Parts that are given


def _compare_given(survey: Survey, section: SettledData, split: Split) -> None:
    """Notes the rows of one part that stand, or nearly, in another; with drop_overlap leaves out those that would train.

    What is nearly the same as something that is nearly the same counts too.
    """
    kept = split.side != OUT
    asked = _same(survey.asked, kept)
    ways = {
        "word for word": connected(len(survey), _same(survey.whole, kept)),
        "but for case and blanks" if isinstance(section, TextData) else "with the same prompt": connected(len(survey), asked),
        "nearly the same" if isinstance(section, TextData) else "with nearly the same prompt": connected(len(survey), asked, survey.near),
    }
    for held, other in ((TEST, TRAIN), (TEST, VALIDATION), (VALIDATION, TRAIN)):
        here, there = split.side == held, split.side == other
        told = np.zeros(len(survey), dtype=bool)
        said = []
        for way, alike in ways.items():
            both = np.isin(alike, np.intersect1d(alike[here], alike[there]))
            rows = np.flatnonzero(here & both & ~told)
            told[rows] = True
            pairs = [(row, np.flatnonzero(there & (alike == alike[row]))[0]) for row in rows[:SHOWN_PAIRS]]
            if pairs:
                said.append(f"{len(rows)} {way} (first {', '.join(f'{survey.place(row)} = {survey.place(twin)}' for row, twin in pairs)})")
        if not said:
            continue
        mend = "mend one of the two files"
        if other == TRAIN:
            mend = "data.drop_overlap=true leaves out those that train"
            if section.drop_overlap:
                mend = "those that train are left out"
                # `both` is of the widest way now.
                _drop(split, np.flatnonzero(there & both), f"also in the given {SIDES[held]} file")
        split.notes.append(f"{int(told.sum())} of {int(here.sum())} {SIDES[held]} rows also stand in {SIDES[other]}: {', '.join(said)}; {mend}")


def _known_answers(survey: Survey, split: Split) -> int:
    return int(np.isin(survey.answered[split.side == TEST], survey.answered[split.side == TRAIN]).sum())


# A book


def _split_book(survey: Survey, split: Split, rows: np.ndarray, shares: tuple[float, float], gap: int) -> str:
    """Contiguous, measured in characters: train | gap | validation | gap | test."""
    lengths = survey.characters[rows].astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    train_end, validation_end = total * (1 - shares[0] - shares[1]), total * (1 - shares[1])
    side = np.where(ends <= train_end, TRAIN, np.where(ends <= validation_end, VALIDATION, TEST)).astype(np.uint8)
    split.side[rows] = side
    gap = min(gap, int(total * LARGEST_GAP_SHARE))
    left = 0
    for later in (VALIDATION, TEST):
        places = np.flatnonzero(side == later)
        if not gap or not len(places) or not places[0]:
            continue
        between = places[ends[places] - ends[places[0] - 1] <= gap]
        between = between if len(between) else places[:1]
        # A part that is hardly longer than the gap is worth more than it.
        if 2 * lengths[between].sum() < lengths[places].sum():
            _drop(split, rows[between], "gap between the parts")
            left += int(lengths[between].sum())
    said = f", {left:,} characters between the parts left out" if left else ""
    return f"the end of the text is held out{said}, so that no held-out page has a neighbour in training"


# Rows of their own


def _draw(survey: Survey, section: SettledData, split: Split, rows: np.ndarray, shares: tuple[float, float], seed: int) -> list[str]:
    """Rows that belong together, in the order of their hashes, fill the test part, then validation; the rest trains."""
    if not len(rows):
        return []
    labelled = isinstance(section, LabelData)
    label = survey.label if labelled else np.zeros(len(survey), dtype=np.int32)
    wanted = dict(zip((TEST, VALIDATION), rows_for_each(np.bincount(label[rows]), shares, labelled), strict=True))
    asked = {side: sum(counts) for side, counts in wanted.items()}
    together, reason = _bonds(survey, section, split.side == TRAIN, max(asked.values()))
    order, starts = _ordered(survey, rows, together, seed)
    _fill(split, order, starts, label, wanted)
    sizes = np.diff(starts)
    for side, count in asked.items():
        trains = split.side[order[starts[:-1]]] == TRAIN
        fitting = np.flatnonzero(trains & (sizes < 2 * count) & (2 * sizes < split.count(TRAIN)))
        if not split.count(side) and len(fitting):
            # Better a little too much than nothing.
            group = fitting[np.argmin(sizes[fitting])]
            split.side[order[starts[group] : starts[group + 1]]] = side
    for side, count in asked.items():
        if 2 * split.count(side) < count:
            cause = "data.group_column" if (survey.group[rows] > 0).any() else "data.near_duplicates"
            split.notes.append(
                f"{split.count(side)} of {count} {SIDES[side]} rows could be held out: {int(sizes.max())} of {len(rows)} rows belong together ({cause})"
            )
    return ["drawn by hash", reason, *(["every class has its share in each part"] if labelled else [])]


def _bonds(survey: Survey, section: SettledData, drawn: np.ndarray, wanted: int) -> tuple[np.ndarray, str]:
    """For every row the first that it must not be parted from, and what binds them.

    A response binds too, unless so many rows share one (labels, "I don't know") that the held-out parts would hold nothing but rare ones.
    """
    together = connected(len(survey), _same(survey.group, drawn), _same(survey.asked, drawn), survey.near)
    shared = ["a text" if isinstance(section, TextData) else "a prompt"]
    if not isinstance(section, LabelData | TextData):
        wider = connected(len(survey), np.stack([np.arange(len(survey)), together], axis=1), _same(survey.answered, drawn))
        largest, larger = (int(np.bincount(alike[drawn]).max()) for alike in (together, wider))
        if larger <= max(1, largest, wanted):
            together = wider
            shared.append("a response")
    if survey.group[drawn].any():
        shared.append("a group")
    near = "" if section.near_duplicates == "ignore" else ", or are nearly the same,"
    return together, f"rows that share {' or '.join(shared)}{near} stay on one side"


def _ordered(survey: Survey, rows: np.ndarray, together: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows group by group, and where each group starts, with the end behind them.

    Groups come by the smallest hash of what their rows ask: an answer that is edited moves no row. Another seed, another order.
    """
    keys = survey.asked[rows]
    if seed:
        keys = (keys ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads neighbouring seeds
    group = together[rows]
    smallest = np.full(len(survey), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, group, keys)
    order = np.lexsort((group, smallest[group]))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
    return rows[order], starts


def _fill(split: Split, order: np.ndarray, starts: np.ndarray, label: np.ndarray, wanted: dict[int, list[int]]) -> None:
    """Each group goes to the first side that has room for all its rows, class by class."""
    room = {side: list(counts) for side, counts in wanted.items()}
    missing = sum(map(sum, room.values()))
    for start, end in _spans(starts):
        if not missing:
            return
        found, counts = np.unique(label[order[start:end]], return_counts=True) if end - start > 1 else (label[order[start:end]], np.ones(1, int))
        classes = list(zip(found.tolist(), counts.tolist(), strict=True))
        for side, left in room.items():
            if all(left[one] >= count for one, count in classes):
                split.side[order[start:end]] = side
                for one, count in classes:
                    left[one] -= count
                missing -= end - start
                break


def _spans(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    for at in range(0, len(starts) - 1, GROUPS_AT_ONCE):
        yield from pairwise(starts[at : at + GROUPS_AT_ONCE + 1].tolist())
