"""Micro-batches of one shape, recorded once as a CUDA graph and replayed: thousands of launches become one, which pays where kernels are short.

The first micro-batch of a shape runs as it is (kernels are compiled then, and the libraries make their plans); the second is recorded. What changes from
one to the next stands in tensors that stay: ids, places, targets, positions and the scale. All recordings share one piece of memory.

A recording knows addresses, not tensors: whatever else it reads or writes must live as long as it does, and lie where it lay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 8
"""Shapes that are recorded; others run as they are."""


@dataclass(frozen=True)
class Recording:
    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    result: Tensor
    held: tuple[Any, ...]
    """What must outlive the graph: the function, with the borders of the documents in it, and the memory that it copies to."""


class Recorder:
    """Runs a function of tensors; `key` stands for everything else that it depends on, and `memory` says which of it may be replaced by larger one."""

    def __init__(self, memory: Callable[[], list[Tensor]]) -> None:
        self._memory = memory
        self._seen: set[Any] = set()
        self._recordings: dict[Any, Recording] = {}
        self._pool: Any = None

    def run(self, key: Any, function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Tensor:
        """function(*given), a () tensor."""
        key = (key, tuple(one.shape for one in given))
        recording = self._recordings.get(key)
        if recording is None:
            if key not in self._seen or len(self._recordings) >= MOST:
                self._seen.add(key)
                return function(*given)
            recording = self._recordings[key] = self._record(function, given)
        for place, one in zip(recording.given, given, strict=True):
            place.copy_(one, non_blocking=True)
        recording.graph.replay()
        return recording.result.clone()

    def _record(self, function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Recording:
        stay = tuple(one.clone() for one in given)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        short: torch.OutOfMemoryError | None = None
        try:
            # What other threads ask of the GPU meanwhile, a tracker that reads its memory say, is no fault of the recording.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                try:
                    result = function(*stay)
                except torch.OutOfMemoryError as error:
                    short = error
        except RuntimeError:  # a recording that breaks off in its middle cannot always be ended; what broke it off is what counts
            if short is None:
                raise
        if short is not None:
            raise short
        return Recording(graph, stay, result, (function, *self._memory()))
