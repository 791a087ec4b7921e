"""A line chart as one inline SVG: no script, no fetch, colours from CSS variables so that light, dark and paper all read well.

Points are (x, y) in data units. Ticks are 1, 2 or 5 times a power of ten (Heckbert, Nice Numbers for Graph Labels,
Graphics Gems 1990). The page that shows a chart puts CHART_CSS in its style.
"""

import html
import math
from dataclasses import dataclass

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, BOTTOM = 76, 24, 44
MOST_POINTS = 600
"""More than a screen has columns for one chart; a run of 20,000 steps stays a small file."""

CHART_CSS = """
svg.chart{display:block;width:100%;max-width:560px;height:auto;overflow:visible;font-size:12px}
.chart text{fill:var(--quiet);font-family:inherit;font-variant-numeric:tabular-nums}
.chart .grid{stroke:var(--rule);stroke-width:1}.chart .axis{stroke:var(--quiet);stroke-width:1}
.chart .line{fill:none;stroke:var(--tone);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.chart .line.pale{stroke-width:1;opacity:.4}.chart .line.dots{stroke-width:1.2;stroke-dasharray:1 4}.chart .dot{fill:var(--tone)}
.chart .ring{fill:none;stroke:var(--tone);stroke-width:1.6}.chart .drop{stroke:var(--tone);stroke-width:1;stroke-dasharray:3 3}
@media (max-width:600px){svg.chart{font-size:14px}}"""


@dataclass(frozen=True)
class Series:
    """One entry of the legend; `tone` names the CSS variable of its colour."""

    name: str
    points: Points
    shape: str
    """`line`, `pale` (a line behind others), `dots` (joined by a dotted line) or `ring` (a marked point with a line down to the x axis)."""
    tone: str


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    ticks: list[float]
    power: int = 0
    """Labels are in units of 10**power, so that 0.00005 is written 0.5 (times 10 to the -4)."""

    def label(self, tick: float) -> str:
        step = (self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0) / 10.0**self.power
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        text = f"{tick / 10.0**self.power:,.{decimals}f}"
        return text[1:] if text.startswith("-") and not text.strip("-0.,") else text


def nice_step(span: float, most: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten that cuts `span` into at most `most` parts."""
    base = 10.0 ** math.floor(math.log10(span / most))
    return next(base * times for times in (1, 2, 5, 10) if base * times * most >= span * (1 - 1e-9))


def value_axis(values: list[float], from_zero: bool, most: int = 5) -> Axis:
    """Ends on ticks. Equal values get room above and below; a span below float noise counts as equal."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    step = nice_step(high - low, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    size = math.floor(math.log10(max(abs(low), abs(high))) + 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks, size if size < -3 or size > 5 else 0)


def count_axis(values: list[float], most: int = 6) -> Axis:
    """From 0 to the largest value, ticks on whole numbers."""
    high = max(1.0, *values)
    step = max(1.0, nice_step(high, most))
    return Axis(0.0, high, [number * step for number in range(int(high / step + 1e-9) + 1)])


def thin(points: Points) -> Points:
    """Lowest and highest point of each of a few hundred stretches: spikes stay, the file stays small."""
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    if stretch <= 2:
        return points
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return sorted({points[0], *kept, points[-1]})


def mean_of(points: Points, length: int) -> Points:
    """The mean point of each whole stretch of `length` points: the trend of a noisy line."""
    parts = [points[start : start + length] for start in range(0, len(points) - length + 1, length)]
    return [(sum(x for x, _ in part) / length, sum(y for _, y in part) / length) for part in parts]


def legend_places(names: list[str]) -> list[tuple[int, int]]:
    """Where each entry starts; one that would leave the chart begins a new row."""
    places, x, y = [], LEFT, 12
    for name in names:
        width = 38 + round(7.4 * len(name))  # 7.4: a mean letter of the widest usual sans face at the 14 px of a phone
        if x > LEFT and x + width > WIDTH:
            x, y = LEFT, y + 18
        places.append((x, y))
        x += width
    return places


def line_chart(name: str, title: str, series: list[Series], x_label: str, y_label: str, from_zero: bool = False, height: int = HEIGHT) -> str:
    """The SVG, or one sentence when no series has a point. `name` makes the ids unique on the page."""
    finite = [Series(one.name, [p for p in one.points if math.isfinite(p[1])], one.shape, one.tone) for one in series]
    drawn = [one for one in finite if one.points]
    if not drawn:
        return f'<p class="quiet">{html.escape(title)}: no point is logged yet.</p>'
    x_axis = count_axis([x for one in drawn for x, _ in one.points])
    y_axis = value_axis([y for one in drawn for _, y in one.points], from_zero, most=5 if height >= HEIGHT else 3)
    legend = legend_places([one.name for one in drawn])
    right, bottom, top = WIDTH - RIGHT, height - BOTTOM, legend[-1][1] + 24

    def place(point: tuple[float, float]) -> tuple[str, str]:
        x = LEFT + point[0] / x_axis.high * (right - LEFT)
        y = bottom - (point[1] - y_axis.low) / (y_axis.high - y_axis.low) * (bottom - top)
        return f"{x:.1f}", f"{y:.1f}"

    parts = []
    for tick in y_axis.ticks:
        y = place((0, tick))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y}" dy=".35em" text-anchor="end">{y_axis.label(tick)}</text>')
    for tick in x_axis.ticks:
        x = place((tick, y_axis.low))[0]
        parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{x_axis.label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    unit = f' (×10<tspan dy="-4" font-size="80%">{y_axis.power}</tspan>)' if y_axis.power else ""
    middle = (top + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{height - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}{unit}</text>')
    for one, (left, row) in zip(drawn, legend, strict=True):
        sample = [(f"{left}", f"{row}"), (f"{left + 16}", f"{row}")] if one.shape in ("line", "pale") else [(f"{left + 8}", f"{row}")]
        shapes = _shape(one.shape, [place(point) for point in thin(one.points)], bottom) + _shape(one.shape, sample, None)
        text = f'<text x="{left + 22}" y="{row}" dy=".35em">{html.escape(one.name)}</text>'
        parts.append(f'<g style="--tone:var(--{one.tone})">{shapes}{text}</g>')
    told = "; ".join(_told(one) for one in drawn)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(told)}</desc>{"".join(parts)}</svg>'
    )


def _shape(shape: str, places: list[tuple[str, str]], bottom: int | None) -> str:
    """A line of one point would be invisible, so it becomes a dot. `bottom` is None in the legend."""
    if shape == "ring":
        drop = "" if bottom is None else "".join(f'<line class="drop" x1="{x}" y1="{y}" x2="{x}" y2="{bottom}"/>' for x, y in places)
        return drop + "".join(f'<circle class="ring" cx="{x}" cy="{y}" r="5.5"/>' for x, y in places)
    line = f'<path class="line {shape}" d="M{" L".join(f"{x} {y}" for x, y in places)}"/>' if len(places) > 1 else ""
    dots = places if shape == "dots" or len(places) == 1 else []
    return line + "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="2.8"/>' for x, y in dots)


def _told(series: Series) -> str:
    """What a screen reader says of a series."""
    (x0, y0), (x1, y1) = series.points[0], series.points[-1]
    return f"{series.name}: {y0:.4g} at {x0:g}" + (f", then to {y1:.4g} at {x1:g}" if len(series.points) > 1 else "")
