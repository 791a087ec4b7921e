"""Writes docs/recipe.md from the schema, so that the page cannot differ from the program. `make docs` runs it."""

from pathlib import Path

from halfbyte.recipe.explain import every_key
from halfbyte.recipe.load import SWITCHES, TRANSLATIONS

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"


def write() -> str:
    lines = [
        "# The recipe", "",
        "Generated from src/halfbyte/recipe/schema.py by `make docs`. `halfbyte recipe --explain` shows the same in the terminal.",
        "Any key can be given after the recipe: `halfbyte train recipes/frankenstein.yaml adapter.r=8 train.num_epochs=1`.", "",
        "| key | default | what it does |", "|---|---|---|",
        *(f"| `{key}` | {_cell(default)} | {_cell(sentence)} |" for key, default, sentence in every_key()), "",
        "## Spellings of other tools", "",
        "Accepted at the top level, or in the section they belong to, and translated aloud.", "",
        "| elsewhere | here |", "|---|---|",
        *(f"| `{theirs}` | `{ours}` |" for theirs, ours in sorted(TRANSLATIONS.items())),
        *(f"| `{theirs}: true` | `{key}: {on}` |" for theirs, (key, on, _) in sorted(SWITCHES.items())),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(write(), encoding="utf-8")
