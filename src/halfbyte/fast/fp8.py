"""Products with the frozen weights in 8 bits (E4M3), each way: an approximation that is asked for by name, on GPUs that multiply 8-bit numbers.

As in linear.py a group of layers is one product each way with the adapter inside; but the weight is written out of 4 bits straight into 8, once for each
way, because such products want both factors in rows along what is summed:

    forward    y  = [x | hi | hi | lo] [W | b_hi | b_lo | b_hi]'      W (N, K + E),   hi + lo = x A',  b_hi + b_lo = sB
    backward   dx = [dy | hi | hi | lo] [W' | a_hi | a_lo | a_hi]'    W' (K, N + E),  hi + lo = dy sB, a_hi + a_lo = A'

W has one scale for the whole group and each row of x and dy its own; what is of the adapter has about 8 bits (kernels/fp8_reference.py). E is a multiple
of 128, which the products want. x A', dy sB and the gradients of A and B are products in 16 bits, as are norms, attention and the head: so of a layer's
result, 3 to 4 % of its length is rounding of the frozen part, and nothing is kept for the backward pass that is not kept without FP8.

The adapter's pairs need a unit, of which the largest number of A or of sB is 8 to 16; x A' and dy sB are multiplied by it in turn. They are powers of
two, found anew in each step, for all layers at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from halfbyte.budget.fast_sizes import FP8_CAPABILITY, pair_columns, thin_columns
from halfbyte.fast.adopt import Adopted, Unfit
from halfbyte.fast.buffers import Buffers
from halfbyte.fast.layer import Layer
from halfbyte.fast.linear import Frozen, Group
from halfbyte.kernels.fp8_reference import E4M3, LARGEST, absmax_of

PAIR = 16.0
"""The largest number of A and of sB, in units of their pairs, is at most this: far from both ends of what 8 bits hold."""


class Fp8Group(Group):
    """A group whose products are in 8 bits. Its tensors need no room beside their rows: what goes there is in the 8-bit copy."""

    def __init__(self, layers: Sequence[Frozen]) -> None:
        super().__init__(layers)
        self.spare = 0
        self.extra = pair_columns(self.rank)

    @property
    def thin(self) -> int:
        """The first `rank` of them are used."""
        return thin_columns(self.rank)

    @property
    def layout(self) -> tuple[Any, ...]:
        """By which two groups may use the same memory one after the other."""
        return self.outputs, self.inputs, self.pattern

    def wide_shape(self, back: bool) -> tuple[int, int]:
        return (self.inputs, self.outputs + self.extra) if back else (self.outputs, self.inputs + self.extra)

    def thin_shape(self, back: bool) -> tuple[int, int]:
        """sB as (N, R), A as (R, K)."""
        return (self.outputs, self.thin) if back else (self.thin, self.inputs)

    def write_way(self, way: "Way", back: bool, ops: ModuleType, weights: bool = True) -> None:
        """Weights and adapters for one way, or adapters alone. What is outside of the pattern is left."""
        width = self.outputs if back else self.inputs
        for layer, start, place in self._placed():
            rows = slice(start, start + layer.outputs)
            if weights:
                write_frozen(layer, way.wide[:, rows] if back else way.wide[rows, :width], way.weight_scale, back, ops)
            if layer.lora is None:
                continue
            a, b, scale = layer.lora.a.detach().contiguous(), layer.lora.b.detach().contiguous(), layer.lora.scale
            columns = slice(place, place + len(a))
            beside = way.wide[:, width + place :] if back else way.wide[rows, width + place :]
            if back:
                ops.write_factors(a.T, 1.0, way.unit, beside, self.rank, b, scale, way.thin[rows, columns])
            else:
                ops.write_factors(b, scale, way.unit, beside, self.rank, a, 1.0, way.thin[columns])

    def forward(self, x: Tensor, buffer: Any, out: Tensor, onto: bool = False) -> Tensor:
        way = buffer.way(False)
        low = x @ way.thin.T
        buffer.multiply(way, x, low, out, onto)
        self.add_bias(out)
        return low

    def backward(self, d_out: Tensor, buffer: Any, d_x: Tensor | None) -> Tensor:
        """d_out (T, N) -> d_x (T, K); returns dy sB, (T, R), in the type of d_out."""
        way = buffer.way(True)
        low = d_out @ way.thin
        if d_x is not None:
            buffer.multiply(way, d_out, low, d_x)
        return low


@dataclass(frozen=True)
class Way:
    """What one way's product is made with: the 8-bit matrix and the 16-bit one, and, as () float32 tensors, the scale of the weight, the unit of the pairs
    in `wide`, and what makes of it a factor for the pairs in the rows, unit / weight_scale."""

    wide: Tensor
    thin: Tensor
    weight_scale: Tensor
    unit: Tensor
    factor: Tensor


@dataclass(frozen=True)
class Handle:
    """What a layer gets for a group: both ways are there once they are asked for."""

    group: Fp8Group
    buffers: "Fp8Buffers"

    def way(self, back: bool) -> Way:
        return self.buffers.way(self.group, back)

    def multiply(self, way: Way, x: Tensor, low: Tensor, out: Tensor, onto: bool = False) -> None:
        """The row's numbers x and low times the way's -> out, or added to it."""
        ops, (rows, width) = self.buffers.ops, x.shape
        given = torch.empty(rows, width + self.group.extra, dtype=E4M3, device=x.device)
        scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
        ops.quantise_rows(x, low, self.group.rank, way.factor, way.weight_scale, given, scales)
        result = torch.empty_like(out) if onto else out
        ops.product(given, scales, way.wide, result)
        if onto:
            out += result


@dataclass
class Memory:
    """One way's bytes and 16-bit numbers, for whichever group was written last."""

    wide: Tensor
    thin: Tensor
    holds: tuple[Fp8Group, bool] | None = None
    zeroed: tuple[Any, ...] | None = None


