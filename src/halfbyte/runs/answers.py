"""Answers of base and tuned side by side, with the words marked that the other does not have."""

import re
from difflib import SequenceMatcher
from typing import Any

from halfbyte.runs.markup import folded, shown
from halfbyte.runs.words import counted

MOST_CHARACTERS = 3000
"""Of one text on the page; the cut is said, and report.json holds the whole."""
MOST_WORDS = 1500
"""Of both answers together, for the time of a comparison grows with their product."""
FIRST = 6
"""Pairs that are open from the start."""
TOO_DIFFERENT = 0.25
"""Below this share of common words nearly everything would be marked, which marks nothing."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+|\s+|[^\w\s]")
"""A word, a run of blanks or a sign; scripts that write without blanks go letter by letter."""

Piece = tuple[str, bool]
"""Text, and whether it is only here."""


def differences(base: str, tuned: str) -> tuple[list[Piece], list[Piece]]:
    """Both answers in pieces. Nothing is marked in answers that are too long to compare or have too little in common."""
    ours, theirs = WORD.findall(base), WORD.findall(tuned)
    plain = [(base, False)], [(tuned, False)]
    if len(ours) + len(theirs) > MOST_WORDS:
        return plain
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    blocks = matcher.get_matching_blocks()
    words = sum(len("".join(ours[block.a : block.a + block.size]).strip()) for block in blocks)
    if words < TOO_DIFFERENT * max(len(base), len(tuned)):
        return plain
    codes = matcher.get_opcodes()
    return joined([("".join(ours[a:b]), what != "equal") for what, a, b, _, _ in codes]), joined(
        [("".join(theirs[c:d]), what != "equal") for what, _, _, c, d in codes]
    )


def joined(pieces: list[Piece]) -> list[Piece]:
    """Without empty ones, and with the blanks between two marked words marked too, so that a marked phrase is one piece."""
    found: list[Piece] = []
    for text, only in (piece for piece in pieces if piece[0]):
        if only and len(found) > 1 and found[-2][1] and not found[-1][0].strip():
            found[-2:] = [(found[-2][0] + found[-1][0] + text, True)]
        else:
            found.append((text, only))
    return found


def cut(text: Any) -> tuple[str, str]:
    """What is shown of a text, and the words for what is not."""
    whole = "" if text is None else str(text)
    rest = len(whole) - MOST_CHARACTERS
    return (whole, "") if rest <= 0 else (whole[:MOST_CHARACTERS], f"cut here: {counted(rest, 'more character')} in report.json")


def tags(row: dict[str, Any], who: str) -> list[str]:
    """What is to be known of an answer besides its words."""
    found = []
    if not str(row.get(who) or "").strip():
        found.append("empty")
    elif isinstance(row.get("reference"), str) and str(row[who]).strip() == row["reference"].strip():
        found.append("exactly the reference")
    if row.get(f"{who}_ended") is False:
        found.append("did not end")
    return found


def side_by_side(rows: list[dict[str, Any]], answers: str | None) -> str:
    """The first pairs open, the others behind a line; `answers` is the file that holds them all."""
    if not rows:
        return ""
    pairs = [pair(row) for row in rows]
    any_marked = any('<mark class="only' in one for one in pairs)
    key = '<mark class="only base">Dotted</mark> stands in the base’s answer alone, <mark class="only tuned">underlined</mark> in the tuned one’s.'
    more = folded(counted(len(pairs) - FIRST, "more prompt"), "".join(pairs[FIRST:])) if len(pairs) > FIRST else ""
    where = f'<p class="quiet small">The answers to all test rows: {shown(answers)}</p>' if answers else ""
    return (f'<p class="quiet first">{key}</p>' if any_marked else "") + "".join(pairs[:FIRST]) + more + where


def pair(row: dict[str, Any]) -> str:
    (base, _), (tuned, _) = cut(row.get("base")), cut(row.get("tuned"))
    pieces = dict(zip(("base", "tuned"), differences(base, tuned), strict=True))
    asked = text_block("prompt", [(cut(row.get("prompt"))[0], False)], cut(row.get("prompt"))[1], [])
    wanted = text_block("reference", [(cut(row["reference"])[0], False)], cut(row["reference"])[1], []) if row.get("reference") is not None else ""
    answers = "".join(text_block(who, pieces[who], cut(row.get(who))[1], tags(row, who)) for who in ("base", "tuned"))
    return f'<div class="pair">{asked}{wanted}{answers}</div>'


def text_block(name: str, pieces: list[Piece], rest: str, told: list[str]) -> str:
    body = "".join(marked(name, text) if only else shown(text) for text, only in pieces)
    labels = "".join(f'<span class="tag">{shown(one)}</span>' for one in told)
    note = f'<p class="cut">{shown(rest)}</p>' if rest else ""
    return f'<div class="{name}"><div class="label">{name}{labels}</div><p class="text" dir="auto">{body}</p>{note}</div>'


def marked(name: str, text: str) -> str:
    """The blanks around a phrase stay outside its mark."""
    words = text.strip()
    before, _, after = text.partition(words) if words else (text, "", "")
    return f'{shown(before)}<mark class="only {name}">{shown(words)}</mark>{shown(after)}' if words else shown(text)
