"""The buffers that weights are written into, out of 4 bits, just before their products; and those that stay.

Layers have the same shapes, so four buffers serve all: whoever asks finds its weights there, or has them written. In the backward pass a layer
that was just computed again finds them. What a run of steps keeps in 16 bits has buffers of its own, whose adapters alone are written again.
"""

from types import ModuleType

import torch
from torch import Tensor

from halfbyte.fast.linear import Group


class Buffers:
    """Of one device and type. Adapters change with every optimizer step: call `forget` before each forward pass."""

    def __init__(self, dtype: torch.dtype, device: torch.device, ops: ModuleType) -> None:
        self.dtype, self.device, self.ops = dtype, device, ops
        self._shared: dict[tuple[int, int, int], Tensor] = {}
        self._holds: dict[tuple[int, int, int], Group] = {}

    def of(self, group: Group) -> Tensor:
        """Weights and adapters of this group, (N + R, K + R); only until another group of its shape asks."""
        key = (*group.shape, group.spare)
        buffer = self._shared.get(key)
        if buffer is None:
            buffer = self._shared[key] = torch.zeros(group.shape, dtype=self.dtype, device=self.device)
        if self._holds.get(key) is not group:
            group.write(buffer, self.ops)
            self._holds[key] = group
        return buffer

    def forget(self) -> None:
        """What the buffers hold is no longer true."""
        self._holds.clear()

    def release(self) -> None:
        """Gives the memory back."""
        self._shared.clear()
        self._holds.clear()
