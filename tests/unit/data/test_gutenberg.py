"""Project Gutenberg's header and licence are left out, and nothing of any book is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.data.gutenberg import LONGEST_BOILERPLATE, LONGEST_TITLE, REASON, without_gutenberg
from halfbyte.data.records import Record
from halfbyte.data.shapes import Refused

START = "*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***"
LONG = ["x" * 1000] * (LONGEST_BOILERPLATE // 1000 + 1)


def kept(pieces: list[str], files: list[str] | None = None, notes: list[str] | None = None) -> list[str]:
    """The texts that are left; every row must have its outcome, in its place."""
    rows = [Record(files[i] if files else "a", i + 1, text=piece, group="g") for i, piece in enumerate(pieces)]
    outcomes = list(without_gutenberg(rows, [] if notes is None else notes))
    assert [(outcome.file, outcome.line) for outcome in outcomes] == [(row.file, row.line) for row in rows]
    assert all(outcome.reason == REASON and not outcome.bad for outcome in outcomes if isinstance(outcome, Refused))
    assert all(outcome.group == "g" for outcome in outcomes if isinstance(outcome, Record))
    return [outcome.text for outcome in outcomes if isinstance(outcome, Record)]


@pytest.mark.parametrize(("pieces", "book"), [
    (["head", "credits", START, "CHAPTER I", "It was dark.", END, "licence"], ["CHAPTER I", "It was dark."]),
    (["licence on top", START, "a"], ["a"]),
    (["a", "b", END, "licence"], ["a", "b"]),
    (["a", f"b\n{END}", "licence"], ["a", "b"]),
    (["a", f"{END}\nmore", "licence"], ["a"]),
    (["a", "End of Project Gutenberg's A Tale, by\nA Writer", END, "licence"], ["a"]),
    (["a", "The End of Project Gutenberg", "b", END], ["a", "The End of Project Gutenberg", "b"]),
    (["head", f"Credits\n{START}\nTitle", "a"], ["a"]),
    (["head", "***START OF THIS PROJECT GUTENBERG EBOOK A***", "a", "***END OF THIS PROJECT GUTENBERG EBOOK A***", "licence"], ["a"]),
    # Two books in one file, which lost the second, and a book in a row, which lost all.
    (["head", START, "a", END, "licence", "head", START, "b", END, "licence"], ["a", "b"]),
    ([f"head\n{START}\na\n{END}\nlicence", f"head\n{START}\nb\nc\n{END}\nlicence"], ["a", "b\nc"]),
    (["head", START, "a", f"{END}\nlicence\n{START}", "b"], ["a", "b"]),
    # What is not Gutenberg's.
    (["*** START OF THE STORM ***", "a", "*** END OF THE FIRST PART ***", "b"], ["*** START OF THE STORM ***", "a", "*** END OF THE FIRST PART ***", "b"]),
    (["a", "b"], ["a", "b"]),
])  # fmt: skip
def test_what_stands_outside_the_marks_is_left_out(pieces, book):
    notes: list[str] = []
    assert kept(pieces, notes=notes) == book
    left = len(pieces) - len(book)
    assert any(f"{left} row{'s' * (left > 1)} of Project Gutenberg header and licence left out" in note for note in notes) == bool(left)


def test_a_mark_in_a_large_collection_takes_nothing_else_with_it():
    """Guards against a book in the middle of other texts: all that stood before its START, or behind its END, was lost as licence."""
    assert kept([*LONG, START, "a", END, *LONG]) == [*LONG, "a", *LONG]
    assert kept(["b", f"head\n{START}\na\n{END}\nlicence", "c"]) == ["b", "a", "c"], "a book in a row of its own"
    assert kept(["a", END, "licence", f"head\n{START}\nb\n{END}\nlicence", "c"]) == ["a", "b", "c"]


def test_each_file_has_marks_of_its_own():
    """A folder in which one book has a START lost the books before it, and those behind an END."""
    files = ["a", "a", "b", "b", "b", "b", "c"]
    assert kept(["one", "two", "head", START, "three", END, "four"], files) == ["one", "two", "three", "four"]


def test_a_book_without_an_end_in_one_row_is_kept():
    """A row with a START is the title page, but not when it holds a book."""
    book = "y" * (LONGEST_TITLE + 1)
    assert kept([f"head\n{START}\n{book}", "a"]) == [book, "a"]
    assert kept([f"head\n{START}\n{book[2:]}", "a"]) == ["a"]


def test_cut_rows_are_told_once():
    notes: list[str] = []
    assert kept(["a", f"  b \n\n  {END}\nlicence"], notes=notes) == ["a", "  b"]
    assert notes == ["a:2: cut at Project Gutenberg's mark, the text of the book is kept"]
    kept([f"{START}\na\n{END}"] * 1000, notes=notes)
    assert notes[1:] == ["a:1: cut at Project Gutenberg's mark, the text of the book is kept; so in 999 more rows"]


def test_rows_that_were_refused_before_stay_in_their_place():
    rows = [Refused("a", 1, "empty", "empty"), Record("a", 2, text=START), Refused("a", 3, "empty", "empty"), Record("a", 4, text="b")]
    outcomes = list(without_gutenberg(rows, []))
    assert [outcome.line for outcome in outcomes] == [1, 2, 3, 4]
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Refused)] == ["empty", REASON, "empty"]


def test_little_is_held_back():
    """A file without marks streams: what is held is bounded."""
    taken = 0

    def rows():
        nonlocal taken
        for taken in range(1, 1001):
            yield Record("a", taken, text="x" * 1000)

    ahead = max(taken - place for place, _ in enumerate(without_gutenberg(rows(), []), 1))
    assert ahead <= LONGEST_BOILERPLATE // 1000 + 1


@given(st.lists(st.sampled_from(["a", "b\nc", START, END, f"x\n{END}", f"{START}\ny", f"{START}\nz\n{END}", "w" * 30_000]), max_size=12))
def test_every_row_has_one_outcome_and_no_mark_is_left(pieces):
    assert not any("PROJECT GUTENBERG" in text for text in kept(pieces))
