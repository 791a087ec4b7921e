"""A disk that fails, or a process that dies, at the n-th call of runs/disk.py: put in the place of its `os`."""

import os
from typing import Any

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
"""What changes the disk, or makes a change last. Opening counts where it is for writing."""


class Counted:
    """`os`, with its calls written down. `at`: the call (from 1) that `do` happens to instead; a write is cut in the middle first."""

    def __init__(self, at: int | None = None, do: Any = None) -> None:
        self.at, self.do, self.calls = at, do, []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: Any, **more: Any) -> Any:
            if name == "open" and not args[1] & os.O_WRONLY:
                return real(*args, **more)
            self.calls.append(name)
            if len(self.calls) == self.at:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                self.do()
            return real(*args, **more)

        return call


def full() -> None:
    raise OSError(28, "No space left on device")


def die() -> None:
    os._exit(77)
