"""Answers side by side: what is marked, what is cut, what is said of an answer."""

import random
import time

import pytest

from halfbyte.runs.answers import MOST_CHARACTERS, cut, differences, side_by_side, tags


def marked(pieces):
    return [text.strip() for text, only in pieces if only and text.strip()]


def test_words_that_only_one_has_are_marked():
    base, tuned = differences("I was a little girl, and fond of me.", "I was a boy, and fond of the sea.")
    assert marked(base) == ["little girl", "me"]
    assert marked(tuned) == ["boy", "the sea"]


@pytest.mark.parametrize(("one", "other"), [("", ""), ("a", ""), ("", "a b"), ("a b  c\nd", "a x  c\n\nd"), ("今日は寒い", "今日は暑い"), ("été 1", "été 2")])
def test_the_pieces_are_the_whole_text(one, other):
    base, tuned = differences(one, other)
    assert "".join(text for text, _ in base) == one
    assert "".join(text for text, _ in tuned) == other


def test_a_script_without_blanks_is_compared_letter_by_letter():
    assert marked(differences("今日は寒い", "今日は暑い")[0]) == ["寒"]


def test_nothing_is_marked_where_everything_would_be():
    assert marked(differences("the storm has come upon us", "a chisel is what I would buy")[0]) == []
    assert marked(differences("the same words", "the same words")[1]) == []


def test_a_hard_pair_is_compared_in_time():
    """Many equal words make a comparison slow: it is given up beyond a length."""
    random.seed(0)
    began = time.monotonic()
    for words in (300, 740, 1500):
        differences(*(" ".join(random.choices("ab", k=words)) for _ in range(2)))
    assert time.monotonic() - began < 5


def test_a_long_text_is_cut_and_said():
    assert cut("a" * MOST_CHARACTERS) == ("a" * MOST_CHARACTERS, "")
    text, rest = cut("a" * (MOST_CHARACTERS + 1))
    assert (len(text), rest) == (MOST_CHARACTERS, "cut here: 1 more character in report.json")
    assert cut(None) == ("", "")


def test_what_is_said_of_an_answer():
    assert tags({"base": "", "base_ended": True}, "base") == ["empty"]
    assert tags({"base": " a\n", "reference": "a", "base_ended": False}, "base") == ["exactly the reference", "did not end"]
    assert tags({"base": "a"}, "base") == [], "old runs do not say how an answer ended"


def test_the_first_pairs_are_open_and_the_others_folded():
    rows = [{"prompt": f"p{number}", "base": "x", "tuned": "y"} for number in range(9)]
    html = side_by_side(rows, "evaluation/answers.jsonl")
    assert html.index("p5") < html.index("<summary>3 more prompts</summary>") < html.index("p6")
    assert "evaluation/answers.jsonl" in html
    assert "reference" not in html
    assert "<details>" not in side_by_side(rows[:6], None)
    assert side_by_side([], None) == ""


def test_blanks_at_the_edge_of_a_phrase_are_not_underlined():
    html = side_by_side([{"prompt": "p", "base": "A chisel is good.", "tuned": "A sharp chisel is good. -Me"}], None)
    assert 'A <mark class="only tuned">sharp</mark> chisel is good. <mark class="only tuned">-Me</mark>' in html
