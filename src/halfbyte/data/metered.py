"""Chat templates run in Jinja's immutable sandbox, and on a meter: a template comes with a model, and may be written to harm.

The sandbox (transformers' own: no attribute that leads to Python, no change of what is handed in) keeps a template from reaching anything.
It does not keep one from running for a year or from filling the memory, so here every turn of a loop, every call and every text that is
put together is counted, and a template that goes beyond what any honest one needs is refused:

    {% for a in x %}     -> {% for a in x | counted %}         turns
    f(x), text.method()  -> environment.call                   calls, and the size of what they are asked for
    a * b, a ** b, a % b -> environment.call_binop             size before it is computed
    a ~ b, | filter      -> joined, and filters that look      size

The clock is asked last, for what is slow in one stroke: twenty seconds, where the longest honest rendering takes a second.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_TURNS = 500_000
"""Of loops and calls in one rendering. A conversation of 10,000 turns under the longest templates in use takes some 100,000."""
MOST_SECONDS = 20.0
MOST_CHARACTERS = 50_000_000
"""Of a text or a list that one expression makes. A row of data has 20 million at most."""
MOST_IN_ALL = 10 * MOST_CHARACTERS
"""Made in one rendering, thrown away or not."""
MOST_OF_A_NUMBER = 100_000
"""Of a number that sizes something: a width, an indentation, a repetition."""
SIZED = (str, bytes, list, tuple, dict)
WIDTH = re.compile(r"%[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?|\{[^{}]*?(\d{4,})[^{}]*\}")


class TemplateTooLarge(SecurityError):
    """A template asks for more than any honest one needs."""


def size_of(value: Any) -> int:
    """Its length; a text that is watched (probe.py) does not take this for a question of the template."""
    return str.__len__(value) if isinstance(value, str) else len(value)


class Meter:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.turns = self.made = 0
        self.until = time.monotonic() + MOST_SECONDS

    def tick(self, turns: int = 1) -> None:
        self.turns += turns
        if self.turns > MOST_TURNS:
            raise TemplateTooLarge(f"it takes more than {MOST_TURNS:,} turns of loops and calls")
        if time.monotonic() > self.until:
            raise TemplateTooLarge(f"it takes longer than {MOST_SECONDS:g} s")

    def make(self, size: int) -> None:
        self.made += size
        if size > MOST_CHARACTERS or self.made > MOST_IN_ALL:
            raise TemplateTooLarge(f"it writes more than {MOST_CHARACTERS:,} characters")


def metered(source: Environment) -> "MeteredEnvironment":
    """An environment with the filters, globals and extensions of `source`, on a meter of its own."""
    environment = MeteredEnvironment(
        trim_blocks=source.trim_blocks, lstrip_blocks=source.lstrip_blocks, extensions=[type(e) for e in source.extensions.values()]
    )
    environment.globals.update({name: value for name, value in source.globals.items() if name != "lipsum"})  # writes as much as it is asked for
    environment.tests.update(source.tests)
    environment.filters.update({name: environment.looking(function) for name, function in source.filters.items()})
    environment.filters |= {"counted": environment.counted, "joined": environment.joined}
    return environment


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meter = Meter()
        self.finalize = self._weighed
        self.globals.pop("lipsum", None)

    # What is counted is written into the template when it is parsed

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        try:
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None).set_lineno(loop.lineno)
            for holder in [tree, *tree.find_all(nodes.Node)]:
                for field, value in list(holder.iter_fields()):
                    if isinstance(value, nodes.Concat):
                        setattr(holder, field, _joined(value))
                    elif isinstance(value, list):
                        value[:] = [_joined(part) if isinstance(part, nodes.Concat) else part for part in value]
        except RecursionError as error:
            raise TemplateTooLarge("it is nested too deep") from error
        tree.set_environment(self)
        return tree

    def counted(self, values: Iterable[Any]) -> Iterable[Any]:
        """The same turns. What has a length stays what it is and pays at once; `loop.length` and slices work as before."""
        if isinstance(values, list | tuple | str | dict | range):
            self.meter.tick(size_of(values) or 1)
            return values
        return self._ticking(values)

    def _ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.meter.tick()
            yield value

    def joined(self, parts: list[Any]) -> str:
        texts = [part if isinstance(part, str) else str(self._weighed(part)) for part in parts]
        self.meter.make(sum(map(size_of, texts)))
        return self.concat(texts)

    # What is weighed while it runs

    def call(__self, __context: Any, __obj: Any, *given: Any, **more: Any) -> Any:
        __self.meter.tick()
        __self._check_asked(given, more)
        if isinstance(__obj, LoopContext) and given:  # a loop that calls itself
            given = (__self.counted(given[0]), *given[1:])
        for value in (*given, *more.values()):
            __self._weighed(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes):
            __self._check_method(owner, __obj.__name__, given)
        return __self._made(super().call(__context, __obj, *given, **more))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(owner := getattr(value, "__self__", None), str):
            self._check_widths(owner)
        return super().wrap_str_format(value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.meter.tick()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, SIZED) and isinstance(times, int):
                    self.meter.make(size_of(many) * max(0, times))
        elif operator == "**" and any(isinstance(side, int | float) and abs(side) > 10_000 for side in (left, right)):
            raise TemplateTooLarge("it computes a power of large numbers")
        elif operator == "+" and isinstance(left, SIZED) and isinstance(right, SIZED):
            self.meter.make(size_of(left) + size_of(right))
        elif operator == "%" and isinstance(left, str):
            self._check_widths(left)
            self._weighed(right)
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and made.bit_length() > 10_000:
            raise TemplateTooLarge("it computes a number of more than 10,000 bits")
        return made

    def looking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts as a call."""

        @wraps(function)  # its marks, such as being handed the environment, go with it
        def filtered(*given: Any, **more: Any) -> Any:
            self.meter.tick()
            self._check_asked(given, more)
            texts = [value for value in (*given, *more.values()) if isinstance(value, str)]
            lists = [value for value in given if isinstance(value, list | tuple | dict | range)]
            for value in lists:
                self.meter.tick(size_of(value) // 4 or 1)
                self._weighed(value)
            if function.__name__ in ("do_replace", "do_mark_safe") and size_of(texts) >= 3:
                self._check_method(texts[0], "replace", tuple(texts[1:3]))
            elif function.__name__ in ("do_join", "do_wordwrap", "do_indent"):
                # What is put between, or before a line, as often as it can be.
                sizes = [value for value in (*given, *more.values()) if isinstance(value, int)]
                most = max([size_of(text) for text in texts[lists == [] :]] + sizes, default=0)
                self.meter.make(most * (size_of(lists[0]) if lists else 1 + str.count(texts[0], "\n") if texts and function.__name__ == "do_indent" else 1))
            elif function.__name__ == "do_format" and texts:
                self._check_widths(texts[0])
            return self._made(function(*given, **more))

        return filtered

    def _check_asked(self, given: tuple[Any, ...], more: dict[str, Any]) -> None:
        for value in (*given, *more.values()):
            if isinstance(value, int) and abs(value) > MOST_OF_A_NUMBER:
                raise TemplateTooLarge(f"it asks for more than {MOST_OF_A_NUMBER:,} of something")

    def _check_method(self, text: Any, name: str, given: tuple[Any, ...]) -> None:
        if name == "replace" and size_of(given) >= 2 and all(isinstance(part, str) for part in given[:2]):
            self.meter.make((str.count(text, given[0]) if size_of(given[0]) else size_of(text) + 1) * size_of(given[1]) + size_of(text))
        elif name == "join" and given and isinstance(given[0], list | tuple):
            self.meter.make(size_of(text) * size_of(given[0]) + sum(size_of(part) for part in given[0] if isinstance(part, str)))
        elif name == "expandtabs":
            self.meter.make(size_of(text) * max([8, *(number for number in given if isinstance(number, int))]))
        elif name == "translate" and given and isinstance(given[0], dict):
            self.meter.make(size_of(text) * max((size_of(part) for part in given[0].values() if isinstance(part, str)), default=1))

    def _check_widths(self, pattern: str) -> None:
        for found in WIDTH.finditer(pattern):
            if any(width and (width == "*" or int(width[:12]) > MOST_OF_A_NUMBER) for width in found.groups()):
                raise TemplateTooLarge("it pads a text to a width without measure")

    def _made(self, made: Any) -> Any:
        if isinstance(made, SIZED):
            self.meter.make(size_of(made))
        return made

    def _weighed(self, value: Any) -> Any:
        """As it is; a list that holds itself many times over is no larger than a few words until it is written out."""
        if isinstance(value, list | tuple | dict):
            weight, waiting = 0, [value]
            while waiting:
                inner = waiting.pop()
                parts = [*inner, *inner.values()] if isinstance(inner, dict) else inner
                weight += 1 + size_of(parts)
                if weight > MOST_TURNS:
                    raise TemplateTooLarge("it makes lists without measure")
                waiting += [part for part in parts if isinstance(part, list | tuple | dict)]
                weight += sum(size_of(part) for part in parts if isinstance(part, str)) // 100
        return value


def _joined(concat: nodes.Concat) -> nodes.Filter:
    joined = nodes.Filter(nodes.List(concat.nodes), "joined", [], [], None, None)
    joined.set_lineno(concat.lineno)
    return joined
