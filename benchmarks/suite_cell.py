"""One cell of the suite in its own process: builds one program, gives it what all are given, takes its steps and says what was seen.

Nothing is caught here: whatever a program raises ends the process, and the suite names it in the table. Where several cells share a process,
the model is loaded once; adapter, optimizer and what a program sets up are new for each, and the allocator is emptied between them.
"""

import gc
import json
import os
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from claims import versions, where
from programs import PROGRAMS, Configuration, Given, Program, Rows, Steps
from suite_given import adapter_parameters, put_first_values, rows_of_steps, weight_hashes

LEARNING_RATE = 2e-4
# The last warm-up steps run after the allocator was emptied: what compiling and tuning left behind is not counted as memory of a step.
SETTLING = 2
CHECKED = 3  # steps whose gradients are looked at
PEERS = ("liger-kernel", "unsloth", "unsloth_zoo", "trl", "xformers", "triton", "flash-attn", "cut-cross-entropy")


@dataclass(frozen=True)
class Loaded:
    """A model with its adapter, and what is asked of it once."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    hashes: dict[str, str | None]
    seconds: float


def measure_all(tasks: list[dict[str, Any]], scratch: Path, device: str) -> None:
    """Cells that share one process, each written to its file when it is done."""
    cells = [(Configuration(**task["configuration"]), PROGRAMS[task["program"]]) for task in tasks]
    tokens = max(configuration.tokens for configuration, _ in cells)
    loaded = None
    began = time.perf_counter()
    for task, (configuration, program) in zip(tasks, cells, strict=True):
        limit_memory(task["budget_bytes"])
        if loaded is None and len(cells) > 1:
            loaded = load(program, Given(configuration.base(scratch), configuration.rank, tokens, device), configuration.adapter(scratch))
        measured = measure(configuration, program, Steps(**task["steps"]), scratch, device, loaded)
        now = time.perf_counter()
        measured |= {"budget_bytes": task["budget_bytes"], "own_seconds": now - began}
        began = now
        if len(cells) > 1:
            torch._dynamo.reset()  # what was compiled for the rows of one cell would be taken for sizes that vary in the next
        partial = scratch / "cell.partial"
        partial.write_text(json.dumps(measured), encoding="utf-8")
        partial.rename(task["out"])


def limit_memory(budget: int | None) -> None:
    """What PyTorch's allocator may take of the GPU in all, None for all of it; what asks for more runs out of memory, as on a GPU of that size."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0 if budget is None else min(1.0, budget / torch.cuda.get_device_properties(0).total_memory))


def load(program: Program, given: Given, adapter: Path) -> Loaded:
    began = time.perf_counter()
    model = program.build(given)
    parameters = adapter_parameters(model)
    put_first_values(parameters, adapter)
    return Loaded(model, parameters, weight_hashes(model), time.perf_counter() - began)


