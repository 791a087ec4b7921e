"""Draws tokens/s against reserved memory, a panel for each configuration, a mark and a label for each program. Up and to the left is better.

A label takes the first free place around its mark, looked for in growing rings; a thin line leads to it where it is not beside the mark.
"""

from dataclasses import dataclass
from html import escape
from math import cos, floor, hypot, log10, pi, sin
from typing import Any

PANEL_WIDTH, PANEL_HEIGHT = 460, 390
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 58, 52  # room inside a panel around its plot
FONT = 12.5
CHARACTER = 0.6 * FONT  # wider than the mean character of the usual sans-serif fonts, so that a label is never wider than its box
MARK = 5.5
FAMILIES = {"ours": "ours", "hf": "hf", "liger": "hf", "unsloth": "unsloth"}

STYLE = """
  svg { --ink: #1d2433; --soft: #667085; --grid: #e4e7ec; --paper: #ffffff; --ours: #0b7a6f; --hf: #3b62b5; --unsloth: #b5541c; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6e9ef; --soft: #98a2b3; --grid: #2b3342; --paper: #12161f; --ours: #3fd0bd; --hf: #8fb1ff; --unsloth: #ffa467; }
  }
  text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); } .title { font-weight: 600; font-size: 14px; }
  .grid { stroke: var(--grid); } .axis { stroke: var(--soft); } .leader { stroke: var(--soft); stroke-width: 0.8; }
  .mark { stroke: var(--paper); stroke-width: 1.5; }
  .ours { fill: var(--ours); } .hf { fill: var(--hf); } .unsloth { fill: var(--unsloth); } text.ours { font-weight: 600; }
  .label { stroke: var(--paper); stroke-width: 3; paint-order: stroke; }
"""


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )

    def inside(self, other: "Box") -> bool:
        return (
            self.left >= other.left
            and self.top >= other.top
            and self.left + self.width <= other.left + other.width
            and self.top + self.height <= other.top + other.height
        )


def draw(cells: list[dict[str, Any]]) -> str:
    """The picture of the cells that were measured and passed their checks."""
    names = list(dict.fromkeys(cell["configuration"]["name"] for cell in cells))
    columns = min(2, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    width, height = columns * PANEL_WIDTH, lines * PANEL_HEIGHT + 24
    panels = [
        draw_panel([cell for cell in cells if cell["configuration"]["name"] == name], number % columns * PANEL_WIDTH, number // columns * PANEL_HEIGHT)
        for number, name in enumerate(names)
    ]
    note = f'<text class="soft" x="{width / 2}" y="{height - 8}" text-anchor="middle">up and to the left is better</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">\n'
        f"<title>Training speed against memory</title>\n<style>{STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" style="fill: var(--paper)"/>\n{"".join(panels)}{note}\n</svg>\n'
    )


def draw_panel(cells: list[dict[str, Any]], x: float, y: float) -> str:
    """One configuration, its upper left corner at (x, y)."""
    points = {cell["program"]: (memory_of(cell) / 1e9, cell["tokens_per_second"]) for cell in cells}
    across, up = ticks(max(memory for memory, _ in points.values())), ticks(max(speed for _, speed in points.values()))
    plot = Box(x + LEFT, y + TOP, PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM)
    bottom = plot.top + plot.height

    def at_memory(value: float) -> float:
        return plot.left + value / across[-1] * plot.width

    def at_speed(value: float) -> float:
        return bottom - value / up[-1] * plot.height

    configuration = cells[0]["configuration"]
    title = f"{configuration['shape']}, {configuration['rows']} x {configuration['tokens']:,} tokens, r {configuration['rank']}"
    parts = [f'<text class="title" x="{plot.left}" y="{y + 24}">{escape(title)}</text>']
    for value in up:
        parts.append(_line("grid", plot.left, at_speed(value), plot.left + plot.width, at_speed(value)))
        parts.append(f'<text class="soft" x="{plot.left - 8}" y="{at_speed(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    for value in across:
        parts.append(_line("grid", at_memory(value), plot.top, at_memory(value), bottom))
        parts.append(f'<text class="soft" x="{at_memory(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(_line("axis", plot.left, bottom, plot.left + plot.width, bottom))
    parts.append(f'<text class="soft" x="{plot.left + plot.width}" y="{bottom + 36}" text-anchor="end">{memory_word(cells[0])}, GB</text>')
    parts.append(f'<text class="soft" x="{x + 8}" y="{plot.top - 14}">tokens/s</text>')
    marks = {name: (at_memory(memory), at_speed(speed)) for name, (memory, speed) in points.items()}
    labels = place_labels(marks, plot)
    for name, (mark_x, mark_y) in marks.items():
        box, family = labels[name], FAMILIES[name.split("-")[0]]
        near_x, near_y = min(max(mark_x, box.left), box.left + box.width), min(max(mark_y, box.top), box.top + box.height)
        if hypot(near_x - mark_x, near_y - mark_y) > 2 * MARK:
            parts.append(_line("leader", mark_x, mark_y, near_x, near_y))
        parts.append(f'<circle class="mark {family}" cx="{mark_x:.1f}" cy="{mark_y:.1f}" r="{MARK}"/>')
        anchor, text_x = ("end", box.left + box.width) if box.left + box.width <= mark_x else ("start", box.left)
        parts.append(f'<text class="label {family}" x="{text_x:.1f}" y="{box.top + 0.78 * box.height:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return "\n".join(parts) + "\n"


def place_labels(marks: dict[str, tuple[float, float]], plot: Box) -> dict[str, Box]:
    """name -> where its label stands: inside the plot, over no other label and over no mark."""
    taken = [Box(x - MARK - 1, y - MARK - 1, 2 * MARK + 2, 2 * MARK + 2) for x, y in marks.values()]
    placed = {}
    for name, (x, y) in sorted(marks.items(), key=lambda item: item[1][::-1]):
        box = next(box for box in places_around(name, x, y) if box.inside(plot) and not any(box.overlaps(other) for other in taken))
        taken.append(box)
        placed[name] = box
    return placed


def places_around(name: str, x: float, y: float) -> list[Box]:
    """Right of the mark, left, above, below, then on wider and wider rings."""
    width, height = CHARACTER * len(name), FONT + 3
    found = []
    for ring in range(60):
        reach = MARK + 3 + 6 * ring
        for turn in (0, pi, -pi / 2, pi / 2, -pi / 4, pi / 4, -3 * pi / 4, 3 * pi / 4):
            middle_x, middle_y = x + reach * cos(turn), y + reach * sin(turn)
            left = middle_x - width * (1 - round(cos(turn), 6)) / 2 if abs(cos(turn)) > 0.5 else middle_x - width / 2
            left = middle_x if cos(turn) > 0.5 else middle_x - width if cos(turn) < -0.5 else left
            top = middle_y - height if sin(turn) < -0.5 else middle_y if sin(turn) > 0.5 else middle_y - height / 2
            found.append(Box(left, top, width, height))
    return found


def ticks(most: float) -> list[float]:
    """0 and up to seven round steps, the last above `most`."""
    rough = most / 6
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [number * step for number in range(floor(most / step) + 2)]


def memory_of(cell: dict[str, Any]) -> int:
    """Reserved bytes on a GPU; on a CPU, what the process took at most."""
    return cell["peaks"].get("reserved_bytes") or cell["peaks"]["host_bytes"]


def memory_word(cell: dict[str, Any]) -> str:
    return "peak reserved memory" if "reserved_bytes" in cell["peaks"] else "peak memory of the process"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
