"""What was found besides the comparisons, as sentences and rows that the page and the text both show."""

from typing import Any

from halfbyte.runs.words import chance, count, counted, fixed, number, percent, rows_of

Rows = list[list[str]]


def chosen_step(report: dict[str, Any]) -> tuple[str, int | None]:
    """What the step is called whose weights are the tuned model, and which it is."""
    chosen = number((report["choice"] or {}).get("step"))
    return ("best step", report["training"]["best_step"]) if chosen is None else ("chosen step", int(chosen))


def told_of_choice(report: dict[str, Any]) -> list[str]:
    """Which weights are the tuned model, why, and how often the test part was looked at."""
    choice, training = report["choice"] or {}, report["training"]
    sentences = []
    if number(choice.get("step")) is not None:
        sentences.append(
            f"The tuned model is that of step {choice['step']} of {choice.get('of') or training['steps']}: {choice.get('why') or 'no reason is logged'}."
        )
    elif training["best_step"] is not None:
        sentences.append(f"Step {training['best_step']} had the lowest validation loss.")
    times = number(report["test_opened"])
    if times is not None:
        rest = "." if times <= 1 else ": what is changed after the first time is fitted to the test."
        sentences.append(f"The test part was opened {'once' if times == 1 else f'{times:,.0f} times'}{rest}")
    return sentences


def told_of_replies(replies: dict[str, Any]) -> list[str]:
    sentences = []
    empty, lengths = replies.get("empty") or {}, replies.get("length_ratio") or {}
    if any(number(empty.get(who)) for who in ("base", "tuned")):
        sentences.append(f"Empty answers: {' and '.join(f'{count(empty.get(who))} of the {who} model' for who in ('base', 'tuned'))}.")
    if all(number(lengths.get(who)) is not None for who in ("base", "tuned")):
        many = " and ".join(f"{fixed(lengths[who], 2)} by the {who} model" for who in ("base", "tuned"))
        sentences.append(f"Words of the answers for each word of the references: {many}.")
    return sentences


def recital_rows(replies: dict[str, Any]) -> Rows:
    """who, length of the longest stretch that stands in the training text, the words, where, share of answers over 8 words."""
    rows = []
    for who, found in (replies.get("recital") or {}).items():
        if isinstance(found, dict) and number(found.get("longest_words")) is not None:
            share = percent(found.get("share_over_8"))
            rows.append(
                [who, counted(found["longest_words"], "word").replace(" ", "\u00a0"), str(found.get("shared") or "–"), str(found.get("line") or "–"), share]
            )
    return rows


RECITAL_HEAD = ["", "longest", "the words", "stands in", "answers with over 8 words so"]
RECITAL = "The longest stretch of words in an answer that stands in the training text word for word: is it style, or is it recital?"


def told_of_structure(structure: dict[str, Any]) -> list[str]:
    unparsable = structure.get("unparsable") or {}
    if not unparsable:
        return []
    many = " and ".join(f"{count(unparsable.get(who))} of the {who} model" for who in ("base", "tuned"))
    return [f"Answers that could not be read as a structure count as wrong: {many}."]


SCORES_HEAD = ["precision base", "tuned", "recall base", "tuned", "F1 base", "tuned"]


def score_rows(of_both: dict[str, Any], name: str, support: str) -> Rows:
    """What is scored, how often the references hold it, then precision, recall and F1 of base and tuned."""
    base, tuned = ({str(row.get(name)): row for row in rows_of(of_both.get(who))} for who in ("base", "tuned"))
    rows = []
    for label in dict.fromkeys([*base, *tuned]):
        both = base.get(label, {}), tuned.get(label, {})
        often = next((row[support] for row in both if support in row), None)
        rows.append([label, count(often), *(fixed(row.get(key), 2) for key in ("precision", "recall", "f1") for row in both)])
    return rows


def told_of_rating(rating: dict[str, Any]) -> list[str]:
    wins, losses, ties = (counted(rating.get(name), word, word) for name, word in (("wins", "for the tuned"), ("losses", "for the base"), ("ties", "tied")))
    test = f", {chance(rating['p_value'])}" if number(rating.get("p_value")) is not None else ""
    return [*filter(None, [str(rating.get("sentence") or "")]), f"Blind pairs: {wins}, {losses}, {ties} (sign test{test})."]
