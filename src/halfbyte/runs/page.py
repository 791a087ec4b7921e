"""report.html: one file without script or network, the verdict first. Each section shows nothing when the run has nothing for it."""

from typing import Any

from halfbyte.runs import proven
from halfbyte.runs.answers import side_by_side
from halfbyte.runs.chart import CHART_CSS, Points, Series, line_chart
from halfbyte.runs.classes import class_parts
from halfbyte.runs.comparisons import comparison_table, perplexity_table
from halfbyte.runs.findings import (
    RECITAL,
    RECITAL_HEAD,
    SCORES_HEAD,
    chosen_step,
    recital_rows,
    score_rows,
    told_of_choice,
    told_of_rating,
    told_of_replies,
    told_of_structure,
)
from halfbyte.runs.foreseen import bars
from halfbyte.runs.markup import facts, folded, paragraph, section, shown, table
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
from halfbyte.runs.style import CSS
from halfbyte.runs.verdict import SIGNS
from halfbyte.runs.words import count, number

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_bytes")
LOW = 190
"""Height of the charts below the first."""


def page(report: dict[str, Any], folder: str) -> str:
    """The whole report.html."""
    name, status = shown(report["name"]), report["status"]
    notes = "".join(f"<li>{shown(note)}</li>" for note in report["notes"])
    sections = [
        section("Before and after", comparison_table(report["comparisons"]) or perplexity_table(**report["evaluation"])),
        section("A person’s judgement", rating(report["rating"] or {})),
        section("Answers", side_by_side(report["generations"], report["answers"])),
        section("Style or recital", *replies(report["replies"] or {})),
        section("Classes", class_parts(report)),
        section("Structure", *structure(report["structure"] or {})),
        section("Training", charts(report)),
        section("Predicted", bars(report)),
        section("Data", ledger(report["data"])),
        section(proven.TITLE, paragraph(proven.told_of_proofs(report["proofs"]), "first"), table(proven.HEAD, proven.proof_rows(report["proofs"]), "wide")),
        section("Plan", table(["decision", "value", "reason"], decisions(report), "wide")),
        section("Notes", f"<ul>{notes}</ul>" if notes else ""),
        section("Run", facts(environment(report)), facts(long_facts(report), "wide")),
        section("Recipe", recipe(report)),
        section("Next", paragraph("From the folder that holds this run:", "quiet"), f"<pre>{shown(next_commands(status, folder))}</pre>"),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} – {status} – halfbyte</title><style>{CSS}{CHART_CSS}</style></head><body><main>
