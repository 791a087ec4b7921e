"""Rows -> train, validation and test, without a page, a prompt or a near copy on two sides.

A book is split where it stands: its end is the test part, what comes before that validates, with a gap between, so that
neighbouring pages do not tell on each other. Other rows are drawn by hash, so that adding or reordering rows moves few others;
rows that share a prompt, a response, the first exchange of a conversation or a group, or are nearly the same, stay together; classes keep their shares.
Parts that are given as files are compared with each other, and what they share is told with its lines.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeGuard

import numpy as np
from pydantic.fields import FieldInfo

from halfbyte.data.labels import check_labels, check_trained, rows_for_each
from halfbyte.data.near import connected, equal_keys
from halfbyte.data.survey import Survey, left_out
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import InstructionData, LabelData, ManyTurns, SettledData, TextData

SMALLEST_TRAIN_ROWS = 2
# A first exchange that goes on in more ways than this, and than this share of the rows, is a greeting and makes no conversation of them.
MOST_WAYS_ON, LARGEST_WAYS_SHARE = 20, 0.05
TRAIN, VALIDATION, TEST, OUT = 0, 1, 2, 3
SIDES = ("train", "validation", "test")
# A gap never takes more than this share of a book.
LARGEST_GAP_SHARE = 0.02
# Pairs of lines in a note.
SHOWN_PAIRS = 3
# Characters. What is shorter stands in many books: * * *, CHAPTER I.
ORNAMENT = 20
# What keeps rows together, and the mend where it keeps too many.
BONDS = {
    "near": "(data.near_duplicates): data.near_duplicates=ignore parts them",
    "group": "(data.group_column): name a column with smaller groups, or take it out, which parts them",
    "beginning": "(they begin with the same exchange): give the part as a file of its own",
    "asked": "(they ask the same): give the part as a file of its own",
    "answered": "(they have the same response): give the part as a file of its own",
}
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
    book = section if _is_book(section) else None
    split = Split(np.where(survey.refused > 0, OUT, survey.part).astype(np.uint8), Decision("split", "", ""), left_out(survey))
    split.notes += _idle_keys(section)
    if not book:
        _leave_out_copies(survey, section, split)
    given = [part for part in (VALIDATION, TEST) if (survey.part == part).any()]
    leaks_told = bool(given) and _compare_given(survey, section, split)
    shares = (0.0 if VALIDATION in given else section.validation_share, 0.0 if TEST in given else section.test_share)
    rows = np.flatnonzero(split.side == TRAIN)
    if isinstance(section, LabelData):
        split.notes += check_labels(survey, section, np.flatnonzero(split.side != OUT), rows, 1 + sum(share > 0 for share in shares))
    reasons = ["as given"] if given else []
    if not any(shares):
        reasons += [] if given else ["nothing is held out"]
    elif book and len(rows) == 1:
        hint = f"{_more_pieces(book)}, or hold nothing out with data.validation_share=0 data.test_share=0"
        raise DataError(f"{section.paths[0]}: the text is in one piece, so nothing can be held out of it", hint=hint)
    elif book:
        reasons.append(_split_book(survey, split, rows, shares, book))
    else:
        reasons += _draw(survey, section, split, rows, shares, seed)
    # Where test rows that also train are told, their answers are no news.
    known = 0 if leaks_told or isinstance(section, LabelData | TextData) else _known_answers(survey, split)
    if known:
        reasons.append(f"{known} of {split.count(TEST)} test responses also stand in training")
    sizes = [split.count(side) for side in (TRAIN, VALIDATION, TEST)]
    split.decision = Decision("split", f"{sizes[0]} train, {sizes[1]} validation, {sizes[2]} test records", "; ".join(reasons))
    if sizes[TRAIN] < (1 if book else SMALLEST_TRAIN_ROWS):
        said = "".join(f", {count} {what}" for what, count in split.left_out.items())
        count = f"{len(survey)} row leaves" if len(survey) == 1 else f"{len(survey)} rows leave"
        raise DataError(f"{section.paths[0]}: {count} {sizes[TRAIN]} to train on{said}", hint=_more_rows(survey, section, split))
    return split


def _is_book(section: SettledData) -> TypeGuard[TextData]:
    return isinstance(section, TextData) and section.rows == "book"


def _idle_keys(section: SettledData) -> list[str]:
    """Keys that are stated and change nothing here."""
    if not isinstance(section, TextData):
        return []
    if section.rows == "book":
        keys: tuple[str, ...] = ("group_column", "near_duplicates", "keep_duplicates")
        why = "a book is kept as it stands, and its end is held out"
    else:
        keys = ("gap", "separator")
        why = "the rows are texts of their own (data.rows=separate)"
    fields: dict[str, FieldInfo] = {**type(section).model_fields}
    stated = [f"data.{key}" for key in keys if getattr(section, key) != fields[key].default]
    return [f"{', '.join(stated)} {'do' if len(stated) > 1 else 'does'} nothing: {why}"] if stated else []


def _more_rows(survey: Survey, section: SettledData, split: Split) -> str:
    """The mend for what took most of the rows."""
    held_out = int(((survey.part == TRAIN) & (split.side != TRAIN) & (split.side != OUT)).sum())
    (reason, count), *_ = split.left_out.most_common(1) or [("", 0)]
    if count > held_out and "empty" in reason:
        answers = isinstance(section, InstructionData)
        keys = ["data.instruction_column", "data.output_column"] if answers else [f"data.{key}" for key in type(section).model_fields if _is_text_key(key)]
        return f"fill the column{'s' * (len(keys) > 1)}, or name {'others' if len(keys) > 1 else 'another'} with {' and '.join(keys)}"
    if count > held_out and reason == "exact duplicate":
        return "give more rows that differ, or keep repeated ones with data.keep_duplicates=true"
    if count > held_out and reason == "near-duplicate":
        return "give more rows that differ, or take out data.near_duplicates=drop"
    if section.drop_overlap and sum(lost for why, lost in split.left_out.items() if why.startswith("also in the given")) > held_out:
        return "take out data.drop_overlap, or give files that differ"
    if _is_book(section):
        return _more_pieces(section)
    if not held_out:
        return f"give more rows: training needs at least {SMALLEST_TRAIN_ROWS}"
    return "give more rows, or lower data.validation_share and data.test_share"


def _is_text_key(key: str) -> bool:
    return key == "column" or (key.endswith("_column") and key not in ("group_column", "input_column"))


def _more_pieces(section: TextData) -> str:
    return "put blank lines between its paragraphs" if section.column is None else "part it into more rows"


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


def _same_beginning(survey: Survey, among: np.ndarray) -> np.ndarray:
    """Edges between conversations of one beginning: the first two exchanges, or the first one, unless it is a greeting."""
    _, first_of = np.unique(survey.second, return_index=True)
    ways = survey.opening[first_of[survey.second[first_of] > 0]]
    openings, counts = np.unique(ways, return_counts=True)
    greetings = openings[counts > max(MOST_WAYS_ON, LARGEST_WAYS_SHARE * len(survey))]
    return np.concatenate([_same(survey.second, among), _same(survey.opening, among & ~np.isin(survey.opening, greetings))])


def _same(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Edges between the rows of equal keys, of those that `among` (N,) bool lets in."""
    return equal_keys(np.where(among, keys, 0).astype(np.uint64))


