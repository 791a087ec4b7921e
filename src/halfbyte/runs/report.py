"""The report of a run, made from its folder alone: report.json for programs and report.html, one file without script or network.

Read `write_report` first. events.jsonl is append-only, so a resumed run holds lines that were given up; `settle` keeps what counts.
Every number is copied from an event, or is a sum, median or maximum over the steps that count.
"""

import html
import json
import re
import shlex
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError
from halfbyte.runs.chart import CHART_CSS, Series, line_chart, mean_of
from halfbyte.runs.events import Event
from halfbyte.runs.folder import write_whole

ROW_KEY = {"step": "step", "validation": "step", "skipped": "step", "perplexity": "model", "generation": "prompt"}
"""Kinds of which there are many, and what tells one row from the next: a later line with the same key replaces the earlier."""
STATUS_AFTER = {"run": "unfinished", "resume": "unfinished", "end": "finished", "interrupted": "interrupted", "failed": "failed"}
MODEL_KEYS = ("parameters", "trainable", "share_4bit", "weight_bytes")
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (tab and line feed are fine), overrides that reorder text on screen, and halves of characters."""


def write_report(run: Path) -> dict[str, Any]:
    """Reads recipe.yaml, plan.json and events.jsonl; writes report.json and report.html; returns the content of report.json."""
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder", hint="give the folder that `halfbyte train` named when it started")
    events, notes = read_events(run / "events.jsonl")
    plan, plan_notes = read_plan(run / "plan.json")
    log = settle(events)
    report = summarise(log, plan, run.resolve().name)
    report["notes"] = plan_notes + notes + log.notes
    recipe = run / "recipe.yaml"
    recipe_text = recipe.read_text(encoding="utf-8-sig", errors="replace") if recipe.is_file() else ""
    write_whole(run / "report.json", json.dumps(report, indent=2) + "\n")
    write_whole(run / "report.html", page(report, list(log.rows["step"].values()), recipe_text, run.resolve().name))
    return report


# Reading


def read_events(path: Path) -> tuple[list[Event], list[str]]:
    """The events, and a note on each line that is none: a crash can tear the last line, and a resume writes on after it."""
    if not path.is_file():
        return [], ["events.jsonl is not there: nothing was logged"]
    events, notes = [], []
    # Not splitlines: it would also cut at U+2028, which may stand inside a JSON string. NaN and Infinity become null, as JSON has neither.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            events.append(event)
        else:
            where = "the last line" if number == len(lines) else f"line {number}"
            notes.append(f"events.jsonl: {where} is torn, as a crash leaves it, and is left out")
    return events, notes


def read_plan(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The plan and its notes; a plan that cannot be read is a note."""
    if not path.is_file():
        return {}, []
    try:
        plan = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        return {}, [f"plan.json could not be read: {error}"]
    return (plan, list(plan.get("notes") or [])) if isinstance(plan, dict) else ({}, ["plan.json holds no plan"])


@dataclass
class Log:
    """What counts of the events."""

    status: str = "unfinished"
    latest: dict[str, Event] = field(default_factory=dict)
    """The last event of each kind that has no rows."""
    rows: dict[str, dict[Any, Event]] = field(default_factory=lambda: {kind: {} for kind in ROW_KEY})
    """Kind, then key, then event."""
    notes: list[str] = field(default_factory=list)

    def forget_after(self, step: int) -> None:
        for kind in ("step", "validation", "skipped"):
            self.rows[kind] = {number: row for number, row in self.rows[kind].items() if number <= step}


