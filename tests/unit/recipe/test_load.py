"""From recipe text to a checked recipe: what is accepted, what is translated, and what a refusal says."""

import ast
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import halfbyte
from halfbyte.errors import RecipeError
from halfbyte.recipe.explain import every_key
from halfbyte.recipe.load import LISTS, SECTIONS, SWITCHES, TRANSLATIONS, VALUES, dump_recipe, load_data_or_recipe, load_recipe, parse_recipe
from halfbyte.recipe.schema import AutoData, Recipe

FILE = "tale.yaml"
LEAST = "data:\n  path: a.csv\n"
PAIRS = "data: {path: a.csv, kind: prompt_response, prompt_column: q, response_column: a}\n"
TEXTS = "data: {path: a.csv, kind: text}\n"
STARTS = {
    "text": TEXTS, "prompt_response": PAIRS, "structure": PAIRS.replace("prompt_response", "structure"),
    "instruction": "data: {path: a.csv, kind: instruction}\n",
    "messages": "data: {path: a.csv, kind: messages}\n", "sharegpt": "data: {path: a.csv, kind: sharegpt}\n",
    "tagged": "data: {path: a.csv, kind: tagged, column: c}\n", "label": "data: {path: a.csv, kind: label, text_column: t, label_column: l}\n",
}  # fmt: skip


def recipe_of(text: str, *overrides: str) -> Recipe:
    return parse_recipe(text, FILE, list(overrides)).recipe


def notes_of(text: str, *overrides: str) -> list[str]:
    return parse_recipe(text, FILE, list(overrides)).notes