# Parts that are given


def _compare_given(survey: Survey, section: SettledData, split: Split) -> bool:
    """Notes the rows of one part that stand, or nearly, in another; with drop_overlap leaves out those that would train.

    What is nearly the same as something that is nearly the same counts too. Says whether the test part has rows that train.
    """
    leaks_told = False
    is_text = isinstance(section, TextData)
    kept = (split.side != OUT) & ((survey.characters >= ORNAMENT) | (not _is_book(section)))
    asked, opening = _same(survey.asked, kept), _same_beginning(survey, kept)
    ways = {
        "word for word": connected(len(survey), _same(survey.whole, kept)),
        "but for case and blanks" if is_text else "with the same prompt": connected(len(survey), asked),
        "with the same first exchange": connected(len(survey), asked, opening),
        "nearly the same" if is_text else "with nearly the same prompt": connected(len(survey), asked, opening, survey.near),
        "of the same group (data.group_column)": connected(len(survey), asked, opening, survey.near, _same(survey.group, kept)),
    }
    for held, other in ((TEST, TRAIN), (TEST, VALIDATION), (VALIDATION, TRAIN)):
        here, there = kept & (split.side == held), kept & (split.side == other)
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
        leaks_told |= (held, other) == (TEST, TRAIN)
        mend = "mend one of the two files"
        if np.intersect1d(survey.file[here], survey.file[there]).size:
            mend = f"data.{SIDES[held]}_path names a file that is also {'data.path' if other == TRAIN else 'data.validation_path'}: name another"
        elif other == TRAIN:
            mend = "data.drop_overlap=true leaves out those that train"
            if section.drop_overlap:
                mend = "those that train are left out"
                # `both` is of the widest way now.
                _drop(split, np.flatnonzero(there & both), f"also in the given {SIDES[held]} file")
        split.notes.append(f"{int(told.sum())} of {split.count(held)} {SIDES[held]} rows also stand in {SIDES[other]}: {', '.join(said)}; {mend}")
    return leaks_told


