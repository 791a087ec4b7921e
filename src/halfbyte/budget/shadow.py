"""Tensors that have a size and nothing else, and the autograd of PyTorch over them: what a model would allocate, in order, without running it.

A shadow is freed when nothing refers to it, as a tensor is. An operation allocates its result; where gradients are wanted it leaves a Node that
keeps what its backward needs. `backward` runs the nodes, the newest first, as PyTorch's engine does: what a node kept is released behind it, and
gradients that meet are added, in place where nobody else holds the first. `checkpoint` keeps nothing but its inputs and runs its function again
when the first of its nodes needs what it kept (torch.utils.checkpoint, non-reentrant, which stops as soon as everything is there again).
"""

from collections.abc import Callable
from heapq import heappop, heappush
from sys import getrefcount
from typing import Any

from halfbyte.budget.allocator import Allocator, Memory

FLOAT, HALF, BYTE = 4, 2, 1
"""Bytes of an element."""


class Storage:
    """Memory that is given back when the last shadow of it is gone."""

    __slots__ = ("allocator", "block")

    def __init__(self, allocator: Memory, size: int) -> None:
        self.allocator = allocator
        self.block: Any = None
        self.block = allocator.malloc(size)

    def __del__(self) -> None:
        if self.block is not None:  # there was memory for it
            self.allocator.free(self.block)


class Shadow:
    """`elements` of `itemsize` bytes; `node` made it, None where no gradient is wanted. A view keeps its `base` alive."""

    __slots__ = ("base", "elements", "itemsize", "node", "storage")

    def __init__(self, storage: Storage, elements: int, itemsize: int, node: "Node | None" = None) -> None:
        self.storage, self.elements, self.itemsize, self.node = storage, elements, itemsize, node
        self.base: Shadow | None = None


def _count_of_one() -> int:
    """What getrefcount says of a storage that one shadow refers to; what the question itself adds differs between versions of Python."""
    held = {0: Shadow(Storage(Allocator(), 0), 0, BYTE)}
    return getrefcount(held[0].storage)


ALONE = _count_of_one()

Backward = Callable[["Tape", list[Shadow], Shadow, Any], "list[Shadow | None]"]


class Node:
    """`backward(tape, saved, gradient, about)` -> a gradient for each of `inputs`."""

    __slots__ = ("about", "backward", "inputs", "number", "saved")

    def __init__(self, number: int, inputs: "list[Node | None]", saved: Any, backward: Backward, about: Any) -> None:
        self.number, self.inputs, self.saved, self.backward, self.about = number, inputs, saved, backward, about


class EnoughAgain(Exception):
    """Everything that was kept is there again; the rest of the recomputation is left out."""


class Recomputation:
    """What the nodes inside one checkpoint kept: nothing, until it is run again."""

    __slots__ = ("again", "below", "count", "found", "given")

    def __init__(self) -> None:
        self.count = 0
        self.found: dict[int, Shadow] = {}
        self.again: Callable[[], Any] | None = None
        self.given: Shadow | None = None
        """The input, None while it waits in the computer's memory."""
        self.below: Recomputation | None = None
        """The checkpoint before, whose input waits there too."""


