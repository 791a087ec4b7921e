"""A tuned model in use: base and adapter of a run, opened once, for chat, files of prompts and classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from halfbyte.api.identity import check_base
from halfbyte.data.records import Message
from halfbyte.data.render import Template
from halfbyte.errors import DataError
from halfbyte.evaluate import classify as scoring
from halfbyte.generate.engine import Marks, Sampling, generate_batch, generate_stream
from halfbyte.generate.prompts import answer_marks, prompt_ids
from halfbyte.model.adapter import load_adapter
from halfbyte.model.base import check_same_base, find_base
from halfbyte.model.load import load_base, load_tokenizer, set_cpu_repacking
from halfbyte.model.machine import look_at_machine, torch_device
from halfbyte.model.placement import place_layers
from halfbyte.model.precision import DTYPES
from halfbyte.model.room import AtATime, Tell, naming_memory
from halfbyte.recipe.plan import Placement
from halfbyte.recipe.schema import FP4, NF4, NoQuant
from halfbyte.runs.folder import open_run

# Room for prompt and answer on a base whose config names no length.
UNNAMED_CONTEXT = 2048
SHORTER = "shorten the prompts or --max-new-tokens, or close what else needs memory"


@dataclass(frozen=True)
class Tuned:
    """A trained model ready for use: base with adapter, its tokenizer and template."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: Template
    marks: Marks
    dtype: torch.dtype
    context: int


def open_tuned(path: Path, fast_cpu: bool = True) -> Tuned:
    """Base and adapter of a run, for chat and generation. `fast_cpu` lets bitsandbytes repack where the CPU can."""
    run = open_run(path)
    kept = run.read_plan("base", "base_fingerprint", "precision", "quant", "template")
    run.check_adapter()
    base = find_base(kept["base"])
    check_same_base(kept["base_fingerprint"], base)
    check_base(run, base)
    tokenizer = load_tokenizer(base)
    machine = look_at_machine()
    precision = kept["precision"] if machine.device == "cuda" else "float32"
    computing = kept.get("computing") or {}
    away = [layer["weights"] == "cpu" for layer in computing.get("layers", [])] if machine.device == "cuda" else []
    device = torch.device("cpu") if any(away) and computing["load_on_cpu"] else torch_device(machine)
    with naming_memory("while loading", "close what else needs memory"):
        model = load_adapter(load_base(base, _quant(kept["quant"]), precision, device).model, str(path))
        if any(away):  # layers that had no room in training have none now
            place_layers(model, [Placement("cpu", "recomputed") if one else Placement() for one in away], torch_device(machine))
            model.eval()
    if fast_cpu:
        set_cpu_repacking(model, on=True)
    template = Template(**kept["template"])
    context = base.context or UNNAMED_CONTEXT
    return Tuned(model, tokenizer, template, answer_marks(tokenizer, template, base), DTYPES[precision], context)


def answer_all(
    tuned: Tuned, prompts: list[str], sampling: Sampling, batch_size: int = 8, on_batch: Callable[[list[str], list[str]], None] | None = None,
    tell: Tell | None = None,
) -> list[str]:  # fmt: skip
    """One answer to each prompt, by batched decoding; `on_batch` gets prompts and answers as they come. A prompt without room is refused before the first.

    `tell` hears that memory ran out, and that fewer are answered at a time.
    """
    ids = [prompt_ids([{"role": "user", "content": prompt}], tuned.template, tuned.tokenizer) for prompt in prompts]
    for number, prompt in enumerate(ids, 1):
        _check_room(f"prompt {number}", len(prompt), tuned, sampling)
    answers: list[str] = []
    at_a_time = AtATime(batch_size, tell)
    for start in range(0, len(ids), batch_size):
        drawn = replace(sampling, seed=sampling.seed + start)  # batches draw apart from one another
        with naming_memory("while answering", SHORTER):
            said = generate_batch(tuned.model, ids[start : start + batch_size], tuned.marks, drawn, tuned.dtype, batch_size, at_a_time)
        answers += [tuned.tokenizer.decode(answer, skip_special_tokens=True) for answer in said]
        if on_batch:
            on_batch(prompts[start : start + batch_size], answers[start:])
    return answers


def reply(tuned: Tuned, messages: list[Message], sampling: Sampling, show: Callable[[str], None]) -> tuple[str, int]:
    """The next turn of a conversation, shown as it comes; and how many of the oldest messages no longer fitted."""
    room = tuned.context - sampling.max_new_tokens
    forgotten = 0
    ids = prompt_ids(messages, tuned.template, tuned.tokenizer)
    while len(ids) > room and forgotten + 2 < len(messages):
        forgotten += 2  # a whole turn: what was asked and what was answered
        ids = prompt_ids(messages[forgotten:], tuned.template, tuned.tokenizer)
    _check_room("the prompt", len(ids), tuned, sampling)
    with naming_memory("while answering", SHORTER):
        answer = generate_stream(tuned.model, ids, tuned.marks, sampling, tuned.dtype, tuned.tokenizer, show)
    return tuned.tokenizer.decode(answer, skip_special_tokens=True), forgotten


def classify(path: Path, texts: list[str], batch_size: int = 16) -> list[scoring.Classified]:
    """The class of each text with its confidence, by the scorer that evaluation fitted. Raises DataError for a run without one."""
    scorer = scorer_of(path)
    tuned = open_tuned(path, fast_cpu=False)
    with naming_memory("while classifying", "shorten the texts, or close what else needs memory"):
        return scoring.classify(tuned.model, tuned.tokenizer, tuned.template, scorer, texts, tuned.dtype, tuned.context, tuned.marks.pad, batch_size)


def scorer_of(path: Path) -> scoring.Scorer:
    """What the run's evaluation fitted; its notes say whether it is calibrated."""
    return scoring.load_scorer(open_run(path).path / "evaluation" / "scorer.json")


def _check_room(what: str, length: int, tuned: Tuned, sampling: Sampling) -> None:
    room = tuned.context - sampling.max_new_tokens
    if length > room:
        raise DataError(f"{what} has {length} tokens, room is {room} ({tuned.context} less {sampling.max_new_tokens} for the answer)", hint="shorten it")


def _quant(kept: dict[str, Any]) -> NF4 | FP4 | NoQuant:
    return {"nf4": NF4, "fp4": FP4, "none": NoQuant}[kept["kind"]](**kept)
