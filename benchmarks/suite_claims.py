"""How much faster than the rivals: ratios of cells of one sitting, with both peaks, as claims and as the first table of docs/performance.md.

Of the fast path's ways the fastest is taken whose peak is at most the rival's; what computes in FP8 counts for the one target that names it.
Peaks are reserved bytes for both: what a recorded step holds is missing in
PyTorch's count of allocated ones. Above 1 halfbyte is faster.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import save_raw
from programs import FP8_WAYS, PROGRAMS, RANK, SHAPE, WAYS, configuration_of, family_of
from suite_table import Cell, faults, reference_of

UNSLOTH = tuple(name for name in PROGRAMS if family_of(name) == "unsloth")
UNSLOTH_OFF = tuple(name for name in UNSLOTH if name.startswith("unsloth-off"))
UNIT = "ratio of times, above 1 is faster"
BUDGETS_GB = (8, 10, 12, 16, 24, 40, 80)


@dataclass(frozen=True)
class Target:
    claim: str
    case: str
    at_least: float
    grids: tuple[str, ...]
    """The least ratio of those that were measured counts."""
    rivals: tuple[str, ...]
    """The fastest of those that were measured counts."""
    shape: str = SHAPE
    ways: tuple[str, ...] = tuple(WAYS)
    """On our side, the fastest that takes no more memory than the rival."""


PACKED = ("1x8192:alpaca", "1x8192:replies", "1x2048:alpaca", "1x2048:replies")
TARGETS = (
    Target("t8192-fast-vs-unsloth", "8,192 tokens, beside checkpointing off", 1.15, ("4x2048",), UNSLOTH_OFF),
    Target("t8192-lean-vs-unsloth", "8,192 tokens, beside its default", 1.23, ("4x2048",), ("unsloth",)),
    Target("t2048-fast-vs-unsloth", "2,048 tokens, beside checkpointing off", 1.30, ("1x2048",), UNSLOTH_OFF),
    Target("t2048-lean-vs-unsloth", "2,048 tokens, beside its default", 1.45, ("1x2048",), ("unsloth",)),
    Target("t16384-lean-vs-unsloth", "one row of 16,384 tokens, beside its default", 1.25, ("1x16384",), ("unsloth",)),
    Target("packed-vs-unsloth", "packed short rows, beside its best setting", 1.50, PACKED, UNSLOTH),
    Target("falcon-vs-hf", "Falcon-7B's shape, beside transformers + peft", 1.70, ("4x2048", "1x2048"), ("hf",), shape="falcon-7b"),
    Target("fp8-vs-unsloth", "8,192 tokens, FP8, beside checkpointing off", 1.55, ("4x2048",), UNSLOTH_OFF, ways=tuple(FP8_WAYS)),
)


@dataclass(frozen=True)
class Comparison:
    ours: Cell
    rival: Cell

    @property
    def ratio(self) -> float:
        return float(self.ours["tokens_per_second"] / self.rival["tokens_per_second"])


def reserved(cell: Cell) -> int:
    """Bytes at the peak; of a cell without a GPU more than any."""
    found = cell["peaks"].get("reserved_bytes")
    return int(found) if found is not None else 1 << 62


def sound(cells: list[Cell], configuration: str) -> list[Cell]:
    """Cells of this configuration that were measured and pass their checks, the fastest first."""
    reference = reference_of(cells, configuration)
    own = [one for one in cells if one["configuration"]["name"] == configuration and one["status"] == "measured" and not faults(one, reference)]
    return sorted(own, key=lambda one: -one["tokens_per_second"])


def compare(cells: list[Cell], configuration: str, rivals: tuple[str, ...], ways: tuple[str, ...] = tuple(WAYS)) -> Comparison | None:
    """The fastest rival, and the fastest of our ways of its sitting that takes no more memory; None where there is no such pair."""
    found = sound(cells, configuration)
    for sitting in sorted({one["sitting"] for one in found}, reverse=True):  # the newest in which both sides were timed
        together = [one for one in found if one["sitting"] == sitting]
        rival = next((one for one in together if one["program"] in rivals and "reserved_bytes" in one["peaks"]), None)
        ours = next((one for one in together if rival is not None and one["program"] in ways and reserved(one) <= reserved(rival)), None)
        if rival is not None and ours is not None:
            return Comparison(ours, rival)
    return None


def comparisons(cells: list[Cell], target: Target) -> list[Comparison]:
    """Of a target, the least ratio first."""
    names = [configuration_of(target.shape, grid, RANK).name for grid in target.grids]
    found = [one for name in names if (one := compare(cells, name, target.rivals, target.ways))]
    return sorted(found, key=lambda one: one.ratio)


def in_budget(cells: list[Cell], gigabytes: int) -> Comparison | None:
    """Of the newest sitting in which both sides ran where PyTorch may take no more than so much: the fastest of each, whatever the number of rows."""
    found = [
        one for name in {cell["configuration"]["name"] for cell in cells if cell["configuration"]["shape"] == SHAPE and not cell["configuration"].get("packed")}
        for one in sound(cells, name) if (one.get("budget_bytes") or 1 << 62) <= gigabytes * 10**9 and reserved(one) <= gigabytes * 10**9
    ]  # fmt: skip
    for sitting in sorted({one["sitting"] for one in found}, reverse=True):
        sides = [
            max((one for one in found if one["sitting"] == sitting and wanted(one["program"])), key=lambda one: one["tokens_per_second"], default=None)
            for wanted in (WAYS.__contains__, UNSLOTH.__contains__)
        ]
        if sides[0] is not None and sides[1] is not None:
            return Comparison(sides[0], sides[1])
    return None


def claim_of(claim: str, found: Comparison, command: str, text: str) -> dict[str, Any]:
    ours, rival = found.ours, found.rival
    return {
        "claim": claim, "value": round(found.ratio, 3), "unit": UNIT, "command": command, "where": ours["where"], "date": ours["sitting"][:10],
        "versions": {**rival["versions"], **ours["versions"]}, **peaks(found), "way": ours["program"], "peer": rival["program"],
        "configuration": ours["configuration"]["name"], "peer_configuration": rival["configuration"]["name"], "text": text,
    }  # fmt: skip


def peaks(found: Comparison) -> dict[str, float]:
    return {
        f"{whose}{name}_gb": round(cell["peaks"][key] / 1e9, 2)
        for whose, cell in (("", found.ours), ("peer_", found.rival))
        for name, key in (("peak", "reserved_bytes"), ("allocated", "allocated_bytes"))
    }


def record_ratios(cells: list[Cell], results: Path) -> None:
    """The claim of each target that was measured; no other of these stays."""
    claims = []
    for target in TARGETS:
        if found := comparisons(cells, target):
            first = found[0]
            others = "".join(f"; {one.ours['configuration']['name']}: {one.ratio:.2f}" for one in found[1:])
            which = "fastest way" if target.ways == tuple(WAYS) else "fastest way in FP8"
            text = f"{first.ours['program']} is halfbyte's {which} whose peak (reserved) is at most that of {first.rival['program']}{others}"
            shape = "" if target.shape == SHAPE else f"--shape {target.shape} "
            programs = f"{first.ours['program']} {first.rival['program']}"
            command = f"python benchmarks/suite.py {shape}--configurations {' '.join(target.grids)} --programs {programs} --again"
            claims.append(claim_of(target.claim, first, command, text))
    put_claims(claims, {target.claim for target in TARGETS}, results)


def put_claims(claims: Iterable[dict[str, Any]], names: set[str], results: Path) -> None:
    """Replaces the claims of these names by `claims`."""
    file = results / "claims.json"
    others = [one for one in json.loads(file.read_text(encoding="utf-8")) if one["claim"] not in names] if file.is_file() else []
    save_raw(file.name, sorted([*others, *claims], key=lambda one: one["claim"]), results)


def targets_table(cells: list[Cell], budgets: dict[int, Comparison]) -> str:
    """`budgets`: gigabytes -> the two winners, run again in so much memory."""
    lines = ["| case | target | measured | halfbyte's way, peak GB | rival, peak GB |", "|---|---|---|---|---|"]
    for target in TARGETS:
        found = comparisons(cells, target)
        lines.append(_line(target.case, target.at_least, found[0] if found else None))
    lines += [_line(f"{budget} GB, best that fits beside best that fits", 1.0, budgets.get(budget), sizes=True) for budget in BUDGETS_GB]
    return "\n".join(lines)


def _line(case: str, at_least: float, found: Comparison | None, sizes: bool = False) -> str:
    target = f"{at_least:.2f}" if at_least > 1 else "more than 1"
    if found is None:
        return f"| {case} | {target} | not measured | | |"
    ours, rival = (_named(cell, sizes or bool(cell["configuration"].get("packed"))) for cell in (found.ours, found.rival))
    reached = found.ratio >= at_least if at_least > 1 else found.ratio > 1
    return f"| {case} | {target} | {f'**{found.ratio:.2f}**' if reached else f'{found.ratio:.2f}'} | {ours} | {rival} |"


def _named(cell: Cell, size: bool) -> str:
    configuration = cell["configuration"]
    grid = (
        f" {configuration['rows']} x {configuration['tokens']:,}{' ' if configuration.get('packed') else ''}{configuration.get('packed', '')}" if size else ""
    )
    return f"{cell['program']}{grid}, {reserved(cell) / 1e9:.2f}"
