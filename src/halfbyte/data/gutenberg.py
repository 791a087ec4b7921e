"""Project Gutenberg's header and licence, which stand outside a START mark and the END mark behind it, are left out of a text.

A mark is believed only where it can be one: what stands before the first START of a file, or behind an END, is held back, and when it
grows longer than any header or licence it was text after all. So a mark in the middle of a large collection takes nothing with it.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

from halfbyte.data.records import Record
from halfbyte.data.shapes import Refused

REASON = "Project Gutenberg header or licence"
# Older books say the end twice, the first time as a sentence.
MARK = re.compile(r"(?:\*\*\* ?(?P<what>START|END) OF TH(?:E|IS) PROJECT GUTENBERG|^End of (?:the )?Project Gutenberg).*", re.MULTILINE)
# The licence has 19,000; old headers with their small print have less.
LONGEST_BOILERPLATE = 50_000
# Title, credits and contents, which follow the START mark in one row. What is longer holds the book itself.
LONGEST_TITLE = 2_000

Outcome = Record | Refused


def without_gutenberg(outcomes: Iterable[Outcome], notes: list[str]) -> Iterator[Outcome]:
    """One outcome for each that is given, in order. Says in `notes` how many rows were left out or cut."""
    left = cut = 0
    first_cut = ""
    for _, of_file in groupby(outcomes, key=lambda outcome: outcome.file):
        for before, after in _of_one_file(of_file):
            if isinstance(before, Record) and isinstance(after, Refused):
                left += 1
            elif isinstance(before, Record) and isinstance(after, Record) and after.text != before.text:
                cut, first_cut = cut + 1, first_cut or f"{after.file}:{after.line}"
            yield after
    if left:
        notes.append(f"{left} row{'s' * (left > 1)} of Project Gutenberg header and licence left out (data.keep_boilerplate=true keeps them)")
    if cut:
        more = f"; so in {cut - 1} more row{'s' * (cut > 2)}" if cut > 1 else ""
        notes.append(f"{first_cut}: cut at Project Gutenberg's mark, the text of the book is kept{more}")


def _of_one_file(outcomes: Iterable[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Each outcome as it was and as it is now."""
    place: Literal["front", "inside", "behind"] = "front"
    held: list[Outcome] = []
    characters = 0
    for outcome in outcomes:
        text = outcome.text if isinstance(outcome, Record) else ""
        marks = list(MARK.finditer(text))
        if not marks:
            held.append(outcome)
            characters += len(text) + 1
            if place == "inside" or characters > LONGEST_BOILERPLATE:
                place = "inside"
                yield from ((one, one) for one in held)
                held, characters = [], 0
            continue
        starts, ends = marks[0]["what"] == "START", marks[-1]["what"] != "START"
        # An END says that the book stood before it; a row that holds a whole book says nothing of the rows around it.
        boilerplate = place == "behind" or (place == "front" and starts and not ends)
        yield from ((one, _refused(one) if boilerplate else one) for one in held)
        held, characters = [], 0
        yield outcome, _cut(outcome, marks, inside=place == "inside" or (place == "front" and not starts))
        place = "inside" if not ends else "front" if starts else "behind"
    yield from ((one, _refused(one) if place == "behind" else one) for one in held)


def _cut(outcome: Outcome, marks: list[re.Match[str]], inside: bool) -> Outcome:
    """What of a row with marks belongs to the book."""
    assert isinstance(outcome, Record)  # what was refused has no text, so no mark
    text, begins, kept = outcome.text, 0, ""
    for mark in marks:
        kept += text[begins : mark.start()] if inside else ""
        inside, begins = mark["what"] == "START", mark.end()
    if inside and len(text) - begins > LONGEST_TITLE:
        kept += text[begins:]
    return Record(outcome.file, outcome.line, text=kept.strip("\n").rstrip(), group=outcome.group) if kept.strip() else _refused(outcome)


def _refused(outcome: Outcome) -> Refused:
    return outcome if isinstance(outcome, Refused) else Refused(outcome.file, outcome.line, REASON, "stands outside the book")
