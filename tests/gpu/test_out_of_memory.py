"""A GPU that refuses: a real limit, a real OutOfMemoryError, and a run that goes on. Skips, and says so, without a GPU.

The limit of each test lies between what the run takes as it is begun and what it takes once the thing under test has given way, both measured first.
"""

import gc
from dataclasses import replace

import pytest
import torch

from halfbyte.errors import OutOfMemory
from halfbyte.model.adapter import add_adapter
from halfbyte.model.base import find_base
from halfbyte.model.load import load_base
from halfbyte.model.placement import limit_memory
from halfbyte.recipe.plan import Placement
from halfbyte.recipe.schema import NF4, Adapter, Train
from toy_training import CPU, Course, random_rows, run_toy, toy_plan
from toys import make_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

LAYERS, TOTAL, LENGTH = 6, 4, 512
ROWS = random_rows([LENGTH - number for number in range(16)])
# bfloat16 rounds by 4e-3, and attention sums its gradients in no order.
SAME = 2e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024}
    return make_base(tmp_path_factory.mktemp("base"), num_hidden_layers=LAYERS, **wide)


def train(base, folder, rows: int = 8, activations: str = "kept", limit: int | None = None, recompute: bool | None = None) -> tuple[Course, int]:
    """A run, and the most that PyTorch reserved."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model, _ = add_adapter(load_base(find_base(str(base)), NF4(), "bfloat16", CPU).model, Adapter(r=8, alpha=16, dropout=0.0), 0)
    section = Train(batch_size=rows, gradient_accumulation_steps=8 // rows, learning_rate=1e-3, gradient_checkpointing=recompute)
    placements = (Placement("4bit", activations),) * LAYERS
    plan = toy_plan(len(ROWS), section, TOTAL, eval_steps=TOTAL, precision="bfloat16")
    plan = replace(plan, computing=replace(plan.computing, layers=placements))
    with limit_memory(torch.device("cuda"), limit or torch.cuda.get_device_properties(0).total_memory):
        course = run_toy(base, folder, ROWS, section, plan, model=model, validate=None, device=torch.device("cuda"))
    return course, torch.cuda.max_memory_reserved()


def losses(course: Course) -> list[float]:
    return course.told("step", "loss")


def test_layers_are_recomputed_where_activations_do_not_fit(base, tmp_path):
    whole, most = train(base, tmp_path / "kept")
    _, least = train(base, tmp_path / "recomputed", activations="recomputed")
    assert least < 0.8 * most, "nothing would be gained"
    course, taken = train(base, tmp_path / "short", limit=least + (most - least) // 4)
    changes = course.told("memory_change", "step", "micro_batch_size", "message")
    assert changes
    assert all(rows == 8 for _, rows, _ in changes)
    assert "asked for in the" in changes[0][2]
    assert taken <= least + (most - least) // 4
    assert losses(course) == pytest.approx(losses(whole), rel=SAME)


def test_fewer_rows_where_nothing_may_be_recomputed(base, tmp_path):
    whole, most = train(base, tmp_path / "whole", recompute=False)
    _, least = train(base, tmp_path / "two", rows=2, recompute=False)
    assert least < 0.6 * most, "nothing would be gained"
    course, _ = train(base, tmp_path / "short", limit=least + (most - least) // 8, recompute=False)
    assert course.told("memory_change", "micro_batch_size")[-1] in (2, 1)
    assert course.told("step", "step") == list(range(1, TOTAL + 1))
    assert losses(course) == pytest.approx(losses(whole), rel=SAME)


def test_where_nothing_fits_it_is_said(base, tmp_path):
    gc.collect()
    torch.cuda.empty_cache()
    model_bytes = torch.cuda.memory_reserved()
    with pytest.raises(OutOfMemory, match=r"out of memory in step 1: .* asked for in the .*longest row toy:1"):
        train(base, tmp_path, rows=1, limit=model_bytes + 60_000_000, recompute=False)


def test_a_course_of_events_is_kept_after_all(base, tmp_path):
    """What was refused is free again: a second run in the same process has all the memory there is."""
    course, _ = train(base, tmp_path)
    assert course.told("memory_change", "step") == []
    assert course.outcome.steps == TOTAL
