"""report.md: the same report as text, in GitHub's Markdown. What comes from data or model is escaped or fenced: it can forge no table, link or heading."""

import re
from typing import Any

from halfbyte.runs import foreseen, proven
from halfbyte.runs.answers import cut, tags
from halfbyte.runs.classes import MOST_CLASSES, NAMELESS, class_rows, scorer_rows, told_of_classes
from halfbyte.runs.findings import RECITAL, RECITAL_HEAD, recital_rows, score_rows, told_of_choice, told_of_rating, told_of_replies, told_of_structure
from halfbyte.runs.origins import (
    SETTINGS_HEAD,
    bins,
    decisions,
    environment,
    long_facts,
    next_commands,
    settings,
    split,
    told_of_data,
    told_of_settings,
    work,
)
from halfbyte.runs.verdict import GROUPS, sample, sentence_of, span, word_of
from halfbyte.runs.words import DASH, chance, count, decimals_of, figure, fixed, interval, number, percent_change, size, visible

MOST_STEPS = 12
"""Rows of the table of steps."""
SCORES = ["precision base", "precision tuned", "recall base", "recall tuned", "F1 base", "F1 tuned"]


def markdown(report: dict[str, Any], folder: str) -> str:
    judged = report["verdict"]
    curves = report["curves"]
    parts = [
        f"# {plain(report['name'])}: {plain(judged['title'])}",
        f"**{plain(judged['sentence'])}**",
        bullets([("status", report["status"]), *judged["rests_on"].items()]),
        plain(judged["others"] or ""),
        f"**Worse:** {plain(', '.join(judged['worse']))}" if judged["worse"] else "",
        part("Before and after", comparison_tables(report["comparisons"]) or perplexity_rows(**report["evaluation"])),
        part("A person’s judgement", sentences(told_of_rating(report["rating"]) if report["rating"] else [])),
        part("Answers", *(answer(row, place) for place, row in enumerate(report["generations"], start=1))),
        part("Style or recital", sentences(told_of_replies(report["replies"] or {})), recital(report["replies"] or {})),
        part("Classes", *classes(report)),
        part("Structure", sentences(told_of_structure(report["structure"] or {})), slots(report["structure"] or {})),
        part("Training", sentences(told_of_choice(report)), bullets(work(report)) if curves["loss"] else "", steps(report)),
        part("Predicted", grid(foreseen.HEAD, foreseen.rows(report))),
        part("Data", plain(told_of_data(report["data"])), grid(["rows read went to", "rows"], bins(report["data"])),
             grid(["split", "rows of tokens", "tokens in the loss"], split(report["data"]))),
        part(proven.TITLE, plain(proven.told_of_proofs(report["proofs"])), grid(proven.HEAD, proven.proof_rows(report["proofs"]), numbers=False)),
        part("Plan", grid(["decision", "value", "reason"], decisions(report), numbers=False)),
        part("Notes", "\n".join(f"- {plain(note)}" for note in report["notes"])),
        part("Run", bullets([*environment(report), *long_facts(report)])),
        part("Recipe", plain(told_of_settings(report)), grid(SETTINGS_HEAD, [row for rows in settings(report) for row in rows], numbers=False),
             fence(report["recipe"]) if report["recipe"] else ""),
        part("Next", fence(next_commands(report["status"], folder))),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(value: Any) -> str:
    """One line of text that is read as text: no markup, no HTML, no border of a table cell, no link, no formula."""
    text = visible(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"://|(?<=www)\.|@", lambda found: "".join(f"&#{ord(sign)};" if sign in ":.@" else sign for sign in found[0]), text, flags=re.IGNORECASE)
    return re.sub(r"^(?=[-=#]|\+ |\d+[.)] )", "\u200b", text)  # what opens a list or a heading does so at the start of a line alone


def fence(text: Any) -> str:
    """A block of text as it is, in a fence longer than any inside it."""
    body = visible(text)
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{marks}text\n{body}\n{marks}"


def part(title: str, *blocks: str) -> str:
    body = "\n\n".join(filter(None, blocks))
    return f"## {title}\n\n{body}" if body else ""


def sentences(told: list[str]) -> str:
    return "\n\n".join(plain(sentence) for sentence in told)


def bullets(pairs: list[tuple[str, Any]]) -> str:
    return "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in pairs if value not in (None, "", DASH))


def grid(head: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A table; all but its first column to the right where they are numbers."""
    if not rows:
        return ""
    rule = ["---", *("---:" if numbers else "---" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*map(plain, head)], rule, *([*map(plain, row)] for row in rows)))


def comparison_tables(comparisons: list[dict[str, Any]]) -> str:
    blocks = []
    for group in dict.fromkeys(one["group"] for one in comparisons):
        of_group = [one for one in comparisons if one["group"] == group]
        head = ["metric", "base", "tuned", "change", "95 % interval", "smallest it could show", "verdict"]
        blocks += [f"### {plain(GROUPS.get(group, group))}", plain(f"On {sample(of_group[0])}."), grid(head, [comparison_row(one) for one in of_group])]
        blocks.append("\n".join(f"- {plain(sentence_of(one))}" for one in of_group))
    return "\n\n".join(filter(None, blocks))


def comparison_row(one: dict[str, Any]) -> list[str]:
    decimals, ends = decimals_of(one), interval(one.get("interval"))

    def score(name: str) -> str:
        around = interval(one.get(f"{name}_interval"))
        return fixed(one.get(name), decimals) + (f" ({span(around, decimals)})" if around else "")

    better = "higher is better" if one.get("higher_is_better") else "lower is better"
    verdict = word_of(one) + (f" ({chance(one['p_value'])})" if number(one.get("p_value")) is not None else "")
    change = fixed(one.get("difference"), decimals, sign=True)
    between = span(ends, decimals, sign=True) if ends else DASH
    return [f"{one['metric']} ({better})", score("base"), score("tuned"), change, between, fixed(one.get("smallest_effect"), decimals), verdict]


def perplexity_rows(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    if base == tuned:
        return ""
    change = percent_change(base["perplexity"], tuned["perplexity"])
    rows = [["perplexity", figure(base["perplexity"]), figure(tuned["perplexity"]), change], ["tokens", count(base["tokens"]), count(tuned["tokens"]), ""]]
    return grid(["held-out test rows", "base", "tuned", "change"], rows)


def answer(row: dict[str, Any], place: int) -> str:
    blocks = [f"### Prompt {place}"]
    for who in ("prompt", "reference", "base", "tuned"):
        if who == "reference" and row.get(who) is None:
            continue
        text, rest = cut(row.get(who))
        told = [*(tags(row, who) if who in ("base", "tuned") else []), *filter(None, [rest])]
        blocks += [f"{who} ({plain(', '.join(told))}):" if told else f"{who}:", fence(text)]
    return "\n\n".join(blocks)


def recital(replies: dict[str, Any]) -> str:
    rows = recital_rows(replies)
    return f"{RECITAL}\n\n{grid(RECITAL_HEAD, rows, numbers=False)}" if rows else ""


def classes(report: dict[str, Any]) -> list[str]:
    scored = report["classes"] or {}
    return [
        sentences(told_of_classes(report)),
        *confusions(scored, "by likelihood" if report["answered_classes"] else "answered"),
        grid(["class", "test rows", *SCORES], class_rows(scored)),
        grid(["by the likelihood of each class", "base", "tuned"], scorer_rows(scored)),
        *confusions(report["answered_classes"] or {}, "answered"),
    ]


def confusions(found: dict[str, Any], how: str) -> list[str]:
    names = [str(name) for name in found.get("classes") or []]
    tables = []
    for who, counts in (found.get("confusion") or {}).items():
        rows = [[name, *map(str, row)] for name, row in zip(names, counts if isinstance(counts, list) else [], strict=False) if isinstance(row, list)]
        head = [f"{who}, {how}: class in rows, answer in columns", *names, NAMELESS]
        tables.append(grid(head[: max(map(len, rows), default=0)], rows) if len(names) <= MOST_CLASSES else "")
    return tables


def slots(structure: dict[str, Any]) -> str:
    return grid(["slot", "in the references", *SCORES], score_rows(structure.get("per_slot") or {}, "slot", "gold"))


def steps(report: dict[str, Any]) -> str:
    """The curves at a dozen steps, and every validation."""
    curves = {name: {step: value for step, value in points} for name, points in report["curves"].items() if isinstance(points, list)}
    known = sorted(curves["loss"])
    kept = sorted({known[place * (len(known) - 1) // (MOST_STEPS - 1)] for place in range(MOST_STEPS)}) if known else []
    writers = {"loss": figure, "learning_rate": figure, "grad_norm": figure, "tokens_per_second": count, "peak_bytes": size}
    rows = [[count(step), *(write(curves[name].get(step)) for name, write in writers.items())] for step in kept]
    validated = [[count(row["step"]), fixed(row["loss"], 3), "best so far" if row["best"] else ""] for row in report["validation"]]
    head = ["step", "training loss", "learning rate", "gradient norm", "tokens a second", "peak memory"]
    return "\n\n".join(filter(None, [grid(head, rows), grid(["step", "validation loss", ""], validated)]))