<header><h1>{name} <span class="status {status}">{status}</span></h1>{verdict(report)}</header>
{"".join(sections)}</main></body></html>
"""


def verdict(report: dict[str, Any]) -> str:
    """The word, its sentence, what it rests on, how the other comparisons fell out, and why a run stopped."""
    judged = report["verdict"]
    sign = f"<span>{SIGNS[judged['word']]}</span>" if judged["word"] in SIGNS else ""
    title = f'<p class="title {judged["word"].replace(" ", "-")}">{sign}{shown(judged["title"])}</p>'
    # settle() puts the reason why a run stopped last.
    stopped = f'<p class="notice {report["status"]}">{shown(report["notes"][-1])}</p>' if report["status"] in ("failed", "interrupted") else ""
    untested = paragraph("No interval was measured, so this may be chance; halfbyte evaluate tests it.", "others") if judged["word"] == "not tested" else ""
    sentence = shown(judged["sentence"].replace(" %", "\u00a0%"))  # no line begins with the sign
    # A verdict must not hide what was paid for it.
    worse = f'<p class="worse">{SIGNS["worse"]} Worse: {shown(", ".join(judged["worse"]))}</p>' if judged["worse"] else ""
    return (
        f'<div class="verdict">{title}<p class="sentence">{sentence}</p>{stopped}{untested}'
        f"{facts(list(judged['rests_on'].items()))}{paragraph(judged['others'] or '', 'others')}{worse}</div>"
    )


def rating(votes: dict[str, Any]) -> str:
    if not votes:
        return ""
    parts = ""
    for key, kind, words in (("wins", "tuned", "tuned"), ("ties", "tie", "tied"), ("losses", "base", "base")):
        if number(votes.get(key)):
            parts += f'<span class="{kind}" style="--share:{number(votes[key]):g}">{words} {count(votes[key])}</span>'
    bar = f'<div class="votes">{parts}</div>' if parts else ""
    return bar + "".join(paragraph(sentence) for sentence in told_of_rating(votes))


def replies(found: dict[str, Any]) -> list[str]:
    rows = recital_rows(found)
    told = [paragraph(sentence) for sentence in told_of_replies(found)]
    return [*told, paragraph(RECITAL, "quiet"), table(RECITAL_HEAD, rows, "wide")] if rows else told


def structure(found: dict[str, Any]) -> list[str]:
    slots = table(["slot", "in the references", *SCORES_HEAD], score_rows(found.get("per_slot") or {}, "slot", "gold"), "numbers")
    return [*(paragraph(sentence) for sentence in told_of_structure(found)), slots]


def charts(report: dict[str, Any]) -> str:
    """Loss beside the choice of the checkpoint, then the other curves."""
    means, validation = report["curves"]["loss_mean"], report["validation"]
    curves: dict[str, Points] = {key: [(step, value) for step, value in report["curves"][key]] for key in CURVES}
    called, chosen = chosen_step(report)
    if not curves["loss"] and not validation and not report["training"]["steps"]:
        return ""

    def validated(rows: list[dict[str, Any]]) -> Points:
        return [(row["step"], row["loss"]) for row in rows if row["loss"] is not None]

    loss = line_chart("loss", "Training and validation loss", [
        Series("training", curves["loss"], "pale" if means else "line", "tuned"),
        Series(f"mean of {means['steps']:,}" if means else "", [(step, value) for step, value in means["points"]] if means else [], "line", "tuned"),
        Series("validation", validated(validation), "dots", "held"),
        Series(f"{called} {count(chosen)}", validated([row for row in validation if row["step"] == chosen]), "ring", "held"),
    ], "step", "loss per token")  # fmt: skip
    told = "".join(paragraph(sentence) for sentence in told_of_choice(report))
    predicted, peaks = report["memory"]["predicted_bytes"], [(step, value / 1e9) for step, value in curves["peak_bytes"]]
    ceiling = [(peaks[0][0], predicted / 1e9), (peaks[-1][0], predicted / 1e9)] if predicted and peaks else []
    low = [  # a curve that was not logged is no chart
        line_chart("rate", "Learning rate", [Series("learning rate", curves["learning_rate"], "line", "base")], "step", "rate", True, LOW),
        line_chart("norm", "Gradient norm", [Series("gradient norm", curves["grad_norm"], "line", "base")], "step", "norm", True, LOW),
        line_chart("speed", "Speed", [Series("tokens a second", curves["tokens_per_second"], "line", "base")], "step", "tokens/s", True, LOW),
        line_chart("memory", "Memory", [Series("peak memory", peaks, "line", "base"), Series("predicted", ceiling, "dots", "held")], "step", "GB", True, LOW),
    ]
    figures = "".join(f"<figure>{chart}</figure>" for chart in low if chart.startswith("<svg"))
    return f'<div class="charts"><figure>{loss}</figure><div class="told">{told}{facts(work(report))}</div>{figures}</div>'


def recipe(report: dict[str, Any]) -> str:
    """As asked, and every key with who set it; what nobody set is folded."""
    asked = folded("as asked", f"<pre>{shown(report['recipe'])}</pre>") if report["recipe"] else ""
    chosen, usual = settings(report)
    lists = table(SETTINGS_HEAD, chosen, "wide") + folded(
        f"left at their default: {len(usual)} keys", table(SETTINGS_HEAD[:2], [row[:2] for row in usual], "wide")
    )
    return paragraph(told_of_settings(report)) + lists + asked if report["settings"] else asked


def ledger(data: dict[str, Any]) -> str:
    tables = table(["rows read went to", "rows"], bins(data), "numbers") + table(["split", "rows of tokens", "tokens in the loss"], split(data), "numbers")
    return f'{paragraph(told_of_data(data), "first")}<div class="beside">{tables}</div>' if data else ""
