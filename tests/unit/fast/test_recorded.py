"""A recording that memory runs out in tells of the memory, whatever ending it in its middle raises. Without a GPU: what torch does is played."""

from contextlib import contextmanager

import pytest
import torch

from halfbyte.fast.recorded import Recorder


class Graph:
    def replay(self):
        raise AssertionError("nothing was recorded")


@pytest.fixture
def ends_badly(monkeypatch):
    @contextmanager
    def graph(graph, pool, capture_error_mode):
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "graph", graph)


def runs_out(given):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_is_told_as_such_and_nothing_is_kept(ends_badly):
    recorder, given = Recorder(lambda: []), (torch.zeros(3),)
    assert recorder.run("rows", lambda one: one.sum(), given) == 0  # the first of a shape runs as it is
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
            recorder.run("rows", runs_out, given)


def test_another_failure_of_a_recording_is_told_as_it_is(ends_badly):
    recorder, given = Recorder(lambda: []), (torch.zeros(3),)
    recorder.run("rows", lambda one: one.sum(), given)
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.run("rows", lambda one: one.sum(), given)
