"""Figures and text as a person reads them in a report. What is not a number, or not finite, is a dash; nothing here raises."""

import math
import re
from typing import Any

DASH = "–"
MINUS = "\u2212"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (tab and line feed are fine), overrides that reorder text on screen, and halves of characters."""


def visible(value: Any) -> str:
    """Text that shows what is there: unseen characters as \\u202e, None as a dash."""
    return DASH if value is None else UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def number(value: Any) -> float | None:
    """The value where it is a finite number. Events are read from a file, which may hold anything."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def interval(value: Any) -> tuple[float, float] | None:
    """Both ends of an interval, or None."""
    ends = [number(end) for end in value] if isinstance(value, list | tuple) else []
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def rows_of(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list; nothing of what is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def fields_of(value: Any) -> dict[str, Any]:
    """A dict; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def count(value: Any) -> str:
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def counted(value: Any, one: str, many: str = "") -> str:
    """`1 row`, `12 rows`."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def figure(value: Any) -> str:
    """At most four digits that count: 49.4, 31.27, 12,345."""
    known = number(value)
    return DASH if known is None else minus(f"{known:.4g}" if abs(known) < 9_999.5 else f"{known:,.0f}")


def fixed(value: Any, decimals: int, sign: bool = False) -> str:
    """With as many decimals as asked; zero has no sign."""
    known = number(value)
    if known is None:
        return DASH
    rounded = round(known, decimals)
    return minus(f"{rounded:+,.{decimals}f}" if sign and rounded else f"{rounded or 0.0:,.{decimals}f}")


def minus(text: str) -> str:
    """With the minus sign that is as wide as a digit; that of an exponent too."""
    return text.replace("-", MINUS)


def percent(share: Any, decimals: int = 1) -> str:
    """Without a break before the sign."""
    known = number(share)
    return DASH if known is None else f"{fixed(100 * known, decimals)}\u00a0%"


def percent_change(base: Any, tuned: Any) -> str:
    """`−36.8 %`, `+0.4 %`, `0.0 %`; a dash where there is nothing to compare."""
    before, after = number(base), number(tuned)
    return DASH if not before or after is None else f"{fixed(100 * (after / before - 1), 1, sign=True)}\u00a0%"


def chance(p_value: Any) -> str:
    """Without a break inside."""
    known = number(p_value)
    return DASH if known is None else "p\u00a0<\u00a00.0001" if known < 0.0001 else f"p\u00a0=\u00a0{known:.2g}"


def size(value: Any) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least 1."""
    known = number(value)
    if known is None:
        return DASH
    power = min(4, (len(str(int(abs(known)))) - 1) // 3)
    return f"{known / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(value: Any) -> str:
    seconds = number(value)
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def decimals_of(comparison: dict[str, Any]) -> int:
    """How many decimals a comparison deserves: two digits of its interval's width, for more would be noise."""
    ends = interval(comparison.get("interval"))
    scores = [abs(score) for name in ("base", "tuned") if (score := number(comparison.get(name))) is not None]
    width = ends[1] - ends[0] if ends and ends[1] > ends[0] else max(scores, default=1.0) / 10
    fewest = 1 if max(scores, default=0.0) < 100 else 0
    return min(5, max(fewest, 1 - math.floor(math.log10(width)))) if width > 0 else 3
