"""What a case of the corpus is, and how one is run: through the command line's own entry, in this process or in a fresh one.

A case is what a user does (files that `make` writes into an empty folder, words typed behind `halfbyte`), the exit code, and words that the
answer must have in it. Where it is given says how far the program may come: `WORDS` neither reads data nor imports torch in vain, `DATA` and
`CONFIG` load no weights, `WEIGHTS` may. `NOTE` is no refusal: the program goes on and says something.
"""

import contextlib
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS, DATA, CONFIG, WEIGHTS, NOTE = "words", "data", "config", "weights", "note"
LONGEST_LINE = 160
"""Characters; a terminal of two lines. Where a list of names is the point of a message, it may be longer: `long`."""
WORDS_SECONDS = 1.0
"""For what is wrong in the recipe or on the command line, in a process that has started."""

Make = Callable[[Path], None]
Surround = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Case:
    number: str
    """Of the list that the corpus comes from; a plus behind it: a neighbour of our own."""
    does: str
    """What the user does."""
    words: str
    stage: str
    code: int
    says: tuple[str, ...]
    make: Make
    lines: int = 1
    """Problems that are told; of a recipe all at once, one a line."""
    long: bool = False
    around: Surround | None = None
    """What is different about the machine or the network while the command runs."""
    stdin: str = ""
    hides: str = ""
    """What must not be said."""

    @property
    def name(self) -> str:
        return f"{self.number} {self.does}"


@dataclass(frozen=True)
class Seen:
    code: int
    out: str
    err: str
    seconds: float
    loaded: bool
    """Whether weights were asked for."""
    changed: list[str]
    """Files that were there before and are not, or not the same."""
    new: list[str]


def run_here(case: Case, folder: Path) -> Seen:
    """In this process. `folder` must be empty; it becomes the current one."""
    from halfbyte.cli.main import main

    case.make(folder)
    before = _files(folder)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with watch_loads() as loads, case.around() if case.around else contextlib.nullcontext(), _in(folder, ["halfbyte", *shlex.split(case.words)], case.stdin):
        began = time.process_time()  # other load on the machine is not ours
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        seconds = time.process_time() - began
    after = _files(folder)
    changed = [name for name in before if before[name] != after.get(name)]
    return Seen(code, out.getvalue(), err.getvalue(), seconds, bool(loads), changed, [name for name in after if name not in before])


def run_apart(case: Case, folder: Path, program: tuple[str, ...] = (sys.executable, "-m", "halfbyte")) -> Seen:
    """In a fresh process, where what other libraries print is seen too; cases with surroundings that are made in this process cannot be run so."""
    case.make(folder)
    before, began = _files(folder), time.perf_counter()
    done = subprocess.run(
        [*program, *shlex.split(case.words)], cwd=folder, env={**os.environ, "COLUMNS": "400"}, input=case.stdin, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    seconds, after = time.perf_counter() - began, _files(folder)
    changed = [name for name in before if before[name] != after.get(name)]
    return Seen(done.returncode, done.stdout, done.stderr, seconds, False, changed, [name for name in after if name not in before])


def faults_of(case: Case, seen: Seen) -> list[str]:
    """What is not as it should be; empty for a case that is right."""
    told = seen.err + seen.out
    faults = [f"exit code {seen.code}, not {case.code}"] if seen.code != case.code else []
    faults += ["a traceback"] if "Traceback (most recent call last)" in told else []
    faults += [f"does not say {word!r}" for word in case.says if word not in told]

    faults += [f"says {case.hides}"] if case.hides and case.hides in told else []
    faults += [f"{name} was changed" for name in seen.changed]
    if case.stage != NOTE:
        problems, hints = problems_of(seen), [line for line in seen.err.splitlines() if line.startswith("hint: ")]
        faults += [f"{len(problems)} lines, not {case.lines}: {problems}"] if len(problems) != case.lines else []
        faults += [f"{len(hints)} hints"] if len(hints) != 1 else []
        faults += [f"a line of {len(line)} characters" for line in problems + hints if len(line) > LONGEST_LINE and not case.long]
    if case.stage == WORDS and seen.seconds > WORDS_SECONDS:
        faults.append(f"took {seen.seconds:.2f} s")
    if case.stage in (WORDS, DATA, CONFIG):
        faults += ["weights were loaded first"] if seen.loaded else []
        faults += [f"{name} was left behind" for name in seen.new]
    return faults


def problems_of(seen: Seen) -> list[str]:
    return [line for line in seen.err.splitlines() if line.strip() and not line.startswith("hint: ")]


def shown(case: Case, seen: Seen) -> str:
    """As it stands in the golden file: the command, its exit code and what was said; of what goes on, only the lines that matter."""
    lines = seen.err.splitlines() if case.stage != NOTE else [line for line in seen.out.splitlines() if any(word in line for word in case.says)]
    lines = [re.sub(r" {2,}", "  ", line).strip() for line in lines]
    return "\n".join([f"# {case.name}", f"$ halfbyte {case.words}", *(line for line in lines if line), f"exit {seen.code}", ""])


@contextlib.contextmanager
def watch_loads() -> Iterator[list[str]]:
    """Which bases' weights are asked for inside."""
    from halfbyte.api import memory

    asked: list[str] = []
    original = memory.load_base

    def load_base(base, *rest):
        asked.append(base.name)
        return original(base, *rest)

    memory.load_base = load_base
    try:
        yield asked
    finally:
        memory.load_base = original


@contextlib.contextmanager
def _in(folder: Path, words: list[str], stdin: str) -> Iterator[None]:
    """The folder, the words of the command, what is typed, and a terminal so wide that no line is broken."""
    before = os.getcwd(), sys.argv, sys.stdin, os.environ.get("COLUMNS")
    os.chdir(folder)
    sys.argv, sys.stdin, os.environ["COLUMNS"] = words, io.StringIO(stdin), "400"
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.argv, sys.stdin = before[1], before[2]
        if before[3] is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before[3]


def _files(folder: Path) -> dict[str, str]:
    """Every file below, with a hash of what is in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
