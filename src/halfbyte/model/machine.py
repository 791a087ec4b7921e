"""What this machine is: the facts that the plan decides by. Cheap; loads no model."""

import logging
import os
import sys
from pathlib import Path

import torch

from halfbyte.errors import MachineError
from halfbyte.recipe.plan import Machine


def look_at_machine() -> Machine:
    """Uses the first GPU that PyTorch sees, otherwise the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
        return Machine("cuda", properties.name, cores, capability, properties.total_memory)
    return Machine("cpu", f"CPU, {cores} cores", cores, None, memory_limit_bytes())


def memory_limit_bytes() -> int:
    """Memory of the computer, or of the container if that is less."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    inside = limit.read_text().strip() if limit.is_file() else "max"
    return min(pages * page, int(inside)) if inside.isdigit() else pages * page


def peak_bytes(device: str) -> int:
    """Highest memory so far: of PyTorch's allocations on a GPU, of the whole process (resident) on CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
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
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise MachineError(f"bitsandbytes cannot be loaded: {error}", hint="pip install bitsandbytes, or train without 4 bits: quant.kind=none") from error
