"""The buffers that weights are written into, out of 4 bits, just before their products; and those that stay.

Layers have the same shapes, so one buffer for each of a layer's groups serves all: whoever asks finds its weights there, or has them written. In the
backward pass a layer that was just computed again finds them. What a run of steps keeps in 16 bits has buffers of its own, whose adapters alone are
written again.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from halfbyte.fast.linear import Group

Key = tuple[int, int, int]
_ARENA: Key = (0, 0, 0)


class Buffers:
    """Of one device and type. Adapters change with every optimizer step: call `forget` before each forward pass.

    resident: groups whose weights stay. shared: one piece of memory for all others, where memory is shorter than time.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, ops: ModuleType, resident: Iterable[Group] = (), shared: Iterable[Group] | None = None
    ) -> None:
        self.dtype, self.device, self.ops = dtype, device, ops
        self._resident: dict[Group, Tensor] = {}
        self._current: set[Group] = set()
        for group in resident:
            buffer = self._resident[group] = torch.zeros(group.shape, dtype=dtype, device=device)
            group.write(buffer, ops)
        self._arena = torch.empty(max(map(_size, shared), default=0), dtype=dtype, device=device) if shared is not None else None
        self._memory: dict[Key, Tensor] = {}
        self._holds: dict[Key, Group] = {}
        self._zeroed: dict[Key, tuple[Any, ...]] = {}

    def of(self, group: Group) -> Tensor:
        """Weights and adapters of this group, (N + R, K + R); only until another group asks that shares its memory."""
        if group in self._resident:
            buffer = self._resident[group]
            if group not in self._current:
                group.write(buffer, self.ops, weights=False)
                self._current.add(group)
            return buffer
        key = _ARENA if self._arena is not None else (*group.shape, group.spare)
        if key not in self._memory:
            self._memory[key] = self._arena if self._arena is not None else torch.empty(_size(group), dtype=self.dtype, device=self.device)
        buffer = self._memory[key][: _size(group)].view(group.shape)
        if self._holds.get(key) is not group:
            layout = (group.shape, group.pattern)
            if self._zeroed.get(key) != layout:
                buffer[: group.outputs, group.inputs :].zero_()
                buffer[group.outputs :].zero_()
                self._zeroed[key] = layout
            group.write(buffer, self.ops)
            self._holds[key] = group
        return buffer

    def begin(self) -> None:
        """On the device, before each forward pass: nothing."""

    def forget(self) -> None:
        """What the buffers hold of adapters is no longer true."""
        self._holds.clear()
        self._current.clear()


def _size(group: Group) -> int:
    return group.shape[0] * group.shape[1]
