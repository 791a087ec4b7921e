"""`halfbyte recipe --explain`: every key of the schema, with its default and a sentence."""

from typing import get_args

import pytest

from halfbyte.recipe.explain import every_key
from halfbyte.recipe.schema import FileData, Recipe, SomeData

ROWS = every_key()


def keys_of_the_schema() -> set[str]:
    """Found another way than explain.py finds them."""
    found = set()
    for name, field in Recipe.model_fields.items():
        classes = [c for c in (field.annotation, *get_args(field.annotation)) if hasattr(c, "model_fields")]
        found |= {f"{name}.{key}" for c in classes for key in c.model_fields} or {name}
    return found


def test_every_key_is_listed():
    assert {key for key, _, _ in ROWS} == keys_of_the_schema()


@pytest.mark.parametrize(("key", "default", "sentence"), ROWS)
def test_a_key_has_a_default_and_a_sentence(key, default, sentence):
    assert default
    assert default.isprintable(), "a line end as default broke the table"
    assert sentence.rstrip().endswith("."), f"{key} has no sentence under it in schema.py"


def test_defaults_are_those_that_a_recipe_gets():
    recipe = Recipe(name="a", data={"path": "x"})
    for key, default, sentence in ROWS:
        section, _, name = key.partition(".")
        if section in ("adapter", "train", "evaluate"):
            value = getattr(getattr(recipe, section), name)
            assert default == ("not given" if value is None else str(value)), sentence
    shown = {key: default for key, default, _ in ROWS}
    assert (shown["base"], shown["seed"], shown["name"], shown["data.path"]) == ("embedded", "0", "(must be given)", "(must be given)")
    assert (shown["quant.kind"], shown["data.kind"], shown["data.max_length"]) == (recipe.quant.kind, recipe.data.kind, str(recipe.data.max_length))


def test_a_key_of_some_kinds_names_them():
    """Every kind that has a key is told, and none that has not."""
    told: dict[str, set[str]] = {}
    for key, _, sentence in ROWS:
        if sentence.startswith("("):
            told.setdefault(key, set()).update(sentence[1 : sentence.index(")")].split(", "))
    kinds = {f"data.{get_args(kind.model_fields['kind'].annotation)[0]}": kind for kind in get_args(SomeData)}
    has: dict[str, set[str]] = {}
    for name, kind in kinds.items():
        for key in set(kind.model_fields) - set(FileData.model_fields) - {"kind"}:
            has.setdefault(f"data.{key}", set()).add(name.removeprefix("data."))
    assert told == {**has, "quant.double_quant": {"nf4", "fp4"}}
    assert has["data.loss"] == {"prompt_response", "structure", "instruction", "messages", "sharegpt", "tagged", "label", "auto"}


def test_every_kind_is_described():
    sentence = {key: sentence for key, _, sentence in ROWS}
    for key, kinds in (
        ("data.kind", [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(SomeData)]),
        ("quant.kind", ("nf4", "fp4", "none")),
    ):
        assert all(f"`{kind}`: " in sentence[key] for kind in kinds)
    assert all(f"`{kind}`" in sentence["adapter.kind"] for kind in ("rslora", "dora"))
