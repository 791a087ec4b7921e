"""What the fast path is given in a micro-batch, and its groups of linear layers: what its memory and its time are counted from."""

from dataclasses import dataclass

from halfbyte.budget.fast_sizes import FEW, pair_columns, thin_columns
from halfbyte.budget.shape import Linear
from halfbyte.budget.step import Work


@dataclass(frozen=True)
class FastWork:
    """A micro-batch of documents of these lengths. `work.layers` say what is kept and where; rows and tokens of `work` count for nothing here."""

    work: Work
    lengths: tuple[int, ...]
    supervised: int | None = None
    """Tokens that are learned; all but the first of each document when not given."""
    tight: bool = False
    record: bool = False
    varied: bool = False
    """Whether documents may be of other lengths than these, or longer than the attention's window: FlashAttention 2 computes them."""
    hopper: bool = True
    """Compute capability 9.0, where documents of one length go through cuDNN."""
    fp8: bool = False
    """Products with the frozen weights in 8 bits."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def places(self) -> int:
        count = self.tokens - len(self.lengths) if self.supervised is None else self.supervised
        return -(-count // FEW) * FEW if self.record else count

    @property
    def kernel(self) -> str:
        return "cudnn" if self.hopper and len(set(self.lengths)) == 1 and not self.varied else "flash"

    @property
    def parked(self) -> frozenset[int]:
        return frozenset(number for number, layer in enumerate(self.work.layers) if layer.parked or layer.activations == "cpu")


@dataclass(frozen=True)
class Group:
    """Linear layers with one input, as one matrix with room for their adapters."""

    layers: tuple[Linear, ...]
    ranks: tuple[int, ...]
    fp8: bool = False

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return sum(layer.outputs for layer in self.layers)

    @property
    def rank(self) -> int:
        return sum(self.ranks)

    @property
    def thin(self) -> int:
        """Columns of x A'."""
        return thin_columns(self.rank)

    @property
    def spare(self) -> int:
        """Columns that its tensors have beside their own."""
        return 0 if self.fp8 else self.thin

    @property
    def size(self) -> int:
        """Elements of its buffer."""
        return (self.outputs + self.spare) * (self.inputs + self.spare)

    @property
    def extra(self) -> int:
        """Of 8-bit rows, the columns for the adapter."""
        return pair_columns(self.rank)

    def eight_bit(self, back: bool) -> tuple[int, int]:
        """For one way: bytes of the 8-bit matrix, and elements of the 16-bit one beside it."""
        if back:
            return self.inputs * (self.outputs + self.extra), self.outputs * self.thin
        return self.outputs * (self.inputs + self.extra), self.inputs * self.thin


def groups_of(work: Work, fp8: bool = False) -> tuple[Group, ...]:
    """q k v, o, gate up, down; of Falcon q k v with what the MLP opens, o, down."""

    def group(*linears: Linear) -> Group:
        return Group(linears, tuple(work.rank_of(linear) for linear in linears), fp8)

    linears = work.shape.linears
    if work.shape.family == "falcon":
        qkv, o, opened, down = linears
        return group(qkv, opened), group(o), group(down)
    return group(*linears[:3]), group(linears[3]), group(*linears[4:6]), group(linears[6])