def refusal(text: str, *overrides: str) -> list[str]:
    """The lines of the message."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, FILE, list(overrides))
    assert caught.value.exit_code == 2
    return caught.value.message.split("\n")


def value_at(recipe: Recipe, dotted: str) -> Any:
    for name in dotted.split("."):
        recipe = getattr(recipe, name)
    return recipe


# Files


def test_a_recipe_names_itself_after_its_file_and_keeps_its_text(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    file = tmp_path / "My Tale (2).yaml"
    file.write_text("\ufeff" + f"data:\n  path: {tmp_path / 'a.csv'}   # here\n", encoding="utf-8")
    loaded = load_recipe(file, ["train.num_epochs=2", "data.kind=text", "evaluate.prompts=['a\nb']"])
    assert loaded.recipe.name == "my-tale--2-"[: len(loaded.recipe.name)]
    assert loaded.text.startswith("data:\n")
    assert "# here" in loaded.text
    assert loaded.text.endswith("# given on the command line:\n# train.num_epochs=2\n# data.kind=text\n# evaluate.prompts=['a\n# b']\n")
    assert yaml.safe_load(loaded.text) == {"data": {"path": str(tmp_path / "a.csv")}}


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe file") as caught:
        load_recipe(Path("nowhere.yaml"))
    assert caught.value.hint == "halfbyte new FILE writes one"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "smoke.yaml").write_text(LEAST)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("nowhere.yaml"))
    assert "recipes/smoke.yaml" in caught.value.hint
    (tmp_path / "mine.yaml").write_text(LEAST)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("nowhere.yaml"))
    assert caught.value.hint == "there are: mine.yaml, recipes/smoke.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("mnie.yaml"))
    assert caught.value.hint == "did you mean mine.yaml?"


@pytest.mark.parametrize(("content", "words"), [
    (b"#" * 1_000_001, "larger than 1 MB"),
    ("data:\n  path: caf\u00e9".encode("latin-1"), "byte 17 is not UTF-8"),
    (b"data:\n  path: not-there.csv\n", "data.path: there is no file not-there.csv"),
    (b"data:\n  path: " + b"x" * 5000, "data.path: there is no file xxx"),
])  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, words):
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("text", "words"), [
    ("train:\n\tlearning_rate: 1e-4\n", f"{FILE}:2: not YAML: found character '\\t' that cannot start any token"),
    ("data: {path: a.csv\n", f"{FILE}:2: not YAML: expected ',' or '}}'"),
    ("seed: &s 1\ntrain: {max_steps: *s}\n", f"{FILE}: YAML aliases (*name) are not used in recipes"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", f"{FILE}: YAML aliases"),
    ("- data\n", f"{FILE}: a recipe is a list of `key: value` lines"),
    ("just words\n", f"{FILE}: a recipe is a list of `key: value` lines"),
    ("--- {}\n--- {}\n", f"{FILE}:2: not YAML: but found another document"),
    ("? [a, b]\n: 1\n", f"{FILE}:1: not YAML: found unhashable key"),
    ("name: 2024-13-45\n", f"{FILE}: not YAML: month must be in 1..12"),
    ("a: " + "[" * 700, f"{FILE}: not YAML: "),
    ("a: \x07\n", f"{FILE}: not YAML: "),
    ("a: !!python/object/apply:os.system ['true']\n", f"{FILE}:1: not YAML: could not determine a constructor"),
])  # fmt: skip
def test_yaml_that_cannot_be_read_is_refused_with_its_line(text, words):
    assert words in refusal(text)[0]


def test_keys_written_twice_are_told_with_both_lines():
    said = refusal("seed: 1\ntrain:\n  max_steps: 3\n  max_steps: 4\nseed: 2\n" + LEAST)
    assert said == [f"{FILE}:4: train.max_steps stands twice, first in line 3", f"{FILE}:5: seed stands twice, first in line 1"]


# Problems


def test_all_problems_are_told_at_once_each_with_its_line():
    text = "seed: -1\ntrain:\n  learning_rate: -1\n  num_epochs: 0\n  optimiser: x\nadapter: {alhpa: 3}\n" + LEAST + "  max_length: 4\nevalute: {}\n"
    assert sorted(refusal(text, "nonsense", "train.schedule=cosin")) == sorted([
        "nonsense: not an override; write section.key=value",
        f"{FILE}:1: seed: input should be greater than or equal to 0, got -1",
        f"{FILE}:3: train.learning_rate: input should be greater than 0, got -1",
        f"{FILE}:4: train.num_epochs: input should be greater than 0, got 0",
        f"{FILE}:5: train.optimiser: no such key; did you mean 'train.optimizer'?",
        f"{FILE}:6: adapter.alhpa: no such key; did you mean 'adapter.alpha'?",
        f"{FILE}:9: data.max_length: input should be greater than or equal to 8, got 4",
        f"{FILE}:10: evalute: no such key; did you mean 'evaluate'?",
        "train.schedule: 'cosin' is none of cosine, linear, constant; did you mean 'cosine'?",
    ])  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [
    ("", "data: is missing"),
    ("data: {path: a.csv}\nevaluate: {prompts: ['a', ' ']}", f"{FILE}:2: evaluate.prompts.1: is empty: write a few words, or take it out, got ' '"),
    ("data: {}\n", f"{FILE}:1: data.path: is missing"),
    ("data: {path: a, kind: prompt_response, response_column: b}\n", f"{FILE}:1: data.prompt_column: is missing"),
    ("name: Tale\n" + LEAST, f"{FILE}:1: name: 'Tale' is no name"),
    ("name: ../x\n" + LEAST, f"{FILE}:1: name: '../x' is no name"),
    ("name: false\n" + LEAST, f"{FILE}:1: name: input should be a valid string, got false: write it in quotes"),
    ("train: 5\n" + LEAST, f"{FILE}:1: train: input should be a valid dictionary"),
    ("quant: {kind: nf5}\n" + LEAST, "quant.kind: 'nf5' is none of nf4, fp4, none; did you mean 'nf4'?"),
    ("train: {num_epochs: .inf}\n" + LEAST, "train.num_epochs: input should be a finite number, got inf"),
    ("train: {learning_rate: .nan}\n" + LEAST, "train.learning_rate: input should be a finite number"),
    ("train: {learning_rate: 1000}\n" + LEAST, "train.learning_rate: got 1000, which is outside 1e-7..0.1: meant 1e-3?"),
    ("train: {learning_rate: 2}\n" + LEAST, "meant 2e-4?"),
    ("train: {learning_rate: 2.5e+4}\n" + LEAST, "meant 2.5e-4?"),
    ("train: {learning_rate: 0}\n" + LEAST, "train.learning_rate: nothing would be learned"),
    ("train: {gradient_checkpointing: yes}\n" + LEAST, "train.gradient_checkpointing: input should be true or false, got 'yes'"),
    ("adapter: {target_modules: []}\n" + LEAST, "adapter.target_modules: names no module"),
    ("train: {max_steps: many}\n" + LEAST, "train.max_steps: input should be a whole number, got 'many'"),
    ("train: {max_steps: 1.5}\n" + LEAST, "train.max_steps: input should be a whole number, got 1.5"),
    ("adapter: {r: 0}\n" + LEAST, "adapter.r: input should be greater than or equal to 1, got 0"),
    ("adapter: {dropout: 1.0}\n" + LEAST, "adapter.dropout: input should be less than 1, got 1.0"),
    ("seed: 4294967296\n" + LEAST, "seed: input should be less than 4294967296"),
    ("evaluate: {prompts: Hello}\n" + LEAST, f"{FILE}:1: evaluate.prompts: input should be a valid list, got 'Hello'"),
    ("evaluate: {prompts: [a, 1]}\n" + LEAST, f"{FILE}:1: evaluate.prompts.1: input should be a valid string, got 1"),
    ("data: {path: a, validation_share: 0.5, test_share: 0.4}\n", "data: validation_share and test_share leave nothing to train on"),
    (PAIRS.replace("}", ", prompt_template: 'Q: '}"), "prompt_template: write `chat`, or a text with {prompt} in it"),
    ("data: {path: []}\n", f"{FILE}:1: data.path: names no file"),
    ("data: {path: a, augment: [typo]}\n", "data.augment.0: 'typo' is none of case, punctuation, typos, turns, shift; did you mean 'typos'?"),
    ("data: {path: a, redact: [emails]}\n", "data.redact.0: 'emails' is none of email, phone, handle, link, card, iban; did you mean 'email'?"),
    ("data: {path: a, augment_copies: 11}\n", "data.augment_copies: input should be less than or equal to 10, got 11"),
    ("data: {path: a, on_bad_row: drop}\n", "data.on_bad_row: 'drop' is none of refuse, skip"),
    ("1: 2\n" + LEAST, "keys should be strings, got 1"),
])  # fmt: skip
def test_a_wrong_value_is_named(text, words):
    said = refusal(text)
    assert len(said) == 1
    assert words in said[0]


def test_a_value_that_fits_no_alternative_is_told_in_one_line():
    """Guards against pydantic's names of the alternatives, which were shown as keys: `adapter.target_modules.list[str]`."""
    assert refusal("adapter: {target_modules: 5}\n" + LEAST) == [
        f"{FILE}:1: adapter.target_modules: input should be 'all-linear', got 5 or input should be a valid list, got 5"
    ]