def settle(events: list[Event]) -> Log:
    """Walks the events once, first to last; a resume from step K forgets the steps after K."""
    log = Log()
    generations_are_old = False
    for event in events:
        kind = event["event"]
        log.status = STATUS_AFTER.get(kind, log.status)
        if kind == "resume":
            log.forget_after(event["step"])
            log.latest.pop("end", None)
            log.notes.append(f"resumed from step {event['step']}")
        if kind == "step":
            if log.rows["step"] and event["step"] <= next(reversed(log.rows["step"])):  # started again without a checkpoint
                log.forget_after(event["step"] - 1)
            log.rows["perplexity"].pop("tuned", None)  # told of weights that this step changed
            log.rows["generation"].clear()
        if kind == "resume" or (kind == "perplexity" and event["model"] == "base"):
            generations_are_old = True  # the next one starts a new set
        elif kind == "generation" and generations_are_old:
            log.rows["generation"].clear()
            generations_are_old = False
        if kind == "note":
            log.notes.append(event["message"])
        if kind in ROW_KEY:
            log.rows[kind][event[ROW_KEY[kind]]] = event
        else:
            log.latest[kind] = event
    for reason, times in Counter(str(row.get("reason")) for row in log.rows["skipped"].values()).items():
        log.notes.append(f"{times:,} step{'s' * (times > 1)} skipped: {reason}")
    if log.status == "interrupted":
        log.notes.append(f"interrupted after step {log.latest['interrupted'].get('step')}")
    if log.status == "failed":
        log.notes.append(f"failed: {log.latest['failed'].get('message')}")
    return log


def summarise(log: Log, plan: dict[str, Any], folder: str) -> dict[str, Any]:
    """The content of report.json, less its notes. What the run has not got to is null or empty."""
    run, end, model = (log.latest.get(kind, {}) for kind in ("run", "end", "model"))
    steps, validation = list(log.rows["step"].values()), [row for _, row in sorted(log.rows["validation"].items())]
    fields = ("loss", "perplexity", "tokens")
    evaluation = {name: {key: log.rows["perplexity"].get(name, {}).get(key) for key in fields} for name in ("base", "tuned")}
    perplexity = {name: row["perplexity"] for name, row in evaluation.items()}
    best = [row["step"] for row in validation if row.get("best")]

    def of_steps(key: str) -> list[float]:
        return [row[key] for row in steps if row.get(key) is not None]

    return {
        "perplexity": None if None in perplexity.values() else perplexity | {"tokens": evaluation["tuned"]["tokens"]},
        "name": run.get("name") or folder,
        "status": log.status,
        "base_model": run.get("base"),
        "device": run.get("device"),
        "versions": run.get("versions") or {},
        "command": run.get("command"),
        "started": run.get("time"),
        "data": log.latest.get("data", {}).get("ledger") or {},
        "model": {key: model[key] for key in MODEL_KEYS if key in model},
        "training": {
            "steps": end.get("steps", steps[-1]["step"] if steps else 0),
            "best_step": end.get("best_step", best[-1] if best else None),
            "stopped": end.get("stopped"),
            "first_loss": steps[0].get("loss") if steps else None,
            "last_loss": steps[-1].get("loss") if steps else None,
            "seconds": end.get("seconds", max(of_steps("seconds"), default=None)),
            "tokens": sum(of_steps("tokens")),
            "tokens_per_second": statistics.median(of_steps("tokens_per_second") or [0]) or None,
            "peak_bytes": end.get("peak_bytes", max(of_steps("peak_bytes"), default=None)),
        },
        "evaluation": evaluation,
        "validation": [{key: row.get(key) for key in ("step", "loss", "tokens", "best")} for row in validation],
        "generations": [{key: row.get(key) for key in ("prompt", "base", "tuned")} for row in log.rows["generation"].values()],
        "decisions": plan.get("decisions") or [],
    }


# Words for values


