"""Draws tokens/s against reserved memory, a panel for each configuration, a mark and a label for each program. Up and to the left is better.

Before them, where both were measured with more numbers of rows than one, halfbyte and Unsloth over all of these: each side's frontier is a line of steps,
the most tokens/s that so much memory gives, with labels where it rises.

A label takes the first free place around its mark, looked for in growing rings; a thin line leads to it where it is not beside the mark.
"""

from dataclasses import dataclass
from html import escape
from math import cos, floor, hypot, log, log2, log10, pi, sin
from typing import Any

from programs import FP8_WAYS, family_of

PANEL_WIDTH, PANEL_HEIGHT = 460, 390
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 58, 52  # room inside a panel around its plot
FONT = 12.5
CHARACTER = 0.6 * FONT  # wider than the mean character of the usual sans-serif fonts, so that a label is never wider than its box
MARK = 5.5
SMALL = 2.5

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
  path { stroke-width: 1.6; } path.ours { fill: none; stroke: var(--ours); } path.unsloth { fill: none; stroke: var(--unsloth); }
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


@dataclass(frozen=True)
class Point:
    label: str
    """Empty of a point that only has a small mark."""
    family: str
    memory: float
    """Gigabytes."""
    speed: float


@dataclass(frozen=True)
class Panel:
    title: str
    memory_word: str
    points: list[Point]
    lines: dict[str, list[Point]]
    """family -> the points of its frontier, the least memory first. Where there are such, memory doubles from one width to the next."""


