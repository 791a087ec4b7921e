"""Is a run that is cut and gone on with the run that was left alone? Both courses, step by step, to the last digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
COMPARED = {"rows": "rows", "learning_rate": "learning rate", "loss": "loss", "grad_norm": "gradient norm", "tokens": "tokens"}


@dataclass(frozen=True)
class Compared:
    """One step of both courses."""

    step: int
    alone: Event
    cut: Event
    differs: tuple[str, ...]
    """Which of COMPARED; none where the step is the same."""


@dataclass(frozen=True)
class ResumeProof:
    """What came of cutting a run behind every step."""

    steps: list[Compared]
    adapters: tuple[str, str]
    """Hash of the last adapter, of the run that was left alone and of the one that was cut."""
    cuts: int
    repeats: bool | None = None
    """Whether a second run that is left alone is the first again; asked only where the cut one was not."""

    @property
    def identical(self) -> bool:
        return self.adapters[0] == self.adapters[1] and not any(one.differs for one in self.steps)

    @property
    def sentence(self) -> str:
        if self.identical:
            return f"identical: {len(self.steps)} steps, cut behind {self.cuts} of them; rows, learning rates, losses, gradient norms and the last adapter"
        first = next((one for one in self.steps if one.differs), None)
        seen = f"step {first.step} has another {first.differs[0]}" if first else "the last adapter is another one"
        if first:
            key = next(key for key, name in COMPARED.items() if name == first.differs[0])
            seen += f": {first.alone.get(key)} left alone, {first.cut.get(key)} when cut"
        return seen if self.repeats is not False else f"{seen}; two runs that are left alone differ here as well, so it is not the cut"


def compare_steps(alone: Sequence[Event], cut: Sequence[Event]) -> list[Compared]:
    """The step events of both courses, each in order; a step that one of them lacks differs in everything."""
    mine, theirs = ({event["step"]: event for event in events} for events in (alone, cut))
    found = []
    for step in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(step, {}), theirs.get(step, {})
        found.append(Compared(step, one, other, tuple(name for key, name in COMPARED.items() if one.get(key) != other.get(key) or key not in one)))
    return found