def shown(value: Any) -> str:
    """Text as HTML that shows what is there: markup escaped, unseen characters as \\u202e; None as a dash."""
    text = "–" if value is None else str(value)
    return html.escape(UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """At most four digits that count: 49.4, 31.27, 12,345."""
    return "–" if value is None else f"{value:.4g}" if abs(value) < 9_999.5 else f"{value:,.0f}"


def percent_change(base: float | None, tuned: float | None) -> str:
    """`-36.8 %`, `+0.4 %`, `0.0 %`; a dash where there is nothing to compare."""
    if not base or tuned is None:
        return "–"
    change = round(100 * (tuned / base - 1), 1)
    return f"{change:+,.1f} %" if change else "0.0 %"


def size(value: float | None) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least 1."""
    power = 0 if not value else min(4, (len(str(int(value))) - 1) // 3)
    return "–" if value is None else f"{value / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def result_sentence(report: dict[str, Any]) -> str:
    """What came out, in one sentence."""
    base, tuned = (report["evaluation"][name]["perplexity"] for name in ("base", "tuned"))
    training = report["training"]
    if base is None or tuned is None:
        if not training["steps"]:
            return "No training step is logged yet."
        went = f"the training loss went from {figure(training['first_loss'])} to {figure(training['last_loss'])}"
        if training["steps"] == 1:
            return f"One training step is logged, with loss {figure(training['first_loss'])}."
        return f"Over {count(training['steps'])} steps {went}; the tuned model is not compared with its base yet."
    held_out = f"On {count(report['evaluation']['tuned']['tokens'])} held-out tokens, perplexity"
    change = percent_change(base, tuned)
    if change == "0.0 %":
        return f"{held_out} did not change ({figure(base)})."
    return f"{held_out} {'fell' if tuned < base else 'rose'} from {figure(base)} to {figure(tuned)} ({change})."


# The page

CSS = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1b2226;--quiet:#5c676d;--rule:#d9dedf;--tint:#f1f4f3;
--tuned:#0b6b63;--base:#5f6480;--held:#b0500f;--good:#18794e;--bad:#b3261e;--mid:#855800}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14191b;--ink:#e3e8e8;--quiet:#98a4a8;--rule:#2d3639;--tint:#1b2224;
--tuned:#5cc4b4;--base:#a6abc6;--held:#eb9a5b;--good:#5fc992;--bad:#ff8a80;--mid:#e3b341}}
@media print{:root{color-scheme:light;--paper:#fff}body{font-size:10pt}tr,figure,.pair,dl div{break-inside:avoid}h2{break-after:avoid}
details::details-content{content-visibility:visible;height:auto}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:70rem;margin:0 auto;padding:2.2rem 1.4rem 3rem}
h1,h2,.result{font-family:"Iowan Old Style",Charter,"Palatino Linotype",Palatino,Georgia,serif;font-weight:600;margin:0}
h1{font-size:1.9rem;line-height:1.2;overflow-wrap:anywhere}h2{font-size:1.02rem}
.status{font:600 .8rem/1 system-ui,sans-serif;white-space:nowrap;vertical-align:middle;margin-left:.5rem}
.status::before{content:"";display:inline-block;width:.6em;height:.6em;border-radius:50%;background:currentColor;margin-right:.4em}
.unfinished{color:var(--quiet)}.finished{color:var(--good)}.failed{color:var(--bad)}.interrupted{color:var(--mid)}
.result{font-size:1.3rem;font-weight:400;line-height:1.4;max-width:46rem;margin:.7rem 0 0}.notice{margin:.5rem 0 0;overflow-wrap:anywhere}
section{display:grid;grid-template-columns:8.5rem minmax(0,1fr);gap:.5rem 1.6rem;border-top:1px solid var(--rule);padding:1.1rem 0 1.4rem}
header{padding-bottom:1.6rem}.first{margin:0 0 .7rem}.beside{display:flex;flex-wrap:wrap;gap:1rem 4rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}table.wide{width:100%}tr:last-child td{border-bottom:0}
th,td{text-align:left;vertical-align:baseline;padding:.28rem 1.2rem .28rem 0;border-bottom:1px solid var(--rule)}
th,dt,.label{font-size:.8rem;font-weight:600;color:var(--quiet)}dt{font-weight:400}td{overflow-wrap:break-word}
.numbers :is(th,td):not(:first-child){text-align:right;padding:.28rem 0 .28rem 1.8rem;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.4rem}figure{margin:0}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.3rem 1.6rem;padding:0 0 1.1rem;margin:0 0 1.1rem;border-bottom:1px solid var(--rule)}
.pair:last-child{border:0;margin:0;padding:0}.prompt{grid-column:1/-1}.prompt .text{font-style:italic}
.text{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}.base .label{color:var(--base)}.tuned .label{color:var(--tuned)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.6rem 1.6rem;margin:0}.long{grid-column:1/-1}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}.quiet{color:var(--quiet);margin:0}summary{cursor:pointer}
pre{margin:.5rem 0 0;padding:.7rem .9rem;background:var(--tint);overflow-x:auto;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
ul{margin:.6rem 0 0;padding-left:1.1rem;overflow-wrap:anywhere}
@media (max-width:760px){main{padding:1.4rem 1rem 2rem}section,.pair{grid-template-columns:minmax(0,1fr)}.pair{gap:.7rem}
.result{font-size:1.15rem}h1{font-size:1.5rem}.numbers :is(th,td):not(:first-child){padding-left:1rem}th,td{padding-right:.7rem}}"""


def section(title: str, *parts: str) -> str:
    """A titled part of the page; nothing at all when the run has nothing for it."""
    body = "".join(parts)
    return f"<section><h2>{shown(title)}</h2><div>{body}</div></section>\n" if body else ""


def table(head: list[str], rows: list[list[Any]], kind: str) -> str:
    """`kind` is `numbers`, all but the first column to the right, or `wide`."""
    if not rows:
        return ""
    lines = ["".join(f"<td>{shown(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def before_after(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    if base == tuned:  # all null
        return ""
    losses = [base["loss"], tuned["loss"]]
    change = "–" if None in losses else f"{tuned['loss'] - base['loss']:+.3f}"
    tokens = [base["tokens"], tuned["tokens"]]
    same = "–" if None in tokens else "same" if tokens[0] == tokens[1] else "differ"
    percent = percent_change(base["perplexity"], tuned["perplexity"])
    rows = [
        ["loss per token", *("–" if loss is None else f"{loss:.3f}" for loss in losses), change],
        ["perplexity", figure(base["perplexity"]), figure(tuned["perplexity"]), percent],
        ["tokens", *map(count, tokens), same],
    ]
    return table(["held-out test rows", "base", "tuned", "change"], rows, "numbers")


def charts(report: dict[str, Any], steps: list[Event]) -> str:
    def points(rows: list[Event], key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    if not steps and not report["validation"]:
        return ""
    losses, best = points(steps, "loss"), report["training"]["best_step"]
    stretch = len(losses) // 40
    means = mean_of(losses, stretch) if stretch >= 5 else []  # fewer steps show their trend themselves
    series = [
        Series("training", losses, "pale" if means else "line", "tuned"),
        Series(f"mean of {stretch:,}", means, "line", "tuned"),
        Series("validation", points(report["validation"], "loss"), "dots", "held"),
        Series(f"best step {count(best)}", points([row for row in report["validation"] if row["step"] == best], "loss"), "ring", "held"),
    ]
    rate = [Series("learning rate", points(steps, "learning_rate"), "line", "base")]
    loss_chart = line_chart("loss", "Training and validation loss", series, "step", "loss per token")
    rate_chart = line_chart("rate", "Learning rate", rate, "step", "learning rate", from_zero=True)
    return f'<div class="charts"><figure>{loss_chart}</figure><figure>{rate_chart}</figure></div>'


def generations(report: dict[str, Any]) -> str:
    def text(name: str, value: Any) -> str:
        return f'<div class="{name}"><div class="label">{name}</div><p class="text" dir="auto">{shown(value)}</p></div>'

    pairs = ["".join(text(name, row[name]) for name in ("prompt", "base", "tuned")) for row in report["generations"]]
    return "".join(f'<div class="pair">{pair}</div>' for pair in pairs)


def ledger(data: dict[str, Any]) -> str:
    if not data:
        return ""
    left_out = [[row.get("reason"), count(row.get("count"))] for row in data.get("left_out") or []]
    splits = [[name, count(data.get(f"{name}_rows")), count(data.get(f"{name}_tokens"))] for name in ("train", "validation", "test")]
    bins = [[name, count(rows)] for name, rows in (data.get("bins") or {}).items()]
    tables = table(["rows read went to", "rows"], bins, "numbers") if bins else ""
    tables += table(["split", "rows of tokens", "tokens in the loss"], splits, "numbers") + table(["left out", "rows"], left_out, "numbers")
    nothing = "" if left_out else ", none left out"
    copies = f"; {count(data['augmented'])} of the training rows are changed copies" if data.get("augmented") else ""
    return f'<p class="first">Records read: {count(data.get("records_read"))}{nothing}{copies}.</p><div class="beside">{tables}</div>'


def facts(report: dict[str, Any]) -> str:
    training, model = report["training"], report["model"]
    share = f" ({100 * model['trainable'] / model['parameters']:.3g} %)" if model.get("parameters") and "trainable" in model else ""
    pairs = {
        "base model": report["base_model"],
        "device": report["device"],
        "parameters": count(model.get("parameters")),
        "trained": count(model.get("trainable")) + share,
        "in 4 bits": f"{100 * model['share_4bit']:.3g} % of the decoder's projections" if model.get("share_4bit") is not None else None,
        "weights": size(model.get("weight_bytes")),
        "steps": count(training["steps"]) + (f", {training['stopped']}" if training["stopped"] else ""),
        "training time": duration(training["seconds"]),
        "tokens in training": count(training["tokens"] or None),
        "tokens a second (median)": count(training["tokens_per_second"]),
        "peak memory": size(training["peak_bytes"]),
        "started": (report["started"] or "–").replace("T", " "),
    }
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    wide = {"versions": versions or None, "command": report["command"]}
    items = ""
    for name, value in (pairs | wide).items():
        if value not in (None, "–"):
            items += f'<div class="{"long" if name in wide else "short"}"><dt>{name}</dt><dd>{shown(value)}</dd></div>'
    return f"<dl>{items}</dl>"


def next_commands(status: str, folder: str) -> str:
    """What can be done with this run now; a resume without a checkpoint starts at step 1."""
    run = shlex.quote(folder)
    if status != "finished":
        return f"halfbyte train --resume {run}"
    return f"halfbyte chat {run}\nhalfbyte generate {run} --input prompts.txt --output answers.jsonl\nhalfbyte evaluate {run}"


def page(report: dict[str, Any], steps: list[Event], recipe: str, folder: str) -> str:
    """The whole report.html."""
    decisions = [[one.get("name"), one.get("value"), one.get("reason")] for one in report["decisions"]]
    notes = "".join(f"<li>{shown(note)}</li>" for note in report["notes"])
    commands = next_commands(report["status"], folder)
    sections = [
        section("Before and after", before_after(**report["evaluation"])),
        section("Training", charts(report, steps)),
        section("Generations", generations(report)),
        section("Data", ledger(report["data"])),
        section("Plan", table(["decision", "value", "reason"], decisions, "wide"), f"<ul>{notes}</ul>" if notes else ""),
        section("Run", facts(report)),
        section("Recipe", f"<details><summary>as asked</summary><pre>{shown(recipe)}</pre></details>" if recipe else ""),
        section("Next", '<p class="quiet">From the folder that holds this run:</p>', f"<pre>{shown(commands)}</pre>"),
    ]
    name, status = shown(report["name"]), report["status"]
    # settle() puts the reason why a run stopped last.
    notice = f'<p class="notice {status}">{shown(report["notes"][-1])}</p>' if status in ("failed", "interrupted") else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} – {status} – halfbyte</title><style>{CSS}{CHART_CSS}</style></head><body><main>
<header><h1>{name} <span class="status {status}">{status}</span></h1>
<p class="result">{shown(result_sentence(report))}</p>{notice}</header>
{"".join(sections)}</main></body></html>
"""
