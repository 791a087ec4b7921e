"""What the fast path allocates in a step, in order: fast/decoder.py, layer.py, linear.py, head.py and parking.py over tensors that have a size alone.

That code allocates what it computes into, so its memory is replayed as it is written: a block here lives as long as the variable of the same name
there (tests/unit/budget/test_fast.py holds the two against each other, allocation by allocation). Tensors smaller than a kilobyte a layer are left out.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from halfbyte.budget.allocator import Allocator, Memory
from halfbyte.budget.fast_sizes import IN_FLIGHT, LARGE, LOGITS, pieces, rows_at_a_time, tokens_at_once
from halfbyte.budget.fast_work import FastWork, Group, groups_of
from halfbyte.budget.predict import SPARE_SHARE, enough_bytes
from halfbyte.budget.shadow import FLOAT, HALF, Storage
from halfbyte.budget.step import CUBLAS_WORKSPACE, LONG, adapter_matrices, paged_bytes, place_adapter, place_base, place_optimizer

KEEP = {"kept": "all", "thin": "thin", "attention": "attention", "recomputed": "input", "cpu": "input"}
"""recipe/plan.py's words -> fast/layer.py's."""
RECORDED_SPARE = 2 * LOGITS
"""While a step is recorded, idle pages of other memory cannot be handed back: two of seven recorded cases ran out of memory with 1.5 and 4 % to spare. A
piece of logits, which both were asking for."""


@dataclass(frozen=True)
class FastPeak:
    """Of PyTorch's memory on the GPU, and of the computer's."""

    allocated_bytes: int
    reserved_bytes: int
    base_bytes: int
    host_bytes: int
    """Pinned, for what is parked, which PyTorch hands out in powers of two."""
    parked_bytes: int
    """Of it, what is used."""
    paged_bytes: int
    recorded_bytes: int = 0
    """Of it, what recordings keep to themselves, whatever else runs."""

    @property
    def enough_bytes(self) -> int:
        return enough_bytes(self.reserved_bytes, SPARE_SHARE) + (RECORDED_SPARE if self.recorded_bytes else 0)


@dataclass
class Saved:
    """fast/layer.py's."""

    x: "Piece"
    attention: "Piece | None" = None
    kept: "list[Piece] | None" = None
    qkv: "Piece | None" = None
    turned: "Piece | None" = None
    middle: "Piece | None" = None
    gate_up: "Piece | None" = None
    wide: "Piece | None" = None
    low: "dict[str, Piece]" = field(default_factory=dict)


def fast_peak(given: FastWork) -> FastPeak:
    """Of an optimizer step, its first micro-batch run as it is and, where it is recorded, once more into memory of its own."""
    memory = Allocator()
    held = place_base(replace(given.work, layers=tuple(replace(layer, weights="4bit") for layer in given.work.layers)), memory)
    base = memory.allocated
    held += place_adapter(given.work, memory)
    step = step_of(given, memory)
    step.run()
    held += place_optimizer(given.work, memory)
    trained = len(adapter_matrices(given.work))
    held += [memory.malloc(FLOAT) for _ in range(trained)]  # the optimizer's counts of steps
    norms = [memory.malloc(FLOAT) for _ in range(2 * trained)]  # clipping
    del norms
    step.run()  # the second micro-batch finds the optimizer's state
    reserved, recording, allocated = memory.reserved, 0, memory.peak_allocated
    if given.record:
        recorded = Allocator()
        step.memory = recorded
        workspace = recorded.malloc(CUBLAS_WORKSPACE)  # of the stream that records
        step.run()
        recorded.free(workspace)
        recording = recorded.reserved
        allocated = max(allocated, memory.allocated + recorded.peak_allocated)
        reserved = max(reserved, trimmed(memory) + recording)
    return FastPeak(allocated, reserved, base, step.host_bytes, step.parked_bytes, paged_bytes(given.work), recording)


