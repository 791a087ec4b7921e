"""Trackers: the run's events, sent on as they happen to trackio, tensorboard, wandb or mlflow (`track.report_to`).

    loop -> EventLog -> events.jsonl        the record, written first
                    \\-> Trackers.send -> a bounded queue and a thread for each tracker -> its package

A tracker is another's code and often a network, so it may not hurt the run: `send` only puts figures into queues. One that raises, or is
silent for longer than PATIENCE, is put aside with one note and the run goes on; one that is only slow loses updates, which are counted.

Nothing leaves the machine unless the user says so: each keeps its files in runs/NAME/track, and follows the variables that its own users
set (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID). What looks like a secret is hidden in settings and in notes.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from halfbyte.errors import RecipeError
from halfbyte.redaction import hide_secrets
from halfbyte.runs.events import Event

Figures = dict[str, float]
MOST_WAITING = 10_000
"""Updates that a slow tracker may be behind: a few megabytes."""
PATIENCE = 120.0
"""Seconds that one call may take. Opening a run over a slow network takes some ten."""
STATUS = {"end": "finished", "interrupted": "interrupted", "failed": "failed"}
# What an event of the loop is called in a tracker: key of the event -> name.
OF_STEPS = {
    "loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/gradient_norm", "tokens_per_second": "train/tokens_per_second",
    "peak_bytes": "train/peak_bytes", "epoch": "train/epoch",
}  # fmt: skip
OF_COMPARISONS = ("base", "tuned", "difference", "p_value")


@dataclass(frozen=True)
class Tracker:
    """An opened tracker: two functions of its package."""

    log: Callable[[Figures, int], None]
    """Figures of a step."""
    close: Callable[[dict[str, str]], None]
    """Gets what is said in words: the status and the verdicts."""


Opener = Callable[[str, Path, dict[str, str]], Tracker]
"""Name of the run, folder for the tracker's files, settings of the run."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for packages that are not there, with the line that installs them; imports none."""
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise RecipeError(f"track.report_to: no tracker is called {', '.join(unknown)}", hint=f"there are: {', '.join(TRACKERS)}")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        seen = "\n".join(f"track.report_to: the package {name} is not installed" for name in missing)
        raise RecipeError(seen, hint=f"pip install 'halfbyte[{','.join(missing)}]', or take it out of track.report_to")


def open_trackers(names: Sequence[str], run_name: str, folder: Path, config: Mapping[str, Any], note: Callable[[Event], None] | None = None) -> "Trackers":
    """Starts a thread for each name and returns at once. `folder` is the run's; `config` its recipe and plan, nested as they are.

    `note` hears of a tracker that was put aside, as an event for the log, always in the thread that called `send` or `close`.
    """
    settings = {key: hide_secrets(value) for key, value in flat(config).items()}
    feeds = []
    for name in dict.fromkeys(names):
        place = folder.resolve() / "track" / name
        place.mkdir(parents=True, exist_ok=True)
        feeds.append(_Feed(name, lambda opener=TRACKERS[name], place=place: opener(run_name, place, settings)))  # type: ignore[misc]
    return Trackers(feeds, note or (lambda event: None))


class Trackers:
    """The listener of a run's events that feeds its trackers."""

    def __init__(self, feeds: list["_Feed"], note: Callable[[Event], None]) -> None:
        self.feeds = feeds
        self.note = note
        self.words: dict[str, str] = {}
        self.step = 0

    def send(self, event: Event) -> None:
        """Returns at once, and raises nothing for what a tracker did."""
        self.words |= words_of(event)
        if event["event"] in ("step", "validation", "resume"):
            self.step = event.get("step", self.step)
        figures = figures_of(event)
        for feed in list(self.feeds):
            if trouble := feed.trouble():
                self._put_aside(feed, trouble)
            elif figures:
                feed.offer(figures, self.step)

    def close(self, timeout: float = 30.0) -> None:
        """Lets each tracker finish, `timeout` seconds for all of them together."""
        until = time.monotonic() + timeout
        for feed in self.feeds:
            feed.ask_to_end(dict(self.words))
        for feed in list(self.feeds):
            feed.thread.join(max(0.0, until - time.monotonic()))
            if not feed.ended:
                self._put_aside(feed, feed.trouble() or f"was not done {timeout:g} s after the end of the run")
            elif feed.lost:
                self.note({"event": "note", "message": f"{feed.name} was slower than the run: {feed.lost:,} updates were not sent; events.jsonl has them"})
        self.feeds = []

    def _put_aside(self, feed: "_Feed", trouble: str) -> None:
        if feed.given_up:  # while another's note, which is an event too, was sent
            return
        feed.given_up = True
        self.feeds = [other for other in self.feeds if other is not feed]
        self.note({"event": "note", "message": f"tracker {feed.name} is put aside and the run goes on without it: {trouble}"})


class _Feed:
    """One tracker with its queue and its thread."""

    def __init__(self, name: str, opened: Callable[[], Tracker]) -> None:
        self.name = name
        self.opened = opened
        self.waiting: Queue[tuple[Figures, int]] = Queue(MOST_WAITING)
        self.lost = 0
        self.words: dict[str, str] | None = None
        """Of the end of the run, which is asked for when they are there."""
        self.given_up = False
        self.ended = False
        self.failure: str | None = None
        self.busy_since = math.inf
        self.thread = Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def offer(self, figures: Figures, step: int) -> None:
        try:
            self.waiting.put_nowait((figures, step))
        except Full:
            self.lost += 1

    def ask_to_end(self, words: dict[str, str]) -> None:
        self.words = words
        with suppress(Full):  # a thread with a full queue is awake
            self.waiting.put_nowait(({}, 0))

    def trouble(self) -> str | None:
        """What is wrong with it, if anything."""
        silent = time.monotonic() - self.busy_since
        if silent > PATIENCE:
            return f"no answer for {silent:.0f} s"
        return self.failure or (None if self.thread.is_alive() or self.ended else "it ended by itself")

    def _run(self) -> None:
        try:
            self.busy_since = time.monotonic()
            tracker = self.opened()
            while not self.given_up and (self.words is None or not self.waiting.empty()):
                self.busy_since = math.inf
                figures, step = self.waiting.get()
                self.busy_since = time.monotonic()
                if figures:
                    tracker.log(figures, step)
            if not self.given_up:
                tracker.close(self.words or {})
            self.ended = True
        except Exception as error:
            said = str(error).strip().split("\n")[0]
            self.failure = hide_secrets(f"{type(error).__name__}: {said}"[:300])
            raise SystemExit from error  # ends this thread alone and prints nothing: the run hears of it at its next event


