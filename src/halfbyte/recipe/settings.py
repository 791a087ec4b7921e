"""Every key of a recipe with the value that the run has, and who set it: you, the plan, or nobody (its default). Kept in plan.json, shown in the report."""

from typing import Any

from pydantic import BaseModel

from halfbyte.recipe.plan import Plan
from halfbyte.recipe.schema import Recipe, SettledData

YOU, PLAN, DEFAULT = "you", "the plan", "default"


def settings_of(recipe: Recipe, settled: SettledData, plan: Plan) -> list[dict[str, Any]]:
    """settled: what the data turned out to be, where the recipe left it to looking. A key, its value, and who set it, in the order of schema.py."""
    decided = _decided(recipe, plan)
    rows: list[dict[str, Any]] = []
    for key, field in Recipe.model_fields.items():
        value = getattr(recipe, key)
        if not isinstance(value, BaseModel):
            rows.append(_row(key, value, key in recipe.model_fields_set, field.default, decided))
            continue
        section: BaseModel = settled if key == "data" else value
        given = value.model_fields_set if key in recipe.model_fields_set else set()
        for name, inner in type(section).model_fields.items():
            usual = inner.get_default(call_default_factory=True)
            by_looking = name == "kind" and getattr(value, "kind", None) == "auto"
            rows.append(_row(f"{key}.{name}", getattr(section, name), name in given and not by_looking, usual, decided))
    return rows


def _row(key: str, value: Any, given: bool, usual: Any, decided: dict[str, Any]) -> dict[str, Any]:
    """What was left open and has a value now was decided. `quant.kind` has no usual value in a kind that is not the first."""
    if given and value not in ("auto", None):
        return {"key": key, "value": value, "by": YOU}
    if key in decided:
        return {"key": key, "value": decided[key], "by": PLAN}
    return {"key": key, "value": value, "by": YOU if given else DEFAULT if value == usual else PLAN}


def _decided(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What the plan put in the place of `auto`, of nothing, or of a share."""
    computing = plan.computing
    recomputed = sum(layer.activations != "kept" for layer in computing.layers)
    return {
        "train.precision": plan.precision, "train.optimizer": plan.optimizer, "train.eval_steps": plan.eval_steps, "train.max_steps": plan.total_steps,
        "train.gradient_checkpointing": f"{recomputed} of {len(computing.layers)} layers", "evaluate.batch_size": computing.evaluate_rows,
        "train.fast_path": "on" if computing.path == "fast" else "off", "evaluate.stride": max(1, recipe.data.max_length // 2),
    }  # fmt: skip