class Fp8Buffers(Buffers):
    """What Buffers is to the layers, for both ways of each group, all of them 8-bit. Call `forget` before each forward pass, and `begin` in it."""

    def __init__(self, dtype: torch.dtype, device: torch.device, given: Iterable[Group], resident: Iterable[Group] = (), tight: bool = False) -> None:
        groups = _eight_bit(given)
        self.dtype, self.device, self.ops = dtype, device, ops_for(device)
        self.groups = tuple(groups)
        self.weight_scales = torch.stack([largest(group) for group in groups]).float() / LARGEST
        self.units = torch.ones(len(groups), 2, device=device)  # of each group's pairs in the forward product, and in the backward
        self.factors = torch.ones(len(groups), 2, device=device)
        self._number = {group: number for number, group in enumerate(groups)}
        self._matrices, self._owner, self._times = self._adapters()
        self._stays: dict[tuple[Fp8Group, bool], Memory] = {}
        self._fresh: set[tuple[Fp8Group, bool]] = set()
        self._shared: dict[Any, Memory] = {}
        self._tight = tight
        self.begin()
        for group in _eight_bit(resident):
            for back in (False, True):
                memory = self._stays[group, back] = self._new(_size(group.wide_shape(back)), _size(group.thin_shape(back)))
                group.write_way(self._way(memory, group, back), back, self.ops)

    def of(self, group: Group) -> Any:
        assert isinstance(group, Fp8Group)
        return Handle(group, self)

    def way(self, group: Fp8Group, back: bool) -> Way:
        """Only until another group asks that shares its memory."""
        memory = self._stays.get((group, back))
        if memory is not None:
            way = self._way(memory, group, back)
            if (group, back) not in self._fresh:
                group.write_way(way, back, self.ops, weights=False)
                self._fresh.add((group, back))
            return way
        key = "all" if self._tight else (group.outputs, group.inputs, group.thin, group.extra, back)
        memory = self._shared.get(key)
        if memory is None:
            ways = [(one, other) for one in self.groups for other in (False, True)] if self._tight else [(group, back)]
            wide, thin = (max(_size(shape(one, other)) for one, other in ways) for shape in (Fp8Group.wide_shape, Fp8Group.thin_shape))
            memory = self._shared[key] = self._new(wide, thin)
        way = self._way(memory, group, back)
        if memory.holds != (group, back):
            self._write(memory, way, group, back)
        return way

    def forget(self) -> None:
        """What the buffers hold of adapters is no longer true."""
        for memory in self._shared.values():
            memory.holds = None
        self._fresh.clear()

    @torch.no_grad()
    def begin(self) -> None:
        """Units of the adapters as they are now: powers of two. On the device, in a few launches for all groups."""
        if not self._matrices:
            return
        sizes = torch.stack(torch._foreach_norm(self._matrices, float("inf"))).float() * self._times
        most = torch.zeros(2 * len(self.groups), device=self.device).scatter_reduce_(0, self._owner, sizes, "amax").view(-1, 2)
        found = torch.exp2(torch.ceil(torch.log2(most / PAIR)))
        self.units.copy_(torch.where(most > 0, found, 1.0))
        # Where an adapter is zero, as all are at first, nothing must be asked of the rows' scales for it.
        self.factors.copy_(torch.where(most > 0, self.units / self.weight_scales[:, None], 0.0))

    def _adapters(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """All matrices, which number of `units` each belongs to (B goes into the forward product, A into the backward), and what each is multiplied by."""
        matrices, owner, times = [], [], []
        for number, group in enumerate(self.groups):
            for layer in group.layers:
                if layer.lora is not None:
                    matrices += [layer.lora.b, layer.lora.a]
                    owner += [2 * number, 2 * number + 1]
                    times += [abs(layer.lora.scale), 1.0]
        return matrices, torch.tensor(owner, dtype=torch.long, device=self.device), torch.tensor(times, device=self.device)

    def _write(self, memory: Memory, way: Way, group: Fp8Group, back: bool) -> None:
        layout = (group.layout, back)
        if memory.zeroed != layout:
            way.wide[:, group.outputs if back else group.inputs :].view(torch.uint8).zero_()
            way.thin.zero_()
            memory.zeroed = layout
        group.write_way(way, back, self.ops)
        memory.holds = group, back

    def _new(self, wide: int, thin: int) -> Memory:
        return Memory(
            torch.zeros(wide, dtype=torch.uint8, device=self.device).view(E4M3), torch.zeros(thin, dtype=self.dtype, device=self.device)
        )  # fmt: skip

    def _way(self, memory: Memory, group: Fp8Group, back: bool) -> Way:
        number, wide, thin = self._number[group], group.wide_shape(back), group.thin_shape(back)
        return Way(
            memory.wide[: _size(wide)].view(wide), memory.thin[: _size(thin)].view(thin), self.weight_scales[number], self.units[number, int(back)],
            self.factors[number, int(back)],
        )  # fmt: skip


def _eight_bit(groups: Iterable[Group]) -> tuple[Fp8Group, ...]:
    found = []
    for group in groups:
        assert isinstance(group, Fp8Group)
        found.append(group)
    return tuple(found)


def in_fp8(parts: Adopted) -> Adopted:
    """The same model with groups of 8 bits. Raises Unfit."""
    device = parts.embedding.weight.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise Unfit("FP8 is for GPUs with compute capability 8.9 or more")
    layers = []
    for layer in parts.layers:
        if not isinstance(layer, Layer):
            raise Unfit("FP8 is for the Llama family's layers")
        qkv, o, gate_up, down = (Fp8Group(group.layers) for group in layer.groups)
        layers.append(replace(layer, qkv=qkv, o=o, gate_up=gate_up, down=down))
    return replace(parts, layers=tuple(layers))


def largest(group: Fp8Group) -> Tensor:
    """The largest number of a group's weights, (), or what they cannot pass; 1 where all are zero."""
    found = torch.stack([_largest(layer) for layer in group.layers]).amax()
    return torch.where(found > 0, found, 1.0)


def _largest(layer: Frozen) -> Tensor:
    weight: Any = layer.module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().abs().amax().float()
    return absmax_of(state.absmax, _nested(state)).abs().amax().float() * state.code.abs().amax().float()


def write_frozen(layer: Frozen, out: Tensor, weight_scale: Tensor, transposed: bool, ops: ModuleType) -> None:
    """The weight (n, k) into out (n, k) 8-bit, or (k, n)."""
    weight: Any = layer.module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        ops.write_weight(weight.detach(), out, weight_scale, transposed)
    else:
        ops.dequantise_nf4(weight.data.view(torch.uint8), state.absmax, state.code, out, weight_scale, _nested(state), transposed)


def _nested(state: Any) -> tuple[Tensor, Tensor, Tensor, int] | None:
    return (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if state.nested else None


def ops_for(device: torch.device) -> ModuleType:
    """As decoder.ops_for, of the 8-bit kernels."""
    if device.type == "cuda":
        from halfbyte.kernels import fp8

        return fp8
    from halfbyte.kernels import fp8_reference

    return fp8_reference


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