def _known_answers(survey: Survey, split: Split) -> int:
    return int(np.isin(survey.answered[split.side == TEST], survey.answered[split.side == TRAIN]).sum())


# A book


def _split_book(survey: Survey, split: Split, rows: np.ndarray, shares: tuple[float, float], section: TextData) -> str:
    """Contiguous, measured in characters: train | gap | validation | gap | test."""
    lengths = survey.characters[rows].astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    train_end, validation_end = total * (1 - shares[0] - shares[1]), total * (1 - shares[1])
    side = np.where(ends <= train_end, TRAIN, np.where(ends <= validation_end, VALIDATION, TEST)).astype(np.uint8)
    split.side[rows] = side
    for later, share in ((VALIDATION, shares[0]), (TEST, shares[1])):
        found = lengths[side == later].sum() / max(1, total)
        if abs(found - share) > share / 2:
            pieces = f"{len(rows)} {'paragraphs' if section.column is None else 'rows'}"
            split.notes.append(
                f"{SIDES[later]} has {found:.0%} of the characters instead of {share:.0%}, because the text has only {pieces}: {_more_pieces(section)}"
            )
    gap = min(section.gap, int(total * LARGEST_GAP_SHARE))
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
    _note_what_rounds_to_nothing(split, len(rows), {VALIDATION: shares[0], TEST: shares[1]}, asked)
    bonds, reason = _bonds(survey, section, split.side == TRAIN, max(asked.values()))
    together = connected(len(survey), *bonds.values())
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
            said = f"{split.count(side)} of {count} {SIDES[side]} rows could be held out: {int(sizes.max())} of {len(rows)} rows belong together"
            split.notes.append(f"{said} {_what_binds(bonds, rows, int(sizes.max()), len(survey))}")
    untrained = check_trained(survey, split.side == TRAIN, rows) if labelled else []
    split.notes += untrained
    return ["drawn by hash", reason, *(["every class has its share in each part"] if labelled and not untrained else [])]


def _note_what_rounds_to_nothing(split: Split, count: int, shares: dict[int, float], asked: dict[int, int]) -> None:
    empty = [side for side, share in shares.items() if share and not asked[side]]
    if empty and not any(asked.values()):
        mend = "give more rows, or a larger data.test_share" if count > 2 * SMALLEST_TRAIN_ROWS else "give more rows"
        split.notes.append(f"nothing could be held out of {count} row{'s' * (count != 1)}: {mend}")
    elif empty:
        side = SIDES[empty[0]]
        split.notes.append(f"nothing could be held out of {count} rows for {side}: give more rows, or a larger data.{side}_share")


def _what_binds(bonds: dict[str, np.ndarray], rows: np.ndarray, largest: int, count: int) -> str:
    """The cause of a group that is too large to be held out, and the mend: the first bond without which it falls apart."""
    for cause in BONDS:
        # What is the same is nearly the same too.
        gone = {cause, "near"} if cause == "asked" else {cause}
        without = connected(count, *(edges for name, edges in bonds.items() if name not in gone))
        if 2 * np.bincount(without[rows]).max() <= largest:
            return BONDS[cause]
    return "for more reasons than one: give the part as a file of its own"


def _bonds(survey: Survey, section: SettledData, drawn: np.ndarray, wanted: int) -> tuple[dict[str, np.ndarray], str]:
    """Edges between rows that must not be parted, by what binds them (BONDS), and the reason in words.

    A response binds too, unless so many rows share one (labels, "I don't know") that the held-out parts would hold nothing but rare ones.
    """
    bonds = {
        "near": survey.near, "group": _same(survey.group, drawn), "beginning": _same_beginning(survey, drawn), "asked": _same(survey.asked, drawn),
    }  # fmt: skip
    shared = ["a text" if isinstance(section, TextData) else "a prompt"]
    if isinstance(section, ManyTurns):
        shared.append("a first exchange")
    if not isinstance(section, LabelData | TextData):
        wider = {**bonds, "answered": _same(survey.answered, drawn)}
        largest, larger = (int(np.bincount(connected(len(survey), *edges.values())[drawn]).max()) for edges in (bonds, wider))
        if larger <= max(1, largest, wanted):
            bonds = wider
            shared.append("a response")
    if survey.group[drawn].any():
        shared.append("a group")
    near = "" if section.near_duplicates == "ignore" else ", or are nearly the same,"
    return bonds, f"rows that share {_listed(shared)}{near} stay on one side"


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


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
