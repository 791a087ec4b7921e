"""`halfbyte new FILE`: looks at a file and writes a recipe in which every decision is explained."""

from pathlib import Path

import yaml

from halfbyte.data.records import read_records
from halfbyte.data.split import split_records
from halfbyte.recipe.load import folder_name, parse_recipe
from halfbyte.recipe.schema import TextData

# Decisions that stand above the section; the others stand behind their key.
FOUND = ("encoding", "delimiter")


def write_recipe_for(file: Path, base: str, stated: list[str] | None = None) -> str:
    """The text of a recipe for this file; `stated` are data.key=value words for what looking does not tell.

    Raises DataError when the file cannot be read or its columns say nothing, RecipeError for a word that is no key.
    """
    asked = parse_recipe("", str(file), [f"data.path={_quoted(str(file))}", *(stated or [])])
    reading = read_records(asked.recipe.data)
    split = split_records(reading)
    section = reading.section
    why = {decision.name: decision.reason for decision in [*reading.decisions, split.decision]}
    lines = [
        _comment(f"Written by `halfbyte new {file}`. Every key is explained by `halfbyte recipe --explain`."),
        f"name: {_quoted(folder_name(file.stem))}",
        f"base: {base if base == 'embedded' else _quoted(base)}                # or a folder, or a hub name such as mistralai/Mistral-7B-v0.1",
        "",
        f"# {reading.records_read} rows read" + "".join(f"; {count} left out: {reason}" for reason, count in reading.left_out.items()),
        *(_comment(f"{decision.name} {decision.value}: {decision.reason}") for decision in reading.decisions if decision.name in FOUND),
        *(_comment(note) for note in reading.notes),
        "data:",
        f"  path: {_quoted(str(file))}",
        f"  kind: {section.kind}                # {why['data']}",
    ]
    if isinstance(section, TextData):
        if section.column:
            lines += [f"  column: {_quoted(section.column)}", f"  rows: {section.rows}                # {why.get('rows', 'paragraphs of one text')}"]
        longest = 256 if section.rows == "separate" else 512
        lines.append(f"  max_length: {longest}           # tokens of a block")
    else:
        lines += [
            f"  prompt_column: {_quoted(section.prompt_column)}",
            f"  response_column: {_quoted(section.response_column)}    # only the response and its end mark are trained",
            "  prompt_template: chat     # the base's chat template; or a text with {prompt} in it",
            "  max_length: 512           # longer rows are left out and counted",
        ]
    lines += [
        f"  validation_share: {section.validation_share}    # chooses the best checkpoint",
        f"  test_share: {section.test_share}          # opened once, at the end. {split.decision.value}: {split.decision.reason}",
        "",
        "adapter:",
        "  r: 16",
        "  alpha: 32",
        "train:",
        "  learning_rate: 2e-4       # 1e-3 suits the embedded base" if base != "embedded" else "  learning_rate: 1e-3       # 2e-4 suits a 7B base",
        f"  num_epochs: {_epochs(len(split.train))}             # {len(split.train)} rows to train on",
        "evaluate:",
        "  prompts: []               # answered by base and tuned in the report; a few held-out rows when empty",
    ]
    return "\n".join(lines) + "\n"


def _epochs(rows: int) -> int:
    return 5 if rows < 500 else 3 if rows < 5000 else 1


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _comment(text: str) -> str:
    return "# " + "".join(c if c.isprintable() else " " for c in text)
