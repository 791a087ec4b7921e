"""`halfbyte new FILE`: looks at a file and writes a recipe in which every decision is explained."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from halfbyte.data.parts import open_parts
from halfbyte.data.read import Reading
from halfbyte.data.split import TRAIN, Split, split_records
from halfbyte.data.survey import Progress, survey_records
from halfbyte.errors import RecipeError
from halfbyte.recipe.load import folder_name, parse_recipe
from halfbyte.recipe.schema import SettledData, SomeData, TextData

# Decisions that stand above the section; the others stand behind their key.
FOUND = ("encoding", "delimiter", "files", "column")
# File names that say which part they are, not what they are about.
PARTS = ("train", "training", "test", "validation", "valid", "dev", "data", "dataset")
MOST_CLASSES_NAMED = 20
PLAIN_WORD = re.compile(r"[A-Za-z_]+")


def write_recipe_for(
    file: Path, base: str, stated: list[str] | None = None, ask_licence: Callable[[], str | None] | None = None, progress: Progress | None = None
) -> str:
    """The text of a recipe for this file; `stated` are data.key=value words for what looking does not tell. The licence of the data
    is asked for once they were read, if nothing states it.

    Raises DataError when the file cannot be read or its columns say nothing, RecipeError for a word that is no key.
    """
    for word in stated or []:
        if not word.startswith("data."):
            raise RecipeError(
                f"{word}: looking at a file takes keys of data only", hint="write other keys into the recipe, or behind it: halfbyte train RECIPE KEY=VALUE"
            )
    asked = parse_recipe("", str(file), [f"data.path={_quoted(str(file))}", *(stated or [])]).recipe.data
    readings = open_parts(asked)
    reading = readings[0][1]
    survey = survey_records(readings, not _is_book(reading.section) and reading.section.near_duplicates != "ignore", progress)
    split = split_records(survey, reading.section)
    left_out = split.left_out + sum((part.source.left_out for _, part in readings), Counter[str]())
    rows = len(survey) + left_out.total() - split.left_out.total()
    licence = asked.licence or (ask_licence() if ask_licence else None)
    why = {decision.name: decision.reason for decision in reading.decisions}
    lines = [
        _comment(f"Written by `halfbyte new {file}`. Every key is explained by `halfbyte recipe --explain`."),
        f"name: {_quoted(run_name(file))}",
        f"base: {base if base == 'embedded' else _quoted(base)}                # or a folder, or a hub name such as mistralai/Mistral-7B-v0.1",
        "",
        f"# {rows} row{'s' * (rows != 1)} read" + "".join(f"; {count} left out: {reason}" for reason, count in left_out.items()),
        *(_comment(f"{decision.name} {decision.value}: {decision.reason}") for decision in reading.decisions if decision.name in FOUND),
        *(_comment(note) for _, part in readings for note in (*part.source.notes, *part.notes)),
        *(_comment(note) for note in split.notes),
        "data:",
        *_data_lines(asked, reading, split, why, survey.labels, licence),
        "",
        "adapter:",
        "  r: 16",
        "  alpha: 32",
        "train:",
        "  learning_rate: 2e-4       # 1e-3 suits the embedded base" if base != "embedded" else "  learning_rate: 1e-3       # 2e-4 suits a 7B base",
        f"  num_epochs: {_epochs(split.count(TRAIN))}             # {split.count(TRAIN)} rows to train on",
        "evaluate:",
        "  prompts: []               # answered by base and tuned in the report; a few held-out rows when empty",
    ]
    return "\n".join(lines) + "\n"


def run_name(file: Path) -> str:
    """The file's name, or its folder's where the file only says which part of the data it is."""
    stem = file.name.split(".")[0]
    return folder_name(file.resolve().parent.name if stem.lower() in PARTS and file.exists() else stem or file.resolve().name)


def _data_lines(asked: SomeData, reading: Reading, split: Split, why: dict[str, str], labels: list[str], licence: str | None) -> list[str]:
    section = reading.section
    said = {"kind": why.get("data", ""), "rows": why.get("rows", "paragraphs of one text")}
    said["test_path" if section.test_path else "test_share"] = f"{split.decision.value}: {split.decision.reason}"
    said |= {"validation_share": "chooses the best checkpoint", "max_length": "tokens of a row", "licence": "of the data; kept beside the model"}
    keys: dict[str, Any] = {"path": section.path, "kind": section.kind, **section.model_dump(exclude_defaults=True)}
    if isinstance(section, TextData):
        if not (isinstance(asked, TextData) and asked.separator != "auto"):
            keys.pop("separator", None)
        keys |= {"rows": section.rows}
        keys.setdefault("max_length", 256 if section.rows == "separate" else 512)
    elif section.kind == "label" and len(labels) <= MOST_CLASSES_NAMED:
        keys.setdefault("labels", sorted(labels))
        keys.setdefault("instruction", f"Which class is this text? Answer with one of: {', '.join(keys['labels'])}.")
        said |= {"labels": "any other is refused", "instruction": "put before every text; write it in your own words"}
    for key in ("max_length", "validation_share", "test_share"):
        if key.endswith("_share") and keys.get(key.replace("share", "path")):
            keys.pop(key, None)  # given as a file
        else:
            keys.setdefault(key, getattr(section, key))
    keys["licence"] = licence
    if licence is None:
        said["licence"] = "write it here: whoever publishes the model must know what it was made of"
    return [f"  {key}: {_value(value)}" + (_behind(said[key]) if said.get(key) else "") for key, value in keys.items()]


def _is_book(section: SettledData) -> bool:
    return isinstance(section, TextData) and section.rows == "book"


def _epochs(rows: int) -> int:
    return 5 if rows < 500 else 3 if rows < 5000 else 1


def _value(value: Any) -> str:
    """As YAML on one line; a text that YAML would read as something else, or break, stands in quotes."""
    if isinstance(value, str):
        return value if PLAIN_WORD.fullmatch(value) and yaml.safe_load(value) == value else _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)}: {_value(inner)}" for key, inner in value.items()) + "}"
    return yaml.safe_dump(value).removesuffix("\n").removesuffix("\n...")


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _behind(text: str) -> str:
    return "    " + _comment(text)


def _comment(text: str) -> str:
    return "# " + "".join(c if c.isprintable() else " " for c in text)
