"""The checkpoints of one run while it trains: what is saved, what is pointed to, what may go, and what happens when the disk is full.

On a GPU a save goes on beside the steps that follow (`background`). The thread that trains copies every tensor, which freezes the state of
that step; a thread of its own writes the copy, syncs, renames and reads back, and touches nothing but the disk; then, after a step, the
thread that trains settles it: pointers, pruning, events, and whatever went wrong there. One save is under way at a time, and a run neither
stops nor ends before it is settled. Without a GPU the steps need the processor themselves, and a save is done before the next step.

A save that fails leaves the run alive. It is told with sizes, tried again at the next interval, then after two more, four, eight; and once
more at the end, where a failure ends the run. `latest` and `best` hold the name of a checkpoint: they move after it was read back, so they
never name what is not whole. Nothing is removed before that either, and only whole checkpoints count among those that are kept.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from halfbyte.errors import IntegrityError, MachineError
from halfbyte.runs import disk
from halfbyte.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    Picture,
    checkpoints_in,
    newest_checkpoint,
    picture_of,
    step_of,
    tidy,
    verify_checkpoint,
    write_picture,
)

LATEST, BEST = "latest", "best"
LONGEST_WAIT = 8
"""Intervals that are waited at most between two tries."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Saved:
    """A save that ended well."""

    step: int
    path: Path
    seconds: float
    """Of copying, writing and settling it."""
    waited: float
    """Of them, those in which no step was taken."""


@dataclass(frozen=True)
class _UnderWay:
    picture: Picture
    best_step: int | None
    """As it was at that step: a better one that came since has no checkpoint yet, so this one's must stay."""
    written: "Future[tuple[Path, float]]"
    """Where, and when it was whole."""
    began: float
    copied: float