def test_a_key_called_like_a_kind_is_named():
    """Guards against `data: no such key`: the key `text` was taken for the tag of the kind."""
    assert refusal("data: {path: a, text: b}\n")[0].startswith(f"{FILE}:1: data.text: no such key")


@pytest.mark.parametrize(("text", "words"), [
    (LEAST + "  kind: text\n  prompt_column: a\n", "data.prompt_column: no such key; it belongs to data.kind=prompt_response"),
    (LEAST + "  kind: text\n  instruktion_column: a\n", "did you mean 'data.instruction_column'? It belongs to data.kind=instruction"),
    ("quant: {kind: none, double_quant: true}\n" + LEAST, "quant.double_quant: no such key; it belongs to quant.kind=nf4 or fp4"),
    ("leraning_rate: 1\n" + LEAST, "leraning_rate: no such key; did you mean 'train.learning_rate'?"),
    ("train: {max_seq_length: 9}\n" + LEAST, "train.max_seq_length: no such key; did you mean 'data.max_length'?"),
    ("train: {load_in_8bits: 9}\n" + LEAST, "train.load_in_8bits: no such key; there are: learning_rate, "),
])  # fmt: skip
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(text, words):
    assert words in refusal(text)[0]


NUMBERS = [key for key in (
    "seed", "data.max_length", "data.gap", "data.augment_copies", "data.validation_share", "data.test_share",
    "adapter.r", "adapter.alpha", "adapter.dropout", "train.learning_rate",
    "train.num_epochs", "train.max_steps", "train.batch_size", "train.gradient_accumulation_steps", "train.weight_decay", "train.warmup_steps",
    "train.max_grad_norm", "train.eval_steps", "train.early_stopping_patience", "train.keep_checkpoints", "evaluate.max_new_tokens",
    "evaluate.repetition_penalty", "evaluate.batch_size", "evaluate.stride", "evaluate.max_answers", "evaluate.wanted_accuracy",
    "evaluate.min_gain", "evaluate.max_forgetting",
)]  # fmt: skip


