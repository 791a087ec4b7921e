"""Frozen weights and layer inputs that wait in the computer's memory while other layers compute.

Weights: each offloaded layer has a home, one flat pinned buffer with all its frozen bytes, and a slot, the first (A) or the second (B) of two
flat buffers on the GPU, by turns. The layer's tensors are views of its slot, once and for all; what changes is whose bytes lie there. While a
layer computes, the next one in the direction of travel is copied into the other slot:

    forward, layers go up                            backward, layers come down: each runs again, then back
    computing   0(A)    1(B)    2(A)    3(B)         3(B)      2(A)      1(B)      0(A)
    copying     1 -> B  2 -> A  3 -> B  (none)       (2 is in A yet)  1 -> B    0 -> A    (1 is in B for the next step)

Inputs: what a recomputed layer was given, (B, T, D), leaves for pinned memory while the layer computes, and comes back while the layer above
runs again. The topmost has only just left when it is needed, and never has to come back.

    forward     computing   0    1    2    3         backward   computing   3        2        1        0
                leaving     0    1    2    (3)                  arriving    2        1        0

No copy is ever seen half done, by two rules. A copy begins after all that the computation had queued by then (`CopyStream.copy`): nobody reads
the slot's old bytes any more, and the source is written. A layer waits for its copy (`wait_for`) before it queues anything. So the question is
only what is queued when. When a layer is called, up or down, its neighbour in the direction it came from is wholly queued: in the forward pass
because calls are in order; in the backward pass because autograd takes the later of the operations that are ready, and a layer's first one
is ready only when the layer above has given it its gradient. Thus the slot that is overwritten when layer k runs again is that of layer k + 1,
whose backward pass is queued; layer k's own slot stays until k - 1 runs again, so it still holds k when bitsandbytes dequantises the same tensor
a second time, for the gradient. It does so through the tensor that it saw in the first forward pass: the reason why a layer never changes slots.
"""

from collections.abc import Sequence
from typing import Any, cast
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

UP, DOWN = 1, -1
ALIGNMENT_BYTES = 256  # as the allocator of a GPU aligns tensors: kernels read many bytes at once


class CopyStream:
    """Copies beside the computation. On a CPU there is nothing beside it, and a copy is done when it is asked for."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, source: Tensor, target: Tensor) -> torch.cuda.Event | None:
        """Begins after all that the current stream has queued. Returns what the reader must wait for."""
        if self.stream is None:
            target.copy_(source)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            return cast(torch.cuda.Event, self.stream.record_event())


def wait_for(copied: torch.cuda.Event | None) -> None:
    """What the current stream is given from now on runs after the copy."""
    if copied is not None:
        torch.cuda.current_stream().wait_event(copied)


class OffloadedWeights:
    """The frozen tensors of some layers, in order. Made, it has taken them over: they are views of two buffers on the device."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device):
        self.copies = CopyStream(device)
        pinned = device.type == "cuda"
        places = [_frozen_places(layer) for layer in layers]
        sizes = [_offsets(tensors)[-1] for tensors in places]
        self.homes = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
        self.slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in layers[:2]]
        self.holds: list[int | None] = [None] * len(self.slots)
        self.copied: list[torch.cuda.Event | None] = [None] * len(self.slots)
        for index, tensors in enumerate(places):
            for (owner, name), offset in zip(tensors, _offsets(tensors), strict=False):
                tensor = getattr(owner, name)
                _view(self.homes[index], offset, tensor).copy_(tensor)
                setattr(owner, name, _view(self.slots[index % 2], offset, tensor))

    def fetch(self, index: int, direction: int) -> None:
        """Before layer `index` runs: its bytes are in its slot, and those of the next are on their way into the other."""
        self._bring(index)
        wait_for(self.copied[index % 2])
        if 0 <= index + direction < len(self.homes):
            self._bring(index + direction)

    def _bring(self, index: int) -> None:
        slot, home = index % 2, self.homes[index]
        if self.holds[slot] != index:
            self.copied[slot] = self.copies.copy(home, self.slots[slot][: len(home)])
            self.holds[slot] = index


