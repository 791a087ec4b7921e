"""The verbs for Python and notebooks: the functions of api.py, taking a recipe however it is at hand and returning what shows itself.

A recipe is a file, or a dictionary of the same keys; keyword arguments are laid over it: train={"max_steps": 20}, base="owner/name".
Where a kernel of Jupyter runs the code, training shows a live curve; elsewhere it prints a line at each validation.
"""

import gc
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import yaml

from halfbyte.errors import HalfbyteError, Interrupted, PromiseError, RecipeError
from halfbyte.notebook.curve import Curve
from halfbyte.notebook.views import View, audit_view, plan_view, prepared_view, reproduction_view, resume_view, run_html, run_text, spans_view, versus_view
from halfbyte.recipe.load import Loaded, load_data_or_recipe, parse_recipe
from halfbyte.runs.folder import open_run, read_report
from halfbyte.runs.words import visible

if TYPE_CHECKING:
    from halfbyte.api import Planned, Tuned
    from halfbyte.checks.reproduce import Reproduction
    from halfbyte.checks.resume import ResumeProof
    from halfbyte.data.audit import Audit
    from halfbyte.data.prepare import Prepared
    from halfbyte.data.show import Shown
    from halfbyte.evaluate.classify import Classified
    from halfbyte.evaluate.compare import Versus
    from halfbyte.evaluate.gate import Promise
    from halfbyte.evaluate.rate import Rating
    from halfbyte.generate.engine import Sampling

RecipeLike = str | Path | Mapping[str, Any]
Stage = Literal["record", "example", "tokens", "batch"]


def audit(data: RecipeLike, /, **changes: Any) -> "View[Audit]":
    """What a person should know of a file of data, or of the data of a recipe, before training on them."""
    with _told() as curve:
        loaded = _load(data, changes)
        from halfbyte import api

        return audit_view(api.audit(loaded.recipe.data, curve.on_event))


def prepare(recipe: RecipeLike, /, **changes: Any) -> "View[Prepared]":
    """From the file to the rows that train, validate and test; shows what became of every row."""
    with _told() as curve:
        loaded = _load(recipe, changes)
        from halfbyte import api

        return prepared_view(api.prepare(loaded, curve.on_event))


def show(data: RecipeLike, /, *, stage: Stage = "tokens", rows: int = 3, line: int | None = None, **changes: Any) -> "View[list[Shown]]":
    """What trains, exactly: the supervised tokens are coloured."""
    with _told() as curve:
        loaded = _load(data, changes)
        from halfbyte import api

        return spans_view(*api.show(loaded, stage, rows, line, curve.on_event), f"{loaded.recipe.name}: {stage}", stage)


def plan(recipe: RecipeLike, /, **changes: Any) -> "View[Planned]":
    """What a recipe would run, and why; loads no weights."""
    with _told() as curve:
        loaded = _load(recipe, changes)
        from halfbyte import api

        return plan_view(api.plan(loaded, curve.on_event))


def train(recipe: RecipeLike, /, *, runs: str | Path = "runs", **changes: Any) -> "Run":
    """Trains, measures base against tuned, writes the report. Interrupting saves and stops; `resume` goes on."""
    with _told() as curve:
        loaded = _load(recipe, changes)
        from halfbyte import api

        return Run(api.train(loaded, Path(runs), curve.on_event, curve.on_plan, "halfbyte.train(...)").path)


def resume(run: "str | Path | Run") -> "Run":
    """Goes on with a run that was interrupted, exactly where it stopped."""
    with _told() as curve:
        from halfbyte import api

        return Run(api.resume(_path(run), curve.on_event, curve.on_plan, "halfbyte.resume(...)").path)


def evaluate(run: "str | Path | Run") -> "Run":
    """Measures a finished run again, base and adapter loaded anew from disk, and rewrites its report."""
    with _told() as curve:
        from halfbyte import api

        return Run(api.evaluate(_path(run), curve.on_event).path)


@overload
def generate(run: "str | Path | Run", prompts: str, **sampling: Any) -> str: ...
@overload
def generate(run: "str | Path | Run", prompts: list[str], **sampling: Any) -> list[str]: ...
def generate(run: "str | Path | Run", prompts: str | list[str], **sampling: Any) -> str | list[str]:
    """Answers of a run's tuned model; `sampling` as in Run.generate."""
    return (run if isinstance(run, Run) else Run(run)).generate(prompts, **sampling)


