"""Set-ups for the proofs of checks/: a toy base and a few rows, put together by the functions that a real run is put together by."""

import json
from pathlib import Path
from typing import Any

from halfbyte.api.data import prepare_for
from halfbyte.api.memory import adapt_new, load_for, plan_memory
from halfbyte.api.subject import subject_of
from halfbyte.checks.subject import Subject
from halfbyte.model.base import find_base
from halfbyte.model.load import load_tokenizer
from halfbyte.model.machine import look_at_machine
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.plan import make_plan
from toys import make_base

TALK = [
    ("who lit the lamp?", "the keeper lit the lamp."), ("was the sea quiet?", "yes, the sea was quiet at this hour."), ("who comes there?", "an old man."),
    ("what do you want?", "let me in, for the night is cold and the road is dark."), ("is the road dark?", "it is."),
    ("how far is it?", "a long way over the hills."),
    ("who opened the door?", "he opened the door."), ("is the night cold?", "the night is cold, said the old man."), ("what is the hour?", "this hour."),
]  # fmt: skip
BOOK = "the keeper lit the lamp and the sea was quiet. he opened the door, for the night is cold and the road is dark. " * 12


def make_subject(
    folder: Path, architecture: str = "mistral", text: bool = False, words: list[str] | None = None, talk: list[tuple[str, str]] | None = None, **changes: Any
) -> Subject:
    """words: keys of a recipe, such as adapter.r=2. talk: instead of TALK.

    changes: of the toy's config, such as num_hidden_layers=3. bos, chat: of its tokenizer.
    """
    base_folder = make_base(folder / "base", architecture, **changes)
    if text:
        file = folder / "book.txt"
        file.write_text(BOOK, encoding="utf-8")
        data = f"data:\n  path: {file}\n  kind: text\n  max_length: 48\n"
    else:
        file = folder / "talk.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in talk or TALK), encoding="utf-8")
        data = f"data:\n  path: {file}\n  kind: prompt_response\n  prompt_column: prompt\n  response_column: response\n  max_length: 96\n"
    settings = f"name: toy\nbase: {base_folder}\n{data}  validation_share: 0\n  test_share: 0\ntrain:\n  batch_size: 2\n  gradient_accumulation_steps: 2\n"
    recipe = parse_recipe(settings + "adapter:\n  r: 4\n  alpha: 8\n", "toy.yaml", words or []).recipe
    machine, base = look_at_machine(), find_base(recipe.base)
    tokenizer = load_tokenizer(base)
    prepared = prepare_for(recipe, base, tokenizer, None)
    memory = plan_memory(recipe, base, machine, prepared)
    plan = make_plan(recipe.train, machine, len(prepared.train), False, [], [], memory.computing)

    def build() -> Any:
        return adapt_new(load_for(recipe, base, machine, plan), recipe, machine, plan)[0]

    return subject_of(recipe, base, tokenizer, prepared, plan, build(), build)
