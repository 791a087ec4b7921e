"""The checkpoints of one run while it trains: what is saved, what is pointed to, what may go, and what happens when the disk is full.

A save that fails leaves the run alive. It is told with sizes, tried again at the next interval, then after two more, four, eight; and once
more at the end, where a failure ends the run. `latest` and `best` hold the name of a checkpoint: they move after it was read back, so they
never name what is not whole. Nothing is removed before that either, and only whole checkpoints count among those that are kept.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfbyte.errors import IntegrityError, MachineError
from halfbyte.runs import disk
from halfbyte.train.checkpoint import MANIFEST, Checkpoint, checkpoints_in, newest_checkpoint, save_checkpoint, step_of, tidy, verify_checkpoint

LATEST, BEST = "latest", "best"
LONGEST_WAIT = 8
"""Intervals that are waited at most between two tries."""

Say = Callable[[str], None]


class Keeper:
    """Of one folder, for as long as the run's lock is held."""

    def __init__(self, folder: Path, keep: int, say: Say, run: str | None = None) -> None:
        self.folder, self.keep, self.say, self.run = folder, keep, say, run
        self.saved_step = -1
        self.failures = 0
        self.skip = 0
        self._whole: dict[Path, tuple[Any, ...]] = {}
        """Those that this process has verified, with what the files looked like: no need to read them again at each save."""
        if folder.is_dir():
            with disk.told(folder):
                tidy(folder)

    def save(self, step: int, checkpoint: Callable[[], Checkpoint], best_step: int | None) -> Path | None:
        """At an interval. None where it failed, or where it is not yet time to try again."""
        if self.skip:
            self.skip -= 1
            return None
        try:
            return self._save(step, checkpoint(), best_step)
        except MachineError as error:
            self.failures += 1
            self.skip = min(2 ** (self.failures - 1), LONGEST_WAIT) - 1
            again = "at the next interval" if not self.skip else f"in {self.skip + 1} intervals"
            self.say(f"{error.message}; training goes on, and it is tried again {again}. {self.last_words()}")
            return None

    def insist(self, step: int, checkpoint: Callable[[], Checkpoint], best_step: int | None) -> Path:
        """At the end, where there is no later. Raises MachineError, which says what is left."""
        try:
            return self._save(step, checkpoint(), best_step)
        except MachineError as error:
            raise MachineError(f"{error.message}. {self.last_words()}", hint=error.hint) from error

    def last_words(self) -> str:
        """Which checkpoint is the last whole one: what a resume starts from."""
        path, _ = newest_checkpoint(self.folder, self.run)
        return f"The last whole checkpoint is {path}" if path else "No whole checkpoint is left, so a resume starts at step 1"

    def _save(self, step: int, checkpoint: Checkpoint, best_step: int | None) -> Path:
        path = save_checkpoint(self.folder, step, checkpoint)
        self._whole[path] = _looks(path)
        self.failures = self.skip = 0
        self.saved_step = step
        try:
            self._point(path, best_step)
        except MachineError as error:
            self.say(f"{error.message}; the checkpoint itself is whole")
        for stuck in self.prune(step, best_step):
            self.say(f"{stuck} is no longer needed and cannot be removed")
        return path

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
        if self.run is None:
            return False
        try:
            verify_checkpoint(path)
        except IntegrityError:
            return False
        return not self._verified(path)


def read_pointer(folder: Path, name: str) -> str | None:
    """The name of the checkpoint that `latest` or `best` holds; None without one. What it names is verified by whoever uses it."""
    file = folder / name
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None


def _looks(path: Path) -> tuple[Any, ...]:
    """Changes when a file does, as far as that can be seen without reading it."""
    seen = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    return tuple((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in seen)
