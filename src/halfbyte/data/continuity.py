"""Do rows go on where the row before ended, as the pieces of a book do, or is each a text of its own?

A book must show two signs, for the first is seen in other files too.
It stays near: neighbouring pages share names and things that pages far apart do not. So do the rows of a list sorted by topic.
It runs one way: the end of a page shares more rare words with the beginning of the next than its beginning shares with the end of the next.
Rows that could as well stand the other way round, sorted by topic or not, show both as often; what counts is how far the first is ahead.

Measured on the first 1,000 rows or fewer (November 2026). Near, and ahead in standard deviations of chance:
Frankenstein in 481 pieces 88 % and 5.5; nine stretches of three collections of novels 89 to 98 % and 11.9 to 16.9; the same books cut anew, into
500 to 30,000 characters or by paragraphs, 78 to 96 % and 5.4 to 21.3. Film reviews, web texts, instruction data and made-up topics, as they are,
shuffled, or sorted by topic, length, first or last words, and pages of novels shuffled: 284 lists, up to 100 % near, never more than 2.6 ahead;
paragraphs of Wikipedia 82 to 95 % and 0.5 to 2.9.
What is missed stays separate: of stretches of 100 pieces of the novels 4 in 10, of 300 none; of four books by chapters two (28 and 267 rows).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

# Of the rows of a book so many are more like the next one than like a distant one.
CONTINUED_SHARE = 0.7
# Of fewer, so many come out on one side by chance too often: 14 of 20 in one file of 17.
FEWEST_COMPARISONS = 20
# Standard deviations: between what was measured on collections and on books of a few hundred pieces.
BEYOND_CHANCE = 4
# Of the beginning and of the end of a row; half a page has names enough.
EDGE_CHARACTERS = 1_000
# A word in more rows than one in so many tells nothing of where it stands.
RARE = 5
# Two rows that begin alike are one text told twice, such as a conversation with one turn more.
SAME_START = 100
WORDS = re.compile(r"\w+")


def follow_one_another(texts: Sequence[str]) -> tuple[bool, str]:
    """Whether the rows are pieces of one text, and what says so. Where it cannot be told they are not: strangers are never joined."""
    heads, tails = _rare_edges(texts)
    rows = [head | tail for head, tail in zip(heads, tails, strict=True)]
    half = len(rows) // 2
    pairs = [(place, place + 1) for place in range(len(rows) - 1) if texts[place][:SAME_START] != texts[place + 1][:SAME_START]]
    near, far = _wins((_in_common(rows[one], rows[two]), _in_common(rows[one], rows[(one + half) % len(rows)])) for one, two in pairs)
    onward, back = _wins((len(tails[one] & heads[two]), len(heads[one] & tails[two])) for one, two in pairs)
    if min(near + far, onward + back) < FEWEST_COMPARISONS:
        return False, "too few can tell whether they follow one another"
    share, crossing = near / (near + far), onward + back
    said = f"{share:.0%} are more like the next one than like a distant one (book: {CONTINUED_SHARE:.0%} or more)"
    if share < CONTINUED_SHARE:
        return False, said
    least = math.ceil((crossing + BEYOND_CHANCE * math.sqrt(crossing)) / 2)
    said += f", and {onward} of {crossing} end as the next one begins rather than begin as it ends (book: {least} or more)"
    return (True, said) if onward >= least else (False, f"{said}: a list sorted by topic, or too short a book to tell")


def _rare_edges(texts: Sequence[str]) -> tuple[list[set[str]], list[set[str]]]:
    """Of every row the words of its beginning and those of its end, at most half of the row each, without those of many rows."""
    edges = [min(EDGE_CHARACTERS, len(text) // 2) for text in texts]
    heads = [set(WORDS.findall(text[:edge].lower())) for text, edge in zip(texts, edges, strict=True)]
    tails = [set(WORDS.findall(text[len(text) - edge :].lower())) for text, edge in zip(texts, edges, strict=True)]
    rows_with = Counter(word for head, tail in zip(heads, tails, strict=True) for word in head | tail)
    rare = {word for word, rows in rows_with.items() if rows <= max(2, len(texts) // RARE)}
    return [head & rare for head in heads], [tail & rare for tail in tails]


def _wins(scores: Iterable[tuple[float, float]]) -> tuple[int, int]:
    """How often the first is larger, and how often the second."""
    pairs = list(scores)
    return sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)


def _in_common(one: set[str], other: set[str]) -> float:
    """Shared words over those of the smaller row, so that a long row is no better a neighbour than a short one."""
    return len(one & other) / max(1, min(len(one), len(other)))
