"""Recordings of the allocator of an H200 (benchmarks/record_memory.py), and the same steps simulated."""

import ast
import json
import lzma
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from halfbyte.budget.allocator import Allocator, Block
from halfbyte.budget.operations import same
from halfbyte.budget.shadow import HALF, Shadow, Tape
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import CUBLAS_WORKSPACE, Work, look, micro_batch, place_adapter, place_base, place_optimizer
from halfbyte.recipe.plan import Placement

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LARGE = 2**20
"""Bytes: what is smaller lies in the other pool."""


@cache
def recorded() -> dict[str, dict[str, Any]]:
    """By name; `events`: [bytes] were given, [-1 - i] is the end of what event i gave."""
    return json.loads(lzma.decompress((BENCHMARKS / "results" / "recorded_memory.json.xz").read_bytes()))


@cache
def configs() -> dict[str, dict[str, Any]]:
    """Those of benchmarks/random_base.py, read without importing torch."""
    for node in ast.parse((BENCHMARKS / "random_base.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "CONFIGS":
            return ast.literal_eval(node.value)
    raise LookupError("benchmarks/random_base.py has no CONFIGS")


def names(evaluated: bool) -> list[str]:
    return [name for name, case in recorded().items() if bool(case.get("evaluation")) == evaluated]


def make_work(name: str, **changes: Any) -> Work:
    """A well-known shape; `layers`, a number, makes it shorter. One row of 1,024 tokens, everything kept, where not told otherwise."""
    config = configs()[name]
    shape = read_shape({**config, "num_hidden_layers": changes.pop("layers", config["num_hidden_layers"])})
    placed = (changes.pop("placement", Placement()),) * shape.layers
    return replace(Work(shape, 1, 1024, placed), **changes)


def work_of(case: dict[str, Any]) -> Work:
    quantised = case.get("quantised", True)
    placement = Placement("4bit" if quantised else "16bit", "recomputed" if case["checkpointing"] else "kept")
    targets = tuple(case["targets"]) if case.get("targets") else None
    return make_work(
        case["shape"], layers=case["layers"], placement=placement, rows=case["rows"], tokens=case["tokens"], accumulation=case.get("accumulation", 1),
        packed=bool(case.get("packed")), four_bit=quantised, rank=case.get("r", 16), targets=targets, dropout=bool(case.get("dropout")),
        optimizer=case.get("optimizer", "paged_adamw_32bit"),
    )  # fmt: skip


class Recorder(Allocator):
    """Keeps every event: bytes that were given, or as a negative number given back."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[int] = []

    def malloc(self, size: int) -> Block:
        block = super().malloc(size)
        self.events.append(block[2])
        return block

    def free(self, block: Block) -> None:
        super().free(block)
        self.events.append(-block[2])

    def forget(self) -> int:
        """What is recorded begins now. The bytes that are allocated."""
        self.events.clear()
        self.peak_allocated = self.allocated
        return self.allocated


class WantsInputs(Tape):
    """transformers' own checkpointing, which the recordings were made with, wants a gradient of the embedded tokens too; ours does not."""

    def new(self, elements: int, itemsize: int = HALF) -> Shadow:
        result = super().new(elements, itemsize)
        if itemsize == HALF and not self.number:
            self.node(result, ["embedded"], [], same)
        return result


def simulated(case: dict[str, Any]) -> tuple[list[int], int, int]:
    """The events of one step after others, the bytes allocated before it and at its peak."""
    work, allocator = work_of(case), Recorder()
    held = [*place_base(work, allocator), *place_adapter(work, allocator), *(allocator.malloc(CUBLAS_WORKSPACE) for _ in range(2))]
    if case.get("evaluation"):
        before = allocator.forget()
        look(work, Tape(allocator), case["tokens"] - 1)
    else:
        held += place_optimizer(work, allocator)
        before = allocator.forget()
        tape = WantsInputs(allocator) if case["checkpointing"] else Tape(allocator)
        for _ in range(work.accumulation):
            tape.number = 0
            micro_batch(work, tape)
            tape.grads.pop("embedded", None)
        tape.grads.clear()
    return allocator.events, before, allocator.peak_allocated


def signed(case: dict[str, Any]) -> list[int]:
    """The recorded events as a Recorder keeps them: rounded to 512 bytes, the end of an allocation as its negative size."""
    events = case["events"]
    sizes = [-(-event[0] // 512) * 512 for event in events]
    return [sizes[number] if event[0] >= 0 else -sizes[-1 - event[0]] for number, event in enumerate(events)]


def in_order(events: list[int]) -> list[int]:
    """Large ones alone; what is freed between two allocations has no order that memory could depend on, so it is sorted."""
    kept: list[int] = []
    freed: list[int] = []
    for size in events:
        if size >= LARGE:
            kept += [*sorted(freed), size]
            freed.clear()
        elif size <= -LARGE:
            freed.append(size)
    return kept + sorted(freed)
