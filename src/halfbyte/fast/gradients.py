"""The adapters' gradients, float32, in one piece of memory: zeroed in one go, and where they were in the step before, as a recorded step needs them."""

from collections.abc import Sequence

import torch

from halfbyte.fast.linear import Group


class Gradients:
    """Of the adapters of these groups, in this order. `begin` makes `.grad` of each matrix a view of the one piece."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.parameters = parameters = [matrix for group in groups for matrix in group.matrices()]
        first = self.parameters[0]
        self.flat = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=first.dtype, device=first.device)
        pieces = self.flat.split([parameter.numel() for parameter in parameters])
        self._views = [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
        start = 0
        for group in groups:
            group.a_gradient = self.flat[start : start + group.rank * group.inputs].view(group.rank, group.inputs)
            start += sum(matrix.numel() for matrix in group.matrices())

    def begin(self) -> None:
        """Before each micro-batch. A gradient that was dropped (optimizer.zero_grad) begins at zero; one that somebody else made is taken over."""
        grads = [parameter.grad for parameter in self.parameters]
        some = any(grad is not None for grad in grads)
        if not some:
            self.flat.zero_()
        for parameter, grad, view in zip(self.parameters, grads, self._views, strict=True):
            if grad is view:
                continue
            if grad is not None:
                view.copy_(grad)
            elif some:
                view.zero_()
            parameter.grad = view
