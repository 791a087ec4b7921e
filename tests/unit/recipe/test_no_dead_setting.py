"""Every key of the recipe changes something: each is turned, and the change is looked for where it should show.

The keys are read from the schema, so a new one without a line below fails. What is seen on a CPU without training is seen in the prepared rows, the plan
or the model; the rest in a short training or a measurement of toys. What can only be seen on a GPU stands in NOT_HERE with its reason.
"""

import copy
import json
import random
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import measure as measuring
from halfbyte.evaluate.classify import fit_scorer
from halfbyte.evaluate.gate import promised
from halfbyte.evaluate.measure import Subject, measure
from halfbyte.generate.prompts import answer_marks
from halfbyte.recipe.load import dump_recipe, parse_recipe
from halfbyte.recipe.schema import Adapter, ChatData, FileData, Recipe, Train
from halfbyte.runs import trackers
from halfbyte.runs.folder import new_run
from toy_training import adapted, random_rows, run_toy, toy_plan
from toys import make_base

NOT_HERE: dict[str, str] = {
    "memory_budget": "a run without a GPU takes the memory that it needs; tests/unit/budget and tests/gpu hold it to its budget",
    "train.fast_path": "it is for GPUs, where the plan takes it by itself; tests/unit/budget/test_fast_choose.py turns it",
}
"""Key -> why its effect cannot be seen on a CPU."""


def every_key() -> list[str]:
    """`train.batch_size`; a key that only some kinds of data have is `data.column (text)`."""
    keys = []
    for name, field in Recipe.model_fields.items():
        classes = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type) and issubclass(part, BaseModel)]
        if not classes:
            keys.append(name)
        elif name == "data":
            keys += [f"data.{key}" for key in (*ChatData.model_fields, "kind")]
            for kind in classes:
                own = set(kind.model_fields) - set(ChatData.model_fields) - set(FileData.model_fields) - {"kind"}
                keys += [f"data.{key} ({get_args(kind.model_fields['kind'].annotation)[0]})" for key in kind.model_fields if key in own]
        else:
            keys += list(dict.fromkeys(f"{name}.{key}" for kind in classes for key in kind.model_fields))
    return keys


# The data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base and small files of every kind."""
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    make_base(folder / "other", seed=1)
    people = ["ann", "bob", "cid"]

    def table(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    draw = random.Random(0)
    words = ["".join(draw.choices("bdfgklmnprst", k=2)) + draw.choice("aeiou") + "".join(draw.choices("bdfgklmnprst", k=2)) for _ in range(300)]
    asked = [f"{' '.join(draw.sample(words, 6))} of {people[i % 3]}?" for i in range(36)]
    said = [f"{' '.join(draw.sample(words, 6))}, write to k{i}@example.org" for i in range(36)]
    pairs = [{"prompt": p, "response": r, "other": f"another word {i}", "who": people[i % 3]} for i, (p, r) in enumerate(zip(asked, said, strict=True))]
    long = "he opened the door and the sea was quiet and the road was dark, for the night is cold in the hills and the old man said so. " * 2
    near = [{**pairs[0], "prompt": "near", "response": long + end} for end in ("yes", "yes.")]
    table("pairs.jsonl", [*pairs, pairs[3], *near])
    table("more.jsonl", [{**row, "response": row["response"] + " again"} for row in pairs])
    table("held.jsonl", [{**pairs[i], "prompt": f"a new one {i}"} for i in range(6)] + pairs[:2])
    (folder / "bad.csv").write_text("prompt,response\n" + "".join(f"{p},keeper {i}\n" for i, p in enumerate(asked)) + "only one\n")
    (folder / "odd.csv").write_bytes(b"prompt,response\n" + b"".join(f"who {i},caf\xe9 {i}\n".encode("cp1252") for i in range(20)))
    table("texts.jsonl", [{"text": f"{one} {i}. he opened the door.", "second": f"{i} the sea was quiet {one}"} for i, one in enumerate(asked)])
    page = "\n\n".join(f"{i}. the keeper lit the lamp and the sea was quiet; who comes there, said the old man {i}." for i in range(120))
    (folder / "book.txt").write_text(page)
    start, end = (f"*** {word} OF THE PROJECT GUTENBERG EBOOK A TALE ***" for word in ("START", "END"))
    (folder / "tale.txt").write_text(f"The Project Gutenberg eBook of A Tale\n\n{start}\n\n{page}\n\n{end}\n\nThe licence text.\n")
    table("labels.jsonl", [{"text": p, "label": f"c:{'up' if i % 2 else 'down'}", "second": f"{i} {p}", "other": "xyz"[i % 3]} for i, p in enumerate(asked)])
    table("steps.jsonl", [{"instruction": p, "input": f"about {i}", "output": r, "second": f"{i} {r}", "third": f"{p} {i}"}
                          for i, (p, r) in enumerate(zip(asked, said, strict=True))])  # fmt: skip
    talk = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in zip(asked, said, strict=True)]
    table("talks.jsonl", [{"messages": turns, "second": [*turns, *turns]} for turns in talk])
    told = [[{"from": "human", "value": p}, {"from": "gpt", "value": r}] for p, r in zip(asked, said, strict=True)]
    table("shared.jsonl", [{"conversations": turns, "second": [*turns, *turns]} for turns in told])
    table("tagged.jsonl", [{"turns": f"<HUMAN>: {p} <ASSISTANT>: {r} Q: no A: yes", "second": f"<HUMAN>: {r} <ASSISTANT>: {p} Q: no A: yes"}
                           for p, r in zip(asked, said, strict=True)])  # fmt: skip
    return folder