def test_the_list_of_numbers_is_whole():
    found = set()
    for top, field in Recipe.model_fields.items():
        classes = [c for c in (field.annotation, *get_args(field.annotation)) if hasattr(c, "model_fields")]
        for name, inner in [(f"{top}.{n}", f) for c in classes for n, f in c.model_fields.items()] or [(top, field)]:
            types = {inner.annotation, *get_args(inner.annotation)}
            types |= {part for kind in types for part in get_args(kind)}
            if types & {int, float}:
                found.add(name)
    assert found == set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("word", ["on", "no", "true"])
def test_a_yaml_switch_is_no_number(key, word):
    """YAML 1.1 reads `on` as true, which pydantic takes for 1: `num_epochs: on` trained for one epoch."""
    said = refusal(TEXTS if key == "data.gap" else LEAST, f"{key}={word}")
    assert len(said) == 1
    assert said[0].startswith(f"{key}: input should be a ")
    assert said[0].endswith(", got true" if word == "true" else f", got {word!r}")


def test_words_that_are_switches_elsewhere_are_words():
    """Guards against classes called yes and no that were refused, or learned as True and False."""
    written = STARTS["label"].replace("}", ", labels: [yes, no, on, off]}")
    assert recipe_of(written).data.labels == recipe_of(STARTS["label"], "data.labels=[yes, no, on, off]").data.labels == ["yes", "no", "on", "off"]
    assert recipe_of("train: {gradient_checkpointing: True}\n" + LEAST).train.gradient_checkpointing is True
    assert [recipe_of(f"train: {{fast_path: {word}}}\n" + LEAST).train.fast_path for word in ("on", "off", "True", "auto")] == ["on", "off", "on", "auto"]


def test_a_text_that_is_read_as_a_number_is_told_with_its_line():
    assert parse_recipe("train:\n  max_steps: '12'\n  learning_rate: 2e-4\n" + LEAST, FILE, []).notes == [
        f"{FILE}:2: train.max_steps: the text '12' is read as the number 12"
    ]


@pytest.mark.parametrize("written", ["2e-4", "0.0002", ".0002", "2.0e-4", "'2e-4'"])
def test_a_number_without_a_dot_is_a_number(written):
    """YAML 1.1 reads 2e-4 as text."""
    assert recipe_of(f"train:\n  learning_rate: {written}\n" + LEAST).train.learning_rate == 2e-4
    assert recipe_of(LEAST, f"train.learning_rate={written}").train.learning_rate == 2e-4


# Overrides


@pytest.mark.parametrize(("word", "key", "value"), [
    ("train.max_steps=7", "train.max_steps", 7),
    ("train.max_steps=null", "train.max_steps", None),
    ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
    ("train.fast_path=on", "train.fast_path", "on"),
    ("train.fast_path=off", "train.fast_path", "off"),
    ("train.fast_path=true", "train.fast_path", "on"),
    ("train.fast_path=auto", "train.fast_path", "auto"),
    ("evaluate.prompts=[a, 'b: c']", "evaluate.prompts", ["a", "b: c"]),
    ("lr=1e-4", "train.learning_rate", 1e-4),
    ("data.path=a=b.csv", "data.path", "a=b.csv"),
    ("data.path={a: b}.csv", "data.path", "{a: b}.csv"),
    ("data.path=", "data.path", ""),
    ("name='123'", "name", "123"),
    ("adapter.target_modules=q_proj,v_proj", "adapter.target_modules", ["q_proj", "v_proj"]),
    # What follows guards against the YAML of a word: a colon made a mapping of a text, a # cut it, a date became a date.
    ("data.path=a #1.csv", "data.path", "a #1.csv"),
    ("data.path=C: data.csv", "data.path", "C: data.csv"),
    ("data.path=*.csv", "data.path", "*.csv"),
    ("data.path={x}.csv", "data.path", "{x}.csv"),
    ("name=2024-13-45", "name", "2024-13-45"),
    ("name=2024-01-01", "name", "2024-01-01"),
])  # fmt: skip
def test_an_override_is_read(word, key, value):
    assert value_at(recipe_of(LEAST, word), key) == value


@pytest.mark.parametrize("template", ["Q: {prompt}\nA: ", "{prompt}", "Q: {prompt}", "{prompt} # now answer"])
def test_an_override_may_be_a_template(template):
    assert recipe_of(PAIRS, f"data.prompt_template={template}").data.prompt_template == template


@pytest.mark.parametrize("word", ["data.merge_labels={neutral: other, '1': no}", "data.merge_labels={neutral: other, '1': 'no'}"])
def test_an_override_may_be_a_mapping_of_labels(word):
    """Guards against a hint that could not be followed: the labels to merge were read as one text."""
    assert recipe_of(STARTS["label"], word).data.merge_labels == {"neutral": "other", "1": "no"}
    assert "data.merge_labels: input should be a valid dictionary" in refusal(STARTS["label"], "data.merge_labels={a")[0]


