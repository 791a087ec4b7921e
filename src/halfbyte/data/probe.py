"""A content that notes what a chat template asks of it, so that one run tells what the template does with every other content.

A template that only copies its contents asks nothing; one that drops the reasoning of earlier turns looks for `</think>`. Contents
that hold nothing of what was looked for are treated as the probe was. A filter in C that is handed a probe cannot be watched, but it
would change the probe's text, which holds a character of every sort.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# Characters that a filter would change: quotes, HTML, capitals, two blanks, escapes, letters of other scripts.
EVERY_SORT = "aB  \"'&<>\\{}%\u00e9\u0130\u65e5."
SEARCHES = ("__contains__", "__eq__", "__ne__", "startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "rfind", "index", "count",
            "replace", "removeprefix", "removesuffix")  # fmt: skip
TRIMS = ("strip", "lstrip", "rstrip")


def plain(text: str) -> str:
    """A probe as a string, of which we may ask what we like."""
    return "".join([text])


@dataclass
class Asked:
    """What a template asks of contents: the texts that it looks for, whether it takes blanks off, and whether it asks what we cannot tell."""

    looks_for: set[str] = field(default_factory=set)
    trims: bool = False
    other: bool = False

    def note(self, method: str, arguments: list[Any]) -> None:
        if method in TRIMS:
            self.trims = True
            self.looks_for.update(letter for letters in arguments for letter in letters or "" if not letter.isspace())
        elif method in SEARCHES and arguments and all(isinstance(text, str) for text in arguments):
            self.looks_for.update(plain(text) for text in arguments if text)
        else:
            self.other = True


class Probe(str):
    """A content that is watched."""

    _asked: Asked
    """Out of a template's reach, as is all that begins with an underscore."""

    @classmethod
    def of(cls, text: str, asked: Asked) -> "Probe":
        probe = cls(text)
        probe._asked = asked
        return probe

    def _watched(self, value: Any) -> Any:
        """What a method answers, watched too."""
        if isinstance(value, list | tuple):
            return type(value)(self._watched(part) for part in value)
        return Probe.of(value, self._asked) if isinstance(value, str) else value

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    # Jinja's sandbox knows the format methods of strings by what they are, and guards them: they must stay what they are.

    @property
    def format(self) -> Any:
        self._asked.other = True
        return super().format

    @property
    def format_map(self) -> Any:
        self._asked.other = True
        return super().format_map

    def __add__(self, other: str) -> str:
        return self._watched("".join([self, other]))

    def __radd__(self, other: str) -> str:
        return self._watched("".join([other, self]))


def _noting(name: str) -> Callable[..., Any]:
    """A method of str that notes its question before it answers."""
    method = getattr(str, name)

    def ask(self: Probe, *arguments: Any) -> Any:
        self._asked.note(name, [text for given in arguments for text in (given if isinstance(given, tuple) else [given])])
        return self._watched(method(self, *arguments))

    return ask


for _name in set(dir(str)) - set(dir(object)) - set(vars(Probe)) | {"__eq__", "__ne__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__format__"}:
    setattr(Probe, _name, _noting(_name))


def concat(parts: Iterable[str]) -> str:
    """Jinja's, but a text that holds a probe notes questions too."""
    parts = list(parts)
    text = "".join(parts)
    for part in parts:
        if isinstance(part, Probe):
            return Probe.of(text, part._asked)
    return text