def recipe_of(place: Path, words: list[str]):
    """On the pairs, unless the words name another file."""
    text = f"name: toy\nbase: {place / 'base'}\ndata:\n  max_length: 128\ntrain:\n  max_steps: 4\n"
    whole = [word.replace("FOLDER", str(place)) for word in ["data.path=FOLDER/pairs.jsonl", *words]]
    last = {word.partition("=")[0]: word for word in whole}
    return parse_recipe(text, "toy.yaml", list(last.values()))


# Where an effect shows. Each takes words and gives what they lead to; what is refused is an effect too.


def in_rows(place, words):
    prepared = api.prepare(recipe_of(place, words))
    decided = [(one.name, one.value) for one in prepared.decisions if one.name != "data"]
    return prepared.fingerprint, prepared.labels, json.dumps(prepared.ledger), decided, prepared.template.as_json()


def in_plan(place, words):
    planned = api.plan(recipe_of(place, words))
    shown = [(one.name, one.value, one.reason) for one in planned.plan.decisions if one.name not in ("device", "template")]
    computing = planned.plan.computing
    return shown, planned.plan.notes, planned.prompts, planned.base.fingerprint, planned.plan.eval_steps, computing.evaluate_rows


def in_model(place, words):
    """Names, shapes and values of what trains, and what comes out, in training too (dropout)."""
    recipe = recipe_of(place, words).recipe
    model = adapted(place / "base", recipe.adapter, recipe.seed, recipe.quant, stirred=True)
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        out = model(input_ids=torch.arange(5, 40)[None]).logits
    return [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad], out.double().sum().item()


def in_training(place, words):
    recipe = recipe_of(place, words).recipe
    rows = random_rows([12, 15, 9, 14, 11, 13, 10, 12])
    folder = place / f"checkpoints-{abs(hash(tuple(words)))}"
    bad = iter(range(1, 100))  # every validation is worse than the one before
    plan = toy_plan(len(rows), recipe.train, 8, eval_steps=1)
    course = run_toy(place / "base", folder, rows, recipe.train, plan, adapter=Adapter(r=4), seed=recipe.seed, validate=lambda: (float(next(bad)), 10))
    return course.told("step", "loss", "grad_norm", "learning_rate"), sorted(path.name for path in folder.iterdir())


def in_measurement(place, words):
    """What base and tuned are asked, and what comes out of it."""
    planned = api.plan(recipe_of(place, words))
    recipe, prepared = planned.recipe, planned.prepared
    model = adapted(place / "base", Adapter(r=4), stirred=True).eval()
    marks = answer_marks(planned.tokenizer, prepared.template, planned.base)
    events: list[dict[str, Any]] = []
    subject = Subject(model, planned.tokenizer, marks, torch.float32, prepared, recipe.evaluate, 64, planned.base.context, planned.prompts[:2], lambda *_: None)
    found = measure(subject, events.append)
    return json.dumps([*events, *(one.as_json() for one in found.comparisons(0))], default=str)


