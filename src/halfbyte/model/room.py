"""Memory that runs out: how it shows, what asked for it and where, how it is given back, and fewer rows at a time where nothing is trained."""

import gc
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfbyte.errors import OutOfMemory
from halfbyte.runs.words import size

SHOWS = re.compile(r"can't allocate memory|not enough memory|out of memory|_STATUS_ALLOC_FAILED")
"""In a RuntimeError: PyTorch on a CPU, on Windows; CUDA and bitsandbytes; cuBLAS and cuDNN."""
ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|\w+)", re.IGNORECASE)
UPDATES = ("torch.optim", "bitsandbytes.optim")


@dataclass(frozen=True)
class Shortage:
    """What is known of a request that was refused."""

    part: str
    """`forward pass`, `backward pass` or `update`."""
    module: str
    """The innermost one that was computing, "" where the traceback shows none: a backward pass runs outside Python."""
    asked: str
    """Such as `2.00 GiB`, "" where the library does not say."""

    def told(self) -> str:
        where = f"{self.part}, {self.module}" if self.module else self.part
        return f"{self.asked} asked for in the {where}" if self.asked else f"in the {where}"


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and SHOWS.search(str(error)) is not None)


def look_at(error: BaseException, model: nn.Module | None) -> Shortage:
    """Reads the traceback: its frames know the modules that were computing."""
    names = {} if model is None else {id(module): name.removeprefix("base_model.model.") for name, module in model.named_modules()}
    part, module = "forward pass", ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        room, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        if room.startswith(UPDATES):
            part, module = "update", "state of the optimizer"
        elif (room, function) == ("torch._tensor", "backward"):
            part, module = "backward pass", ""
        elif (room, function) == ("halfbyte.train.step", "summed_loss"):
            module = "loss over the vocabulary"
        elif isinstance(owner := frame.f_locals.get("self"), nn.Module) and names.get(id(owner)):
            module = names[id(owner)]
    return Shortage(part, module, asked_for(error))


def asked_for(error: BaseException) -> str:
    found = ASKED.search(str(error))
    if found is None:
        return ""
    amount, unit = found.groups()
    return size(int(float(amount))) if unit == "bytes" else f"{amount} {unit}"


def let_go(error: BaseException) -> None:
    """The frames of an error hold every tensor that was there when it was raised."""
    traceback.clear_frames(error.__traceback__)


def give_back() -> None:
    """What nobody holds any more, to where it was taken from."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def naming_memory(what: str, hint: str = "") -> Iterator[None]:
    """Inside, memory that runs out raises OutOfMemory, which says what was being done: `while loading`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory {what}: {str(error).split(chr(10))[0] or type(error).__name__}", hint) from error


Tell = Callable[[str], None]


class AtATime:
    """How many rows are computed at a time where nothing is trained: half as many once memory has run out, and so on."""

    def __init__(self, rows: int, tell: Tell | None = None):
        self.rows, self.tell = rows, tell

    def each(self, items: Sequence[Any], compute: Callable[[Any], None], at_most: int | None = None) -> None:
        """`compute` gets all items, a slice after the other; `at_most` of them at a time, however much room there is.

        Raises what `compute` raises, and memory that runs out where one item alone is too many.
        """
        start = 0
        while start < len(items):
            part = items[start : start + min(self.rows, at_most or self.rows)]
            try:
                compute(part)
                start += len(part)
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                asked = asked_for(error)
                let_go(error)
            give_back()
            self.rows = len(part) // 2
            if self.tell:
                wanted = f" ({asked} asked for)" if asked else ""
                self.tell(f"memory ran out with {len(part)} rows at a time{wanted}: from here on {self.rows}; figures may differ in their last digits")
