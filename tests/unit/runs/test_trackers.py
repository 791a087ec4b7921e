"""Trackers get what the run tells, and whatever they do, the run goes on."""

import importlib.util
import json
import math
import os
import sqlite3
import threading
import time

import pytest

from halfbyte.errors import RecipeError
from halfbyte.runs import trackers
from halfbyte.runs.events import EventLog
from halfbyte.runs.trackers import Tracker, check_trackers, figures_of, flat, hide_secrets, open_trackers, words_of

# Ours end a thread by SystemExit, which threading passes over in silence and pytest does not.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

STEP = {
    "event": "step", "step": 3, "epoch": 0.1, "loss": 3.5, "learning_rate": 1e-3, "grad_norm": None, "tokens": 40, "tokens_per_second": 80.0, "peak_bytes": 10,
}  # fmt: skip
COMPARISON = {
    "event": "comparison", "group": "neutral text", "metric": "perplexity", "base": 43.0, "tuned": 32.0, "difference": -11.0, "interval": [-12.0, -10.0],
    "p_value": 0.0005, "verdict": "better",
}  # fmt: skip


class Fake:
    """Stands in the place of a package: keeps what it gets, or misbehaves."""

    def __init__(self, log=lambda: None, opening=lambda: None, closing=lambda: None):
        self.figures, self.words, self.settings = [], None, {}
        self.log, self.opening, self.closing = log, opening, closing

    def open(self, run_name, place, settings):
        self.place, self.settings = place, settings
        self.opening()

        def log(figures, step):
            self.log()
            self.figures.append((step, figures))

        def close(words):
            self.closing()
            self.words = words

        return Tracker(log, close)


