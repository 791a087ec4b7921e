"""Structured answers: meaning representations, `act(slot[value], slot[value, value])`, and JSON objects. Order of slots and lists says nothing.

An answer counts only if all of it parses: what runs on behind its structure, or stands in a ``` fence, is of no use to the program that
reads it. An answer that does not parse is wrong, misses every item of its reference, and is counted apart.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.evaluate.metrics import Metric, Scores, f1, ratio

Item = tuple[str, str]
# A value may hold brackets in pairs, one pair inside another, as in `name[Half-Life [Remastered]]`; parentheses mean nothing in it.
WHOLE = re.compile(r"\s*([\w.:-]+)\s*\((.*)\)\s*", re.DOTALL)
SLOT = re.compile(r"\s*([^\s\[\](),][^\[\](),]*)\[((?:[^\[\]]++|\[[^\[\]]*+\])*+)\]\s*")


@dataclass(frozen=True)
class Structure:
    act: str
    """What is done with the items: inform, request. Empty for JSON."""
    items: Counter[Item]
    """(slot, value); how often, so that saying one thing twice is not free."""


def parse_structure(text: str) -> Structure | None:
    """None where the text is no structure from its first character to its last; blanks around its parts do not matter."""
    if text.lstrip().startswith("{"):
        return _parse_json(text)
    whole = WHOLE.fullmatch(text)
    if whole is None:
        return None
    items, place, inside = Counter[Item](), 0, whole[2]
    while inside.strip():
        slot = SLOT.match(inside, place)
        if slot is None:
            return None
        # A list stands for its values. A date such as August 14, 2018 becomes two items, in the answer as in the reference.
        items.update((slot[1].strip(), " ".join(value.split())) for value in slot[2].split(","))
        place = slot.end()
        if place == len(inside):
            break
        if inside[place] != ",":
            return None
        place += 1
    return Structure(whole[1], items)


def _parse_json(text: str) -> Structure | None:
    try:
        return Structure("", Counter(_leaves(json.loads(text), "")))
    except (ValueError, RecursionError):  # no JSON, or nested thousands of times
        return None


def _leaves(value: Any, path: str) -> Iterator[Item]:
    """(path, value as JSON), so that 1, "1" and true stay apart. Keys are joined as in RFC 6901, so that no key is taken for a path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            escaped = key.replace("~", "~0").replace("/", "~1")
            yield from _leaves(inner, f"{path}/{escaped}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def structure_scores(answers: Sequence[str], references: Sequence[str]) -> list[Scores]:
    """Exact match of all rows; of those whose reference parses the act (where references have one) and the slots.

    "slots" counts (slot, value); "act and slots" counts the act as one more item, so that an answer with every slot under the wrong act is not perfect.
    """
    pairs = _parsed(answers, references)
    unit = f"{len(pairs):,} answers"
    exact = [(answer == gold if gold else text.strip() == reference.strip(), 1) for (answer, gold), text, reference in zip(pairs, answers, references)]
    scores = [_scores("exact match", "mean", unit, exact)]
    known = [gold is not None for _, gold in pairs]
    if not any(known):
        return scores
    unit = f"{sum(known):,} answers"
    acts = [(answer is not None and answer.act == gold.act, 1) if gold and gold.act else (0, 0) for answer, gold in pairs]
    slots = [_counts(answer.items if answer else Counter(), gold.items) if gold else (0, 0, 0) for answer, gold in pairs]
    scores += [
        _scores("slot F1", "f1", unit, slots),
        _scores("slot precision", "ratio", unit, [(right, said) for right, said, _ in slots]),
        _scores("slot recall", "ratio", unit, [(right, asked) for right, _, asked in slots]),
    ]
    if not any(asked for _, asked in acts):
        return scores
    said_acts = [int(asked and answer is not None and answer.act != "") for (answer, _), (_, asked) in zip(pairs, acts)]
    both = [(right + act, said + said_act, gold + asked) for (right, said, gold), (act, asked), said_act in zip(slots, acts, said_acts)]
    return [scores[0], _scores("act accuracy", "mean", unit, acts), *scores[1:], _scores("act and slots F1", "f1", unit, both)]


def slot_table(answers: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """Of each slot, the most frequent in the references first: precision, recall and F1 of its values, and how many the references and the answers hold."""
    found, said, asked = Counter[str](), Counter[str](), Counter[str]()
    for answer, gold in _parsed(answers, references):
        if gold is None:
            continue
        items = answer.items if answer else Counter[Item]()
        for counts, several in ((found, items & gold.items), (said, items), (asked, gold.items)):
            for (slot, _), times in several.items():
                counts[slot] += times
    table = []
    for slot in sorted(said | asked, key=lambda slot: (-asked[slot], slot)):
        right, predicted, gold_items = found[slot], said[slot], asked[slot]
        table.append({
            "slot": slot, "precision": float(ratio(np.array([right, predicted]))), "recall": float(ratio(np.array([right, gold_items]))),
            "f1": float(f1(np.array([right, predicted, gold_items]))), "gold": gold_items, "predicted": predicted,
        })  # fmt: skip
    return table


def count_unparsable(texts: Sequence[str]) -> int:
    return sum(parse_structure(text) is None for text in texts)


def _parsed(answers: Sequence[str], references: Sequence[str]) -> list[tuple[Structure | None, Structure | None]]:
    return [(parse_structure(answer), parse_structure(reference)) for answer, reference in zip(answers, references, strict=True)]


def _counts(answer: Counter[Item], gold: Counter[Item]) -> tuple[int, int, int]:
    """True positives, predicted, gold."""
    return (answer & gold).total(), answer.total(), gold.total()


def _scores(name: str, kind: str, unit: str, rows: Sequence[tuple[int, ...]]) -> Scores:
    return Scores(Metric(name, kind, higher_is_better=True, unit=unit), np.array(rows, np.float64).reshape(-1, 3 if kind == "f1" else 2))