def test_an_override_of_blanks_keeps_them():
    assert recipe_of(TEXTS, "data.separator= ").data.separator == " "


@pytest.mark.parametrize(("written", "word"), [
    ("train: {learning_rate: 1e-3}", "train.learning_rate=1e-4"),
    ("learning_rate: 1e-3", "train.learning_rate=1e-4"),
    ("train: {learning_rate: 1e-3}", "lr=1e-4"),
    ("lr: 1e-3", "learning_rate=1e-4"),
    ("train: {lr: 1e-3}", "learning_rate=1e-4"),
])  # fmt: skip
def test_an_override_wins_over_the_file_in_any_spelling(written, word):
    """Guards against `means train.learning_rate, which is given too`: a file in TRL's words could not be overridden."""
    assert recipe_of(written + "\n" + LEAST, word).train.learning_rate == 1e-4


def test_overrides_leave_the_rest_of_a_section():
    recipe = recipe_of("adapter: qlora\nlora_r: 8\n" + LEAST, "adapter.alpha=4", "adapter.dropout=0.1", "data.max_length=64")
    assert (recipe.adapter.r, recipe.adapter.alpha, recipe.adapter.dropout, recipe.data.max_length) == (8, 4, 0.1, 64)


def test_a_problem_of_an_override_is_not_blamed_on_the_file():
    assert refusal("train:\n  learning_rate: 1e-3\n" + LEAST, "train.learning_rate=-1") == ["train.learning_rate: input should be greater than 0, got -1"]
    assert refusal(LEAST, "data.max_lenght=5") == ["data.max_lenght: no such key; did you mean 'data.max_length'?"]


def test_a_problem_of_a_translated_key_has_its_line():
    assert refusal("lr: -1\n" + LEAST) == [f"{FILE}:1: train.learning_rate: input should be greater than 0, got -1"]


def test_an_override_below_a_value_is_refused():
    assert "train.max_steps: train is a value here, not a section" in refusal(LEAST, "train=5", "train.max_steps=3")


# Spellings of other tools

VALID = {
    "base": "b", "data.path": "b.csv", "data.column": "c", "data.max_length": 99, "data.validation_share": 0.2, "data.system": "s",
    "data.label_column": "lab", "data.packing": "best_fit", "data.loss": "last",
    "adapter.r": 3, "adapter.alpha": 5, "adapter.dropout": 0.2, "adapter.target_modules": ["q"], "adapter.modules_to_save": ["h"],
    "train.learning_rate": 0.01, "train.num_epochs": 7, "train.max_steps": 9, "train.batch_size": 5, "train.gradient_accumulation_steps": 6,
    "train.optimizer": "adamw_8bit", "train.weight_decay": 0.3, "train.schedule": "linear", "train.warmup_steps": 12, "train.max_grad_norm": 2.0,
    "train.gradient_checkpointing": False, "train.fast_path": "off", "train.eval_steps": 11, "train.early_stopping_patience": 4, "train.keep_checkpoints": 8,
    "evaluate.batch_size": 3, "evaluate.max_new_tokens": 13, "track.report_to": ["wandb"],
    "quant.kind": "fp4", "quant.double_quant": False, "name": "n", "seed": 77,
}  # fmt: skip


def start_for(target: str) -> str:
    without_label = STARTS["label"].replace(", label_column: l", "")
    kind = {"data.column": TEXTS, "data.system": PAIRS, "data.loss": PAIRS, "data.label_column": without_label}.get(target, LEAST)
    return "" if target == "data.path" else kind


def written(start: str, section: str, inner: dict) -> str:
    """A recipe with more in one of its sections."""
    values = yaml.safe_load(start) or {}
    return yaml.safe_dump({**values, section: {**values.get(section, {}), **inner}})


@pytest.mark.parametrize("spelled", TRANSLATIONS)
def test_a_spelling_lands_on_its_key(spelled):
    target = TRANSLATIONS[spelled]
    loaded = parse_recipe(start_for(target) + yaml.safe_dump({spelled: VALID[target]}), FILE, [])
    assert value_at(loaded.recipe, target) == VALID[target]
    assert loaded.notes == [f"{spelled} is read as {target}"]


