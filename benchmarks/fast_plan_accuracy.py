"""How well the plan knows memory and time of the fast path: predicted and measured peak and step time on random bases of well-known shapes.

    python benchmarks/fast_plan_accuracy.py measure [--only PART] [--seconds N]    on a GPU; kept as they end, in fast_plan_accuracy.json
    python benchmarks/fast_plan_accuracy.py judge                                  anywhere: predicts them and writes the claims

Every configuration runs twice: freely, for the peaks and the median step, and again under set_per_process_memory_fraction with the memory that the plan
calls enough. Big shapes are cut to four or eight layers to be quick; some are whole. Bases of one shape are built once.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claims import RESULTS, record, save_raw, versions
from halfbyte.budget.fast import KEEP, FastPeak, fast_peak
from halfbyte.budget.fast_time import fast_effort, fast_seconds
from halfbyte.budget.fast_work import FastWork
from halfbyte.budget.rates import Rates
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work
from halfbyte.recipe.plan import Placement

if TYPE_CHECKING:
    import torch

    from halfbyte.data.batches import Batch

WARM_UP, TIMED, UNDER_LIMIT = 3, 3, 3
MEMORY_BOUND, TIME_BOUND = 0.05, 0.15


@dataclass(frozen=True)
class Case:
    """One configuration. `rows`: the length of each; `kinds`: what is kept of the first, the next ... part of the layers, in equal parts."""

    shape: str
    layers: int | None
    rows: tuple[int, ...]
    kinds: tuple[str, ...] = ("kept",)
    parked: bool = False
    """All layers but the last two."""
    resident: int = 0
    rank: int = 16
    targets: tuple[str, ...] | None = None
    packed: int = 0
    """Documents of each row."""
    learned: float = 1.0
    """Share of each row's tokens, its end."""
    tight: bool = False
    record: bool = False

    @property
    def name(self) -> str:
        usual = Case(self.shape, self.layers, self.rows)
        said = [f"{key}={_short(value)}" for key, value in asdict(self).items() if value != getattr(usual, key)]
        return " ".join([self.shape, "whole" if self.layers is None else f"{self.layers} layers", _short(self.rows), *said])


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)}x{value[0]}" if len(set(value)) == 1 and isinstance(value[0], int) else "+".join(map(str, value))
    return str(value)