class WaitingInput:
    """What one layer was given (B, T, D): at home in the computer's memory, on the device only while it leaves and once it is back."""

    def __init__(self, home: Tensor, on_device: Tensor | None, copied: torch.cuda.Event | None, below: "WaitingInput | None"):
        self.home, self.on_device, self.copied = home, on_device, copied
        self.below: ReferenceType[WaitingInput] | None = ref(below) if below is not None else None  # autograd alone keeps it alive


class WaitingInputs:
    """Sends layer inputs away in the forward pass and has each back on the device when the backward pass reaches its layer."""

    def __init__(self, device: torch.device):
        self.device = device
        self.leaving, self.coming = CopyStream(device), CopyStream(device)
        self.newest: ReferenceType[WaitingInput] | None = None
        self.arriving: WaitingInput | None = None

    def away(self, hidden: Tensor) -> saved_tensors_hooks:
        """Inside, autograd keeps `hidden` (B, T, D) as a WaitingInput, and other tensors, such as masks, as they are."""
        place = hidden.data_ptr()  # not the tensor: autograd keeps the function

        def pack(tensor: Tensor) -> Tensor | WaitingInput:
            return self.send(tensor) if tensor.data_ptr() == place else tensor

        def unpack(kept: Tensor | WaitingInput) -> Tensor:
            return self.take(kept) if isinstance(kept, WaitingInput) else kept

        return saved_tensors_hooks(pack, unpack)

    def send(self, tensor: Tensor) -> WaitingInput:
        """tensor (B, T, D). Its place on the device is given up when the next one is sent."""
        below = self.newest() if self.newest is not None else None
        if below is not None:  # its copy has had the time of a layer; from here on its place on the device may be used
            wait_for(below.copied)
            below.on_device = None
        home = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
        waiting = WaitingInput(home, tensor.detach(), self.leaving.copy(tensor.detach(), home), below)
        self.newest = ref(waiting)
        return waiting

    def take(self, waiting: WaitingInput) -> Tensor:
        """(B, T, D) on the device; the one below sets out."""
        if waiting.on_device is None:
            self._bring_back(waiting)
        wait_for(waiting.copied)
        tensor, waiting.on_device = waiting.on_device, None
        if self.arriving is waiting:
            self.arriving = None
        assert tensor is not None
        below = waiting.below() if waiting.below is not None else None
        if below is not None:
            self._bring_back(below)
        return tensor

    def _bring_back(self, waiting: WaitingInput) -> None:
        if self.arriving is not None:  # a backward pass was broken off: its place on the device is not free before the copy has ended
            wait_for(self.arriving.copied)
        waiting.on_device = torch.empty_like(waiting.home, device=self.device, pin_memory=False)
        waiting.copied = self.coming.copy(waiting.home, waiting.on_device)
        self.arriving = waiting


def _frozen_places(layer: nn.Module) -> list[tuple[Any, str]]:
    """Owner and attribute of each tensor that is copied: frozen parameters, and the scales of 4-bit ones. Codebooks of a few bytes stay on the device."""
    _settle_biases(layer)
    places: list[tuple[Any, str]] = []
    for parameter in layer.parameters():
        if parameter.requires_grad:
            continue
        places.append((parameter, "data"))
        if type(parameter).__name__ == "Params4bit":
            state = cast(Any, parameter).quant_state
            places += [(state, "absmax"), (state.state2, "absmax")] if state.nested else [(state, "absmax")]
    return places


def _settle_biases(layer: nn.Module) -> None:
    """bitsandbytes exchanges a bias of another type for a converted copy when it first runs, which would take it out of its slot."""
    for module in layer.modules():
        if isinstance(module, nn.Linear) and type(module.weight).__name__ == "Params4bit" and module.bias is not None:
            module.bias.data = module.bias.data.to(cast(Any, module).compute_dtype)


def _offsets(places: list[tuple[Any, str]]) -> list[int]:
    """Where each tensor begins in the flat buffer, and, last, how long the buffer is, in bytes."""
    offsets = [0]
    for owner, name in places:
        tensor = getattr(owner, name)
        offsets.append(-(-(offsets[-1] + tensor.numel() * tensor.element_size()) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    return offsets


def _view(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    """The place of a tensor in a flat buffer, in its shape and type."""
    return flat[offset : offset + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