@pytest.mark.parametrize("spelled", [word for word, target in TRANSLATIONS.items() if "." in target])
def test_a_spelling_lands_on_its_key_inside_its_section_too(spelled):
    target = TRANSLATIONS[spelled]
    section, key = target.split(".")
    start = written(start_for(target), section, {"text_column": "t", "path": "b"} if target == "data.label_column" else {})
    loaded = parse_recipe(written(start, section, {spelled: VALID[target]}), FILE, [])
    assert value_at(loaded.recipe, target) == VALID[target]
    assert loaded.notes == ([] if spelled == key else [f"{section}.{spelled} is read as {target}"])


@pytest.mark.parametrize("spelled", SWITCHES)
@pytest.mark.parametrize("on", [True, False])
def test_a_switch_lands_on_its_key(spelled, on):
    target, *meant = SWITCHES[spelled]
    value = meant[0] if on else meant[1]
    start = start_for(target)
    for text in (start + yaml.safe_dump({spelled: on}), written(start, target.split(".")[0], {spelled: on})):
        loaded = parse_recipe(text, FILE, [])
        default = value_at(recipe_of(start), target)
        assert value_at(loaded.recipe, target) == (default if value is None else value)
        assert len(loaded.notes) == 1
        assert spelled in loaded.notes[0]


def test_auto_leaves_a_switch_to_the_plan():
    """Axolotl's recipes say `bf16: auto`, which was no such key."""
    loaded = parse_recipe("bf16: auto\n" + LEAST, FILE, [])
    assert loaded.recipe.train.precision == "auto"
    assert loaded.notes == ["bf16=auto changes nothing here"]
    assert refusal("bf16: 7\n" + LEAST) == [f"{FILE}:1: bf16: input should be true or false, got 7"]


@pytest.mark.parametrize(("target", "value"), [(target, value) for target, values in VALUES.items() for value in values])
def test_a_value_of_another_tool_is_read(target, value):
    section, key = target.split(".")
    start = STARTS["label"] if value == "classification" else LEAST
    loaded = parse_recipe(written(start, section, {key: value}), FILE, [])
    assert value_at(loaded.recipe, target) == VALUES[target][value]
    spelled = str(value).lower() if isinstance(value, bool) else value
    assert loaded.notes == [f"{target}={spelled} is read as {VALUES[target][value]}"]


@pytest.mark.parametrize("target", LISTS)
def test_a_list_may_be_written_with_commas(target):
    section, key = target.split(".")
    assert value_at(recipe_of(LEAST + yaml.safe_dump({section: {key: "q_proj, v_proj"}})), target) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("word", ["lora", "qlora"])
def test_the_adapter_of_axolotl(word):
    recipe = recipe_of(f"adapter: {word}\nload_in_4bit: true\nlora_r: 8\nlora_target_linear: true\n" + LEAST)
    assert (recipe.adapter.kind, recipe.adapter.r, recipe.adapter.target_modules, recipe.quant.kind) == ("lora", 8, "all-linear", "nf4")
    assert recipe_of("adapter: qlora\nquant: {kind: fp4}\n" + LEAST).quant.kind == "fp4"


@pytest.mark.parametrize("text", [
    "lr: 1e-3\nlearning_rate: 2e-3\n",
    "lr: 1e-3\ntrain: {learning_rate: 2e-3}\n",
    "warmup_ratio: 0.1\nwarmup_steps: 10\n",
    "train: {optim: adamw_8bit, optimizer: adamw_torch}\n",
    "bf16: true\nfp16: true\n",
    "quant: {kind: none}\nload_in_4bit: true\n",
    "quant: {kind: none}\nadapter: qlora\n",
    "quant: {kind: nf4}\nload_in_4bit: false\n",
    "quant: {kind: nf4}\nbnb_4bit_quant_type: fp4\n",
    "model: a\nbase: b\n",
])  # fmt: skip
def test_two_spellings_that_disagree_are_refused(text):
    said = refusal(text + LEAST)
    assert len(said) == 1
    assert said[0].startswith(f"{FILE}:")
    assert said[0].endswith("; keep one")


