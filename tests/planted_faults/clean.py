"""Set-ups in which nothing is wrong, some of which look as if something were: no proof may fail on one. On a few of them faults are planted.

Each is made by make_subject, as a run is, and is as small as a toy can be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from halfbyte.checks.subject import Subject
from planted_faults.planting import with_rows
from toy_subjects import TALK, make_subject


@dataclass(frozen=True)
class Toy:
    """`changes`: what make_subject is given. `after`: what becomes of the subject then; for rows that make_subject has no file for."""

    told: str
    changes: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Subject], Subject] | None = None

    def make(self, folder: Path) -> Subject:
        subject = make_subject(folder, **self.changes)
        return self.after(subject) if self.after else subject


def conversations(subject: Subject) -> Subject:
    """Two or three questions a row, each answered."""
    assert subject.encode_row is not None
    turns = [({"role": "user", "content": asked}, {"role": "assistant", "content": said}) for asked, said in TALK]
    rows = [[turns[(start + turn) % len(turns)] for turn in range(2 + start % 2)] for start in range(len(turns))]
    return with_rows(subject, [subject.encode_row(list(chain(*row))) for row in rows])


def unequal(subject: Subject) -> Subject:
    """From one word to a dozen sentences."""
    assert subject.encode_row is not None
    answers = [" ".join(said for _, said in TALK[:count] * (count // 3)) or "no." for count in range(9)]
    return with_rows(
        subject, [subject.encode_row([{"role": "user", "content": asked}, {"role": "assistant", "content": said}]) for (asked, _), said in zip(TALK, answers)]
    )


TOYS = {
    "chat": Toy("mistral, its own chat template, one question a row"),
    "plain": Toy("llama without a chat template", {"architecture": "llama", "chat": False}),
    "text": Toy(
        "qwen2 without a begin mark, tied embeddings, a book",
        {"architecture": "qwen2", "text": True, "bos": False, "tie_word_embeddings": True, "vocab_size": 328},
    ),
    "packed": Toy("mistral, several documents a row", {"words": ["data.packing=best_fit"]}),
    "falcon": Toy("falcon, several documents a row", {"architecture": "falcon", "words": ["data.packing=best_fit"]}),
    "qwen3": Toy("qwen3, several documents a row, four layers", {"architecture": "qwen3", "words": ["data.packing=best_fit"], "num_hidden_layers": 4}),
    "dropout": Toy("a tenth of the adapter's input dropped, layers recomputed", {"words": ["adapter.dropout=0.1", "train.gradient_checkpointing=true"]}),
    "attention dropout": Toy("mistral, whose attention drops a tenth by a call of its own", {"attention_dropout": 0.1}),
    "dropout of the base": Toy("falcon, which drops a tenth after each block", {"architecture": "falcon", "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "experts": Toy("mixtral, fused experts, two of four a token", {"architecture": "mixtral", "words": ["quant.kind=none"]}),
    "dora": Toy(
        "llama, DoRA, one row at a time and four a step",
        {"architecture": "llama", "words": ["adapter.kind=dora", "train.batch_size=1", "train.gradient_accumulation_steps=4"]},
    ),
    "rank one": Toy(
        "qwen2, rsLoRA of rank one, ids that mean nothing", {"architecture": "qwen2", "vocab_size": 328, "words": ["adapter.kind=rslora", "adapter.r=1"]}
    ),
    "rslora": Toy("rsLoRA of rank four", {"words": ["adapter.kind=rslora"]}),
    "loud": Toy("alpha is eight times the rank", {"words": ["adapter.alpha=32"]}),
    "head": Toy("the head is trained whole", {"words": ["adapter.modules_to_save=[lm_head]"]}),
    "two modules": Toy("an adapter on two projections of each layer alone", {"words": ["adapter.target_modules=[q_proj,v_proj]"]}),
    "bfloat16": Toy("computed in bfloat16", {"words": ["train.precision=bfloat16"]}),
    "unquantised": Toy("plain LoRA", {"architecture": "llama", "words": ["quant.kind=none"]}),
    "unequal": Toy("rows from one word to a dozen sentences", {"words": ["data.max_length=400"]}, unequal),
    "conversations": Toy("several turns a row", {"words": ["data.max_length=256"]}, conversations),
    "short": Toy("a third of the rows is too long and left out", {"words": ["data.max_length=44"]}),
    "all trained": Toy("the recipe asks for prompts to be trained too", {"words": ["data.loss=all"]}),
    "blank": Toy("a template whose prompt ends in a blank", {"architecture": "llama", "words": ["data.prompt_template='Q: {prompt}\nA: '"]}),
    "one step an epoch": Toy("a step holds more rows than there are, and the rate stays", {"words": ["train.batch_size=16", "train.schedule=constant"]}),
    "window": Toy("rows longer than the base's sliding window", {"sliding_window": 16, "words": ["train.max_grad_norm=0.3", "train.schedule=linear"]}),
}
