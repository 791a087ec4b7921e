"""The memory plan on the chip: the allocator is the one that is simulated, and a run stays within the budget that it was given."""

import pytest
import torch

from toys import make_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def test_segments_grow():
    """What the simulation takes for granted; without it predictions are too low."""
    from halfbyte.model.machine import look_at_machine

    look_at_machine()
    held = torch.zeros(3_000_000, device="cuda")
    assert torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"] is True
    del held


def test_a_run_stays_within_its_budget_and_its_prediction_is_near(tmp_path, monkeypatch):
    """Never above; below by what of the driver's part a small model does not use."""
    from halfbyte import api
    from halfbyte.recipe.load import parse_recipe
    from halfbyte.runs.folder import read_report

    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    base = make_base(tmp_path / "base", hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_hidden_layers=6)
    file = tmp_path / "book.txt"
    file.write_text("the keeper lit the lamp and the sea was quiet. " * 4000, encoding="utf-8")
    data = f"data:\n  path: {file}\n  kind: text\n  max_length: 512\n  validation_share: 0\n  test_share: 0\n"
    text = f"name: toy\nbase: {base}\n{data}train:\n  max_steps: 6\n  batch_size: 16\nmemory_budget: 3GB\n"
    run = api.train(parse_recipe(text, "toy.yaml", []), tmp_path / "runs")
    report = read_report(run.path)
    step = next(phase for phase in report["memory"]["phases"] if phase["name"] == "step")
    assert report["status"] == "finished"
    assert report["memory"]["measured_bytes"] <= 3_000_000_000
    driver = run.read_plan()["memory"]["driver_bytes"]
    assert step["predicted_bytes"] - 0.5 * driver < step["measured_bytes"] < 1.05 * step["predicted_bytes"]
