"""What this machine is: the facts that the plan decides by. Cheap; loads no model."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from halfbyte.budget.history import MOST_DRIVER_BYTES
from halfbyte.errors import MachineError
from halfbyte.recipe.plan import Machine

# Its context as CUDA makes it, of what lies outside PyTorch's memory (650 MB on an H200).
CONTEXT_BYTES = 650_000_000


def look_at_machine() -> Machine:
    """Uses the first GPU that PyTorch sees, otherwise the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
        if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
            # Segments that grow leave fewer holes, and what they reserve can be told beforehand (budget/allocator.py). The variable would
            # have to be set before torch is imported; this is what torch.cuda.memory's own setter calls.
            torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        return Machine("cuda", properties.name, cores, capability, properties.total_memory)
    return Machine("cpu", f"CPU, {cores} cores", cores, None, memory_limit_bytes())


def memory_limit_bytes() -> int:
    """Memory of the computer, or of the container if that is less."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    inside = limit.read_text().strip() if limit.is_file() else "max"
    return min(pages * page, int(inside)) if inside.isdigit() else pages * page


def free_bytes() -> int:
    """Of the GPU: what a run of this process could take in all, its CUDA context included, and what PyTorch holds but does not use.

    Tensors that are alive, such as a model that a notebook still talks to, stay where they are.
    """
    gc.collect()  # a model that nobody refers to any more is a cycle
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return free + reserved - torch.cuda.memory_allocated() + min(CONTEXT_BYTES, total - free - reserved)


def others_bytes() -> int:
    """Of the GPU, by other programs: what is neither free, nor PyTorch's, nor what a driver takes."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved() - MOST_DRIVER_BYTES)


def held_bytes(device: str) -> int:
    """By tensors of this process on the GPU that are alive."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def driver_bytes() -> int:
    """GPU memory outside PyTorch's: context, kernels, libraries. What other programs take cannot be told apart; MOST_DRIVER_BYTES are counted at most."""
    free, total = torch.cuda.mem_get_info()
    return min(MOST_DRIVER_BYTES, total - free - torch.cuda.memory_reserved())


def begin_phase(device: str) -> None:
    """What the phase before left unused is given back, and the peak begins anew."""
    if device == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Highest memory: of this phase, PyTorch's reserved memory and the driver's part on a GPU; of the whole process so far (resident) on CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved() + driver_bytes()
    import resource  # Unix only, as is memory_limit_bytes

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def torch_device(machine: Machine) -> torch.device:
    return torch.device("cuda", 0) if machine.device == "cuda" else torch.device("cpu")


def check_bitsandbytes() -> None:
    """Raises MachineError when the 4-bit kernels cannot be loaded here."""
    # At import it reports an optional kernel that it did not find; nothing depends on it.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    try:
        with compiled_when_called():
            import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise MachineError(f"bitsandbytes cannot be loaded: {error}", hint="pip install bitsandbytes, or train without 4 bits: quant.kind=none") from error


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Inside, what is handed to torch.compile is compiled when it is first called.

    bitsandbytes hands it four functions while it is imported, for machines without kernels of its own; for that torch reads in the whole of its
    compiler, a second and a half of every command.
    """
    compile_now = torch.compile

    def later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return compile_now(None, **options)
        compiled: list[Any] = []

        @wraps(model)
        def call(*given: Any, **named: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(model, **options))
            return compiled[0](*given, **named)

        return call

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now  # type: ignore[assignment]
