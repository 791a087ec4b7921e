"""`halfbyte recipe --explain`: every key of the schema, with its default and a sentence."""

from typing import get_args

import pytest

from halfbyte.recipe.explain import every_key
from halfbyte.recipe.schema import AutoData, PairData, Recipe, TextData

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


def test_a_key_of_one_kind_names_the_kind():
    told = {(key, sentence.split(")")[0] + ")") for key, _, sentence in ROWS if sentence.startswith("(")}
    own = {("data." + key, "(text)") for key in TextData.model_fields} | {("data." + key, "(prompt_response)") for key in PairData.model_fields}
    shared = {"data." + key for key in AutoData.model_fields}
    assert told == {(key, kind) for key, kind in own if key not in shared} | {("quant.double_quant", "(nf4)"), ("quant.double_quant", "(fp4)")}


def test_every_kind_is_described():
    sentence = {key: sentence for key, _, sentence in ROWS}
    for key, kinds in (("data.kind", ("auto", "text", "prompt_response")), ("quant.kind", ("nf4", "fp4", "none"))):
        assert all(f"`{kind}`: " in sentence[key] for kind in kinds)
    assert all(f"`{kind}`" in sentence["adapter.kind"] for kind in ("rslora", "dora"))
