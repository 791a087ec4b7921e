"""Tensors that wait in the computer's memory between a layer's forward and backward pass, copied while other layers compute.

    forward     layer 0 computes | layer 1 computes | ...            backward   ... | layer 1 computes | layer 0 computes
                                 | copy 0 away      | copy 1 away                   | fetch 0          |

A tensor that is being copied away is held until the copy is done, two layers later at most, and the stream that computes waits for that only then. One
that is fetched is asked for a layer ahead. The computer's memory is pinned, taken once and used in every step.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from halfbyte.budget.fast_sizes import IN_FLIGHT


class Shelf:
    """Of one GPU. Without one (a CPU, in tests) tensors are copied at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places: dict[tuple[int, int], Tensor] = {}
        self._lengths: dict[int, list[torch.Size]] = {}
        self._leaving: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
        self._coming: dict[int, tuple[list[Tensor], torch.cuda.Event | None]] = {}

    @property
    def bytes(self) -> int:
        """Of the computer's memory."""
        return sum(place.numel() * place.element_size() for place in self._places.values())

    def memory(self) -> list[Tensor]:
        """Of the computer, as it is now: longer rows take a longer piece, and let go of the shorter."""
        return list(self._places.values())

    def put(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Copies them away; whoever holds them lets go of them."""
        self._lengths[layer] = [tensor.shape for tensor in tensors]
        places = [self._place(layer, index, tensor) for index, tensor in enumerate(tensors)]
        if self.stream is None:
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            done = self.stream.record_event()
        self._leaving.append((list(tensors), done))
        while len(self._leaving) > IN_FLIGHT:
            self._let_go()

    def fetch(self, layer: int) -> None:
        """Begins to copy back; nothing if it is under way or was never put there."""
        if layer in self._coming or layer not in self._lengths:
            return
        while self._leaving:
            self._let_go()
        shapes = self._lengths.pop(layer)
        places = [self._places[layer, index][: shape.numel()].view(shape) for index, shape in enumerate(shapes)]
        tensors = [torch.empty(place.shape, dtype=place.dtype, device=self.device) for place in places]
        if self.stream is None:
            for place, tensor in zip(places, tensors, strict=True):
                tensor.copy_(place)
            self._coming[layer] = tensors, None
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # whoever had this memory before is done with it
        with torch.cuda.stream(self.stream):
            for place, tensor in zip(places, tensors, strict=True):
                tensor.copy_(place, non_blocking=True)
            self._coming[layer] = tensors, self.stream.record_event()

    def take(self, layer: int) -> list[Tensor]:
        """What was put there, back on the device."""
        self.fetch(layer)
        tensors, done = self._coming.pop(layer)
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)
        return tensors

    def _let_go(self) -> None:
        tensors, done = self._leaving.popleft()
        torch.cuda.current_stream(self.device).wait_event(done)
        tensors.clear()

    def _place(self, layer: int, index: int, tensor: Tensor) -> Tensor:
        place = self._places.get((layer, index))
        if place is None or place.numel() < tensor.numel():
            place = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=self.stream is not None)
            self._places[layer, index] = place
        return place[: tensor.numel()].view(tensor.shape)
