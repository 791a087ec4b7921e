"""Real processes that are signalled, killed, and left by those who read them: BAD_INPUTS 109, 112, 119 to 124.

One test goes through several things that can happen to one run, because each process costs a second or two.
"""

import contextlib
import json
import os
import pty
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from halfbyte import api
from halfbyte.cli.main import main
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import read_report
from halfbyte.train import loop
from halfbyte.train.stop import TWICE_SECONDS
from toys import WORDS, make_base

STEPS = 60


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    base = make_base(folder / "base")
    rows = [" ".join(random.Random(number).sample(WORDS.split(), 9)) for number in range(24)]
    (folder / "talk.csv").write_text("prompt,response\n" + "".join(f'"{row}","the old man, {number}"\n' for number, row in enumerate(rows)), encoding="utf-8")
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {folder / 'talk.csv'}\n  max_length: 64\nadapter:\n  r: 4\n  dropout: 0.1\n"
        f"train:\n  max_steps: {STEPS}\n  batch_size: 2\n  eval_steps: 10\n  learning_rate: 1e-2\nevaluate:\n  max_new_tokens: 4\n"
    )
    (folder / "toy.yaml").write_text(text, encoding="utf-8")
    return folder / "toy.yaml"


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    return api.train(parse_recipe(recipe.read_text(), "toy.yaml", []), tmp_path_factory.mktemp("whole")).path


class Forked:
    """The command in a process of its own, forked: it need not import torch, which takes longer than everything else. `slow`: seconds added to each step."""

    def __init__(self, *words: object, slow: float = 0.0, terminal: int | None = None):
        (self.out, out), (self.err, err) = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            self._be([str(word) for word in words], slow, *((out, err) if terminal is None else (terminal, terminal)))
        os.close(out)
        os.close(err)

    def _be(self, words: list[str], slow: float, out: int, err: int) -> None:
        code = 99
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            for other in range(3, 256):  # the ends of pipes that the parent holds would keep them open
                with contextlib.suppress(OSError):
                    os.close(other)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            step = loop.train_step
            loop.train_step = lambda *given: (time.sleep(slow), step(*given))[1]
            sys.argv, os.environ["COLUMNS"] = ["halfbyte", *words], "400"
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    code = 120  # as Python has it
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        deadline = time.monotonic() + 120
        while self.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.returncode

    def end(self) -> tuple[str, str]:
        """What it said on standard output and standard error, to the end."""
        said = [Path(f"/dev/fd/{end}").read_text() if end is not None else "" for end in (self.out, self.err)]
        self.wait()
        return said[0], said[1]