def chat(run: "str | Path | Run", **sampling: Any) -> "Chat":
    """A conversation with a run's tuned model: chat(run).say("Hello!"); `sampling` as in Run.chat."""
    return (run if isinstance(run, Run) else Run(run)).chat(**sampling)


def classify(run: "str | Path | Run", texts: list[str]) -> "list[Classified]":
    """The class of each text with its confidence, by the scorer that the run's evaluation fitted."""
    with _told():
        from halfbyte import api

        return api.classify(_path(run), texts)


def compare(first: "str | Path | Run", second: "str | Path | Run", *, seed: int = 0) -> "View[Versus]":
    """The tuned models of two runs on the test rows that they share."""
    with _told():
        from halfbyte import api

        return versus_view(api.compare(_path(first), _path(second), seed))


def gate(run: "str | Path | Run", **promises: Any) -> "View[list[Promise]]":
    """Raises PromiseError where a run is not as good as its recipe or the caller asks: min_gain=0.05, max_forgetting=0.1, metric=..., verdict="better"."""
    with _told():
        from halfbyte import api
        from halfbyte.evaluate.gate import promised

        least, most = promised(_path(run))
        checked = api.gate(_path(run), **({"min_gain": least, "max_forgetting": most} | promises))
        lines = [promise.line for promise in checked]
        if not all(promise.kept for promise in checked):
            raise PromiseError("\n".join(lines), hint=f"{_path(run) / 'report.html'} has the figures")
        return View(checked, f"{_path(run)} keeps what was promised", lines)


def reproduce(
    run: "str | Path | Run", *, against: "str | Path | Run | None" = None, runs: str | Path | None = None, anyway: bool = False, check: bool = False,
    **changes: Any,
) -> "View[Reproduction]":  # fmt: skip
    """A finished run once more, and whether the two are the same to the last digit: `.value.identical`, or the first thing that differs.

    `against`: compares with that finished run and makes none. `check`: compares what it was made of with what is here, and trains nothing. Other
    inputs are refused unless `anyway`. `changes` say where files are now: data={"path": "FILE"}, base="FOLDER".
    """
    if against is not None and (runs or anyway or check or changes):
        raise RecipeError("against compares two runs and makes none", hint="leave the other words out")
    with _told() as curve:
        from halfbyte import api
        from halfbyte.checks.reproduce import compare_courses

        if against is not None:
            return reproduction_view(compare_courses(_path(run), _path(against)))
        folder = None if runs is None else Path(runs)
        words = list(_words(changes))
        return reproduction_view(
            api.reproduce(_path(run), words, folder, curve.on_event, curve.on_plan, "halfbyte.reproduce(...)", anyway, check)
        )  # fmt: skip


def verify_resume(recipe: RecipeLike, /, *, steps: int = 6, **changes: Any) -> "View[ResumeProof]":
    """Proves on this machine that a run which is cut and gone on with is the run that was left alone: `.value.identical`. Leaves nothing."""
    # Read when cuBLAS is first used: without it its sums need not repeat.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if steps < 2:
        raise RecipeError(f"steps: {steps} cannot be cut", hint="give 2 or more")
    with _told():
        loaded = _load(recipe, changes)
        from halfbyte import api

        return resume_view(api.verify_resume(loaded, steps))


def rate(run: "str | Path | Run", *, seed: int = 0) -> "View[Rating]":
    """Judge pairs of answers, base and tuned, without knowing which is which; a sign test of the votes goes into the report."""
    with _told():
        from halfbyte import api
        from halfbyte.evaluate.rate import Pair, Vote

        votes: dict[str, Vote | Literal["skip", "quit"]] = {"a": "a", "b": "b", "=": "tie", "s": "skip", "q": "quit"}

        def ask(pair: Pair, place: int, of: int) -> Vote | Literal["skip", "quit"]:
            print(f"\n{place} of {of}: {visible(pair.prompt)}\n\nA: {visible(pair.answers[pair.a])}\n\nB: {visible(pair.answers[pair.b])}\n")
            while (said := input("better is a, b, = (neither), s (skip) or q (quit): ").strip().lower()) not in votes:
                pass
            return votes[said]

        rating = api.rate(_path(run), ask, seed)
        return View(rating, rating.sentence, [])