def in_the_scorer(place, words):
    """What the scorer of classes is fitted with: a model of random weights knows no confidence that a threshold could part."""
    fitted = []

    def fit(classes, scores, gold, instruction, wanted_accuracy):
        fitted.append(wanted_accuracy)
        even = np.linspace(0.5, 0.99, 20)
        return fit_scorer(classes, np.log(np.stack([even, 1 - even], 1)), [classes[i % 3 == 0] for i in range(20)], instruction, wanted_accuracy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "fit_scorer", fit)
        in_measurement(place, words)
    return fitted


def in_promises(place, words):
    run = place / f"run-{abs(hash(tuple(words)))}"
    run.mkdir(exist_ok=True)
    (run / "plan.json").write_text("{}")
    (run / "recipe.resolved.yaml").write_text(dump_recipe(recipe_of(place, words).recipe))
    return promised(run)


def in_the_folder(place, words):
    with new_run(Path(tempfile.mkdtemp(dir=place)), recipe_of(place, words).recipe.name) as run:
        return run.path.name


def in_trackers(place, words):
    names = recipe_of(place, words).recipe.track.report_to
    trackers.check_trackers(names)
    return names


PAIRS = ["data.kind=prompt_response", "data.prompt_column=prompt", "data.response_column=response"]
BOOK = ["data.path=FOLDER/book.txt", "data.kind=text", "data.rows=book", "data.gap=100"]
TEXTS = ["data.path=FOLDER/texts.jsonl", "data.kind=text", "data.column=text", "data.rows=separate"]
LABELS = ["data.path=FOLDER/labels.jsonl", "data.kind=label", "data.text_column=text", "data.label_column=label"]
STEPS = ["data.path=FOLDER/steps.jsonl", "data.kind=instruction"]
MEANING = ["data.kind=structure", *PAIRS[1:]]
TAGGED = ["data.path=FOLDER/tagged.jsonl", "data.kind=tagged", "data.column=turns"]
SHORT = ["evaluate.max_answers=2", "evaluate.max_new_tokens=3"]
# Key -> where the effect shows, the words that it stands beside, the word that turns it.
TURNED: dict[str, tuple[Any, list[str], str]] = {
    "name": (in_the_folder, [], "name=other"),
    "base": (in_plan, [], "base=FOLDER/other"),
    "seed": (in_model, [], "seed=7"),
    "data.path": (in_rows, PAIRS, "data.path=FOLDER/more.jsonl"),
    "data.encoding": (in_rows, ["data.path=FOLDER/odd.csv", *PAIRS], "data.encoding=mac_roman"),
    "data.on_bad_row": (in_rows, ["data.path=FOLDER/bad.csv", *PAIRS], "data.on_bad_row=skip"),
    "data.licence": (in_plan, PAIRS, "data.licence=CC0-1.0"),
    "data.redact": (in_rows, PAIRS, "data.redact=[email]"),
    "data.max_length": (in_rows, PAIRS, "data.max_length=64"),
    "data.packing": (in_rows, PAIRS, "data.packing=best_fit"),
    "data.validation_share": (in_rows, PAIRS, "data.validation_share=0.3"),
    "data.test_share": (in_rows, PAIRS, "data.test_share=0.3"),
    "data.validation_path": (in_rows, PAIRS, "data.validation_path=FOLDER/held.jsonl"),
    "data.test_path": (in_rows, PAIRS, "data.test_path=FOLDER/held.jsonl"),
    "data.drop_overlap": (in_rows, [*PAIRS, "data.test_path=FOLDER/held.jsonl"], "data.drop_overlap=true"),
    "data.group_column": (in_rows, PAIRS, "data.group_column=who"),
    "data.near_duplicates": (in_rows, PAIRS, "data.near_duplicates=drop"),
    "data.keep_duplicates": (in_rows, PAIRS, "data.keep_duplicates=true"),
    "data.augment": (in_rows, PAIRS, "data.augment=[case]"),
    "data.augment_copies": (in_rows, [*PAIRS, "data.augment=[typos]"], "data.augment_copies=3"),
    "data.kind": (in_rows, TAGGED, "data.kind=text"),
    "data.prompt_template": (in_rows, PAIRS, "data.prompt_template=Q: {prompt} A: "),
    "data.system": (in_rows, PAIRS, "data.system=be brief"),
    "data.system_as": (in_rows, [*PAIRS, "data.system=be brief"], "data.system_as=user"),
    "data.loss": (in_rows, PAIRS, "data.loss=all"),
    "data.column (auto)": (in_rows, ["data.path=FOLDER/texts.jsonl", "data.column=text"], "data.column=second"),
    "data.instruction (auto)": (in_rows, [], "data.instruction=answer in a word"),
    "data.column (text)": (in_rows, TEXTS, "data.column=second"),
    "data.rows (text)": (in_rows, TEXTS, "data.rows=book"),
    "data.separator (text)": (in_rows, BOOK, "data.separator= and so "),
    "data.gap (text)": (in_rows, BOOK, "data.gap=700"),
    "data.keep_boilerplate (text)": (in_rows, [*BOOK, "data.path=FOLDER/tale.txt"], "data.keep_boilerplate=true"),
    "data.prompt_column (prompt_response)": (in_rows, PAIRS, "data.prompt_column=other"),
    "data.response_column (prompt_response)": (in_rows, PAIRS, "data.response_column=other"),
    "data.instruction (prompt_response)": (in_rows, PAIRS, "data.instruction=answer in a word"),
    "data.prompt_column (structure)": (in_rows, MEANING, "data.prompt_column=other"),
    "data.response_column (structure)": (in_rows, MEANING, "data.response_column=other"),
    "data.instruction (structure)": (in_rows, MEANING, "data.instruction=answer in a word"),
    "data.instruction_column (instruction)": (in_rows, STEPS, "data.instruction_column=third"),
    "data.input_column (instruction)": (in_rows, STEPS, "data.input_column=input"),
    "data.output_column (instruction)": (in_rows, STEPS, "data.output_column=second"),
    "data.column (messages)": (in_rows, ["data.path=FOLDER/talks.jsonl", "data.kind=messages"], "data.column=second"),
    "data.column (sharegpt)": (in_rows, ["data.path=FOLDER/shared.jsonl", "data.kind=sharegpt"], "data.column=second"),
    "data.column (tagged)": (in_rows, TAGGED, "data.column=second"),
    "data.user_tag (tagged)": (in_rows, TAGGED, "data.user_tag=Q:"),
    "data.assistant_tag (tagged)": (in_rows, TAGGED, "data.assistant_tag=A:"),
    "data.text_column (label)": (in_rows, LABELS, "data.text_column=second"),
    "data.label_column (label)": (in_rows, LABELS, "data.label_column=other"),
    "data.label_pattern (label)": (in_rows, LABELS, "data.label_pattern=c:(.*)"),
    "data.labels (label)": (in_rows, LABELS, "data.labels=[c:up]"),
    "data.merge_labels (label)": (in_rows, [*LABELS, "data.label_column=other"], "data.merge_labels={x: y}"),
    "data.instruction (label)": (in_rows, LABELS, "data.instruction=answer in a word"),
    "quant.kind": (in_model, [], "quant.kind=none"),
    "quant.double_quant": (in_model, [], "quant.double_quant=false"),
    "adapter.kind": (in_model, [], "adapter.kind=rslora"),
    "adapter.r": (in_model, [], "adapter.r=4"),
    "adapter.alpha": (in_model, [], "adapter.alpha=8"),
    "adapter.dropout": (in_model, [], "adapter.dropout=0.5"),
    "adapter.target_modules": (in_model, [], "adapter.target_modules=[q_proj]"),
    "adapter.modules_to_save": (in_model, [], "adapter.modules_to_save=[embed_tokens]"),
    "adapter.init_from": (in_model, [], "adapter.init_from=FOLDER/nowhere"),
    "train.learning_rate": (in_training, [], "train.learning_rate=1e-3"),
    "train.num_epochs": (in_plan, ["train.max_steps=null"], "train.num_epochs=2"),
    "train.max_steps": (in_plan, [], "train.max_steps=5"),
    "train.batch_size": (in_training, [], "train.batch_size=2"),
    "train.gradient_accumulation_steps": (in_training, [], "train.gradient_accumulation_steps=2"),
    "train.optimizer": (in_plan, [], "train.optimizer=adamw_torch"),
    "train.weight_decay": (in_training, ["train.learning_rate=1e-2"], "train.weight_decay=0.5"),
    "train.schedule": (in_training, [], "train.schedule=constant"),
    "train.warmup_steps": (in_plan, [], "train.warmup_steps=2"),
    "train.max_grad_norm": (in_training, ["train.learning_rate=1e-2"], "train.max_grad_norm=1e-9"),
    "train.gradient_checkpointing": (in_plan, [], "train.gradient_checkpointing=true"),
    "train.precision": (in_plan, [], "train.precision=bfloat16"),
    "train.compute": (in_plan, ["train.fast_path=on", "train.precision=bfloat16"], "train.compute=fp8"),
    "train.eval_steps": (in_plan, [], "train.eval_steps=3"),
    "train.early_stopping_patience": (in_training, [], "train.early_stopping_patience=2"),
    "train.keep_checkpoints": (in_training, [], "train.keep_checkpoints=4"),
    "evaluate.prompts": (in_plan, [], "evaluate.prompts=[who is there]"),
    "evaluate.max_new_tokens": (in_measurement, SHORT, "evaluate.max_new_tokens=9"),
    "evaluate.repetition_penalty": (in_measurement, ["evaluate.max_answers=2", "evaluate.max_new_tokens=12"], "evaluate.repetition_penalty=2.0"),
    "evaluate.batch_size": (in_plan, [], "evaluate.batch_size=3"),
    "evaluate.stride": (in_measurement, [*BOOK, "evaluate.max_new_tokens=2"], "evaluate.stride=20"),
    "evaluate.max_answers": (in_measurement, SHORT, "evaluate.max_answers=3"),
    "evaluate.wanted_accuracy": (in_the_scorer, [*LABELS, *SHORT], "evaluate.wanted_accuracy=0.1"),
    "evaluate.neutral_path": (in_measurement, SHORT, "evaluate.neutral_path=FOLDER/book.txt"),
    "evaluate.min_gain": (in_promises, [], "evaluate.min_gain=0.05"),
    "evaluate.max_forgetting": (in_promises, [], "evaluate.max_forgetting=0.05"),
    "track.report_to": (in_trackers, [], "track.report_to=[wandb]"),
}  # fmt: skip


