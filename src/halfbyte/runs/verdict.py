"""The verdict of a run in words, which every form of the report opens with: better, no evidence, worse, and what that rests on."""

from collections import Counter
from typing import Any

from halfbyte.runs.words import chance, count, counted, decimals_of, figure, fixed, interval, number, percent_change

TITLES = {
    "better": "Better than its base",
    "no evidence": "No evidence of a difference",
    "worse": "Worse than its base",
    "not tested": "Measured, not tested",
    "not compared": "Not compared with its base",
}
SIGNS = {"better": "▲", "no evidence": "○", "worse": "▼"}
"""A shape beside each word, so that it is read without colour too."""
NEUTRAL = "neutral text"
"""Tells what was forgotten; whether the run is better it cannot tell."""
GROUPS = {
    "text": "Text", "labels": "Classes", "answers": "Classes, as answered", "structure": "Structure", "replies": "Replies",
    "neutral text": "Neutral text: has it forgotten?",
}  # fmt: skip
"""The groups of comparisons in the order of the report; any other follows."""


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """word, title, sentence, rests_on (name and words of each thing), others (how all comparisons fell out, or None), worse (their names)."""
    compared = report["comparisons"]
    of_test_rows = [one for one in compared if one["group"] != NEUTRAL]
    if not of_test_rows:
        word = "not tested" if report["perplexity"] else "not compared"
        return {"word": word, "title": TITLES[word], "sentence": plain_sentence(report), "rests_on": {}, "others": None, "worse": []}
    main = next((one for one in of_test_rows if one.get("primary")), of_test_rows[0])
    word = word_of(main)
    worse = [one for one in compared if word_of(one) == "worse" and one is not main]
    return {
        "word": word,
        "title": TITLES[word] + (f", but {_told_worse(worse, len(compared))}" if worse and word in ("better", "no evidence") else ""),
        "sentence": sentence_of(main),
        "rests_on": rests_on(main),
        "others": others(compared),
        "worse": [f"{one['metric']} ({one['group']})" for one in worse],
    }


def _told_worse(worse: list[dict[str, Any]], compared: int) -> str:
    """For a title, which alone is often all that is read: `worse in chrF`, `worse in 3 of 10 figures`."""
    names = list(dict.fromkeys(f"{one['metric']} on neutral text" if one["group"] == NEUTRAL else str(one["metric"]) for one in worse))
    return f"worse in {names[0]}" if len(names) == 1 else f"worse in {len(worse)} of {compared} figures"


def word_of(comparison: dict[str, Any]) -> str:
    return next((word for word in SIGNS if word == comparison.get("verdict")), "not tested")


def in_order(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group by group, each group as it was logged."""
    order = [*GROUPS, *dict.fromkeys(one["group"] for one in comparisons if one["group"] not in GROUPS)]
    return sorted(comparisons, key=lambda one: order.index(one["group"]))


def rests_on(comparison: dict[str, Any]) -> dict[str, str]:
    """Name and words of each thing that the verdict rests on; what is not known is left out."""
    decimals, ends = decimals_of(comparison), interval(comparison.get("interval"))
    better = "higher is better" if comparison.get("higher_is_better") else "lower is better"
    found = {"measured by": f"{comparison['metric']} ({better})", "on": sample(comparison)}
    if number(comparison.get("difference")) is not None:
        found["change"] = fixed(comparison["difference"], decimals, sign=True)
    if ends:
        found["95 % interval"] = span(ends, decimals, sign=True)
    if number(comparison.get("smallest_effect")) is not None:
        found["smallest change it could show"] = fixed(comparison["smallest_effect"], decimals)
    if number(comparison.get("p_value")) is not None:
        found["test"] = f"{comparison.get('test') or 'not named'}, {chance(comparison['p_value'])}"
    return found


def sample(comparison: dict[str, Any]) -> str:
    """What was compared: `1083 test rows, by likelihood, of 70 documents`. The unit tells the rows where it holds their number."""
    rows, units, unit = comparison.get("rows"), comparison.get("units"), str(comparison.get("unit") or "")
    parts = [unit, "" if number(rows) is None or str(rows) in unit else counted(rows, "row")]
    drawn = "" if number(units) is None or units == rows else f" of {counted(units, 'document')}"
    return ", ".join(filter(None, parts)) + drawn


def span(ends: tuple[float, float], decimals: int, sign: bool = False) -> str:
    return f"{fixed(ends[0], decimals, sign)} to {fixed(ends[1], decimals, sign)}"


def others(comparisons: list[dict[str, Any]]) -> str | None:
    if len(comparisons) < 2:
        return None
    words = Counter(word_of(one) for one in comparisons)
    return f"Of {len(comparisons)} comparisons: {', '.join(f'{words[word]} {word}' for word in (*SIGNS, 'not tested') if words[word])}."


def sentence_of(comparison: dict[str, Any]) -> str:
    """As it was logged, as a sentence begins."""
    decimals = decimals_of(comparison)
    went = f"{comparison['metric']} went from {fixed(comparison.get('base'), decimals)} to {fixed(comparison.get('tuned'), decimals)}."
    told = str(comparison.get("sentence") or went)
    return told[0].upper() + told[1:]


def plain_sentence(report: dict[str, Any]) -> str:
    """What came out of a run that no comparison was logged for, as runs of early versions and unfinished ones."""
    base, tuned = (report["evaluation"][name]["perplexity"] for name in ("base", "tuned"))
    training = report["training"]
    if base is None or tuned is None:
        if not training["steps"]:
            return "No training step is logged yet."
        if training["steps"] == 1:
            return f"One training step is logged, with loss {figure(training['first_loss'])}."
        went = f"the training loss went from {figure(training['first_loss'])} to {figure(training['last_loss'])}"
        left = "there is no test row to compare it on" if report["data"].get("test_rows") == 0 else "the tuned model is not compared with its base yet"
        return f"Over {count(training['steps'])} steps {went}; {left}."
    held_out = f"On {count(report['evaluation']['tuned']['tokens'])} held-out tokens, perplexity"
    change = percent_change(base, tuned)
    if change == "0.0\u00a0%":
        return f"{held_out} did not change ({figure(base)})."
    return f"{held_out} {'fell' if tuned < base else 'rose'} from {figure(base)} to {figure(tuned)} ({change})."
