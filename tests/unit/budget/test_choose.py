"""What is chosen fits, and nothing that was weighed and fits is faster: by whole simulations, over a grid of shapes, budgets and rows."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from halfbyte.budget.choose import DRIVER_BYTES, Bounds, Choice, Lines, Way, choose_way, price, smallest
from halfbyte.budget.rates import Rates, rates_of, typical_gpu
from halfbyte.budget.step import Work
from recordings import make_work

LAYERS = 6
NEAR = 0.02
SHAPES = ("mistral-7b", "llama-1b", "qwen2-7b", "falcon-7b")
ROWS = (1, 4)
TIMES = (1.06, 1.3, 1.6, 2.2, 3.0, 6.0)
"""Budgets, as multiples of the least that the shape can be trained in."""


def asked(name: str, layers: int = LAYERS, **changes) -> Work:
    return replace(make_work(name, layers=layers, **changes), layers=())


def least_bytes(name: str) -> int:
    """The smallest way, with what the lines may lie off for models of a few layers: Falcon's large scores leave large holes."""
    return int(smallest(asked(name), Bounds(10**15, Rates())).peak_bytes * (1.15 if name == "falcon-7b" else 1.0))


@cache
def chosen(name: str, rows: int, times: float, checkpointing: bool | None = None) -> tuple[Choice | None, list[Choice], Bounds]:
    bounds = Bounds(int(least_bytes(name) * times), Rates())
    return *choose_way(asked(name), rows, bounds, checkpointing), bounds


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_chosen_way_fits_and_is_the_fastest_of_those_that_were_weighed(name, rows, times):
    best, weighed, bounds = chosen(name, rows, times)
    assert best is not None
    assert best in weighed
    whole = price(best.work, best.way, bounds)
    assert whole == best
    assert whole.fits
    assert whole.peak_bytes <= bounds.budget_bytes
    assert best.work.rows * best.work.accumulation == rows
    for choice in weighed:
        assert choice.work.rows * choice.work.accumulation == rows
        exact = price(choice.work, choice.way, bounds)
        assert not (exact.fits and exact.step_seconds < best.step_seconds * (1 - NEAR))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SHAPES)
def test_more_memory_never_makes_the_step_slower(name, rows):
    seconds = [best.step_seconds for times in TIMES if (best := chosen(name, rows, times)[0])]
    assert len(seconds) == len(TIMES)
    assert all(later <= sooner * (1 + NEAR) for sooner, later in pairwise(seconds))
    assert seconds[-1] < seconds[0] * 0.7  # and it does help


@pytest.mark.parametrize("name", SHAPES)
def test_checkpointing_is_obeyed(name):
    for rows in ROWS:
        for checkpointing in (True, False):
            best, weighed, _ = chosen(name, rows, 6.0, checkpointing)
            assert best is not None
            for choice in [best, *weighed]:
                recomputed = {layer.activations != "kept" for layer in choice.work.layers}
                assert recomputed == {checkpointing}


def test_what_does_not_fit_is_not_chosen():
    best, weighed, bounds = chosen("mistral-7b", 4, 0.95)
    assert best is None
    assert weighed
    assert not any(price(choice.work, choice.way, bounds).fits for choice in weighed)
    assert chosen("mistral-7b", 1, 1.06, False)[0] is None


@pytest.mark.parametrize("name", ["mistral-7b", "llama-1b"])
def test_what_fits_just_so_is_found(name):
    """Where the line says no by a hair, the whole simulation decides."""
    work, plenty = asked(name), Bounds(10**15, Rates())
    way = Way(1, kept=LAYERS)
    drawn, whole = Lines(work, plenty).price(way), price(work, way, plenty)
    assert whole.peak_bytes < drawn.peak_bytes
    assert choose_way(work, 1, Bounds(whole.peak_bytes, Rates()), False)[0] == whole
    assert choose_way(work, 1, Bounds(whole.peak_bytes - 1, Rates()), False)[0] is None