@pytest.mark.parametrize("key", every_key())
def test_every_key_changes_something(place, key):
    assert key in TURNED or key in NOT_HERE, f"{key} is new: say where its effect shows"
    if key in NOT_HERE:
        return
    look, beside, turn = TURNED[key]
    before, after = (outcome(look, place, words) for words in (beside, [*beside, turn]))
    assert before == outcome(look, place, beside), f"what is looked at for {key} changes by itself"
    assert before != after, f"{turn} changed nothing"


def outcome(look, place, words):
    try:
        return look(place, words)
    except HalfbyteError as error:
        return str(error)


def test_no_line_is_left_of_a_key_that_is_gone():
    assert set(TURNED) | set(NOT_HERE) <= set(every_key())
    assert not set(TURNED) & set(NOT_HERE)


def test_a_turned_key_is_the_one_that_it_stands_for():
    for key, (_, beside, turn) in TURNED.items():
        assert turn.startswith(key.split(" ")[0] + "="), key
        assert turn not in beside


def test_a_new_key_is_seen(monkeypatch):
    """Guards against a walk that misses one."""

    class More(Train):
        unread: int = 3

    assert "train.unread" not in every_key()
    monkeypatch.setitem(Recipe.model_fields, "train", copy.copy(Recipe.model_fields["train"]))
    Recipe.model_fields["train"].annotation = More
    assert "train.unread" in every_key()


def test_the_sentence_of_every_key_is_the_schema_s():
    """The walk here and that of the docs see the same keys."""
    from halfbyte.recipe.explain import every_key as explained

    mine = {key.split(" ")[0] for key in every_key()}
    assert mine - {key for key, *_ in explained()} <= {"data.kind", "quant.kind"}
    assert {key for key, *_ in explained()} <= mine | {"data.kind", "quant.kind"}
