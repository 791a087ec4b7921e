"""What a rule is: a name, what happens silently, the mend, and a function that finds the places."""

import ast
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from halfbyte.checks.program import Program
from halfbyte.checks.scripts import Place, without_secrets

Level = Literal["fault", "note"]
# A place, as a node or as a line, and what was seen there.
Seen = tuple[ast.AST | int, str]
Find = Callable[[Program], Iterable[Seen]]


@dataclass(frozen=True)
class Finding:
    """One place of a script at which a rule found something."""

    rule: str
    level: Level
    place: Place
    seen: str
    silently: str
    mend: str

    @property
    def quoted(self) -> str:
        """The line itself, shortened, and without anything that looks like a secret."""
        line = without_secrets(self.place.text.strip())
        return line if len(line) <= 120 else line[:117] + "..."

    def as_json(self) -> dict[str, Any]:
        place = {**asdict(self.place), "text": self.quoted}
        return {"rule": self.rule, "level": self.level, **place, "seen": self.seen, "silently": self.silently, "mend": self.mend}


@dataclass(frozen=True)
class Rule:
    """`fault`: the result is not what its author thinks. `note`: it may be meant, or costs time, memory or safety."""

    name: str
    level: Level
    silently: str
    mend: str
    find: Find

    def findings(self, program: Program) -> list[Finding]:
        """One for each line, whatever number of things was seen in it."""
        found: dict[int, list[str]] = {}
        for where, seen in self.find(program):
            told = found.setdefault(where if isinstance(where, int) else getattr(where, "lineno", 1), [])
            told += [] if without_secrets(seen) in told else [without_secrets(seen)]
        return [Finding(self.name, self.level, program.script.place(line), "; ".join(told), self.silently, self.mend) for line, told in found.items()]


def rule(level: Level, silently: str, mend: str) -> Callable[[Find], Rule]:
    """Makes a Rule of a function that finds places; its name is the function's."""
    return lambda find: Rule(find.__name__.replace("_", "-"), level, silently, mend, find)
