"""What the plan makes of the fast path: the fastest way that fits, on the path that may be taken, and never more than there is."""

from itertools import pairwise

import pytest

from halfbyte.budget.fast import fast_peak
from halfbyte.budget.fast_choose import FastRun, fast_ways, usual_seconds
from halfbyte.budget.fast_work import FastWork
from halfbyte.budget.forecast import Forecast, make_forecast, target_of
from halfbyte.errors import ModelError
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.plan import Placement
from recordings import configs, make_work

TEXT = "name: x\nbase: acme/base\ndata:\n  path: a.txt\n  kind: text\n  max_length: 2048\ntrain:\n  batch_size: 1\n  gradient_accumulation_steps: 4\n"


def forecast(gpu: str, *words: str, name: str = "mistral-7b", **given) -> Forecast:
    return make_forecast(parse_recipe(TEXT, "x.yaml", list(words)).recipe, configs()[name], target_of(gpu), **given)


@pytest.mark.parametrize("gpu", ["6GB", "7GB", "8GB", "12GB", "24GB", "40GB", "H200"])
def test_what_is_chosen_fits_and_more_memory_is_never_slower(gpu):
    found = forecast(gpu)
    choice = found.choice
    assert choice is not None
    assert found.predicted_bytes is not None
    assert max(choice.peak_bytes, found.predicted_bytes) <= found.target.budget_bytes
    assert choice.work.rows * choice.accumulation == 4
    assert choice.step_seconds == min(one.step_seconds for one in found.considered if one.fits)
    if choice.path == "fast":
        whole = FastWork(choice.work, (2048,) * choice.work.rows, None, choice.one_buffer, choice.record, True, found.target.hopper)
        assert found.target.bounds.whole(fast_peak(whole).enough_bytes) <= found.target.budget_bytes


def test_more_memory_is_never_slower_on_one_gpu():
    work, bounds = make_work("mistral-7b", tokens=2048), target_of("H200").bounds
    seconds = []
    for gigabytes in (6, 7, 8, 10, 12, 16, 24, 40, 80):
        here = type(bounds)(int(gigabytes * 1e9), bounds.rates)
        ways = [choice for choice in fast_ways(FastRun(work, 4, None, host_bytes=10**11), here) if choice.fits]
        seconds.append(min((choice.step_seconds for choice in ways), default=99.0))
    assert all(less >= more * 0.995 for less, more in pairwise(seconds))
    assert seconds[0] > 1.3 * seconds[-1]


@pytest.mark.parametrize("gpu", ["12GB", "24GB", "80GB"])
def test_falcon_is_computed_by_hand_too(gpu):
    plain, fast = forecast(gpu, "train.fast_path=off", name="falcon-7b"), forecast(gpu, name="falcon-7b")
    assert plain.choice.path == "plain"
    assert (fast.choice.path, fast.plain_because) == ("fast", None)
    assert max(fast.choice.peak_bytes, fast.predicted_bytes) <= fast.target.budget_bytes
    assert fast.choice.step_seconds < plain.choice.step_seconds


def test_the_path_is_the_recipes_where_it_says_so():
    assert forecast("24GB").choice.path == "fast"
    off, dropped = forecast("24GB", "train.fast_path=off"), forecast("24GB", "adapter.dropout=0.1")
    assert (off.choice.path, off.plain_because) == ("plain", "train.fast_path is off")
    assert dropped.choice.path == "plain"
    assert "dropout" in dropped.plain_because
    assert forecast("24GB", "train.fast_path=on").plain_because is None
    assert {one.path for one in forecast("24GB", "train.fast_path=on").considered} == {"fast"}
    with pytest.raises(ModelError, match="it cannot be taken: the adapter has dropout"):
        forecast("24GB", "train.fast_path=on", "adapter.dropout=0.1")
    tiny = forecast("5.6GB")
    assert tiny.choice is None or tiny.choice.path == "plain"


def test_recomputing_is_as_the_recipe_has_it():
    again = forecast("80GB", "train.gradient_checkpointing=true").choice
    assert {layer.activations for layer in again.work.layers} == {"recomputed"}
    none = forecast("80GB", "train.gradient_checkpointing=false").choice
    assert {layer.activations for layer in none.work.layers} == {"kept"}
    assert "fast" not in {one.path for one in forecast("8GB", "train.gradient_checkpointing=false").considered if one.fits}


def test_what_waits_must_find_room():
    work, bounds = make_work("mistral-7b", tokens=2048), target_of("7GB").bounds
    roomy, none = (fast_ways(FastRun(work, 4, None, host_bytes=host), bounds) for host in (10**11, 0))
    assert any(choice.fits and choice.host_bytes for choice in roomy)
    assert not any(choice.fits and choice.host_bytes for choice in none)


def test_steps_are_recorded_only_where_rows_are_alike():
    assert not forecast("H200").choice.record
    alike = forecast("H200", "data.max_length=512", alike=True).choice
    assert alike.record
    assert alike.step_seconds < forecast("H200", "data.max_length=512").choice.step_seconds
    assert "recorded" in alike.told()
    assert not forecast("H200", "data.packing=best_fit", alike=True).choice.record


def test_idle_memory_holds_weights_which_evaluation_knows_of():
    found = forecast("H200")
    assert any(layer.weights == "16bit" for layer in found.choice.work.layers)
    assert found.choice.standing_bytes > 0
    assert {layer.weights for layer in found.choice.loaded.layers} == {"4bit"}
    evaluate = next(phase for phase in found.phases if phase.name == "evaluate")
    assert evaluate.peak_bytes > found.choice.standing_bytes
    assert "16 bits" not in forecast("H200", "quant.kind=none").choice.told()


def test_a_mean_row_takes_less_time():
    choice = forecast("24GB").choice
    bounds = forecast("24GB").target.bounds
    assert usual_seconds(choice, 512, bounds) < 0.5 * choice.step_seconds
    assert usual_seconds(choice, 2048, bounds) == pytest.approx(choice.step_seconds, rel=0.02)


def test_it_is_told_in_words():
    told = forecast("8GB").choice.told()
    assert told.startswith("fast path, ")
    assert forecast("8GB").as_json()["chosen"]["path"] == "fast"
    assert Placement("4bit", "thin", True) in forecast("8GB").choice.work.layers
