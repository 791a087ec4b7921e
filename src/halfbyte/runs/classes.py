"""How classes were told apart: confusion as a picture of numbers, figures of each class, the majority baseline, and the scorer by likelihood."""

from collections.abc import Callable
from typing import Any

from halfbyte.runs.findings import SCORES_HEAD, score_rows
from halfbyte.runs.markup import folded, paragraph, shown, table
from halfbyte.runs.words import count, fields_of, fixed, number, percent

MOST_CLASSES = 30
"""A larger picture would be read by nobody; report.json holds it whole."""
NAMELESS = "no class"
KEY = "A row holds the answers to the test rows of one class; its shading is the share of the row. Outlined: the right answer."
SCORER: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy": ("accuracy", percent),
    "macro_f1": ("macro F1", lambda value: fixed(value, 3)),
    "ece": ("calibration error (0 is best)", lambda value: fixed(value, 3)),
    "temperature": ("temperature, set on validation", lambda value: fixed(value, 2)),
    "prior_corrected": ("corrected for what the model says whatever it is asked", lambda value: "yes" if value else "no"),
    "threshold": ("abstains below a confidence of", lambda value: fixed(value, 2)),
    "coverage": ("share it answers", percent),
    "accuracy_of_answered": ("accuracy where it answers", percent),
}
"""Name and writing of each figure of the scorer by likelihood."""


def told_of_classes(report: dict[str, Any]) -> list[str]:
    """What a person must know to read the scores, in sentences."""
    scored, answered = report["classes"] or {}, report["answered_classes"] or {}
    sentences = []
    majority, unparsable = scored.get("majority") or {}, answered.get("unparsable") or scored.get("unparsable") or {}
    if number(majority.get("accuracy")) is not None:
        sentences.append(f"Always answering “{majority.get('label')}” would be right in {percent(majority['accuracy'])} of the rows.")
    if unparsable:
        many = " and ".join(f"{count(unparsable.get(who))} of the {who} model" for who in ("base", "tuned"))
        sentences.append(f"Answers that name no class count as wrong: {many}.")
    if scored.get("unseen"):
        sentences.append(f"In the test rows but never in training: {', '.join(map(str, scored['unseen']))}.")
    return sentences + [str(note) for note in scored.get("notes") or []]


def class_parts(report: dict[str, Any]) -> str:
    """All of it as HTML."""
    scored, answered = report["classes"] or {}, report["answered_classes"] or {}
    each = table(["class", "test rows", *SCORES_HEAD], rows := class_rows(scored), "numbers")
    if len(rows) > MOST_CLASSES:
        each = folded(f"Each of {len(rows)} classes", each)
    return "".join([
        *(paragraph(sentence) for sentence in told_of_classes(report)),
        titled("By the likelihood of each class" if answered else "", heats(scored) + table(["", "base", "tuned"], scorer_rows(scored), "numbers")),
        titled("Each class", each),
        titled("As answered in words", heats(answered)),
    ])  # fmt: skip


def class_rows(scored: dict[str, Any]) -> list[list[str]]:
    """Each class, then the averages: over classes, each of which weighs the same, and over rows."""
    rows = score_rows(scored.get("per_class") or {}, "label", "rows")
    both = [fields_of((scored.get("averages") or {}).get(who)) for who in ("base", "tuned")]
    for key, name in (("macro", "average of the classes"), ("micro", "average of the rows")):
        figures = [fields_of(side.get(key)) for side in both]
        if any(figures):
            rows.append([name, "", *(fixed(side.get(score), 2) for score in ("precision", "recall", "f1") for side in figures)])
    return rows


def titled(title: str, body: str) -> str:
    return f"<h3>{title}</h3>{body}" if title and body else body


def heats(found: dict[str, Any]) -> str:
    """Base and tuned beside each other."""
    names, confusion = [str(name) for name in found.get("classes") or []], found.get("confusion") or {}
    if len(names) > MOST_CLASSES:
        return paragraph(f"The table of {len(names)} classes against each other is in report.json.", "quiet")
    pictures = "".join(heat(who, names, confusion.get(who)) for who in ("base", "tuned"))
    return f'<div class="heats">{pictures}</div><p class="quiet small">{KEY}</p>' if pictures else ""


def heat(who: str, names: list[str], counts: Any) -> str:
    """counts (classes, classes + 1): gold in rows, answers in columns, the last column for answers that name no class."""
    rows = [[int(number(value) or 0) for value in row] for row in counts if isinstance(row, list)] if isinstance(counts, list) else []
    if not rows:
        return ""
    if not any(any(row[len(names) :]) for row in rows):  # every answer names a class
        rows = [row[: len(names)] for row in rows]
    columns = [*names, NAMELESS][: max(map(len, rows))]
    head = "".join(f'<th scope="col"><span>{shown(name)}</span></th>' for name in columns)
    body = ""
    for place, (name, row) in enumerate(zip(names, rows, strict=False)):
        total = sum(row) or 1
        cells = "".join(cell(value, value / total, place == column) for column, value in enumerate(row))
        body += f'<tr><th scope="row">{shown(name)}</th>{cells}</tr>'
    caption = f'<caption class="{who}">{who}</caption>'
    return f'<div class="scroll"><table class="heat {who}">{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(value: int, share: float, right: bool) -> str:
    kinds = " ".join(filter(None, ("right" if right else "", "deep" if share > 0.5 else "", "" if value else "none")))
    return f'<td class="{kinds}" style="--share:{100 * share:.0f}%">{value or "·"}</td>'


def scorer_rows(scored: dict[str, Any]) -> list[list[str]]:
    scorer = scored.get("by_likelihood") or {}
    base, tuned = fields_of(scorer.get("base")), fields_of(scorer.get("tuned"))
    return [[name, write(base.get(key)), write(tuned.get(key))] for key, (name, write) in SCORER.items() if key in base or key in tuned]