def draw(cells: list[dict[str, Any]]) -> str:
    """The picture of the cells that were measured and passed their checks."""
    found = panels(cells)
    wide, single = [panel for panel in found if panel.lines], [panel for panel in found if not panel.lines]
    columns = 2 if wide else min(2, max(1, len(single)))
    lines = max(1, len(wide) + -(-len(single) // columns))
    width, height = columns * PANEL_WIDTH, lines * PANEL_HEIGHT + 24
    drawn = [draw_panel(panel, 0, number * PANEL_HEIGHT, width) for number, panel in enumerate(wide)]
    drawn += [
        draw_panel(panel, number % columns * PANEL_WIDTH, (len(wide) + number // columns) * PANEL_HEIGHT, PANEL_WIDTH) for number, panel in enumerate(single)
    ]
    note = f'<text class="soft" x="{width / 2}" y="{height - 8}" text-anchor="middle">up and to the left is better</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">\n'
        f"<title>Training speed against memory</title>\n<style>{STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" style="fill: var(--paper)"/>\n{"".join(drawn)}{note}\n</svg>\n'
    )


def panels(cells: list[dict[str, Any]]) -> list[Panel]:
    """The frontiers of each shape, rank and row length, then the configurations."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    single: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        asked = cell["configuration"]
        single.setdefault(asked["name"], []).append(cell)
        if not asked.get("packed"):
            alike.setdefault((asked["shape"], asked["tokens"], asked["rank"]), []).append(cell)
    frontiers = [_frontiers(several) for several in alike.values() if _has_frontiers(several)]
    return [*frontiers, *map(_configuration, single.values())]


def _configuration(cells: list[dict[str, Any]]) -> Panel:
    asked = cells[0]["configuration"]
    packed = f", packed ({asked['packed']})" if asked.get("packed") else ""
    title = f"{asked['shape']}, {asked['rows']} x {asked['tokens']:,} tokens{packed}, r {asked['rank']}"
    points = [Point(cell["program"], family_of(cell["program"]), memory_of(cell) / 1e9, cell["tokens_per_second"]) for cell in cells]
    return Panel(title, memory_word(cells[0]), points, {})


def _has_frontiers(cells: list[dict[str, Any]]) -> bool:
    sizes = {side: {cell["configuration"]["rows"] for cell in cells if family_of(cell["program"]) == side} for side in ("ours", "unsloth")}
    return len(sizes["ours"] & sizes["unsloth"]) > 1


def _frontiers(cells: list[dict[str, Any]]) -> Panel:
    lines: dict[str, list[Point]] = {"ours": [], "unsloth": []}
    rest = []
    for cell in sorted(cells, key=lambda one: (memory_of(one), -one["tokens_per_second"])):
        family = family_of(cell["program"])
        line = lines.get(family)
        if line is None or cell["program"] in FP8_WAYS:
            continue
        point = Point(f"{cell['program']} {cell['configuration']['rows']}x", family, memory_of(cell) / 1e9, cell["tokens_per_second"])
        if not line or point.speed > line[-1].speed:
            line.append(point)
        else:
            rest.append(Point("", family, point.memory, point.speed))
    asked = cells[0]["configuration"]
    title = f"{asked['shape']}, rows of {asked['tokens']:,} tokens, r {asked['rank']}: the frontiers"
    return Panel(title, memory_word(cells[0]), [*rest, *lines["ours"], *lines["unsloth"]], lines)


def draw_panel(panel: Panel, x: float, y: float, width: float) -> str:
    """Its upper left corner at (x, y). Frontiers take a line of their own."""
    memories = [point.memory for point in panel.points]
    across, up = doubling(min(memories), max(memories)) if panel.lines else ticks(max(memories)), ticks(max(point.speed for point in panel.points))
    plot = Box(x + LEFT, y + TOP, width - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM)
    bottom = plot.top + plot.height

    def at_memory(value: float) -> float:
        share = log(value / across[0]) / log(across[-1] / across[0]) if panel.lines else value / across[-1]
        return plot.left + share * plot.width

    def at_speed(value: float) -> float:
        return bottom - value / up[-1] * plot.height

    parts = [f'<text class="title" x="{plot.left}" y="{y + 24}">{escape(panel.title)}</text>']
    for value in up:
        parts.append(_line("grid", plot.left, at_speed(value), plot.left + plot.width, at_speed(value)))
        parts.append(f'<text class="soft" x="{plot.left - 8}" y="{at_speed(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    for value in across:
        parts.append(_line("grid", at_memory(value), plot.top, at_memory(value), bottom))
        parts.append(f'<text class="soft" x="{at_memory(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(_line("axis", plot.left, bottom, plot.left + plot.width, bottom))
    parts.append(f'<text class="soft" x="{plot.left + plot.width}" y="{bottom + 36}" text-anchor="end">{panel.memory_word}, GB</text>')
    parts.append(f'<text class="soft" x="{x + 8}" y="{plot.top - 14}">tokens/s</text>')
    for family, line in panel.lines.items():
        steps = "".join(f" H{at_memory(point.memory):.1f} V{at_speed(point.speed):.1f}" for point in line)
        parts.append(f'<path class="{family}" d="M{at_memory(line[0].memory):.1f},{bottom:.1f}{steps} H{plot.left + plot.width}"/>')
    for point in panel.points:
        if not point.label:
            parts.append(f'<circle class="{point.family}" cx="{at_memory(point.memory):.1f}" cy="{at_speed(point.speed):.1f}" r="{SMALL}"/>')
    families = {point.label: point.family for point in panel.points if point.label}
    marks = {point.label: (at_memory(point.memory), at_speed(point.speed)) for point in panel.points if point.label}
    labels = place_labels(marks, plot)
    for name, (mark_x, mark_y) in marks.items():
        box, family = labels[name], families[name]
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


def doubling(least: float, most: float) -> list[float]:
    """Powers of two and what lies between two of them, from the last one below `least` to the first above `most`."""
    steps = [factor * 2.0**power for power in range(floor(log2(least)) - 1, floor(log2(most)) + 2) for factor in (1, 1.5)]
    first, last = max(step for step in steps if step < least), min(step for step in steps if step > most)
    return [step for step in steps if first <= step <= last]


def memory_of(cell: dict[str, Any]) -> int:
    """Reserved bytes on a GPU; on a CPU, what the process took at most."""
    return cell["peaks"].get("reserved_bytes") or cell["peaks"]["host_bytes"]


def memory_word(cell: dict[str, Any]) -> str:
    return "peak reserved memory" if "reserved_bytes" in cell["peaks"] else "peak memory of the process"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