@pytest.mark.parametrize(("text", "key", "value"), [
    ("eval_steps: 50\nsave_steps: 50\n", "train.eval_steps", 50),
    ("seed: 4\ndata_seed: 4\n", "seed", 4),
    ("lr: 1e-3\nlearning_rate: 1e-3\n", "train.learning_rate", 1e-3),
    ("bf16: true\nfp16: false\n", "train.precision", "bfloat16"),
    ("load_in_4bit: true\nbnb_4bit_quant_type: nf4\n", "quant.kind", "nf4"),
    ("load_in_4bit: true\nbnb_4bit_quant_type: fp4\n", "quant.kind", "fp4"),
    ("quant: {load_in_4bit: true, kind: fp4}\n", "quant.kind", "fp4"),
])  # fmt: skip
def test_two_spellings_that_agree_are_one(text, key, value):
    """Guards against refusing what every recipe of TRL says: load_in_4bit beside bnb_4bit_quant_type, save_steps beside eval_steps."""
    assert value_at(recipe_of(text + LEAST), key) == value


# Every key


def changed(key: str) -> tuple[str, Any]:
    """A recipe that has the key, and a value that is not its default."""
    others = {
        "data.kind": "text", "data.encoding": "utf-16", "data.test_share": 0.3, "data.rows": "book", "data.separator": "|", "data.gap": 5,
        "data.keep_boilerplate": True, "data.prompt_column": "other", "data.response_column": "other", "data.prompt_template": "Q: {prompt}",
        "data.on_bad_row": "skip", "data.licence": "MIT", "data.redact": ["email"], "data.validation_path": "v.csv", "data.test_path": "t.csv",
        "data.drop_overlap": True, "data.group_column": "g", "data.near_duplicates": "drop", "data.keep_duplicates": True, "data.augment": ["typos"],
        "data.augment_copies": 3, "data.system_as": "user", "data.instruction": "say", "data.instruction_column": "i", "data.input_column": "i",
        "data.output_column": "o", "data.user_tag": "U:", "data.assistant_tag": "A:", "data.text_column": "other", "data.label_pattern": "(x)",
        "data.labels": ["a"], "data.merge_labels": {"a": "b"},
        "memory_budget": "24GB", "adapter.kind": "dora", "adapter.init_from": "runs/a", "train.precision": "float32", "train.compute": "fp8",
        "evaluate.prompts": ["p"], "evaluate.repetition_penalty": 1.5, "evaluate.stride": 7, "evaluate.max_answers": 3, "evaluate.wanted_accuracy": 0.8,
        "evaluate.neutral_path": "n.txt", "evaluate.min_gain": 0.05, "evaluate.max_forgetting": 0.1, "track.report_to": ["tensorboard"],
    }  # fmt: skip
    section, _, name = key.partition(".")
    own = [kind for kind, start in STARTS.items() if section == "data" and name in type(recipe_of(start).data).model_fields]
    return (LEAST if section != "data" or name in AutoData.model_fields else STARTS[own[0]]), (VALID | others)[key]


KEYS = sorted({key for key, _, _ in every_key()})


@pytest.mark.parametrize("key", KEYS)
def test_turning_a_key_changes_the_recipe(key):
    start, value = changed(key)
    before = recipe_of("name: before\n" + start)
    after = recipe_of("name: before\n" + start, f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}")
    assert value_at(after, key) == value
    assert value_at(before, key) != value
    top, _, inner = key.partition(".")
    same = {name: getattr(before, name) == getattr(after, name) for name in Recipe.model_fields}
    assert [name for name, is_same in same.items() if not is_same] == [top]
    if inner not in ("", "kind"):
        was, now = getattr(before, top).model_dump(), getattr(after, top).model_dump()
        assert [name for name in was if was[name] != now[name]] == [inner]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_by_something(key):
    """No option that is accepted, documented and read by nothing."""
    assert key.rpartition(".")[2] in attributes_read(), f"no code reads {key}"


def attributes_read() -> set[str]:
    """Every `.name` that code outside the schema reads."""
    source = Path(halfbyte.__file__).parent
    files = [file for file in source.rglob("*.py") if file.name != "schema.py"]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_the_sections_are_those_of_the_schema():
    assert set(SECTIONS) == {key.partition(".")[0] for key in KEYS if "." in key}


# Round trip


@pytest.mark.parametrize("text", [
    LEAST,
    TEXTS.replace("}", ', column: "no", separator: "\\n\\t\\x85 ", rows: separate, keep_boilerplate: true, encoding: cp1252}'),
    PAIRS.replace("q", '"1e5"') + "evaluate: {prompts: ['null', '#', 'a: b', \"\\u2028\\U0001F600\"]}\n",
    "quant: {kind: none}\ntrain: {learning_rate: 1e-5, max_steps: 3, warmup_steps: 0.1, gradient_checkpointing: false}\n" + LEAST,
    "adapter: {target_modules: [q_proj], modules_to_save: [lm_head], kind: dora}\nname: '1'\nbase: owner/name@main\n" + LEAST,
])  # fmt: skip
def test_a_recipe_that_is_written_out_loads_back_the_same(text):
    recipe = recipe_of(text)
    again = parse_recipe(dump_recipe(recipe), FILE, [])
    assert again.recipe == recipe
    assert again.notes == []


