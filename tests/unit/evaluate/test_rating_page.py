"""The page of pairs: nothing in it tells base from tuned, nothing of data or model is taken for markup, and nothing is fetched."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from halfbyte.evaluate.rate import Pair
from halfbyte.evaluate.rating_page import SCRIPT, page

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\u202e\x1b[31m"\'&</fieldset>'


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def pair(number, a="base", base="no", tuned="yes", prompt="who?"):
    return Pair(f"{number:016x}", prompt, {"base": base, "tuned": tuned}, a)


def test_every_pair_has_three_choices_and_none_is_made():
    tags = Tags(page("r", "abc", 3, [pair(1), pair(2, "tuned")])).found
    radios = [attributes for tag, attributes in tags if tag == "input"]
    assert [(radio["name"][-1], radio["value"]) for radio in radios] == [(name, vote) for name in "12" for vote in ("a", "b", "tie")]
    assert not any("checked" in radio for radio in radios)
    (form,) = [attributes for tag, attributes in tags if tag == "form"]
    assert (form["data-adapter"], form["data-seed"], form["data-pairs"], form["data-run"]) == ("abc", "3", "2", "r")


@pytest.mark.parametrize("a", ["base", "tuned"])
def test_a_stands_first_and_nothing_tells_which_it_is(a):
    """The page of swapped answers with swapped sides is the same page."""
    other = "tuned" if a == "base" else "base"
    one = page("r", "abc", 3, [Pair("1", "who?", {a: "first", other: "second"}, a)])
    assert one.index("first</p>") < one.index("second</p>")
    assert one == page("r", "abc", 3, [Pair("1", "who?", {other: "first", a: "second"}, other)])
    assert not re.search(r"\b(base|tuned)\b", one)


def test_data_and_answers_are_text():
    plain, evil = (page(text, "abc", 3, [pair(1, base=text, tuned=text, prompt=text)]) for text in ("x", EVIL))
    assert [tag for tag, _ in Tags(evil).found] == [tag for tag, _ in Tags(plain).found]
    assert "\u202e" not in evil
    assert "\x1b" not in evil
    assert "\\u202e" in evil


def test_one_script_known_by_its_hash_and_nothing_fetched():
    text = page("r", "abc", 3, [pair(1)])
    (inside,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert inside == SCRIPT
    known = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    policy = next(attributes["content"] for tag, attributes in Tags(text).found if attributes.get("http-equiv"))
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(", text.replace(policy, ""))


def test_an_empty_answer_is_shown_as_such():
    for nothing in ("", " \n"):
        assert "(empty)" in page("r", "abc", 3, [pair(1, base=nothing)])
