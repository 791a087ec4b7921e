"""What loading, evaluating, generating and merging take, beside the step."""

from dataclasses import replace

import pytest

from halfbyte.budget.choose import Bounds, Way, price
from halfbyte.budget.phases import generating_bytes, load_bytes, loads_on_gpu, looking_bytes, merging_bytes, phases_of, placed_bytes, rows_that_fit
from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import Rates
from halfbyte.budget.step import Work
from halfbyte.recipe.plan import Placement
from recordings import make_work

LAYERS = 4
PLENTY = Bounds(10**15, Rates())


def bounds(budget_bytes: int, memory_factor: float = 1.0) -> Bounds:
    return Bounds(budget_bytes, Rates(), driver_bytes=10**9, memory_factor=memory_factor)


def small(**changes) -> Work:
    return make_work("mistral-7b", layers=LAYERS, **changes)


def base_bytes(work: Work) -> int:
    return training_peak(work).base_bytes


def test_loading_holds_matrices_that_are_not_quantised_yet():
    """Of an unquantised base nothing but itself; layers are put into the computer's memory when the whole is there."""
    largest = 2 * 4096 * 14336
    assert base_bytes(small()) + largest < load_bytes(small()) < base_bytes(small()) + 10 * largest
    plain = small(four_bit=False)
    assert load_bytes(plain) == base_bytes(plain)
    assert load_bytes(small(placement=Placement("cpu"))) == load_bytes(small()) > 1.5 * placed_bytes(small(placement=Placement("cpu")))


def test_a_base_is_loaded_in_the_computers_memory_where_the_whole_does_not_fit():
    work = small(placement=Placement("cpu"))
    whole = load_bytes(small())
    assert loads_on_gpu(work, bounds(whole + 10**9))
    assert not loads_on_gpu(work, bounds(whole + 10**9 - 1))


def test_evaluation_keeps_nothing():
    """Far less than a step that keeps everything, about as much a layer; more rows take more, in a line; fewer labelled tokens take less."""
    deep = make_work("mistral-7b", layers=8)
    assert looking_bytes(deep, 1) < training_peak(deep).reserved_bytes / 1.3
    short = replace(small(), tokens=256)
    one, eight, sixteen = (looking_bytes(short, rows) for rows in (1, 8, 16))
    logits = 256 * 32000 * 2
    assert 8 * logits < sixteen - eight < 3 * 8 * logits
    assert eight > one > base_bytes(small())
    assert looking_bytes(small(), 1, 10) < looking_bytes(small(), 1)


def test_generating_needs_the_cache():
    """Keys and values of every layer for prompt and answer, in 16 bits, twice for one layer while it grows."""
    work = small()
    a_token = 2 * LAYERS * 8 * 128 * 2
    more = generating_bytes(work, 1, 1001) - generating_bytes(work, 1, 1)
    assert more == pytest.approx(1000 * a_token * (LAYERS + 1) / LAYERS, rel=1e-3)
    assert generating_bytes(work, 8, 512) > generating_bytes(work, 1, 512) + 7 * 1536 * a_token
    assert generating_bytes(work, 1, 1) > base_bytes(work)


def test_generating_with_tied_ends_counts_them_once():
    work = make_work("llama-1b", layers=LAYERS)
    untied = replace(work, shape=replace(work.shape, tied=False))
    assert generating_bytes(untied, 1, 1) - generating_bytes(work, 1, 1) == pytest.approx(2 * 128256 * 2048, rel=0.02)


def test_merging_holds_the_largest_matrix_in_all_its_forms():
    work = small()
    assert merging_bytes(work) == pytest.approx(base_bytes(work) + 4 * work.adapter_weights + 10 * 4096 * 14336, rel=1e-3)


def test_phases_in_the_order_of_a_run():
    choice = price(small(), Way(1), PLENTY)
    phases = phases_of(choice, bounds(10**12), 2, 128)
    assert [phase.name for phase in phases] == ["load", "step", "evaluate", "generate", "merge"]
    assert phases[1].peak_bytes == choice.peak_bytes
    assert all(phase.peak_bytes > 10**9 for phase in phases)
    assert "2 rows at a time" in phases[2].told
    assert "1 row at a time" in phases_of(choice, bounds(10**12), 1, 128)[2].told
    assert choice.told() in phases[1].told


def test_the_phase_of_loading_is_that_of_the_place_where_it_is_loaded():
    """Layers that are away in the end are on the GPU while the base is loaded there: the measured peak of loading would lie above the predicted one."""
    choice = price(small(), Way(1, away=LAYERS, inputs_away=True), PLENTY)
    whole = load_bytes(choice.work)
    on_gpu, on_cpu = (phases_of(choice, bounds(whole + 10**9 - short), 1, 128)[0] for short in (0, 1))
    assert on_gpu.peak_bytes == whole + 10**9
    assert on_cpu.peak_bytes == placed_bytes(choice.work) + 10**9
    assert ["in the computer's memory" in phase.told for phase in (on_gpu, on_cpu)] == [False, True]
    sixteen = price(small(), Way(1, sixteen=LAYERS), PLENTY)
    assert phases_of(sixteen, bounds(10**12), 1, 128)[0].peak_bytes == placed_bytes(sixteen.work) + 10**9


def test_rows_of_evaluation_are_halved_until_they_fit():
    choice = price(small(), Way(1), PLENTY)

    def needed(rows: int) -> int:
        return max(looking_bytes(choice.work, rows), generating_bytes(choice.work, rows, 64))

    assert rows_that_fit(choice, bounds(needed(16) + 10**9), 16, 64) == 16
    assert rows_that_fit(choice, bounds(needed(16) + 10**9 - 1), 16, 64) == 8
    assert rows_that_fit(choice, bounds(needed(3) + 10**9), 12, 64) == 3
    assert rows_that_fit(choice, bounds(1), 16, 64) == 1


def test_what_earlier_runs_taught_raises_every_phase():
    choice = price(small(), Way(1), PLENTY)
    plain, taught = (phases_of(choice, bounds(10**12, factor), 1, 128) for factor in (1.0, 1.2))
    for phase, raised in zip(plain, taught, strict=True):
        assert raised.name == "step" or raised.peak_bytes - 10**9 == pytest.approx(1.2 * (phase.peak_bytes - 10**9), rel=1e-6)


def test_a_batch_of_evaluation_holds_no_more_logits_than_the_product_lets_it():
    """evaluate/loss.py parts longer batches; a single row is never parted."""
    work = make_work("llama-8b", layers=LAYERS)  # 1,024 tokens x 128,256 words: one row is as much as a batch may hold
    assert looking_bytes(work, 8) == looking_bytes(work, 1)
    assert looking_bytes(replace(work, tokens=256), 8) > looking_bytes(replace(work, tokens=256), 1)


def test_longer_texts_are_evaluated_with_more():
    choice = price(small(), Way(1), PLENTY)
    usual, long = (phases_of(choice, bounds(10**12), 1, 128, tokens) for tokens in (0, 4096))
    assert [one.peak_bytes < other.peak_bytes for one, other in zip(usual, long, strict=True)] == [False, False, True, True, False]