def trimmed(memory: Allocator) -> int:
    """Reserved bytes once idle pages are handed back, as before a recording: pages that lie wholly inside a free block go."""
    kept = 0
    for pool in (memory.small, memory.large):
        idle = sum(max(0, (address + size) // pool.page - -(-address // pool.page)) for size, address in pool.free)
        kept += pool.mapped - idle * pool.page
    return kept


class Piece(Storage):
    """Storage that knows its size, which the computer's memory must hold."""

    __slots__ = ("size",)

    def __init__(self, memory: Memory, size: int) -> None:
        super().__init__(memory, size)
        self.size = size


class Step:
    """One micro-batch after another on an allocator. Each method is named as what it stands for."""

    def __init__(self, given: FastWork, memory: Memory) -> None:
        self.given, self.memory = given, memory
        self.shape, self.tokens = given.work.shape, given.tokens
        self.groups = groups_of(given.work, given.fp8)
        self.name_groups()
        self.keep = tuple(KEEP[layer.activations] for layer in given.work.layers)
        self.parked = given.parked
        self.at_once = tokens_at_once(given.tokens, given.tight)
        self.attended = self.shape.heads * self.shape.head_width
        self.buffers: dict[tuple[int, ...], Piece] = {}
        self.both: dict[tuple[int, ...], list[Piece]] = {}
        for number, layer in enumerate(given.work.layers):
            if layer.weights == "16bit":
                for index, group in enumerate(self.groups):
                    if given.fp8:
                        self.both |= {(number, index, int(back)): self.eight_bit((group, back)) for back in (False, True)}
                    else:
                        self.buffers[number, index] = self.new(group.size)
        self.arena = self.new(max(group.size for group in self.groups)) if given.tight and not given.fp8 else None
        self.gradients = self.new(sum(size for *_, size in adapter_matrices(given.work)), FLOAT)
        self.workspace = self.new(CUBLAS_WORKSPACE, 1)
        self.leaving: deque[list[Piece]] = deque()
        self.coming: dict[int, list[Piece]] = {}
        self.sizes: dict[int, list[int]] = {}
        self.places: dict[tuple[int, int], int] = {}

    def name_groups(self) -> None:
        self.qkv, self.o, self.gate_up, self.down = self.groups

    @property
    def spare(self) -> int:
        """Columns that a layer wants in the gradient that it is given."""
        return self.down.spare

    @property
    def host_bytes(self) -> int:
        return sum(1 << (size - 1).bit_length() for size in self.places.values() if size)

    @property
    def parked_bytes(self) -> int:
        return sum(self.places.values())

    def new(self, elements: int, itemsize: int = HALF) -> Piece:
        return Piece(self.memory, elements * itemsize)

    def rows(self, width: int, itemsize: int = HALF) -> Piece:
        return self.new(self.tokens * width, itemsize)

    def eight_bit(self, *ways: tuple[Group, bool]) -> list[Piece]:
        """Memory for any of these groups, each for its way."""
        wide, thin = (max(group.eight_bit(back)[part] for group, back in ways) for part in (0, 1))
        return [self.new(wide, 1), self.new(thin)]

    # fast/fp8.py

    def product(self, number: int, group: Group, count: int, back: bool = False, onto: bool = False, multiplied: bool = True) -> Piece | None:
        """Its buffer, and in FP8 what is computed into beside the result; returns x A' or dy sB there, which has no room elsewhere."""
        if not group.fp8:
            self.buffer(number, group)
            return None
        if (number, self.groups.index(group), int(back)) not in self.both:
            key = () if self.given.tight else (group.outputs, group.inputs, group.thin, group.extra, int(back))
            if key not in self.both:
                ways = [(one, way) for one in self.groups for way in (False, True)] if self.given.tight else [(group, back)]
                self.both[key] = self.eight_bit(*ways)
        low = self.new(count * group.thin)
        if multiplied:
            self.multiply(group, count, back, onto)
        return low

    def multiply(self, group: Group, count: int, back: bool, onto: bool) -> None:
        given = self.new(count * ((group.outputs if back else group.inputs) + group.extra), 1)
        scales = self.new(count, FLOAT)
        result = self.new(count * group.outputs) if onto else None
        del given, scales, result

    def buffer(self, number: int, group: Group) -> None:
        """Makes it, the first time."""
        if (number, self.groups.index(group)) in self.buffers or self.arena is not None:
            return
        shape = (group.outputs + group.spare, group.inputs + group.spare, group.spare)
        if shape not in self.buffers:
            self.buffers[shape] = self.new(group.size)

    # fast/decoder.py

    def run(self) -> None:
        given, layers = self.given, len(self.keep)
        ids, positions = self.rows(1, LONG), self.rows(1, LONG)
        places, targets = self.new(given.places, LONG), self.new(given.places, LONG)
        x = self.rows(self.shape.width)
        rotary = self.rotary()
        kept: list[Saved | None] = []
        for number, keep in enumerate(self.keep):
            x, saved = self.forward(number, x, keep)
            kept.append(self.park(number, saved) if number in self.parked else saved)
            del saved
        gradient: Piece | None = self.loss_and_gradient()
        del x
        for number in reversed(range(layers)):
            found = kept.pop()
            assert found is not None
            assert gradient is not None
            if number in self.parked:
                self.unpark(number, found)
            if number - 1 in self.parked:
                self.fetch(number - 1)
            gradient = self.backward(number, found, gradient, number == 0)
            del found
        del ids, positions, places, targets, rotary

    def rotary(self) -> list[Piece]:
        half = self.shape.head_width // 2
        wide = self.rows(1, FLOAT)
        angles = self.rows(half, FLOAT)
        both = self.rows(2 * half, FLOAT)
        cos = self.rows(2 * half, FLOAT)
        cos = self.rows(2 * half, FLOAT)  # scaled
        sin = self.rows(2 * half, FLOAT)
        sin = self.rows(2 * half, FLOAT)
        del wide, angles, both
        found = [self.rows(half, FLOAT), self.rows(half, FLOAT)]
        del cos, sin
        return found

    def park(self, number: int, saved: Saved) -> Saved:
        names = [name for name in LARGE if getattr(saved, name) is not None]
        tensors = [getattr(saved, name) for name in names] + [saved.low[name] for name in sorted(saved.low)]
        self.put(number, tensors)
        nothing = self.new(0)
        return Saved(**dict.fromkeys(names, nothing), kept=saved.kept, low=dict.fromkeys(sorted(saved.low), nothing))

    def unpark(self, number: int, saved: Saved) -> None:
        self.fetch(number)
        back = iter(self.coming.pop(number))
        for name in LARGE:
            if getattr(saved, name) is not None:
                setattr(saved, name, next(back))
        for name in sorted(saved.low):
            saved.low[name] = next(back)

    # fast/parking.py

    def put(self, number: int, tensors: list[Piece]) -> None:
        self.sizes[number] = [tensor.size for tensor in tensors]
        for index, size in enumerate(self.sizes[number]):
            self.places[number, index] = max(size, self.places.get((number, index), 0))
        self.leaving.append(tensors)
        while len(self.leaving) > IN_FLIGHT:
            self.leaving.popleft()

    def fetch(self, number: int) -> None:
        if number not in self.coming and number in self.sizes:
            self.leaving.clear()
            self.coming[number] = [self.new(size, 1) for size in self.sizes.pop(number)]

    # fast/head.py

    def loss_and_gradient(self) -> Piece:
        width, vocabulary = self.shape.width, self.shape.vocabulary
        d_x = self.rows(width + self.spare)
        places = self.given.places
        piece = rows_at_a_time(vocabulary, self.given.tight)
        for start in range(0, places, piece):
            count = min(piece, places - start)
            rows = self.new(count * width)
            normed = self.new(count * width)
            logits = self.new(count * vocabulary)
            losses = self.new(count, FLOAT)
            zeros = self.new(count * width)
            del zeros
            del rows, normed, logits, losses
        return d_x

    # fast/layer.py

    def forward(self, number: int, x: Piece, keep: str) -> tuple[Piece, Saved]:
        saved, normed = self.attention_half(number, Saved(x))
        stays = keep in ("all", "thin")
        out = self.rows(self.shape.width) if stays else saved.middle
        assert out is not None
        low = []
        for here in pieces(self.tokens, None if keep == "all" else self.at_once):
            count = here.stop - here.start
            gate_up = self.gate_and_up(number, saved, count)
            inner = self.new(count * (self.down.inputs + self.down.spare))
            low.append(self.product(number, self.down, count, onto=not stays) or self.new(count * self.down.spare))
            if keep == "all":
                saved.gate_up = gate_up
            del gate_up, inner
        saved.low["down"] = low[0] if len(low) == 1 else self.rows(self.down.thin)
        del normed
        if stays:
            if keep == "thin":
                del saved.low["gate_up"]
            return out, saved
        known = {"down": saved.low["down"]}
        return out, Saved(x, saved.attention, saved.kept, low=known) if keep == "attention" else Saved(x, low=known)

    def attention_half(self, number: int, saved: Saved) -> tuple[Saved, Piece]:
        width, low = self.shape.width, dict(saved.low)
        normed = self.rows(width + self.qkv.spare)
        qkv = self.rows(self.qkv.outputs)
        low["qkv"] = self.product(number, self.qkv, self.tokens) or self.rows(self.qkv.spare)
        del normed
        turned = self.rows((self.shape.heads + self.shape.key_heads) * self.shape.head_width) if self.shape.norms_of_heads else None
        attention, kept = saved.attention, saved.kept
        if attention is None or kept is None:
            attention = self.rows(self.attended)
            kept = [self.rows(self.shape.heads, FLOAT), self.new(1, LONG), self.new(1, LONG)]
        added = self.rows(width)
        low["o"] = self.product(number, self.o, self.tokens) or self.rows(self.o.spare)
        normed = self.rows(width + self.gate_up.spare)
        return Saved(saved.x, attention, kept, qkv, turned, added, low=low), normed

    def gate_and_up(self, number: int, saved: Saved, count: int) -> Piece:
        gate_up = self.new(count * (self.gate_up.outputs + self.gate_up.spare))
        saved.low["gate_up"] = self.product(number, self.gate_up, count) or self.new(count * self.gate_up.spare)
        return gate_up

    def backward(self, number: int, saved: Saved, d_out: Piece, first: bool) -> Piece | None:
        width = self.shape.width
        normed = None
        if saved.middle is None:
            saved, normed = self.attention_half(number, saved)
        d_middle = self.mlp_backward(number, saved, normed, d_out)
        del normed
        d_attention = self.rows(self.attended)
        low = self.product(number, self.o, self.tokens, back=True)
        grads = self.attend_backward()
        d_qkv = self.rows(self.qkv.outputs + self.qkv.spare)
        del grads, d_attention
        saved.qkv = saved.turned = saved.attention = saved.kept = None
        normed = self.rows(width)
        d_normed = None if first else self.rows(width)
        low = self.product(number, self.qkv, self.tokens, back=True, multiplied=not first)
        d_x = None
        if not first:
            d_x = d_middle if self.o.spare == self.spare else self.rows(width + self.spare)
        del d_middle, d_qkv, normed, d_normed, d_out, low
        return d_x

    def mlp_backward(self, number: int, saved: Saved, normed: Piece | None, d_out: Piece) -> Piece:
        width = self.shape.width
        kept, saved.gate_up = saved.gate_up, None
        d_middle = None
        for here in pieces(self.tokens, None if kept is not None else self.at_once):
            count = here.stop - here.start
            was, gate_up = None, kept
            if gate_up is None:
                if normed is None:
                    was = self.new(count * (width + self.gate_up.spare))
                gate_up = self.gate_and_up(number, saved, count)
            again_too = kept is not None
            kept = None
            inner = self.new(count * self.down.inputs)
            low = self.product(number, self.down, count, back=True)
            del inner
            again = self.new(count * width) if again_too else None
            d_normed = self.new(count * width)
            low = self.product(number, self.gate_up, count, back=True)
            if d_middle is None:
                d_middle = d_out if self.o.spare == self.spare else self.rows(width + self.o.spare)
            del was, gate_up, low, again, d_normed
        assert d_middle is not None
        return d_middle

    def attend_backward(self) -> list[Piece]:
        """With what the kernels take for themselves: sums in float32, and gradients of keys and values for each query head, which are then added up."""
        shape, keys = self.shape, self.shape.key_heads * self.shape.head_width
        found = [self.rows(self.attended), self.rows(keys), self.rows(keys)]
        sums = self.rows(shape.heads, FLOAT)
        wide = self.rows(self.attended, FLOAT)
        each = [self.rows(self.attended) for _ in range(2)] if shape.heads != shape.key_heads else []
        del sums, wide, each
        return found


class FalconStep(Step):
    """fast/falcon.py."""

    def name_groups(self) -> None:
        self.wide, self.o, self.down = self.groups
        self.narrow = self.wide.layers[0].outputs

    @property
    def spare(self) -> int:
        return max(self.o.spare, self.down.spare)

    def forward(self, number: int, x: Piece, keep: str) -> tuple[Piece, Saved]:
        saved = Saved(x)
        self.widen(number, saved)
        inner = self.rows(self.down.inputs + self.down.spare)
        out = self.rows(self.shape.width)
        self.buffer(number, self.o)
        saved.low["o"] = self.rows(self.o.spare)
        self.buffer(number, self.down)
        saved.low["down"] = self.rows(self.down.spare)
        if keep == "all":
            return out, saved
        if keep == "thin":
            return out, Saved(x, saved.attention, saved.kept, qkv=self.rows(self.narrow), low={name: saved.low[name] for name in ("o", "down")})
        del inner
        return out, Saved(x, saved.attention, saved.kept) if keep == "attention" else Saved(x)

    def widen(self, number: int, saved: Saved) -> None:
        normed = self.rows(self.shape.width + self.wide.spare)
        saved.wide = self.rows(self.wide.outputs + self.wide.spare)
        self.buffer(number, self.wide)
        saved.low["wide"] = self.rows(self.wide.spare)
        del normed
        if saved.attention is None:
            saved.attention = self.rows(self.attended)
            saved.kept = [self.rows(self.shape.heads, FLOAT), self.new(1, LONG), self.new(1, LONG)]

    def backward(self, number: int, saved: Saved, d_out: Piece, first: bool) -> Piece | None:
        width = self.shape.width
        if saved.wide is None:
            self.widen(number, saved)
        inner = self.rows(self.down.inputs)
        self.buffer(number, self.down)
        low_x = saved.low["down"] if "down" in saved.low else self.rows(self.down.spare)
        del inner
        d_attention = self.rows(self.attended)
        self.buffer(number, self.o)
        low_x = saved.low["o"] if "o" in saved.low else self.rows(self.o.spare)
        grads = self.attend_backward()
        del grads, d_attention
        saved.qkv = saved.attention = saved.kept = None
        normed = self.rows(width)
        d_normed = None if first else self.rows(width)
        self.buffer(number, self.wide)
        d_x = None if first else self.rows(width + self.spare)
        del normed, d_normed, low_x, d_out
        return d_x


def step_of(given: FastWork, memory: Memory) -> Step:
    return (FalconStep if given.work.shape.family == "falcon" else Step)(given, memory)