def cases() -> list[Case]:
    """Those of one base stand together."""
    mixed = ("recomputed", "attention", "thin", "kept")
    mistral = [
        Case("mistral-7b", 4, (2048,) * 4), Case("mistral-7b", 4, (2048,) * 4, ("thin",)), Case("mistral-7b", 4, (2048,) * 4, ("attention",)),
        Case("mistral-7b", 4, (2048,) * 4, ("recomputed",)), Case("mistral-7b", 4, (2048,) * 4, mixed), Case("mistral-7b", 4, (512,)),
        Case("mistral-7b", 4, (1024,) * 2, record=True), Case("mistral-7b", 4, (16384,), ("recomputed",), parked=True),
        Case("mistral-7b", 4, (16384,), ("attention",)), Case("mistral-7b", 4, (4096,), ("thin",), resident=2),
        Case("mistral-7b", 4, (777, 1500, 2048, 300)), Case("mistral-7b", 4, (4096,), ("recomputed",), packed=5),
        Case("mistral-7b", 4, (2048,) * 2, mixed, packed=8, learned=0.3), Case("mistral-7b", 4, (8192,), ("attention",), parked=True, tight=True),
        Case("mistral-7b", 4, (20000,), ("thin",), parked=True, tight=True), Case("mistral-7b", 8, (12288,), ("thin",), parked=True),
    ]  # fmt: skip
    ranks = [
        replace(one, rank=64) for one in (Case("mistral-7b", 4, (2048,)), Case("mistral-7b", 4, (2048,) * 2, ("recomputed",), tight=True, record=True))
    ]  # fmt: skip
    some = [Case("mistral-7b", 4, (2048,) * 2, ("thin",), targets=("q_proj", "v_proj"))]
    whole = [
        Case("mistral-7b", None, (2048,) * 4), Case("mistral-7b", None, (2048,) * 4, ("recomputed",), parked=True),
        Case("mistral-7b", None, (2048,), ("recomputed",), parked=True, tight=True),
        Case("mistral-7b", None, (2048,), ("attention",), parked=True, record=True),
        Case("mistral-7b", None, (2048,) * 2, ("recomputed", "thin", "kept", "kept")), Case("mistral-7b", None, (1024,), resident=8, record=True),
    ]  # fmt: skip
    llama = [
        Case("llama-8b", 4, (2048,)), Case("llama-8b", 4, (2048,) * 2, ("recomputed",), learned=0.2), Case("llama-8b", 4, (4096,), ("attention",), parked=True),
        Case("llama-8b", 4, (512,) * 8, ("thin",)), Case("llama-8b", 4, (1024,) * 4, mixed, record=True),
    ]  # fmt: skip
    qwen2 = [
        Case("qwen2-7b", 4, (2048,)), Case("qwen2-7b", 4, (1024,) * 4, ("recomputed",)), Case("qwen2-7b", 4, (4096,), ("thin",)),
        Case("qwen2-7b", 4, (2048,), ("attention",), parked=True, tight=True),
    ]  # fmt: skip
    qwen3 = [
        Case("qwen3-8b", 4, (2048,)), Case("qwen3-8b", 4, (2048,) * 2, ("thin",)), Case("qwen3-8b", 4, (4096,), ("recomputed",), parked=True),
        Case("qwen3-8b", 8, (1024,) * 2, mixed), Case("qwen3-8b", 8, (2048,), ("attention",), resident=4),
    ]  # fmt: skip
    small = [
        Case("llama-1b", None, (2048,) * 2), Case("llama-1b", None, (1024,) * 4, ("recomputed",)), Case("llama-1b", None, (4096,), ("thin",), record=True),
        Case("llama-1b", None, (8192,), ("attention",), parked=True), Case("qwen2-0.5b", None, (2048,) * 2), Case("qwen2-0.5b", None, (512,) * 8, ("thin",)),
        Case("qwen2-0.5b", None, (1024,) * 2, ("recomputed",), record=True), Case("qwen2-0.5b", None, (4096,), ("recomputed",), parked=True),
    ]  # fmt: skip
    falcon = [
        Case("falcon-7b", 4, (2048,) * 2), Case("falcon-7b", 4, (2048,) * 4, ("thin",)), Case("falcon-7b", 4, (4096,), ("attention",), parked=True),
        Case("falcon-7b", 4, (1024,) * 2, ("recomputed",), record=True), Case("falcon-7b", 8, (2048,), mixed, packed=5),
    ]  # fmt: skip
    return [*mistral, *ranks, *some, *llama, *qwen2, *qwen3, *falcon, *small, *whole]


def settings_of(case: Case) -> dict[str, Any]:
    from random_base import config

    return config(case.shape, case.layers)