def test_a_way_that_the_line_alone_calls_fitting_is_not_chosen():
    """For Falcon a few layers leave smaller holes than the whole; what is chosen instead fits when it is simulated whole."""
    work, plenty = asked("falcon-7b"), Bounds(10**15, Rates())
    drawn, whole = Lines(work, plenty).price(Way(1)), price(work, Way(1), plenty)
    assert drawn.peak_bytes < whole.peak_bytes
    bounds = Bounds((drawn.peak_bytes + whole.peak_bytes) // 2, Rates())
    assert Lines(work, bounds).price(Way(1)).fits
    best, weighed = choose_way(work, 1, bounds, True)
    assert best is not None
    assert best.way != Way(1)
    assert price(work, best.way, bounds).fits
    assert not next(choice for choice in weighed if choice.way == Way(1)).fits


WAYS = (
    lambda rows, layers: Way(rows),
    lambda rows, layers: Way(rows, kept=layers),
    lambda rows, layers: Way(rows, kept=layers // 2),
    lambda rows, layers: Way(rows, kept=layers, sixteen=layers // 2),
    lambda rows, layers: Way(rows, inputs_away=True),
    lambda rows, layers: Way(rows, inputs_away=True, away=layers),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "rows", "tokens"), [("mistral-7b", 2, 1024), ("mistral-7b", 1, 4096), ("llama-1b", 4, 1024), ("qwen2-7b", 1, 2048), ("qwen2-0.5b", 4, 512)]
)
def test_lines_from_few_layers_agree_with_whole_simulations(name, rows, tokens, way):
    work = replace(make_work(name, rows=rows, tokens=tokens), layers=())
    bounds = Bounds(10**15, Rates())
    drawn, whole = Lines(work, bounds).price(way(rows, work.shape.layers)), price(work, way(rows, work.shape.layers), bounds)
    assert drawn.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.02)
    assert drawn.step_seconds == pytest.approx(whole.step_seconds, rel=0.005)


def test_lines_of_falcon_are_near():
    """Its holes are as large as its squares of scores, and depend on how many layers there are."""
    work = asked("falcon-7b", layers=32)
    bounds = Bounds(10**15, Rates())
    for way in WAYS:
        drawn, whole = Lines(work, bounds).price(way(1, 32)), price(work, way(1, 32), bounds)
        assert drawn.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.05)


def test_what_the_machine_has_taught_is_counted():
    """Memory by its factor, the driver's part as it is."""
    work = asked("llama-1b")
    plain = price(work, Way(1), Bounds(10**15, Rates()))
    taught = price(work, Way(1), Bounds(10**15, Rates(), driver_bytes=2 * 10**9, memory_factor=1.1))
    assert taught.torch_bytes == pytest.approx(1.1 * plain.torch_bytes, abs=2)
    assert taught.peak_bytes == taught.torch_bytes + 2 * 10**9
    assert plain.peak_bytes == plain.torch_bytes + DRIVER_BYTES


def test_paged_state_counts_until_it_leaves():
    work = asked("mistral-7b", optimizer="paged_adamw_32bit", rank=64)
    stays, leaves = (price(work, Way(1), Bounds(10**15, Rates(), paged_leaves=paged_leaves)) for paged_leaves in (False, True))
    assert stays.peak_bytes - leaves.peak_bytes == pytest.approx(8 * work.adapter_weights, rel=0.1)


def test_placements_of_a_way():
    """The last layers keep their activations, the first have their weights elsewhere."""
    placed = Way(1, kept=1, away=2, inputs_away=True).placements(4)
    assert [(layer.weights, layer.activations) for layer in placed] == [("cpu", "cpu"), ("cpu", "cpu"), ("4bit", "cpu"), ("4bit", "kept")]
    placed = Way(1, kept=3, sixteen=1).placements(3)
    assert [(layer.weights, layer.activations) for layer in placed] == [("16bit", "kept"), ("4bit", "kept"), ("4bit", "kept")]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (Way(1, kept=6), "activations kept"),
        (Way(1, kept=2), "4 of 6 layers recomputed"),
        (Way(1), "all layers recomputed"),
        (Way(1, inputs_away=True, away=3), "all layers recomputed, their inputs in the computer's memory, weights of 3 layers in the computer's memory"),
        (Way(1, kept=6, sixteen=6), "activations kept, weights of all layers kept in 16 bits"),
    ],
)
def test_a_choice_in_words(way, words):
    assert price(asked("llama-1b"), way, Bounds(10**15, Rates())).told() == words


def test_slow_copies_are_waited_for():
    """A GPU behind a slow bus: what lies in the computer's memory costs time."""
    work, slow = asked("mistral-7b"), replace(rates_of(typical_gpu(24)), copy_bytes=0.5e9)
    stays, leaves = (price(work, way, Bounds(10**15, slow)) for way in (Way(1), Way(1, away=LAYERS)))
    assert leaves.step_seconds > 2 * stays.step_seconds
