"""How a run goes, while it goes: in Jupyter a chart that is drawn again in place, elsewhere a line at each validation.

IPython is never imported unless a kernel runs already, and nothing is lost without it.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfbyte.notebook.views import framed
from halfbyte.runs.chart import Points, Series, line_chart
from halfbyte.runs.events import Event
from halfbyte.runs.markup import paragraph
from halfbyte.runs.words import count, figure, visible

SECONDS_BETWEEN_DRAWINGS = 1.0


class Curve:
    """Hears of the plan and of the events; handed to the API."""

    def __init__(self) -> None:
        self.draw = jupyter_display()
        self.drawn = -math.inf
        self.total = 0
        self.folder: Path | None = None
        self.training: Points = []
        self.validation: Points = []
        self.line = ""

    def on_plan(self, planned: Any, run: Any) -> None:
        self.total, self.folder = planned.plan.total_steps, run.path
        self._tell(f"{run.path}: {self.total:,} steps")

    def on_event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "progress":
            self._draw(f"{event['stage']}: {event['rows']:,} rows")
        elif kind == "resume":
            self.training = [point for point in self.training if point[0] <= event["step"]]
        elif kind == "step":
            self.training.append((event["step"], event["loss"]))
            self._draw(f"step {count(event['step'])} of {count(self.total)}, {count(event['tokens_per_second'])} tokens/s")
        elif kind == "validation":
            self.validation.append((event["step"], event["loss"]))
            loss = f"loss {self.training[-1][1]:.3f}, " if self.training else ""
            self._tell(f"step {count(event['step'])} of {count(self.total)}: {loss}validation {event['loss']:.3f}")
        elif kind in ("note", "skipped", "memory_change"):
            self._tell(visible(event.get("message") or event.get("reason")))
        elif kind == "measuring":
            self._tell("measuring base against tuned on the held-out rows")

    def close(self) -> None:
        """Draws what came since the last drawing."""
        if self.draw and self.training:
            self._draw(f"{count(self.training[-1][0])} of {count(self.total)} steps", at_once=True)

    def _tell(self, line: str) -> None:
        if self.draw:
            self._draw(line)
        else:
            print(line, flush=True)

    def _draw(self, line: str, at_once: bool = False) -> None:
        now = time.monotonic()
        if self.draw and (at_once or now - self.drawn >= SECONDS_BETWEEN_DRAWINGS):
            self.drawn = now
            self.draw(self.html(line))

    def html(self, line: str) -> str:
        series = [Series("training", self.training, "line", "tuned"), Series("validation", self.validation, "dots", "held")]
        # The name makes ids unique on a page that shows many charts.
        chart = line_chart(f"loss-{id(self)}", "Training and validation loss", series, "step", "loss per token") if self.training else ""
        best = min((loss for _, loss in self.validation), default=None)
        told = f"; best validation loss {figure(best)}" if best is not None else ""
        return framed(chart + paragraph(line + told))


def jupyter_display() -> Callable[[str], None] | None:
    """A function that shows HTML in the cell, in place of what it showed before; None where no kernel of Jupyter runs this code."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import HTML, display

    if get_ipython() is None:
        return None
    shown: list[Any] = []

    def draw(html: str) -> None:
        if shown:
            shown[0].update(HTML(html))
        else:
            shown.append(display(HTML(html), display_id=True))

    return draw
