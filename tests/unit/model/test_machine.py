"""What is counted as free on a GPU, and as the driver's."""

import subprocess
import sys

import pytest
import torch

from halfbyte.model.machine import CONTEXT_BYTES, MOST_DRIVER_BYTES, compiled_when_called, driver_bytes, free_bytes

GB = 10**9


@pytest.fixture
def gpu(monkeypatch):
    """A function: what is free, reserved and alive on a GPU of 24 GB."""

    def seen(free: int, reserved: int, alive: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 * GB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: alive)

    return seen


def test_an_empty_gpu_is_free_but_for_nothing(gpu):
    gpu(24 * GB - CONTEXT_BYTES, 0, 0)
    assert free_bytes() == 24 * GB


def test_what_is_reserved_and_not_used_can_be_taken(gpu):
    """A model that is still alive cannot: a plan that counted it as free ran out of memory."""
    gpu(17 * GB - CONTEXT_BYTES, 7 * GB, 5 * GB)
    assert free_bytes() == 19 * GB


def test_what_other_programs_take_is_not_free(gpu):
    gpu(10 * GB, 1 * GB, 0)
    assert free_bytes() == 11 * GB + CONTEXT_BYTES
    assert driver_bytes() == MOST_DRIVER_BYTES
    gpu(23 * GB, 0, 0)
    assert driver_bytes() == 1 * GB


def test_the_compiler_is_not_read_in_for_what_is_never_compiled():
    """bitsandbytes hands functions to torch.compile while it is imported: a second and a half of every command."""
    code = "import sys; from halfbyte.model.machine import check_bitsandbytes; check_bitsandbytes(); print('torch._inductor.compile_fx' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_what_is_handed_to_the_compiler_meanwhile_is_compiled_when_it_is_called(monkeypatch):
    asked = []

    def compiling(function, **options):
        asked.append(options)
        return lambda *given: ("compiled", function(*given))

    monkeypatch.setattr(torch, "compile", compiling)
    with compiled_when_called():
        twice = torch.compile(lambda x: 2 * x, dynamic=False)
    assert torch.compile is compiling
    assert asked == []
    assert [twice(3), twice(4)] == [("compiled", 6), ("compiled", 8)]
    assert asked == [{"dynamic": False}]