def measure(configuration: Configuration, program: Program, steps: Steps, scratch: Path, device: str, loaded: Loaded | None = None) -> dict[str, Any]:
    """Everything that the table and its checks need, as JSON has it."""
    began = time.perf_counter()
    shared = loaded is not None
    if loaded is None:
        loaded = load(program, Given(configuration.base(scratch), configuration.rank, configuration.tokens, device), configuration.adapter(scratch))
    elif device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_reserved() if device == "cuda" else None  # where cells share a process: nothing of the ones before may be left
    model, parameters = loaded.model, loaded.parameters
    first = put_first_values(parameters, configuration.adapter(scratch))
    rows = rows_of_steps(configuration, scratch, steps.total)
    if program.prepare is not None:
        program.prepare(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    setup_seconds = time.perf_counter() - began
    with program.around():
        warm = warm_up(model, program, optimizer, parameters, rows, steps.warm_up)
        still = [name for name, value in first.items() if torch.equal(parameters[name].detach().cpu().float(), value)]
        timed = time_steps(model, program, optimizer, rows[steps.warm_up :], steps)
        peaks = {**timed.pop("peaks"), "before_bytes": warm.pop("peaks_before_bytes"), "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        attention = attention_kernels(model, program, optimizer, rows[-1]) if device == "cuda" and (not shared or configuration.packed) else None
    fast: Any = getattr(model, "fast", None)
    if fast is not None:
        peaks["waiting_bytes"] = fast.shelf.bytes  # pinned, of the host's
        del model.fast, fast
    trained = {
        "matrices": len(parameters), "parameters": sum(p.numel() for p in parameters.values()), "dtypes": sorted({str(p.dtype) for p in parameters.values()}),
        "not_moved": still,
    }  # fmt: skip
    del optimizer
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {
        "where": where(), "versions": {**versions(), **peer_versions(), "cuda": torch.version.cuda}, "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
        "hidden": list(program.hidden), "environment": program.environment, "weights_sha256": loaded.hashes, "trained": trained,
        "setup_seconds": setup_seconds, "load_seconds": loaded.seconds, "one_of_several": shared, "reserved_at_start_bytes": held,
        **warm, **timed, "peaks": peaks, "attention_kernels": attention,
    }  # fmt: skip


def warm_up(
    model: nn.Module, program: Program, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], rows: list[Rows], steps: int
) -> dict[str, Any]:
    """The first steps, where kernels are compiled; gradients of the first CHECKED are looked at just before the optimizer uses them."""
    norms: list[dict[str, float]] = []

    def look(*_: Any) -> None:
        found = torch.stack([p.grad.norm() if p.grad is not None else torch.zeros((), device=p.device) for p in parameters.values()])
        norms.append(dict(zip(parameters, found.tolist())))

    handle = optimizer.register_step_pre_hook(look)
    seconds, losses, grad_norms = [], [], []
    peaks_before = None
    on_gpu = next(iter(parameters.values())).is_cuda
    for number in range(steps):
        if number == CHECKED:
            handle.remove()
        if number == steps - SETTLING and on_gpu:
            peaks_before = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took, loss, norm = one_step(model, program, optimizer, rows[number])
        seconds.append(took)
        losses.append(loss)
        grad_norms.append(norm)
    handle.remove()
    # B is zero at first, and so is the gradient of A until B has moved.
    zero_b = [name for name, norm in norms[0].items() if name.endswith(".B") and not norm > 0]
    zero_a = [name for name, norm in norms[1].items() if name.endswith(".A") and not norm > 0]
    # By then a recorded step is replayed, and both have gradients.
    zero_later = [name for name, norm in norms[CHECKED - 1].items() if not norm > 0]
    return {
        "warm_up_steps": steps, "first_step_seconds": seconds[0], "warm_up_seconds": sum(seconds), "warm_up_losses": losses, "grad_norms": grad_norms,
        "gradients": {
            "zero_a_in_step_2": zero_a, "zero_b_in_step_1": zero_b, "zero_in_step_3": zero_later,
            "smallest_a": _smallest(norms[1], ".A"), "smallest_b": _smallest(norms[0], ".B"),
        },
        "peaks_before_bytes": peaks_before,
    }  # fmt: skip


def time_steps(model: nn.Module, program: Program, optimizer: torch.optim.Optimizer, rows: list[Rows], steps: Steps) -> dict[str, Any]:
    """Rows of each step. Between two repeats nothing is done but asking the GPU for its clock."""
    on_gpu = optimizer.param_groups[0]["params"][0].is_cuda
    times, losses, readings = [], [], [gpu_reading(on_gpu)]
    for start in range(0, len(rows), steps.timed):
        results = [one_step(model, program, optimizer, given) for given in rows[start : start + steps.timed]]
        readings.append(gpu_reading(on_gpu))
        times.append([took * 1e3 for took, _, _ in results])
        losses += [loss for _, loss, _ in results]
    flat = [took for repeat in times for took in repeat]
    counted = mean(int((given.batch.ids != 0).sum()) for given in rows)  # 0 is the padding
    return {
        "median_ms": median(flat), "fastest_ms": min(flat), "slowest_ms": max(flat), "repeat_medians_ms": list(map(median, times)), "times_ms": times,
        "tokens_a_step": counted, "tokens_per_second": counted / median(flat) * 1e3, "losses": losses, "gpu": readings, "peaks": peaks_of_steps(on_gpu),
    }  # fmt: skip


def peaks_of_steps(on_gpu: bool) -> dict[str, int]:
    """Since the warm-up's last steps. `driver` is what the GPU has given to all its processes: this one's context and libraries count too."""
    if not on_gpu:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"allocated_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved(), "driver_bytes": total - free}


def one_step(model: nn.Module, program: Program, optimizer: torch.optim.Optimizer, rows: Rows) -> tuple[float, float, float]:
    """Seconds from an idle GPU to an idle GPU, loss, gradient norm before clipping."""
    _wait()
    began = time.perf_counter()
    loss, norm = program.step(model, rows, optimizer)
    _wait()
    return time.perf_counter() - began, float(loss), float(norm)


def attention_kernels(model: nn.Module, program: Program, optimizer: torch.optim.Optimizer, rows: Rows) -> list[str]:
    """Which attention really ran: names of the GPU's kernels in one more step, after everything was timed."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            one_step(model, program, optimizer, rows)
    except RuntimeError as error:  # of the profiler: what was timed stands
        return [f"not profiled: {str(error).splitlines()[0]}"]
    names = {event.key for event in profiled.key_averages()}
    return sorted(name[:120] for name in names if any(word in name.lower() for word in ("flash", "fmha", "attention", "sdpa", "cudnn")))


def gpu_reading(on_gpu: bool) -> dict[str, float] | None:
    """Clock, power and temperature now; read only. None where nvidia-smi does not tell."""
    if not on_gpu or shutil.which("nvidia-smi") is None:
        return None
    fields = {"sm_mhz": "clocks.sm", "sm_most_mhz": "clocks.max.sm", "power_watts": "power.draw", "celsius": "temperature.gpu"}
    asked = ["nvidia-smi", f"--id={os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]}", f"--query-gpu={','.join(fields.values())}"]
    answer = subprocess.run([*asked, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20)
    values = answer.stdout.strip().split(", ")
    known = answer.returncode == 0 and len(values) == len(fields) and not any("N/A" in value for value in values)
    return {name: float(value) for name, value in zip(fields, values)} if known else None


def peer_versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _smallest(norms: dict[str, float], ending: str) -> float:
    return min(norm for name, norm in norms.items() if name.endswith(ending))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
