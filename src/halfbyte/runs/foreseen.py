"""Memory and time: what the plan predicted beside what was measured, as sentences, as rows of a table, and with a bar for each phase on the page."""

from typing import Any

from halfbyte.runs.markup import paragraph, shown
from halfbyte.runs.words import DASH, figure, number, percent_change, size

WIDTH, HEIGHT = 200, 26
HEAD = ["", "predicted", "measured", "difference"]
Rows = list[list[str]]


def told_of_memory(memory: dict[str, Any]) -> str:
    predicted, measured = memory["predicted_bytes"], memory["measured_bytes"]
    if not predicted or not measured:
        return ""
    return f"{size(predicted)} was predicted, {size(measured)} measured ({percent_change(predicted, measured)})"


def told_of_time(time: dict[str, Any]) -> str:
    """Of a step."""
    predicted, measured = time["predicted_step_seconds"], time["measured_step_seconds"]
    if not predicted or not measured:
        return ""
    return f"{seconds(predicted)} was predicted, {seconds(measured)} measured ({percent_change(predicted, measured)})"


def seconds(value: Any) -> str:
    """Of a step: `0.1268 s`, `15.61 s`."""
    return DASH if number(value) is None else f"{figure(value)} s"


def rows(report: dict[str, Any]) -> Rows:
    """Memory of each phase that was predicted, then the time of a step. Empty without a prediction by phase."""
    time = report["time"]
    of_phases = [_row(f"memory, {phase['name']}", size, phase["predicted_bytes"], phase["measured_bytes"]) for phase in report["memory"]["phases"]]
    return [*of_phases, _row("a step", seconds, time["predicted_step_seconds"], time["measured_step_seconds"])] if of_phases else []


def _row(name: str, write: Any, predicted: float | None, measured: float | None) -> list[str]:
    return [name, write(predicted), write(measured), percent_change(predicted, measured)]


def bars(report: dict[str, Any]) -> str:
    """The same rows as a table of the page, with two bars for each phase on one scale. Nothing without a prediction by phase."""
    memory, lines = report["memory"], rows(report)
    if not lines:
        return ""
    budget = memory["budget_bytes"] or 0.0
    most = max([budget, *(phase[key] or 0.0 for phase in memory["phases"] for key in ("predicted_bytes", "measured_bytes"))]) or 1.0
    body = ""
    for line, phase in zip(lines, [*memory["phases"], None], strict=True):
        drawn = bar(phase["predicted_bytes"], phase["measured_bytes"], budget, most) if phase else ""
        cells = "".join(f"<td>{shown(cell)}</td>" for cell in line)
        body += f'<tr>{cells}<td class="plot">{drawn}</td></tr>'
    head = "".join(f'<th scope="col">{name}</th>' for name in [*HEAD, ""])
    told = "The pale bar is what was predicted, the full one what was measured" + (f"; the line is the budget of {size(budget)}." if budget else ".")
    table = f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"{table}{paragraph(told, 'quiet small')}"


def bar(predicted: float | None, measured: float | None, budget: float, most: float) -> str:
    """Red where more was taken than there was."""

    def at(value: float) -> float:
        return value / most * (WIDTH - 2)

    parts = [f'<rect class="band" x="0" y="3" width="{at(predicted):.1f}" height="9"/>'] if predicted else []
    if measured:
        parts.append(f'<rect fill="currentColor" x="0" y="14" width="{at(measured):.1f}" height="9"/>')
    if budget:
        parts.append(f'<line class="zero" x1="{at(budget):.1f}" y1="0" x2="{at(budget):.1f}" y2="{HEIGHT}"/>')
    kind = "bar worse" if budget and measured and measured > budget else "bar"
    told = f"predicted {size(predicted)}, measured {size(measured)}"
    size_of = 'style="width:min(17rem,40vw)" preserveAspectRatio="none"'
    return f'<svg class="{kind}" {size_of} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
