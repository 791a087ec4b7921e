"""Who set each key: you, the plan, or nobody; and that the report says so."""

import json

from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.plan import Computing, Placement, Plan
from halfbyte.recipe.schema import PairData
from halfbyte.recipe.settings import settings_of
from halfbyte.runs.report import write_report

PLAN = Plan("float32", "adamw_torch", Computing(4, 1, (Placement(), Placement(activations="recomputed")), 64), 30, 10, 1, 3)
SETTLED = PairData(kind="prompt_response", path="a.csv", prompt_column="asked", response_column="said", max_length=64)


def settled(*words: str) -> dict[str, tuple[object, str]]:
    recipe = parse_recipe("name: toy\ndata:\n  path: a.csv\n  max_length: 64\n", "toy.yaml", list(words)).recipe
    return {row["key"]: (row["value"], row["by"]) for row in settings_of(recipe, SETTLED, PLAN)}


def test_each_key_says_who_set_it():
    found = settled("train.learning_rate=1e-3", "quant.kind=fp4", "train.precision=auto", "evaluate.stride=9", "adapter.r=16")
    assert found["train.learning_rate"] == (1e-3, "you")
    assert found["adapter.r"] == (16, "you")  # the default, but said
    assert found["adapter.alpha"] == (32, "default")
    assert found["data.max_length"] == (64, "you")
    assert found["data.kind"] == ("prompt_response", "the plan")
    assert found["data.prompt_column"] == ("asked", "the plan")
    assert found["train.precision"] == ("float32", "the plan")
    assert found["train.gradient_checkpointing"] == ("1 of 2 layers", "the plan")
    assert found["train.max_steps"] == (30, "the plan")
    assert found["evaluate.stride"] == (9, "you")
    assert found["quant.kind"] == ("fp4", "you")
    assert found["quant.double_quant"] == (True, "default")


def test_the_report_lists_every_key(tmp_path):
    recipe = parse_recipe("name: toy\ndata:\n  path: a.csv\n", "toy.yaml", ["data.licence='<b>CC0|x'"]).recipe
    rows = settings_of(recipe, SETTLED.model_copy(update={"licence": "<b>CC0|x"}), PLAN)
    (tmp_path / "plan.json").write_text(json.dumps({"settings": rows}))
    (tmp_path / "events.jsonl").write_text("")
    report = write_report(tmp_path)
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert [row["key"] for row in report["settings"]] == [row["key"] for row in rows]
    for row in rows:
        assert f"<td>{row['key']}</td>" in page
        assert row["key"].replace("_", "\\_") in text
    assert "<b>CC0" not in page + text
    assert "left at their default" in page
    assert "keys were set by you" in text