class Tape:
    """One training step on an allocator. `grads`: the gradients of parameters, kept until the optimizer has used them."""

    def __init__(self, allocator: Memory) -> None:
        self.allocator = allocator
        self.recording = True
        self.number = 0
        self.grads: dict[Any, Shadow] = {}
        self.checkpoint_now: Recomputation | None = None
        self.wanted: Recomputation | None = None
        self.newest: Recomputation | None = None
        """The last checkpoint whose input leaves."""
        self.casts: list[Shadow] = []
        """Parameters cast by autocast, which keeps them until its context ends."""

    def new(self, elements: int, itemsize: int = HALF) -> Shadow:
        return Shadow(Storage(self.allocator, elements * itemsize), elements, itemsize)

    def view(self, shadow: Shadow) -> Shadow:
        """Another shadow of the same memory, outside the graph."""
        return Shadow(shadow.storage, shadow.elements, shadow.itemsize)

    def save(self, shadows: list[Shadow]) -> Any:
        """Before an operation: what its backward will need. Raises EnoughAgain at the end of a recomputation."""
        if not self.recording:
            return None
        inside, again = self.checkpoint_now, self.wanted
        if again is not None:
            for shadow in shadows:
                again.found[again.count] = self.view(shadow)
                again.count += 1
                if inside is not None and again.count == inside.count:
                    raise EnoughAgain
            return None
        if inside is not None:
            first = inside.count
            inside.count += len(shadows)
            return inside, range(first, inside.count)
        return [self.view(shadow) for shadow in shadows]

    def node(self, result: Shadow, inputs: list[Any], saved: Any, backward: Backward, about: Any = None) -> Shadow:
        """`inputs`: shadows, or the name of a parameter, or None."""
        before = [one.node if isinstance(one, Shadow) else one for one in inputs]
        if self.recording and any(one is not None for one in before):
            self.number += 1
            result.node = Node(self.number, before, saved if self.wanted is None else [], backward, about)
        return result

    def checkpoint(self, function: Callable[[Shadow], Shadow], given: Shadow, away: bool = False) -> Shadow:
        """function(given), of which nothing is kept but `given`; `away`: not even that, once the next checkpoint has begun (model/offload.py)."""
        frame = Recomputation()
        frame.given = self.view(given)
        node, elements, itemsize = given.node, given.elements, given.itemsize
        if away:
            frame.below, self.newest = self.newest, frame
            if frame.below is not None:
                frame.below.given = None
        self.checkpoint_now = frame
        result = function(given)
        self.checkpoint_now = None

        def again() -> None:
            held = self.view(frame.given) if frame.given else self.new(elements, itemsize)
            held.node = node
            if away:  # else it goes with the frame, when the last of its nodes is done
                frame.given = None
            if frame.below is not None and frame.below.given is None:  # the one that is needed next comes back meanwhile
                frame.below.given = self.new(elements, itemsize)
            casts, number, self.casts = self.casts, self.number, []
            self.checkpoint_now, self.wanted = frame, Recomputation()
            found = self.wanted.found
            try:
                function(held)
            except EnoughAgain:
                pass
            finally:
                self.checkpoint_now = self.wanted = None
                self.casts, self.number = casts, number
            frame.found, frame.again = found, None

        frame.again = again
        return result

    def saved(self, kept: Any) -> list[Shadow]:
        """What a node kept, recomputed where it was not kept."""
        if isinstance(kept, list):
            return kept
        frame, places = kept
        if frame.again is not None and len(places):
            frame.again()
        return [frame.found.pop(place) for place in places]

    def backward(self, node: Node, gradient: Shadow) -> None:
        """From `node` to the parameters, whose gradients are added to `grads`."""
        waiting: dict[int, int] = {}
        stack, seen = [node], {node.number}
        while stack:
            for before in stack.pop().inputs:
                if isinstance(before, Node):
                    waiting[before.number] = waiting.get(before.number, 0) + 1
                    if before.number not in seen:
                        seen.add(before.number)
                        stack.append(before)
        buffers: dict[int, Shadow] = {node.number: gradient}
        del gradient
        ready: list[tuple[int, Node]] = [(-node.number, node)]
        del node
        while ready:
            _, now = heappop(ready)
            kept = self.saved(now.saved)
            found = now.backward(self, kept, buffers.pop(now.number), now.about)
            now.saved = []
            del kept
            inputs = now.inputs
            for before in inputs:
                grad = found.pop(0)
                if before is None or grad is None:
                    continue
                if not isinstance(before, Node):
                    self._accumulate(before, grad)
                    del grad
                    continue
                self._add(buffers, before.number, grad)
                del grad
                waiting[before.number] -= 1
                if not waiting[before.number]:
                    heappush(ready, (-before.number, before))

    def _add(self, buffers: dict[int, Shadow], number: int, grad: Shadow) -> None:
        if number not in buffers:
            buffers[number] = grad
        elif getrefcount(buffers[number].storage) > ALONE:
            both = self.new(grad.elements, grad.itemsize)
            del buffers[number]
            buffers[number] = both
        else:
            self.allocator.write(grad.elements * grad.itemsize)

    def _accumulate(self, name: Any, grad: Shadow) -> None:
        if name not in self.grads:
            self.grads[name] = grad
