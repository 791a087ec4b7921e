"""How well the plan knows memory and time: predicted and measured peak and step time of training steps on random bases of well-known shapes.

    python benchmarks/plan_accuracy.py measure [--only PART] [--seconds N]    on a GPU; each configuration is kept as it ends, in plan_accuracy.json
    python benchmarks/plan_accuracy.py judge                                  anywhere: predicts them, fits the rates on the calibration part, writes the claims

Every configuration runs twice: freely, for the peak and the median step, and again under set_per_process_memory_fraction with exactly the memory
that the plan calls enough. `calibration` configurations fit the rates of the GPU; the published errors are of the others.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from claims import RESULTS, record, save_raw, versions
from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import Effort, Rates, effort_of, step_seconds
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work
from halfbyte.recipe.plan import Placement

WARM_UP, UNDER_LIMIT = 3, 3
MOST_TIMED, ENOUGH_SECONDS = 12, 4.0  # quick steps are launch-bound and vary: more of them
MEMORY_BOUND, TIME_BOUND, RATES_BOUND = 0.05, 0.15, 0.05
FITTED = ("scores_flops", "seconds_per_byte", "seconds_per_launch", "seconds_per_recomputed", "seconds_per_quantised")
MARKS = "<!-- accuracy -->", "<!-- /accuracy -->"


@dataclass(frozen=True)
class Case:
    """One configuration. `kept`: layers at the end that keep their activations; None keeps all."""

    shape: str
    rows: int
    tokens: int
    part: str = "test"
    kept: int | None = 0
    rank: int = 16
    accumulation: int = 1
    packed: int = 0
    optimizer: str = "adamw_torch"
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    weights: str = "4bit"
    """`4bit`, `16bit` or `cpu`, of `moved` layers."""
    moved: int = 0
    inputs_away: bool = False

    @property
    def name(self) -> str:
        base = Case(self.shape, self.rows, self.tokens)
        said = [f"{key}={value}" for key, value in asdict(self).items() if value != getattr(base, key) and key != "part"]
        return " ".join([self.shape, f"{self.rows}x{self.tokens}", *said])


def cases() -> list[Case]:
    made: list[Case] = []

    def add(part: str, *configurations: Case) -> None:
        made.extend(replace(one, part=part) for one in configurations)

    add(
        "calibration",
        Case("mistral-7b", 1, 512), Case("mistral-7b", 1, 2048), Case("mistral-7b", 4, 2048), Case("mistral-7b", 2, 2048, kept=None),
        Case("mistral-7b", 1, 8192), Case("llama-1b", 2, 2048), Case("llama-1b", 4, 1024, kept=None), Case("falcon-7b", 1, 1024), Case("falcon-7b", 2, 2048),
        Case("qwen2-7b", 2, 1024), Case("mistral-7b", 2, 1024, weights="16bit", moved=32), Case("mistral-7b", 1, 2048, weights="cpu", moved=16),
    )  # fmt: skip
    add(
        "test",
        Case("mistral-7b", 2, 1024), Case("mistral-7b", 3, 777), Case("mistral-7b", 8, 512), Case("mistral-7b", 8, 1024), Case("mistral-7b", 1, 4096),
        Case("mistral-7b", 1, 16384), Case("mistral-7b", 2, 2048, rank=64), Case("mistral-7b", 1, 1024, rank=8, accumulation=4),
        Case("mistral-7b", 2, 2048, kept=16), Case("mistral-7b", 1, 4096, kept=8), Case("mistral-7b", 1, 1024, kept=None),
        Case("mistral-7b", 4, 512, kept=None),
        Case("mistral-7b", 2, 2048, packed=8), Case("mistral-7b", 2, 2048, packed=8, kept=8), Case("mistral-7b", 4, 1024, optimizer="paged_adamw_32bit"),
        Case("mistral-7b", 2, 1024, optimizer="adamw_8bit", rank=64), Case("mistral-7b", 2, 1024, dropout=0.05),
        Case("mistral-7b", 2, 1024, dropout=0.1, kept=None), Case("mistral-7b", 2, 2048, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
        Case("mistral-7b", 2, 2048, targets=("q_proj", "v_proj"), kept=None),
        Case("mistral-7b", 1, 4096, inputs_away=True), Case("mistral-7b", 4, 2048, inputs_away=True, weights="cpu", moved=8),
        Case("mistral-7b", 1, 2048, weights="16bit", moved=16, kept=8), Case("mistral-7b", 4, 1024, weights="cpu", moved=32),
        Case("llama-8b", 1, 1024), Case("llama-8b", 1, 4096), Case("llama-8b", 4, 1024), Case("llama-8b", 2, 1024, kept=None),
        Case("llama-8b", 2, 2048, rank=32, kept=12), Case("llama-1b", 1, 1024), Case("llama-1b", 8, 1024), Case("llama-1b", 2, 2048, kept=8),
        Case("llama-1b", 1, 4096, packed=16),
        Case("qwen2-7b", 1, 2048), Case("qwen2-7b", 4, 1024), Case("qwen2-7b", 1, 1024, kept=None), Case("qwen2-7b", 2, 2048, kept=10),
        Case("qwen2-0.5b", 4, 512), Case("qwen2-0.5b", 8, 1024), Case("qwen2-0.5b", 4, 512, kept=None),
        Case("qwen3-8b", 1, 2048), Case("qwen3-8b", 2, 1024, kept=None), Case("qwen3-8b", 4, 1024, rank=64),
        Case("falcon-7b", 1, 512), Case("falcon-7b", 1, 2048), Case("falcon-7b", 4, 512), Case("falcon-7b", 2, 1024, kept=8),
        Case("falcon-7b", 2, 512, kept=None),
        Case("falcon-7b", 2, 1024, packed=4),
    )  # fmt: skip
    return made


def placements(case: Case, layers: int) -> tuple[Placement, ...]:
    """The first `moved` layers have their weights elsewhere, the last `kept` ones keep their activations."""
    kept = layers if case.kept is None else case.kept
    made = []
    for number in range(layers):
        weights = case.weights if number < case.moved else "4bit"
        activations = "kept" if number >= layers - kept else "cpu" if case.inputs_away else "recomputed"
        made.append(Placement(weights, activations))
    return tuple(made)


def settings_of(case: Case) -> dict[str, Any]:
    from random_base import config

    return config(case.shape)


def work_of(case: Case, settings: dict[str, Any]) -> Work:
    shape = read_shape(settings)
    return Work(
        shape, case.rows, case.tokens, placements(case, shape.layers), case.accumulation, bool(case.packed), rank=case.rank, targets=case.targets,
        dropout=case.dropout > 0, optimizer=case.optimizer,
    )  # fmt: skip


def measure(case: Case) -> dict[str, Any]:
    import torch

    from halfbyte.model.adapter import add_adapter
    from halfbyte.model.placement import keep_in_16bit, limit_memory, place_layers
    from halfbyte.recipe.schema import Adapter
    from halfbyte.train.optimizer import make_optimizer
    from halfbyte.train.step import train_step
    from random_base import build_random_base, random_batch

    device, settings = torch.device("cuda", 0), settings_of(case)
    work = work_of(case, settings)
    torch.cuda.reset_peak_memory_stats()
    base = build_random_base(settings)
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated()
    keep_in_16bit(base, work.layers, torch.bfloat16)
    targets = "all-linear" if case.targets is None else list(case.targets)
    model, _ = add_adapter(base, Adapter(r=case.rank, alpha=case.rank, dropout=case.dropout, target_modules=targets), seed=0)
    place_layers(model, work.layers, device)
    del base
    model.train()
    optimizer = make_optimizer(case.optimizer, model.parameters(), 2e-4, 0.0)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator().manual_seed(0)
    losses, norms, seconds = [], [], []

    def step() -> None:
        given = [random_batch(settings["vocab_size"], case.rows, case.tokens, generator, case.packed) for _ in range(case.accumulation)]
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = train_step(model, given, optimizer, 1.0, torch.bfloat16, scaler)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(result.loss)
        norms.append(result.grad_norm)

    while len(seconds) < WARM_UP + 5 or (len(seconds) < WARM_UP + MOST_TIMED and sum(seconds[WARM_UP:]) < ENOUGH_SECONDS):
        step()
    free, total = torch.cuda.mem_get_info()
    found = {
        "weights_bytes": weights, "peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved(),
        "driver_bytes": total - free - torch.cuda.memory_reserved(), "seconds": statistics.median(seconds[WARM_UP:]), "all_seconds": seconds[:],
        "losses": losses[:], "grad_norms": norms[:],
    }  # fmt: skip
    enough = training_peak(work).enough_bytes
    torch.cuda.empty_cache()
    found["limit_bytes"] = enough
    try:
        with limit_memory(device, enough):
            for _ in range(UNDER_LIMIT):
                step()
        found["fits"] = True
    except torch.OutOfMemoryError as error:
        found["fits"] = False
        found["refused"] = str(error).split("\n")[0][:300]
    return found


def measure_all(only: str, seconds: float, results: Path) -> None:
    import torch

    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    began = time.monotonic()
    file = results / "plan_accuracy.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for case in cases():
        if only not in f"{case.part} {case.name}" or case.name in found or time.monotonic() - began > seconds:
            continue
        started = time.monotonic()
        try:
            found[case.name] = {**asdict(case), "device": torch.cuda.get_device_name(), "versions": versions(), **measure(case)}
        except (torch.OutOfMemoryError, RuntimeError) as error:
            print("FAILED", case.name, repr(error)[:300], flush=True)
            found[case.name] = {**asdict(case), "failed": repr(error)[:300]}
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        save_raw("plan_accuracy.json", found, results)
        if "failed" not in found[case.name]:
            one, peak = found[case.name], training_peak(work_of(case, settings_of(case)))
            print(
                f"{case.part[0]} {case.name}: allocated {peak.allocated_bytes / one['peak_allocated']:.4f} "
                f"reserved {peak.reserved_bytes / one['peak_reserved']:.4f} "
                f"of {one['peak_reserved'] / 1e9:.2f} GB, {one['seconds'] * 1e3:.0f} ms, fits {one['fits']}, took {time.monotonic() - started:.1f} s, "
                f"left {torch.cuda.memory_allocated() / 1e6:.0f} MB, driver {one['driver_bytes'] / 1e6:.0f} MB, "
                f"loss {one['losses'][0]:.3f} norm {one['grad_norms'][-1]:.2f}",
                flush=True,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("measure", "judge"))
    parser.add_argument("--only", default="", help="configurations whose part and name contain this")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no configuration after so long")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "measure":
        measure_all(args.only, args.seconds, args.results)
    else:
        judge(args.results)


@dataclass(frozen=True)
class Verdict:
    """A configuration as it was predicted by the budget code that is here, and as it was measured. `ran_out`: under the memory that was called enough."""

    name: str
    part: str
    predicted_bytes: int
    measured_bytes: int
    predicted_seconds: float
    measured_seconds: float
    spread: float
    """Interquartile range of the timed steps over their median: errors of this size are noise."""
    ran_out: bool
    limit: float
    """The limit that it ran under, over what is called enough now."""

    @property
    def memory_error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def time_error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


def judge(results: Path) -> None:
    """Every configuration that was measured counts, however its timing varied."""
    file = results / "plan_accuracy.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    known = {case.name: case for case in cases()}
    efforts: dict[str, Effort] = {}
    verdicts: list[Verdict] = []
    failed = {name: one["failed"] for name, one in found.items() if "failed" in one}
    found = {name: one for name, one in found.items() if name not in failed}
    for name in [name for name in known if name in found]:
        work, one = work_of(known[name], settings_of(known[name])), found[name]
        peak = training_peak(work)
        efforts[name] = effort_of(work, peak.launches, peak.written_bytes)
        quarters = statistics.quantiles(one["all_seconds"][WARM_UP:], n=4)
        verdicts.append(
            Verdict(
                name, known[name].part, peak.reserved_bytes, one["peak_reserved"], step_seconds(efforts[name], Rates()), one["seconds"],
                (quarters[2] - quarters[0]) / quarters[1], not one["fits"], one["limit_bytes"] / peak.enough_bytes,
            )
        )  # fmt: skip
    place = ", ".join(sorted({one["device"] for one in found.values()}))
    for name in sorted({*found} - {*known}):
        print(f"not judged, no configuration has this name any more: {name}")
    missing = [name for name in known if name not in found and name not in failed]
    taken_with = next(iter(found.values()))["versions"]
    compare_rates([verdict for verdict in verdicts if verdict.part == "calibration"], efforts)
    test = [verdict for verdict in verdicts if verdict.part == "test"]
    memory, seconds = share([one.memory_error for one in test], MEMORY_BOUND), share([one.time_error for one in test], TIME_BOUND)
    record("memory-plan-within-5pct", memory, "share", results, place, taken_with)
    record("time-plan-within-15pct", seconds, "share", results, place, taken_with)
    record("memory-plan-fits", sum(one.ran_out for one in verdicts), "cases", results, place, taken_with)
    save_raw("plan_accuracy_judged.json", {"where": place, "rates": asdict(Rates()), "cases": [asdict(one) for one in verdicts]}, results)
    text = accuracy_text(verdicts, test, place, missing, failed)
    page = Path(__file__).parent.parent / "docs" / "planning.md"
    if results == RESULTS and page.is_file():
        write_between(page, *MARKS, text)
    print(text)


def share(errors: list[float], bound: float) -> float:
    return round(sum(abs(error) <= bound for error in errors) / len(errors), 4)


def compare_rates(verdicts: list[Verdict], efforts: dict[str, Effort]) -> None:
    """Fits the rates on the calibration configurations alone, and says how far those that are shipped lie from the fit."""
    import numpy as np
    from scipy.optimize import least_squares

    def rates(logs: np.ndarray) -> Rates:
        return replace(Rates(), **{name: float(value) for name, value in zip(FITTED, np.exp(logs), strict=True)})

    def errors(logs: np.ndarray) -> list[float]:
        now = rates(logs)
        return [float(np.log(step_seconds(efforts[one.name], now) / one.measured_seconds)) for one in verdicts]

    shipped = asdict(Rates())
    fit = asdict(rates(least_squares(errors, np.log([shipped[name] for name in FITTED]), loss="soft_l1", f_scale=0.05).x))
    for name in FITTED:
        away = shipped[name] / fit[name] - 1
        print(f"{name}: shipped {shipped[name]:.3g}, fitted {fit[name]:.3g}, {away:+.1%}")
        if abs(away) > RATES_BOUND:
            print(f"    for rates.py:    {name}: float = {fit[name]:.3g}")


def accuracy_text(verdicts: list[Verdict], test: list[Verdict], place: str, missing: list[str], failed: dict[str, str]) -> str:
    """For docs/planning.md: the shares, the worst, the table of all."""

    def worst(error: Callable[[Verdict], float]) -> str:
        farthest = sorted(test, key=lambda one: abs(error(one)), reverse=True)[:5]
        return ", ".join(f"{one.name} ({error(one):+.1%})" for one in farthest)

    def counted(error: Callable[[Verdict], float], bound: float) -> str:
        within = sum(abs(error(one)) <= bound for one in test)
        middle = statistics.median(abs(error(one)) for one in test)
        return f"{within} of {len(test)} within {bound:.0%}, median error {middle:.1%}"

    calibration = len(verdicts) - len(test)
    noisy = sum(one.spread > TIME_BOUND for one in test)
    whole = sum(abs(one.memory_error) <= MEMORY_BOUND for one in verdicts)
    looser = [one for one in verdicts if one.limit > 1]
    loosest = max(verdicts, key=lambda one: one.limit)
    tested = "; what is called enough now is no less for any of them"
    if looser:
        tested = f"; what is called enough now is less than that for {len(looser)} of them, by {loosest.limit - 1:.1%} at most ({loosest.name})"
    lines = [
        f"{place}. The rates were fitted to {calibration} configurations; what follows counts the {len(test)} others.",
        f"- Reserved memory: {counted(lambda one: one.memory_error, MEMORY_BOUND)}. Farthest off: {worst(lambda one: one.memory_error)}.",
        f"- Step time: {counted(lambda one: one.time_error, TIME_BOUND)}. Farthest off: {worst(lambda one: one.time_error)}.",
        f"- Memory knows no fit, so the calibration part can be counted too: {whole} of {len(verdicts)} within {MEMORY_BOUND:.0%}.",
        f"- Ran out of the memory that was called enough when it was measured: {sum(one.ran_out for one in verdicts)} of {len(verdicts)}{tested}.",
        *([f"- Not measured yet: {', '.join(missing)}."] if missing else []),
        *(f"- Failed: {name}: {reason}" for name, reason in failed.items()),
        f"- Spread is the interquartile range of the timed steps over their median: an error of that size is noise. It is above {TIME_BOUND:.0%} in {noisy}.",
        "",
        "| configuration | memory: predicted, measured | | step: predicted, measured | | spread | part |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in verdicts:
        lines.append(
            f"| {one.name} | {one.predicted_bytes / 1e9:.2f}, {one.measured_bytes / 1e9:.2f} GB | {one.memory_error:+.1%} "
            f"| {one.predicted_seconds * 1e3:.0f}, {one.measured_seconds * 1e3:.0f} ms | {one.time_error:+.1%} | {one.spread:.0%} | {one.part} |"
        )
    return "\n".join(lines)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