class Run:
    """A run folder. In a notebook it shows itself as the verdict and the table of base against tuned."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def report(self) -> dict[str, Any]:
        """report.json, as it is now."""
        with _told():
            return read_report(open_run(self.path).path)

    @cached_property
    def tuned(self) -> "Tuned":
        """Base and adapter, opened once and kept for as long as this object."""
        from halfbyte import api

        gc.collect()  # the model that was trained may still wait for it, and a GPU has no room for two
        return api.open_tuned(self.path, fast_cpu=False)

    @overload
    def generate(self, prompts: str, **sampling: Any) -> str: ...
    @overload
    def generate(self, prompts: list[str], **sampling: Any) -> list[str]: ...
    def generate(self, prompts: str | list[str], **sampling: Any) -> str | list[str]:
        """An answer to each prompt: max_new_tokens=200, temperature=0 (greedy), top_p=1, repetition_penalty=1, seed=0."""
        with _told():
            from halfbyte import api
            from halfbyte.generate.engine import Sampling

            answers = api.answer_all(self.tuned, [prompts] if isinstance(prompts, str) else prompts, Sampling(**({"max_new_tokens": 200} | sampling)))
        return answers[0] if isinstance(prompts, str) else answers

    def chat(self, **sampling: Any) -> "Chat":
        """A conversation: max_new_tokens=200, temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=0."""
        with _told():
            from halfbyte.generate.engine import Sampling

            return Chat(self.tuned, Sampling(**({"max_new_tokens": 200, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1} | sampling)))

    def __repr__(self) -> str:
        return run_text(self.path, self.report)

    def _repr_html_(self) -> str:
        return run_html(self.path, self.report)


class Chat:
    """A conversation with a tuned model. `messages` holds the turns that it still remembers."""

    def __init__(self, tuned: "Tuned", sampling: "Sampling") -> None:
        self.tuned = tuned
        self.sampling = sampling
        self.messages: list[dict[str, str]] = []

    def say(self, text: str) -> None:
        """Prints the answer as it comes. A model of plain text has no turns: it goes on with what was said."""
        from halfbyte import api

        asked = [*(self.messages if self.tuned.template.kind == "chat" else []), {"role": "user", "content": text}]
        with _told():
            answer, forgotten = api.reply(self.tuned, asked, self.sampling, lambda piece: print(visible(piece), end="", flush=True))
        print()
        self.messages = [*asked[forgotten:], {"role": "assistant", "content": answer}]

    def __repr__(self) -> str:
        return "\n".join(f"{turn['role']}: {visible(turn['content'])}" for turn in self.messages) or "Chat: nothing was said yet"


def _load(recipe: RecipeLike, changes: Mapping[str, Any]) -> Loaded:
    """Raises RecipeError with every problem of recipe and changes, one a line."""
    words = list(_words(changes))
    if isinstance(recipe, Mapping):
        return parse_recipe(_yaml(_plain(recipe), sort_keys=False), "recipe", words)
    return load_data_or_recipe(Path(recipe), words)


def _words(changes: Mapping[str, Any]) -> Iterator[str]:
    """{"train": {"max_steps": 20}, "base": "x"} -> train.max_steps=20, base="x", as they would stand behind a command."""
    for section, value in _plain(changes).items():
        if isinstance(value, dict):
            yield from (f"{section}.{key}={_as_word(inner)}" for key, inner in value.items())
        else:
            yield f"{section}={_as_word(value)}"


def _as_word(value: Any) -> str:
    """On one line; a text in quotes, so that "5" and "null" stay texts."""
    quotes = '"' if isinstance(value, str) else None
    return _yaml(value, default_style=quotes, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _yaml(value: Any, **style: Any) -> str:
    """Readable, unless it would be read otherwise: PyYAML lets U+0085 stand in a text, where it then counts as a line end."""
    text = yaml.safe_dump(value, allow_unicode=True, **style)
    return text if yaml.safe_load(text) == value else yaml.safe_dump(value, **style)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Through JSON: paths become text, and no list is named twice, which YAML would write as an alias."""
    return json.loads(json.dumps(values, default=str))


def _path(run: "str | Path | Run") -> Path:
    return run.path if isinstance(run, Run) else Path(run)


@contextmanager
def _told() -> Iterator[Curve]:
    """What listens, and the hint of an error as a note below its traceback."""
    curve = Curve()
    try:
        with warnings.catch_warnings():
            # One library telling another that a name of theirs will change: nothing a user can act on.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            yield curve
    except HalfbyteError as error:
        if isinstance(error, Interrupted) and curve.folder:
            error.add_note(f"go on with: halfbyte.resume({str(curve.folder)!r})")
        elif error.hint:
            error.add_note(f"hint: {error.hint}")
        raise
    finally:
        curve.close()
