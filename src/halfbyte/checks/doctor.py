"""What is to be known of a machine before a model is trained on it: a line for each thing, with its figure, a verdict and the mend.

It must answer on a machine that is ill: nothing slow is imported before it is needed, and a library that cannot be loaded is a line, not an error.
Of the environment it shows the variables named here; of those that may hold a secret only whether they are set.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halfbyte.checks.versions import FLOORS, HOLES, TESTED, installed, numbers
from halfbyte.errors import HalfbyteError
from halfbyte.runs.cache import cache_folder

if TYPE_CHECKING:
    import torch

Verdict = Literal["ok", "note", "problem"]
OLDEST_PYTHON = (3, 11)
# A checkpoint of a 7B model's adapter and its optimizer takes 0.5 GB; its 16-bit weights take 15.
LITTLE_DISK, TOO_LITTLE_DISK = 20e9, 1e9
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 6e9, 2e9
FEWEST_DESCRIPTORS = 256
SLOW_SYNC_SECONDS = 0.5
SHOWN = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HALFBYTE_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF",
         "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING")  # fmt: skip
# Whether they are set, never what they hold: proxies carry passwords in their address.
HIDDEN = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "HTTP_PROXY", "HTTPS_PROXY")
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Check:
    """One thing of the machine."""

    name: str
    figure: str
    verdict: Verdict = "ok"
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


Listener = Callable[[Check], None]


def doctor(listener: Listener | None = None, runs: Path = Path("runs"), curve: bool = True, on_step: Callable[[int], None] | None = None) -> list[Check]:
    """Every check, told as it comes. `curve`: with the training whose losses are known (golden.py), at the end."""
    found: list[Check] = []
    for check in _all(runs, curve, on_step):
        found.append(check)
        if listener is not None:
            listener(check)
    return found


def _all(runs: Path, curve: bool, on_step: Callable[[int], None] | None) -> Iterator[Check]:
    yield check_python()
    yield from (check_version(package, installed(package)) for package in TESTED)
    yield check_processor()
    yield from check_folder("runs folder", runs)
    yield from check_folder("cache folder", cache_folder())
    yield check_descriptors()
    yield from check_environment(dict(os.environ))
    if installed("torch") is None:
        return
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield Check("torch", f"cannot be imported: {_line(error)}", "problem", "install it anew, in an environment of its own")
        return
    yield check_build(torch.version.cuda, torch.cuda.is_available(), driver_version(), _driver_cuda(torch))
    yield check_memory()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        yield from check_gpu(torch)
        devices.append(torch.device("cuda", 0))
    for device in devices:
        yield check_four_bits(device)
    if curve:
        yield check_curve(on_step)


# Python and packages


def check_python() -> Check:
    figure = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", figure, "problem", f"needs {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    if platform.system() != "Linux":
        return Check("Python", figure, "note", "tested on Linux alone; on Windows use WSL")
    return Check("Python", figure)


def check_version(package: str, found: str | None) -> Check:
    """Against what was tested, the oldest that is taken, and known holes."""
    floor, tested = FLOORS[package], TESTED[package]
    if found is None:
        return Check(package, "not installed", "problem", f"pip install '{package}>={floor}'")
    safe, hole = HOLES.get(package, ("0", ""))
    if numbers(found) < numbers(safe):
        return Check(package, f"{found}: {hole}", "problem", f"pip install '{package}>={max(safe, floor, key=numbers)}'")
    if numbers(found) < numbers(floor):
        return Check(package, f"{found}, older than {floor}", "problem", f"pip install '{package}>={floor}'")
    if numbers(found) > numbers(tested):
        return Check(package, f"{found}, newer than the tested {tested}", "note", f"if something is odd: pip install '{package}=={tested}'")
    return Check(package, found if numbers(found) == numbers(tested) else f"{found} (tested with {tested})")


# The machine


def check_processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and 0 < int(threads) < cores:
        return Check("processor", f"{cores} cores, of which OMP_NUM_THREADS uses {threads}", "note", "unset it, unless other programs need the rest")
    return Check("processor", f"{cores} core{'s' * (cores != 1)}")


def check_memory() -> Check:
    """What is free now, of the computer or of the container."""
    from halfbyte.model.machine import memory_limit_bytes

    limit, free = memory_limit_bytes(), None
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        free = min(limit, int(found[1]) * 1024) if found else None
    except OSError:
        pass
    figure = f"{limit / 1e9:.1f} GB" + (f", {free / 1e9:.1f} GB free" if free is not None else "")
    if (free if free is not None else limit) < TOO_LITTLE_MEMORY:
        return Check("memory", figure, "problem", f"needs {TOO_LITTLE_MEMORY / 1e9:.0f} GB even for the embedded base: close other programs")
    if limit < LITTLE_MEMORY:
        return Check("memory", figure, "note", "room for small models")
    return Check("memory", figure)


def check_folder(name: str, folder: Path) -> Iterator[Check]:
    """Room, and whether a file can be written, synced and renamed there, as a checkpoint is."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    try:
        free = shutil.disk_usage(there).free
        began = time.monotonic()
        _write_as_checkpoints_do(there)
        seconds = time.monotonic() - began
    except OSError as error:
        yield Check(name, f"{_at_home(folder)}: cannot be written: {error.strerror}", "problem", "free space or rights there, or name another folder")
        return
    figure = f"{_at_home(folder)}: {free / 1e9:,.0f} GB free, a file is on the disk in {seconds * 1000:,.0f} ms"
    if free < TOO_LITTLE_DISK:
        yield Check(name, figure, "problem", f"needs {TOO_LITTLE_DISK / 1e9:.0f} GB at least for checkpoints")
    elif free < LITTLE_DISK:
        yield Check(name, figure, "note", "room for small models; a 7B base takes 15 GB")
    elif seconds > SLOW_SYNC_SECONDS:
        yield Check(name, figure, "note", "a slow disk, or one of the network: checkpoints take their time")
    else:
        yield Check(name, figure)


