"""What a proof is, and how one is led: whatever goes wrong in it is told as its failure, and nothing of it is raised."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from halfbyte.errors import HalfbyteError, MachineError
from halfbyte.model.room import is_out_of_memory

# What a broken set-up makes libraries raise. Memory or a disk that has no more room is no finding about the set-up, and is not among them.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, OSError, RuntimeError, SafetensorError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """passed: None where it could not be looked at here. told: one line with its figure, or the reason. likely, hint: of a failure, cause and mend."""

    name: str
    passed: bool | None
    told: str
    likely: str = ""
    hint: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": round(self.seconds, 3)}


class Refuted(Exception):
    """What was claimed does not hold: what was seen, the likely cause and the mend."""

    def __init__(self, told: str, likely: str, hint: str) -> None:
        super().__init__(told)
        self.told, self.likely, self.hint = told, likely, hint


class NotHere(Exception):
    """It cannot be looked at in this set-up; the reason."""


@dataclass(frozen=True)
class Claim:
    """`show` returns the line with the figure, or raises Refuted or NotHere. `likely`, `hint`: where something else was raised."""

    name: str
    show: Callable[[Any], str]
    likely: str
    hint: str


def lead(claim: Claim, trial: Any) -> Proof:
    """Raises nothing for a faulty set-up. What the machine lacks is raised: memory, in whatever words the library says it, or room on a disk."""
    try:
        return Proof(claim.name, True, claim.show(trial))
    except Refuted as found:
        return Proof(claim.name, False, found.told, found.likely, found.hint)
    except NotHere as reason:
        return Proof(claim.name, None, str(reason))
    except MachineError:
        raise
    except HalfbyteError as error:
        return Proof(claim.name, False, _first_line(error), claim.likely, error.hint or claim.hint)
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        return Proof(claim.name, False, f"{type(error).__name__}: {_first_line(error)}", claim.likely, claim.hint)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or "without a message"