def events(run: Path, kind: str | None = None) -> list[dict]:
    if not (run / "events.jsonl").is_file():
        return []
    lines = (run / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [event for event in map(json.loads, filter(None, lines)) if kind in (None, event["event"])]


def wait_for(process: Forked, run: Path, kind: str, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(events(run, kind)) < number:
        assert process.poll() is None, process.end()
        assert time.monotonic() < deadline, events(run)
        time.sleep(0.01)


def same_course(run: Path, whole: Path) -> None:
    """The curve of the report has each step once, with the loss that it has in the run that was left alone; the adapter is the same to the bit."""
    mine, theirs = read_report(run), read_report(whole)
    assert mine["status"] == "finished"
    assert [step for step, _ in mine["curves"]["loss"]] == list(range(1, STEPS + 1))
    assert mine["curves"]["loss"] == theirs["curves"]["loss"]
    assert mine["adapter_sha256"] == theirs["adapter_sha256"]


def test_twice_interrupted_killed_and_torn_the_run_ends_alike(recipe, whole, tmp_path):
    """Ctrl-C twice; then kill -9, with a line torn; then goes on to the end that it would have had."""
    run = tmp_path / "toy"
    first = Forked("train", recipe, "--runs", tmp_path, slow=3)
    wait_for(first, run, "step", 1)
    time.sleep(0.5)  # the second step is being taken, and nobody has asked yet
    os.kill(first.pid, signal.SIGINT)
    time.sleep(TWICE_SECONDS + 0.1)
    pressed = time.monotonic()
    os.kill(first.pid, signal.SIGINT)
    _, said = first.end()
    assert time.monotonic() - pressed < 2, "it waited for the step"
    assert first.returncode == 130
    assert "stopping after this step (SIGINT); once more leaves at once" in said
    assert f"no checkpoint was saved yet; begin again with: halfbyte train --resume {run}" in said
    assert "Traceback" not in said

    second = Forked("train", "--resume", run, slow=0.05)
    wait_for(second, run, "checkpoint", 1)
    wait_for(second, run, "step", 13)  # one of the first process, twelve of the second
    os.kill(second.pid, signal.SIGKILL)
    second.end()
    notes = [event["message"] for event in events(run, "note")]
    assert notes == ["the last run was left at once at step 1; beginning again at step 1, 1 step is repeated"]
    last = events(run, "step")[-1]["step"]
    with open(run / "events.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"event": "step", "time": "2026-11-21T')

    third = Forked("train", "--resume", run)
    shown, said = third.end()
    assert third.returncode == 0, said
    newest = last // 10 * 10
    repeated = f"{last - newest} step{'s are' if last - newest != 1 else ' is'} repeated" if last > newest else "nothing is repeated"
    told = f"the last run ended without goodbye at step {last} (killed? out of memory?); resuming from step-{newest}, {repeated}"
    assert told in shown
    assert told in read_report(run)["notes"]
    assert "is torn, as a crash leaves it, and is left out" in shown
    same_course(run, whole)


def test_sigterm_that_comes_twice_at_once_is_one(recipe, tmp_path):
    """As `timeout` sends it, to the process and to its group. Guards against a stop that saved nothing under it."""
    run = tmp_path / "toy"
    process = Forked("train", recipe, "--runs", tmp_path, slow=0.3)
    wait_for(process, run, "step", 2)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.end()
    assert process.returncode == 4, said
    stopped = events(run, "interrupted")[0]["step"]
    assert (run / "checkpoints" / f"step-{stopped}" / "manifest.json").is_file()
    assert f"saved checkpoints/step-{stopped}" in said
    assert f"go on with: halfbyte train --resume {run}" in said


def test_output_that_nobody_reads_ends_no_run(recipe, whole, tmp_path):
    """`halfbyte train ... | head -1`: the run ends as it would have."""
    process = Forked("train", recipe, "--runs", tmp_path)
    os.read(process.out, 1)
    os.close(process.out)
    process.out = None
    _, said = process.end()
    assert (process.returncode, said) == (0, "")
    notes = [event["message"] for event in events(tmp_path / "toy", "note")]
    assert notes[:1] == ["standard output is closed (Broken pipe): the run goes on, output to its log only"]
    same_course(tmp_path / "toy", whole)


def test_a_closed_terminal_ends_no_run(recipe, whole, tmp_path):
    """A session on a terminal of its own, whose other end is closed in mid-training: SIGHUP, then EIO on every write."""
    ours, theirs = pty.openpty()
    run = tmp_path / "toy"
    process = Forked("train", recipe, "--runs", tmp_path, slow=0.02, terminal=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    deadline = time.monotonic() + 120
    while len(events(run, "step")) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        drain(ours)
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGHUP)
    os.close(ours)
    assert process.wait() == 0
    notes = [event["message"] for event in events(run, "note")]
    assert "the terminal was closed (SIGHUP): the run goes on, and its log with it" in notes
    assert any("is closed (Input/output error): the run goes on" in note for note in notes), notes
    same_course(run, whole)


def drain(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        return


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading_or_measuring_is_an_interruption(recipe, tmp_path, monkeypatch, number):
    """In this process: the signal comes from within."""
    loaded = parse_recipe(recipe.read_text(), "toy.yaml", ["train.max_steps=2"])
    for place, start in (("load_for", lambda: api.train(loaded, tmp_path)), ("_measure", lambda: api.resume(tmp_path / "toy"))):
        with monkeypatch.context() as patch:
            patch.setattr(api, place, lambda *_: (os.kill(os.getpid(), number), time.sleep(5)))
            with pytest.raises(api.Interrupted):
                start()
        assert read_report(tmp_path / "toy")["status"] == "interrupted", place
    api.resume(tmp_path / "toy")
    assert read_report(tmp_path / "toy")["status"] == "finished"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_new_run_beside_a_killed_one_says_so(recipe, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "events.jsonl").write_text('{"event": "run"}\n{"event": "step", "step": 341}\n', encoding="utf-8")
    run = api.train(parse_recipe(recipe.read_text(), "toy.yaml", ["train.max_steps=1"]), tmp_path).path
    assert run.name == "toy-2"
    assert f"{tmp_path / 'toy'} did not end: it is running yet, or was killed at step 341; halfbyte train --resume" in read_report(run)["notes"][-2]