def _at_home(folder: Path) -> str:
    """As a shell would write it; a report need not tell who the user is."""
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)


def _write_as_checkpoints_do(folder: Path) -> None:
    """Writes, syncs file and folder, renames; leaves nothing."""
    with tempfile.TemporaryDirectory(prefix=".halfbyte-doctor-", dir=folder) as name:
        file = Path(name) / "aside"
        with open(file, "wb") as stream:
            stream.write(os.urandom(1 << 16))
            stream.flush()
            os.fsync(stream.fileno())
        file.rename(Path(name) / "whole")
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_descriptors() -> Check:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < FEWEST_DESCRIPTORS:
        return Check("open files", f"at most {limit:,}", "problem", "ulimit -n 1024 in the shell that trains")
    return Check("open files", "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit:,}")


def check_environment(given: dict[str, str]) -> Iterator[Check]:
    shown = [f"{name}={given[name]}" for name in SHOWN if given.get(name)]
    hidden = [f"{name} is set" for name in HIDDEN if given.get(name) or given.get(name.lower())]
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if given.get(name, "").lower() in ("1", "true", "yes", "on")]
    figure = ", ".join([*shown, *hidden]) or "nothing set that matters here"
    if offline:
        yield Check("environment", figure, "note", f"{offline[0]}: bases must be in the cache or in a folder; unset it to fetch from the hub")
    elif given.get("CUDA_LAUNCH_BLOCKING") == "1":
        yield Check("environment", figure, "note", "CUDA_LAUNCH_BLOCKING makes a GPU wait for every kernel: unset it unless you look for a fault")
    else:
        yield Check("environment", figure)


# GPU and kernels


