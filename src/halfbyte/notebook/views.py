"""How results show themselves: as text where they are printed, as HTML in a notebook. What comes from data or model is escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from halfbyte.runs.chart import CHART_CSS
from halfbyte.runs.markup import paragraph, shown, table
from halfbyte.runs.verdict import SIGNS, sample, span, word_of
from halfbyte.runs.words import count, decimals_of, fixed, interval, visible

if TYPE_CHECKING:
    from halfbyte.api import Planned
    from halfbyte.checks.reproduce import Reproduction
    from halfbyte.checks.resume import ResumeProof
    from halfbyte.data.audit import Audit
    from halfbyte.data.prepare import Prepared
    from halfbyte.data.show import Shown
    from halfbyte.evaluate.compare import Versus

T = TypeVar("T")
# Middle tones, for notebooks are light or dark and do not say which.
STYLE = (
    "<style>.halfbyte{--quiet:#7d888d;--rule:#80808050;--tuned:#1f9488;--base:#8489a8;--held:#d07a33}"
    ".halfbyte :is(th,td){text-align:left;vertical-align:top}.halfbyte .scroll{overflow-x:auto}"
    ".halfbyte .numbers :is(th,td):not(:first-child){text-align:right;white-space:nowrap}" + CHART_CSS + "</style>"
)
PAGE_HEIGHT = 420
"""Of the frame that holds a page, in pixels; it scrolls."""


@dataclass(frozen=True)
class Rows:
    """A small table of words."""

    head: list[str]
    rows: list[list[str]]
    kind: str = "wide"

    def as_text(self) -> str:
        lines = [[visible(cell).replace("\n", " ") for cell in row] for row in (self.head, *self.rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


@dataclass(frozen=True, repr=False)
class View(Generic[T]):
    """What a verb found, in `value`, and how it looks."""

    value: T
    title: str
    parts: Sequence[Rows | str]
    page: str = ""
    """A whole page that is shown in place of the parts in a notebook."""

    def __repr__(self) -> str:
        return "\n\n".join([self.title, *(part if isinstance(part, str) else part.as_text() for part in self.parts)])

    def _repr_html_(self) -> str:
        if self.page:  # in a frame, so that its style stays its own
            return f'<iframe srcdoc="{html.escape(self.page)}" style="width:100%;height:{PAGE_HEIGHT}px;border:0"></iframe>'
        parts = [paragraph(part) if isinstance(part, str) else table(part.head, part.rows, part.kind) for part in self.parts]
        return framed(f"<p><b>{shown(self.title)}</b></p>{''.join(parts)}")


def framed(body: str) -> str:
    return f'{STYLE}<div class="halfbyte">{body}</div>'


def audit_view(found: "Audit") -> "View[Audit]":
    title = f"{count(found.records)} records" + (f", {count(found.left_out)} rows left out" if found.left_out else "")
    rows = [[one.level, one.name, f"{count(one.count)} of {count(one.of)}", one.samples[0] if one.samples else "", one.advice] for one in found.findings]
    told = Rows(["", "found", "rows", "for example", "what to do"], rows) if rows else "Nothing was found."
    return View(found, title, [told, "Patterns find what they know: a clean audit does not make data anonymous or right."])


def ledger_rows(ledger: dict[str, Any]) -> list[Rows | str]:
    """Every row that was read, in one bin each."""
    bins = [[name, count(rows)] for name, rows in ledger["bins"].items()]
    left_out = [[f"left out: {one['reason']}", count(one["count"])] for one in ledger["left_out"]]
    made = ", ".join(f"{count(ledger[f'{part}_rows'])} to {word}" for part, word in (("train", "train"), ("validation", "validate"), ("test", "test")))
    return [Rows([f"of {count(ledger['records_read'])} rows read", "rows"], bins + left_out, "numbers"), f"rows of tokens: {made}"]


def prepared_view(prepared: "Prepared") -> "View[Prepared]":
    decided = Rows(["decision", "value", "reason"], [[one.name, one.value, one.reason] for one in prepared.decisions])
    return View(prepared, "Prepared data", [decided, *ledger_rows(prepared.ledger), *prepared.notes])


def plan_view(planned: "Planned") -> "View[Planned]":
    decided = Rows(["decision", "value", "reason"], [[one.name, one.value, one.reason] for one in planned.plan.decisions])
    return View(planned, f"Plan of {planned.recipe.name}", [decided, *ledger_rows(planned.prepared.ledger), *planned.plan.notes])


def spans_view(shown_rows: "list[Shown]", facts: list[tuple[str, str]], title: str, stage: str) -> "View[list[Shown]]":
    """In a notebook the page that `halfbyte show --html` writes; as text, what trains stands between « and »."""
    from halfbyte.data.show import to_page

    def marked(row: "Shown") -> str:
        said = "".join(f"«{span.text}»" if span.kind == "trained" else f"{span.text}: " if span.kind == "role" else span.text for span in row.spans)
        return f"{row.title}\n{visible(said.replace('»«', ''))}"

    return View(shown_rows, title, [marked(row) for row in shown_rows], to_page(shown_rows, title, facts, stage))


def scores(comparisons: list[dict[str, Any]], first: str = "base", second: str = "tuned") -> Rows:
    """One against the other, a row a comparison."""
    rows = []
    for one in comparisons:
        decimals, ends = decimals_of(one), interval(one.get("interval"))
        change = fixed(one.get("difference"), decimals, sign=True)
        around = f" ({span(ends, decimals, sign=True)})" if ends else ""
        word = word_of(one)
        rows.append([
            f"{one['metric']} ({sample(one)})", fixed(one.get("base"), decimals), fixed(one.get("tuned"), decimals), change + around,
            f"{SIGNS.get(word, '')} {word}".strip(),
        ])  # fmt: skip
    return Rows(["", first, second, "change (95 % interval)", "verdict"], rows, "numbers")


def run_view(path: Path, report: dict[str, Any]) -> View[Path]:
    verdict = report["verdict"]
    title = f"{SIGNS.get(verdict['word'], '')} {report['name']}, {report['status']}: {verdict['title']}".strip()
    table_of_scores = [scores(report["comparisons"])] if report["comparisons"] else []
    others = [verdict["others"]] if verdict["others"] else []
    return View(path, title, [verdict["sentence"], *table_of_scores, *others, f"The whole report: {path / 'report.html'}"])


def versus_view(versus: "Versus") -> "View[Versus]":
    compared = [{"group": group, **one.as_json()} for group, one in versus.compared]
    return View(versus, versus.sentence, [scores(compared, versus.first.name, versus.second.name), *versus.notes])


def reproduction_view(found: "Reproduction") -> "View[Reproduction]":
    told = [*(f"other input: {one}" for one in found.inputs), *(f"not as then: {one}" for one in found.place)]
    folders = [f"{found.first} and {found.second}"] if found.second is not None else []
    return View(found, found.sentence, [*told, *folders])


def resume_view(proof: "ResumeProof") -> "View[ResumeProof]":
    """Both courses, step by step."""
    rows = []
    for one in proof.steps:
        losses = dict.fromkeys(str(event.get("loss")) for event in (one.alone, one.cut))
        rows.append([str(one.step), ", when cut ".join(losses), f"other {', '.join(one.differs)}" if one.differs else "same"])
    adapters = f"last adapter: {proof.adapters[0][:16]} left alone, {proof.adapters[1][:16]} when cut"
    return View(proof, proof.sentence, [Rows(["step", "loss", ""], rows, "numbers"), adapters])


def run_text(path: Path, report: dict[str, Any]) -> str:
    return repr(run_view(path, report))


def run_html(path: Path, report: dict[str, Any]) -> str:
    return run_view(path, report)._repr_html_()