# What is sent


def figures_of(event: Event) -> Figures:
    """The numbers of an event, under the names that trackers show; none for most events."""
    kind = event["event"]
    if kind == "step":
        found = {name: event.get(key) for key, name in OF_STEPS.items()}
    elif kind == "validation":
        found = {"validation/loss": event.get("loss")}
    elif kind == "comparison":
        place = re.sub(r"[^\w./-]+", "_", f"test/{event.get('group')}/{event.get('metric')}")
        low, high = event.get("interval") or (None, None)
        found = {f"{place}/{key}": event.get(key) for key in OF_COMPARISONS} | {f"{place}/difference_low": low, f"{place}/difference_high": high}
    elif kind == "perplexity":
        found = {f"test/perplexity/{event.get('model')}": event.get("perplexity")}
    elif kind == "end":
        found = {"run/seconds": event.get("seconds"), "run/best_step": event.get("best_step")}
    else:
        found = {}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def words_of(event: Event) -> dict[str, str]:
    """What an event says in words: how the run stands, which base, what the comparisons came to."""
    kind = event["event"]
    if kind in STATUS:
        return {"status": STATUS[kind]}
    if kind == "run":
        return {"status": "unfinished"} | {key: hide_secrets(str(event[key])) for key in ("base", "device") if key in event}
    if kind == "comparison":
        return {f"verdict {event.get('group')} {event.get('metric')}": str(event.get("verdict"))}
    return {}


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """{"train": {"batch_size": 4}} -> {"train.batch_size": "4"}; what is not set is left out."""
    settings: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{above}{key}.")
        elif value is not None:
            settings[f"{above}{key}"] = str(value)
    return settings


# The four. Each imports its package here, in its own thread.


def _tensorboard(run_name: str, place: Path, settings: dict[str, str]) -> Tracker:
    """Event files under runs/NAME/track/tensorboard: `tensorboard --logdir runs` shows all runs. It takes figures only."""
    from tensorboard.summary import Writer

    writer = Writer(str(place))

    def log(figures: Figures, step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, lambda words: writer.close())


def _trackio(run_name: str, place: Path, settings: dict[str, str]) -> Tracker:
    """A database in runs/NAME/track/trackio, for `TRACKIO_DIR=runs/NAME/track/trackio trackio show`. With TRACKIO_DIR set all runs go there,
    with TRACKIO_SPACE_ID to that Space. The package settles its folder once in a process: later runs of the process go to the same."""
    with _default("TRACKIO_DIR", str(place)):
        import trackio
    run = trackio.init(project="halfbyte", name=run_name, config=settings, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def close(words: dict[str, str]) -> None:
        run.log(dict(words))
        run.finish()

    return Tracker(lambda figures, step: run.log(figures, step=step), close)


def _wandb(run_name: str, place: Path, settings: dict[str, str]) -> Tracker:
    """Offline unless WANDB_MODE says otherwise: files in runs/NAME/track/wandb, which `wandb sync` uploads. No code, git or console is taken."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_meta=True, x_disable_stats=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "halfbyte"), name=run_name, dir=str(place), config=settings,
        mode=os.environ.get("WANDB_MODE", "offline"), settings=quiet, reinit="create_new",
    )  # fmt: skip

    def close(words: dict[str, str]) -> None:
        run.summary.update(words)
        run.finish(exit_code=int(words.get("status") == "failed"))

    return Tracker(lambda figures, step: run.log(figures, step=step), close)


def _mlflow(run_name: str, place: Path, settings: dict[str, str]) -> Tracker:
    """A file store in runs/NAME/track/mlflow, which `mlflow ui --backend-store-uri` shows, unless MLFLOW_TRACKING_URI names a place of the user's.
    mlflow asks for MLFLOW_ALLOW_FILE_STORE=true there, since it adds nothing to file stores any more."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    with _default("MLFLOW_ALLOW_FILE_STORE", "true"):
        client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or place.as_uri())
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "halfbyte")
    known = client.get_experiment_by_name(title)
    number = known.experiment_id if known else client.create_experiment(title)
    run = client.create_run(number, run_name=run_name).info.run_id
    # Its longest value, in characters.
    client.log_batch(run, params=[Param(key, value[:500]) for key, value in settings.items()][:100])

    def log(figures: Figures, step: int) -> None:
        now = int(1000 * time.time())
        client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def close(words: dict[str, str]) -> None:
        for key, value in words.items():
            client.set_tag(run, key, value)
        client.set_terminated(run, {"finished": "FINISHED", "failed": "FAILED"}.get(words.get("status", ""), "KILLED"))

    return Tracker(log, close)


@contextmanager
def _default(name: str, value: str) -> Iterator[None]:
    """A variable that a package reads when it starts, for that time, where the user set none."""
    given = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(name, None)


TRACKERS: dict[str, Opener] = {"trackio": _trackio, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