def driver_version() -> str | None:
    """Of NVIDIA's driver, whether or not PyTorch can use it; None where there is none."""
    try:
        found = re.search(r"Module(?: for \w+)?\s+([\d.]+)", DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else "of an unknown version"


def _driver_cuda(torch: Any) -> str | None:
    """The CUDA version that the driver knows: 12080 is 12.8."""
    if torch.version.cuda is None:
        return None
    number = torch._C._cuda_getDriverVersion()
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def check_build(cuda: str | None, usable: bool, driver: str | None, driver_cuda: str | None) -> Check:
    """PyTorch's build against the driver."""
    build = f"built for CUDA {cuda}" if cuda else "built for the CPU"
    if usable:
        if driver_cuda and cuda and numbers(driver_cuda) < numbers(cuda):
            return Check(
                "PyTorch build", f"{build}, the driver knows CUDA {driver_cuda}", "note", "it works within one major version; update the driver if not"
            )
        return Check("PyTorch build", f"{build}, driver {driver or 'of an unknown version'}" + (f" (CUDA {driver_cuda})" if driver_cuda else ""))
    if driver and not cuda:
        return Check(
            "PyTorch build", f"{build}, and NVIDIA's driver {driver} is here", "problem", "install PyTorch's CUDA build: without it the GPU is not used"
        )
    if driver:
        known = f", which knows CUDA {driver_cuda}" if driver_cuda else ""
        return Check("PyTorch build", f"{build}, but it cannot use the driver {driver}{known}", "problem",
                     "update the driver, or install a PyTorch that is built for its CUDA; CUDA_VISIBLE_DEVICES may hide the GPU")  # fmt: skip
    return Check("PyTorch build", f"{build}; no GPU found", "note", "small models train on a processor; a 7B base needs a GPU")


def check_gpu(torch: Any) -> Iterator[Check]:
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        yield Check(
            "GPU", f"{properties.name}: does not answer: {_line(error)}", "problem", "is it taken by another program, or in a state of error? nvidia-smi"
        )
        return
    figure = f"{properties.name}, capability {capability[0]}.{capability[1]}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    others = free < 0.5 * total
    yield Check("GPU", figure, "note" if others else "ok", "another program holds the rest: nvidia-smi names it" if others else "")
    if capability >= (8, 0):
        yield check_bfloat16(torch, torch.device("cuda", 0))
    else:
        yield Check("bfloat16", f"capability {capability[0]}.{capability[1]} has none", "note", "float16 with loss scaling is used; adapters stay float32")


def check_bfloat16(torch: Any, device: Any) -> Check:
    """A product in bfloat16 against float64: 8 bits of mantissa, summed in float32."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(64, 64, generator=generator).bfloat16() for _ in range(2))
    wanted = one.double() @ other.double()
    found = (one.to(device) @ other.to(device)).cpu().double()
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if not apart <= 2**-7:
        return Check("bfloat16", f"a product is {apart:.1e} off", "problem", "train with train.precision=float16 or float32, and look at the driver")
    return Check("bfloat16", f"a product is right within {apart:.0e}")


def check_four_bits(device: "torch.device") -> Check:
    name = f"4-bit kernels on {'the CPU' if device.type == 'cpu' else 'the GPU'}"
    from halfbyte.checks.kernels import check_kernels
    from halfbyte.model.machine import check_bitsandbytes

    try:
        check_bitsandbytes()
        error = check_kernels(device)
    except (HalfbyteError, ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as raised:
        return Check(name, _line(raised), "problem", "pip install -U bitsandbytes; quant.kind=none trains without 4 bits")
    if not error.right:
        return Check(name, str(error), "problem", "do not train in 4 bits here: quant.kind=none; another version of bitsandbytes may be right")
    return Check(name, str(error))


def check_curve(on_step: Callable[[int], None] | None = None) -> Check:
    """20 steps on the embedded base."""
    from halfbyte.checks.golden import STEPS, compare_with_golden

    began = time.monotonic()
    try:
        compared = compare_with_golden(on_step)
    except (HalfbyteError, ImportError, OSError, RuntimeError) as error:
        return Check("golden curve", f"does not run: {_line(error)}", "problem", "see the lines above; halfbyte quickstart shows where it fails")
    seconds = time.monotonic() - began
    loss = f"{STEPS} steps in {compared.precision}, loss {compared.losses[0]:.4f} to {compared.losses[-1]:.4f} in {seconds:.0f} s"
    if not compared.same:
        return Check("golden curve", f"{loss}; {compared.farthest:.1e} off, from step {compared.parts_at} on (allowed {compared.tolerance:.1e})", "problem",
                     "this machine computes something else: compare the versions above with the tested ones first")  # fmt: skip
    return Check("golden curve", f"{loss}; within {compared.farthest:.1e} of the known losses (allowed {compared.tolerance:.1e})")


def _line(error: BaseException) -> str:
    said = str(error).strip().split("\n")[0] or type(error).__name__
    return said if len(said) <= 200 else said[:197] + "..."