class Keeper:
    """Of one folder, for as long as the run's lock is held. As a context it waits, at its end, for a save that is under way."""

    def __init__(
        self, folder: Path, keep: int, say: Say, run: str | None = None, background: bool = False, on_saved: Callable[[Saved], None] | None = None
    ) -> None:
        self.folder, self.keep, self.say, self.run, self.on_saved = folder, keep, say, run, on_saved
        self.saved_step = -1
        self.unsaved_best: dict[str, torch.Tensor] = {}
        """The adapter of the best step while there is no checkpoint of it."""
        self.failures = 0
        self.skip = 0
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._under_way: _UnderWay | None = None
        self._whole: dict[Path, tuple[Any, ...]] = {}
        """Those that this process has verified, with what the files looked like: no need to read them again at each save."""
        if folder.is_dir():
            with disk.told(folder):
                tidy(folder)

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What the writing thread raised is raised here. Where the run ends by an error of its own, a log that cannot be written says less than that."""
        try:
            with suppress(*[MachineError] if error else []):
                self.settle()
        finally:
            if self._thread:
                self._thread.shutdown()

    def save(self, step: int, checkpoint: Callable[[], Checkpoint], best_step: int | None) -> Path | None:
        """At an interval. None where it failed, where it is not yet time to try again, and where it goes on in the background."""
        self.settle()
        if self.skip:
            self.skip -= 1
            if step == best_step:
                self.unsaved_best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in checkpoint().adapter.items()}
            return None
        self._begin(step, checkpoint, best_step)
        return None if self._thread else self.settle()

    def settle(self, waiting: bool = True) -> Path | None:
        """The checkpoint that was under way; None without one, where it failed and, without `waiting`, where it is still being written."""
        if self._under_way is None or not (waiting or self._under_way.written.done()):
            return None
        save, began = self._under_way, time.monotonic()
        try:
            path, whole_at = self._wait_for(save)
        except MachineError as error:
            self.failures += 1
            self.skip = min(2 ** (self.failures - 1), LONGEST_WAIT) - 1
            again = "at the next interval" if not self.skip else f"in {self.skip + 1} intervals"
            self.say(f"{error.message}; training goes on, and it is tried again {again}. {self.last_words()}")
            return None
        self._make_it_the_latest(save, path, whole_at, began)
        return path

    def insist(self, step: int, checkpoint: Callable[[], Checkpoint], best_step: int | None) -> Path:
        """At the end, where there is no later. Raises MachineError, which says what is left."""
        self.settle()
        save, began = self._begin(step, checkpoint, best_step), time.monotonic()
        try:
            path, whole_at = self._wait_for(save)
        except MachineError as error:
            raise MachineError(f"{error.message}. {self.last_words()}", hint=error.hint) from error
        self._make_it_the_latest(save, path, whole_at, began)
        return path

    def last_words(self) -> str:
        """Which checkpoint is the last whole one: what a resume starts from."""
        path, _ = newest_checkpoint(self.folder, self.run)
        return f"The last whole checkpoint is {path}" if path else "No whole checkpoint is left, so a resume starts at step 1"

    def _begin(self, step: int, checkpoint: Callable[[], Checkpoint], best_step: int | None) -> _UnderWay:
        began = time.monotonic()
        picture = picture_of(step, checkpoint())
        write = partial(_write, self.folder, picture)
        written = self._thread.submit(write) if self._thread else _done(write)
        self._under_way = _UnderWay(picture, best_step, written, began, time.monotonic() - began)
        return self._under_way

    def _wait_for(self, save: _UnderWay) -> tuple[Path, float]:
        """Where it is, and when it was whole. Raises what the writing raised."""
        wait([save.written])
        self._under_way = None
        try:
            return save.written.result()
        except MachineError:
            if save.picture.step == save.best_step:
                self.unsaved_best = save.picture.adapter()
            raise

    def _make_it_the_latest(self, save: _UnderWay, path: Path, whole_at: float, began: float) -> None:
        """What comes after a checkpoint that was read back. `began`: since when it was waited for."""
        step, best_step = save.picture.step, save.best_step
        self._whole[path] = _looks(path)
        self.failures = self.skip = 0
        self.saved_step = step
        if step == best_step:
            self.unsaved_best = {}
        try:
            self._point(path, best_step)
        except MachineError as error:
            self.say(f"{error.message}; the checkpoint itself is whole")
        for stuck in self.prune(step, best_step):
            self.say(f"{stuck} is no longer needed and cannot be removed")
        if self.on_saved:
            now = time.monotonic()
            self.on_saved(Saved(step, path, whole_at - save.began + now - max(began, whole_at), save.copied + now - began))

    def _point(self, path: Path, best_step: int | None) -> None:
        disk.write_whole(self.folder / LATEST, path.name + "\n")
        best = [one for one in checkpoints_in(self.folder) if step_of(one) == best_step and self._verified(one)]
        if best and read_pointer(self.folder, BEST) != best[-1].name:
            disk.write_whole(self.folder / BEST, best[-1].name + "\n")

    def prune(self, newest: int, best_step: int | None) -> list[Path]:
        """Removes all but the last `keep` whole ones up to step `newest`, which was just saved, the best, and what the pointers name.

        Later steps are of a course that was given up: a resume passed over them because they are broken. A checkpoint of another run is
        somebody's, so it stays. Returns what could not be removed.
        """
        there = checkpoints_in(self.folder)
        whole = [path for path in there if self._verified(path)]
        named = {read_pointer(self.folder, LATEST), read_pointer(self.folder, BEST)}
        kept = {path for path in there if path.name in named or step_of(path) == best_step}  # a damaged best too: the end says what it is
        last = sorted({step_of(path) for path in whole if step_of(path) <= newest})[-self.keep :]
        kept |= {path for path in whole if step_of(path) in last}
        going = [path for path in there if path not in kept and not self._of_another_run(path)]
        return [path for path in going if not disk.try_to_remove(path, first=MANIFEST)]

    def _verified(self, path: Path) -> bool:
        looks = _looks(path)
        if self._whole.get(path) != looks:
            try:
                verify_checkpoint(path, self.run)
            except IntegrityError:
                self._whole.pop(path, None)
                return False
            self._whole[path] = looks
        return True

    def _of_another_run(self, path: Path) -> bool:
        if self.run is None or self._verified(path):
            return False
        try:
            verify_checkpoint(path)
        except IntegrityError:
            return False
        return True


def _write(folder: Path, picture: Picture) -> tuple[Path, float]:
    return write_picture(folder, picture), time.monotonic()


def _done(work: Callable[[], tuple[Path, float]]) -> "Future[tuple[Path, float]]":
    """Done by the thread that trains, before it goes on."""
    future: Future[tuple[Path, float]] = Future()
    try:
        future.set_result(work())
    except MachineError as error:
        future.set_exception(error)
    return future


def read_pointer(folder: Path, name: str) -> str | None:
    """The name of the checkpoint that `latest` or `best` holds; None without one. What it names is verified by whoever uses it."""
    file = folder / name
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None


def _looks(path: Path) -> tuple[Any, ...]:
    """Changes when a file does, as far as that can be seen without reading it."""
    seen = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    return tuple((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in seen)