def test_a_recipe_cannot_be_changed_after_it_was_checked():
    recipe = recipe_of(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.learning_rate = 1.0


# A file of data where a recipe is asked for


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "A.TSV", "a.txt.zst", "a.parquet"])
def test_data_in_the_recipe_s_place_are_told_what_to_do(tmp_path, name):
    """Guards against `byte 1 is not UTF-8: save the recipe as UTF-8` for a packed file."""
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(RecipeError, match="is data, not a recipe") as caught:
        load_recipe(tmp_path / name)
    assert caught.value.hint == f"halfbyte new {tmp_path / name} writes a recipe for it"


@pytest.mark.parametrize("name", ["labels.csv.yaml", "rows.jsonl.yml"])
def test_a_recipe_may_be_called_after_its_data(tmp_path, name):
    """`halfbyte new labels.csv -o labels.csv.yaml` wrote a recipe that was then refused as data."""
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / name).write_text(f"name: a\ndata:\n  path: {tmp_path / 'a.csv'}\n")
    assert load_recipe(tmp_path / name).recipe.name == "a"


def test_a_file_of_data_has_the_recipe_of_a_file_of_which_nothing_is_stated(tmp_path):
    file = tmp_path / "my data #1.csv"
    file.write_text("x")
    loaded = load_data_or_recipe(file, ["data.max_length=77"])
    assert (loaded.recipe.data.kind, loaded.recipe.data.path, loaded.recipe.data.max_length, loaded.recipe.name) == ("auto", str(file), 77, "my-data--1")
    (tmp_path / "r.yml").write_text(f"name: mine\ndata:\n  path: {json.dumps(str(file))}\n")
    assert load_data_or_recipe(tmp_path / "r.yml", ["seed=3"]).recipe.seed == 3
    with pytest.raises(RecipeError, match="no such file"):
        load_data_or_recipe(tmp_path / "nowhere.csv")
    assert load_data_or_recipe(Path("hub:owner/name")).recipe.data.path == "hub:owner/name"


@pytest.mark.parametrize(("given", "missing"), [
    ("path: [{a}, b.csv]", ["path: there is no file b.csv"]), ("path: {a}\n  test_path: t.csv\n  validation_path: v.csv", [
        "validation_path: there is no file v.csv", "test_path: there is no file t.csv",
    ]), ("path: hub:owner/name", []), ("path: [{a}, hub:owner/name]", []),
])  # fmt: skip
def test_every_file_that_is_not_there_is_told_at_once(tmp_path, monkeypatch, given, missing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "r.yaml").write_text("data:\n  " + given.replace("{a}", "a.csv") + "\n")
    if not missing:
        assert load_recipe(Path("r.yaml")).recipe.data.paths
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("r.yaml"))
    assert caught.value.message.split("\n") == [f"data.{line}" for line in missing]


def test_a_column_alone_says_no_kind():
    """`column` belongs to four kinds: the first was taken, with the words that the recipe said so, and prompts were trained as text."""
    found = parse_recipe("data:\n  path: a.csv\n  column: text\n", "r.yaml", []).recipe.data
    assert (found.kind, found.column) == ("auto", "text")
    assert parse_recipe("data:\n  path: a.csv\n  instruction: Say the class.\n", "r.yaml", []).recipe.data.kind == "auto"
    assert parse_recipe("data:\n  path: a.csv\n  column: t\n  separator: x\n", "r.yaml", []).recipe.data.kind == "text"


@pytest.mark.parametrize("name", ["https://example.org/a.csv", "a.csv,b.csv"])
def test_what_is_no_missing_file_is_left_to_the_reader(tmp_path, monkeypatch, name):
    """It says what such a name is; `no such file` sent people looking for it."""
    monkeypatch.chdir(tmp_path)
    assert load_data_or_recipe(Path(name)).recipe.data.path
    (tmp_path / "l.csv").symlink_to("nowhere.csv")
    assert load_data_or_recipe(Path("l.csv")).recipe.data.path == "l.csv"
