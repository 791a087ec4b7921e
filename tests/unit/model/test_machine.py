"""What is counted as free on a GPU, and as the driver's."""

import pytest
import torch

from halfbyte.model.machine import CONTEXT_BYTES, MOST_DRIVER_BYTES, driver_bytes, free_bytes

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
