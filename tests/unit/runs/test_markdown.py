"""The text form: what comes from data is read as text."""

import pytest

from halfbyte.runs.markdown import fence, grid, plain


@pytest.mark.parametrize(("text", "written"), [
    ("a | b", r"a \| b"), ("<b>&amp;", "&lt;b&gt;&amp;amp;"), ("**a** _b_ `c` [d](e) ~f~ $g$", r"\*\*a\*\* \_b\_ \`c\` \[d\](e) \~f\~ \$g\$"),
    ("a\n\n# b", "a # b"), ("# a", "\u200b# a"), ("- a", "\u200b- a"), ("1. a", "\u200b1. a"), ("1.5", "1.5"), ("+3.2", "+3.2"), ("---", "\u200b---"),
    ("https://d.example", "https&#58;//d.example"), ("www.d.example", "www&#46;d.example"), ("a@d.example", "a&#64;d.example"),
    ("\u202e", r"\\u202e"), (None, "–"),
])  # fmt: skip
def test_one_line_of_text_is_text(text, written):
    assert plain(text) == written


def test_a_fence_is_longer_than_any_inside_it():
    assert fence("a") == "```text\na\n```"
    assert fence("a\n````\n# b") == "`````text\na\n````\n# b\n`````"


def test_a_table():
    assert grid(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
    assert grid(["a"], []) == ""