def fail():
    raise ConnectionError("no route to https://me:hunter2hunter2@tracker\nsecond line")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A function: fakes -> their Trackers, and the list that gets the notes."""

    def opened(*fakes, config=None):
        names = [f"fake{number}" for number in range(len(fakes))]
        monkeypatch.setattr(trackers, "TRACKERS", {name: fake.open for name, fake in zip(names, fakes, strict=True)})
        notes = []
        return open_trackers(names, "toy", tmp_path, config or {}, notes.append), notes

    return opened


def steps(count):
    return [{**STEP, "step": step} for step in range(1, count + 1)]


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def test_a_tracker_gets_every_figure_in_order_and_the_last_word(opened, tmp_path):
    fake = Fake()
    sent, notes = opened(fake, config={"train": {"batch_size": 4, "max_steps": None}, "base": "embedded"})
    for event in [
        {"event": "run", "base": "embedded", "device": "cpu"},
        *steps(50),
        {"event": "validation", "step": 50, "loss": 3.0},
        COMPARISON,
        {"event": "end"},
    ]:
        sent.send(event)
    sent.close(5)
    assert [step for step, _ in fake.figures] == [*range(1, 51), 50, 50]
    assert fake.figures[-2] == (50, {"validation/loss": 3.0})
    assert fake.words == {"status": "finished", "base": "embedded", "device": "cpu", "verdict neutral text perplexity": "better"}
    assert fake.settings == {"train.batch_size": "4", "base": "embedded"}
    assert fake.place == tmp_path / "track" / "fake0"
    assert fake.place.is_dir()
    assert notes == []


def test_the_figures_of_an_event():
    assert figures_of(STEP) == {
        "train/loss": 3.5, "train/learning_rate": 1e-3, "train/tokens_per_second": 80.0, "train/peak_bytes": 10.0, "train/epoch": 0.1,
    }  # fmt: skip
    place = "test/neutral_text/perplexity"
    assert figures_of(COMPARISON) == {
        f"{place}/base": 43.0, f"{place}/tuned": 32.0, f"{place}/difference": -11.0, f"{place}/p_value": 0.0005,
        f"{place}/difference_low": -12.0, f"{place}/difference_high": -10.0,
    }  # fmt: skip
    assert figures_of({"event": "validation", "step": 1, "loss": math.inf}) == {}
    assert figures_of({"event": "generation", "prompt": "private", "base": "a", "tuned": "b"}) == {}
    assert words_of({"event": "failed", "message": "secret path"}) == {"status": "failed"}


@pytest.mark.parametrize("event", ["step", "validation", "comparison", "perplexity", "end", "run", "data", "resume", "something new"])
def test_an_event_with_nothing_in_it_raises_nothing(opened, event):
    sent, notes = opened(Fake())
    sent.send({"event": event})
    sent.close(5)
    assert notes == []


@pytest.mark.parametrize("where", ["log", "opening", "closing"])
def test_a_tracker_that_raises_is_put_aside_with_one_note(opened, capfd, where):
    broken, well = Fake(**{where: fail}), Fake()
    sent, notes = opened(broken, well)
    for event in steps(3):
        sent.send(event)
    until(lambda: len(well.figures) == 3)
    if where != "closing":
        until(lambda: notes or sent.feeds[0].failure)
    for event in steps(3):
        sent.send(event)
    sent.close(5)
    assert len(well.figures) == 6
    assert well.words is not None
    message = "tracker fake0 is put aside and the run goes on without it: ConnectionError: no route to https://[hidden]@tracker"
    assert notes == [{"event": "note", "message": message}]
    assert capfd.readouterr() == ("", "")


def test_a_tracker_that_hangs_is_put_aside_with_one_note_and_holds_nothing_up(opened, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    free = threading.Event()
    hung, well = Fake(log=lambda: free.wait(20)), Fake()
    sent, notes = opened(hung, well)
    began = time.monotonic()
    for event in steps(100):
        sent.send(event)
    assert time.monotonic() - began < 0.2
    until(lambda: (sent.send({"event": "data"}), len(notes) == 1)[1])
    assert notes[0]["message"].startswith("tracker fake0 is put aside and the run goes on without it: no answer for 0 s")
    sent.send(STEP)
    sent.close(1)
    assert time.monotonic() - began < 5
    assert len(notes) == 1
    assert len(well.figures) == 101
    free.set()
    time.sleep(0.05)
    assert len(hung.figures) == 1, "one that was put aside goes on with nothing"


def test_a_tracker_that_hangs_while_it_closes_is_waited_for_only_so_long(opened):
    free = threading.Event()
    sent, notes = opened(Fake(closing=lambda: free.wait(20)), Fake(opening=lambda: free.wait(20)))
    sent.send(STEP)
    began = time.monotonic()
    sent.close(0.3)
    assert 0.25 < time.monotonic() - began < 1
    assert [note["message"].rpartition(": ")[2] for note in notes] == ["was not done 0.3 s after the end of the run"] * 2
    free.set()


def test_a_slow_tracker_gets_all_that_it_can_keep_up_with(opened, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_WAITING", 10)
    slow = Fake(log=lambda: time.sleep(0.01))
    sent, notes = opened(slow)
    for event in steps(200):
        sent.send(event)
    sent.close(5)
    lost = 200 - len(slow.figures)
    assert 150 < lost < 195
    assert [note["message"] for note in notes] == [f"fake0 was slower than the run: {lost} updates were not sent; events.jsonl has them"]
    assert slow.words == {}


def test_a_tracker_that_leaves_is_put_aside(opened):
    def leave():
        raise SystemExit

    sent, notes = opened(Fake(opening=leave))
    until(lambda: (sent.send(STEP), notes)[1])
    assert notes[0]["message"].endswith("it ended by itself")


def test_the_notes_stand_in_the_log_that_feeds_the_trackers(tmp_path, monkeypatch):
    """The log calls the trackers and the trackers the log: one line each, no circle. Guards against a tracker that was put aside twice, once
    while the note of another was sent."""
    monkeypatch.setattr(trackers, "TRACKERS", {"broken": Fake(log=fail).open, "also": Fake(log=fail).open})
    sent = open_trackers(["broken", "also", "also"], "toy", tmp_path, {}, note=lambda event: log.append(event))
    log = EventLog(tmp_path / "events.jsonl", sent.send)
    assert len(sent.feeds) == 2
    for event in steps(5):
        log.append(event)
    until(lambda: all(feed.failure for feed in list(sent.feeds)))
    log.append({"event": "end"})
    sent.close(1)
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sorted(kinds) == ["end", "note", "note", *["step"] * 5]


# Before training


def test_a_package_that_is_missing_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("wandb", "trackio") else object())
    check_trackers([])
    check_trackers(["tensorboard", "mlflow"])
    with pytest.raises(RecipeError) as caught:
        check_trackers(["tensorboard", "wandb", "trackio"])
    assert caught.value.message == "track.report_to: the package wandb is not installed\ntrack.report_to: the package trackio is not installed"
    assert caught.value.hint.startswith("pip install 'halfbyte[wandb,trackio]'")


def test_an_unknown_tracker_is_refused():
    with pytest.raises(RecipeError, match="no tracker is called tensorbord"):
        check_trackers(["tensorbord"])


# Secrets


def test_secrets_are_hidden(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert hide_secrets("key 0123456789abcdef, abc") == "key [hidden], abc"
    assert hide_secrets("https://me:pass@host/x") == "https://[hidden]@host/x"
    assert hide_secrets("a hf_abcdefghijklmnopqrstuvwxyzABCDEFGH b") == "a [hidden] b"
    assert hide_secrets("hub:owner/name@main https://host:8080/a@b") == "hub:owner/name@main https://host:8080/a@b"


def test_no_secret_reaches_a_tracker(opened, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeedAndAsLongAsRealOnes1")
    fake = Fake()
    sent, _ = opened(
        fake, config={"base": "https://x:hf_verysecretindeedAndAsLongAsRealOnes1@host/m", "data": {"path": ["a?t=hf_verysecretindeedAndAsLongAsRealOnes1"]}}
    )
    sent.send({"event": "run", "base": "m?t=hf_verysecretindeedAndAsLongAsRealOnes1", "command": "halfbyte train hf_verysecretindeedAndAsLongAsRealOnes1"})
    sent.close(5)
    assert "verysecret" not in repr((fake.settings, fake.words, fake.figures))
    assert fake.settings["data.path"] == "['a?t=[hidden]']"


def test_settings_are_flat():
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": False}) == {"a.b.c": "1", "e": "[1, 2]", "f": "False"}


# The real ones, where they are installed


def run_real(name, tmp_path):
    if importlib.util.find_spec(name) is None:  # not importorskip: trackio settles its folder when it is imported
        pytest.skip(f"{name} is not installed")
    notes = []
    sent = open_trackers([name], "toy", tmp_path, {"train": {"batch_size": 4}, "base": "embedded"}, notes.append)
    for event in [{"event": "run", "base": "embedded"}, *steps(20), {"event": "validation", "step": 20, "loss": 3.0}, COMPARISON, {"event": "end"}]:
        sent.send(event)
    sent.close(120)
    assert notes == []
    return tmp_path / "track" / name


def test_tensorboard_reads_what_was_written(tmp_path):
    place = run_real("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(place), size_guidance={"tensors": 0})
    read.Reload()
    assert [event.step for event in read.Tensors("train/loss")] == list(range(1, 21))
    assert read.Tensors("test/neutral_text/perplexity/tuned")[0].tensor_proto.float_val[0] == 32.0


def test_trackio_keeps_its_database_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    place = run_real("trackio", tmp_path)
    assert "TRACKIO_DIR" not in os.environ
    with sqlite3.connect(place / "halfbyte.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'toy'").fetchall()
    assert {step for step, _ in rows} >= set(range(1, 21))


def test_wandb_is_offline_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    place = run_real("wandb", tmp_path)
    assert len(list(place.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_mlflow_keeps_a_file_store_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = run_real("mlflow", tmp_path)
    lines = next(place.glob("*/*/metrics/train/loss")).read_text().splitlines()
    assert [int(line.split()[2]) for line in lines] == list(range(1, 21))
    assert next(place.glob("*/*/tags/status")).read_text() == "finished"