def work_of(case: Case, settings: dict[str, Any]) -> FastWork:
    shape = read_shape(settings)
    layers = tuple(
        Placement(
            "16bit" if number < case.resident else "4bit", case.kinds[number * len(case.kinds) // shape.layers], case.parked and number < shape.layers - 2
        )
        for number in range(shape.layers)
    )  # fmt: skip
    lengths = [length for row in case.rows for length in _documents(row, case.packed)]
    learned = sum(row - first_learned(row, case) for row in case.rows)
    work = Work(shape, len(case.rows), max(case.rows), layers, rank=case.rank, targets=case.targets)
    return FastWork(work, tuple(lengths), learned, case.tight, case.record)


def first_learned(row: int, case: Case) -> int:
    return max(1, row - int(row * case.learned))


def _documents(row: int, packed: int) -> list[int]:
    """As random_base.random_batch packs them."""
    each = -(-row // packed) if packed else row
    return [min(each, row - start) for start in range(0, row, each)]


def batch_of(case: Case, vocabulary: int, generator: "torch.Generator") -> "Batch":
    import torch

    from halfbyte.data.batches import IGNORE, Batch
    from random_base import random_batch

    longest = max(case.rows)
    made = random_batch(vocabulary, len(case.rows), longest, generator, case.packed)
    for number, length in enumerate(case.rows):
        made.labels[number, : first_learned(length, case)] = IGNORE
        made.labels[number, length:] = IGNORE
    assert case.packed == 0 or len(set(case.rows)) == 1
    found = Batch(made.ids, made.labels, tuple(case.rows), made.positions, made.documents)
    assert isinstance(found.ids, torch.Tensor)
    return found


def measure(case: Case, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from halfbyte.model.placement import limit_memory

    device, given = torch.device("cuda", 0), work_of(case, settings)
    enough = fast_peak(given).enough_bytes
    clear()
    torch.cuda.reset_peak_memory_stats()
    seconds, losses, norms = run_steps(case, given, model, settings, WARM_UP + TIMED)
    free, total = torch.cuda.mem_get_info()
    found: dict[str, Any] = {
        "peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved(),
        "driver_bytes": total - free - torch.cuda.memory_reserved(), "seconds": statistics.median(seconds[WARM_UP:]), "all_seconds": seconds,
        "losses": losses, "grad_norms": norms, "limit_bytes": enough,
    }  # fmt: skip
    clear()
    try:
        with limit_memory(device, enough):
            run_steps(case, given, model, settings, UNDER_LIMIT)
        found["fits"] = True
    except torch.OutOfMemoryError as error:
        found["fits"], found["refused"] = False, str(error).split("\n")[0][:300]
    return found


def run_steps(case: Case, given: FastWork, model: Any, settings: dict[str, Any], count: int) -> tuple[list[float], list[float], list[float]]:
    """With a decoder and an optimizer of their own, which are gone afterwards."""
    import torch

    from halfbyte.fast.decoder import FastDecoder
    from halfbyte.train.optimizer import make_optimizer

    layers = given.work.layers
    keep = [KEEP[one.activations] for one in layers]
    resident = [number for number, one in enumerate(layers) if one.weights == "16bit"]
    decoder = FastDecoder(model, torch.bfloat16, keep, given.parked, resident, tight=case.tight, record=case.record)
    optimizer = make_optimizer("adamw_torch", model.parameters(), 1e-5, 0.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    seconds, losses, norms = [], [], []
    for _ in range(count):
        batch = batch_of(case, settings["vocab_size"], generator)
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = decoder.accumulate(batch, 1 / batch.supervised)
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss))
        norms.append(float(norm))
    return seconds, losses, norms


def clear() -> None:
    import torch

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def measure_all(only: str, seconds: float, results: Path) -> None:
    import torch

    from halfbyte.model.adapter import add_adapter
    from halfbyte.recipe.schema import Adapter
    from random_base import build_random_base

    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    began = time.monotonic()
    file = results / "fast_plan_accuracy.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    wanted = [case for case in cases() if only in case.name and case.name not in found]
    for (_, _, rank, targets), group in groupby(wanted, lambda case: (case.shape, case.layers, case.rank, case.targets)):
        several = list(group)
        if time.monotonic() - began > seconds:
            break
        settings = settings_of(several[0])
        base = build_random_base(settings)
        model, _ = add_adapter(base, Adapter(r=rank, alpha=rank, target_modules="all-linear" if targets is None else list(targets)), seed=0)
        model.train()
        for case in several:
            if time.monotonic() - began > seconds:
                break
            started = time.monotonic()
            try:
                found[case.name] = {**asdict(case), "device": torch.cuda.get_device_name(), "versions": versions(), **measure(case, model, settings)}
            except (torch.OutOfMemoryError, RuntimeError) as error:
                print("FAILED", case.name, repr(error)[:300], flush=True)
                found[case.name] = {**asdict(case), "failed": repr(error)[:300]}
            save_raw("fast_plan_accuracy.json", found, results)
            if "failed" not in found[case.name]:
                one, peak = found[case.name], fast_peak(work_of(case, settings))
                print(
                    f"{case.name}: allocated {peak.allocated_bytes / one['peak_allocated']:.4f} reserved {peak.reserved_bytes / one['peak_reserved']:.4f} "
                    f"of {one['peak_reserved'] / 1e9:.2f} GB, {one['seconds'] * 1e3:.0f} ms (plan {predicted_seconds(case, peak) * 1e3:.0f}), "
                    f"fits {one['fits']}, took {time.monotonic() - started:.1f} s, loss {one['losses'][0]:.3f} norm {one['grad_norms'][-1]:.2f}",
                    flush=True,
                )
        del base, model
        clear()


def predicted_seconds(case: Case, peak: FastPeak) -> float:
    return fast_seconds(fast_effort(work_of(case, settings_of(case)), peak.parked_bytes), Rates())


def judge(results: Path) -> None:
    """Every configuration that was measured counts; one that failed counts as wrong."""
    found: dict[str, dict[str, Any]] = json.loads((results / "fast_plan_accuracy.json").read_text(encoding="utf-8"))
    known = {case.name: case for case in cases()}
    rows = []
    failed = [name for name, one in found.items() if "failed" in one]
    for name in [name for name in known if name in found and name not in failed]:
        one, peak = found[name], fast_peak(work_of(known[name], settings_of(known[name])))
        seconds = predicted_seconds(known[name], peak)
        rows.append({
            "name": name, "predicted_bytes": peak.reserved_bytes, "measured_bytes": one["peak_reserved"],
            "memory_error": peak.reserved_bytes / one["peak_reserved"] - 1, "allocated_error": peak.allocated_bytes / one["peak_allocated"] - 1,
            "predicted_seconds": seconds, "measured_seconds": one["seconds"], "time_error": seconds / one["seconds"] - 1, "ran_out": not one["fits"],
        })  # fmt: skip
    if not rows:
        raise SystemExit("nothing was measured yet")
    measured = [found[row["name"]] for row in rows]
    place, taken_with = ", ".join(sorted({one["device"] for one in measured})), measured[0]["versions"]
    count = len(rows) + len(failed)

    def share(key: str, bound: float) -> float:
        return round(sum(abs(row[key]) <= bound for row in rows) / count, 4)

    memory, seconds = share("memory_error", MEMORY_BOUND), share("time_error", TIME_BOUND)
    record("fast-memory-plan-within-5pct", memory, "share", results, place, taken_with)
    record("fast-time-plan-within-15pct", seconds, "share", results, place, taken_with)
    record("fast-memory-plan-ran-out", sum(row["ran_out"] for row in rows), "cases", results, place, taken_with)
    save_raw("fast_plan_accuracy_judged.json", {"where": place, "cases": rows, "failed": failed}, results)
    for row in sorted(rows, key=lambda row: -abs(row["memory_error"])):
        print(
            f"{row['name']}: memory {row['memory_error']:+.1%} of {row['measured_bytes'] / 1e9:.2f} GB (allocated {row['allocated_error']:+.1%}), "
            f"time {row['time_error']:+.1%} of {row['measured_seconds'] * 1e3:.0f} ms{', RAN OUT' if row['ran_out'] else ''}"
        )
    missing = [name for name in known if name not in found]
    print(f"{place}: memory within {MEMORY_BOUND:.0%}: {memory:.1%}, time within {TIME_BOUND:.0%}: {seconds:.1%}, of {count}")
    print(f"failed: {', '.join(failed) or 'none'}; not measured yet: {', '.join(missing) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("measure", "judge"))
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no configuration after so long")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "measure":
        measure_all(args.only, args.seconds, args.results)
    else:
        judge(args.results)


if __name__ == "__main__":
    main()
