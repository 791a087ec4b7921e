"""The set-up that a run is about to use, handed to the proofs of checks/: the very functions that training, saving and loading call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import Batch, epoch_steps, make_batch
from halfbyte.data.prepare import Prepared
from halfbyte.data.records import Message, Record
from halfbyte.data.render import render_record
from halfbyte.data.tokens import Tokens, begin_ids, encode_example
from halfbyte.evaluate.loss import measure_loss
from halfbyte.generate.engine import Sampling, generate_answers
from halfbyte.generate.prompts import answer_marks, pad_id, prompt_ids
from halfbyte.model.adapter import adapter_beside, save_adapter
from halfbyte.model.base import Base
from halfbyte.model.placement import recomputing
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.plan import Computing, Plan
from halfbyte.recipe.schema import Recipe, TextData
from halfbyte.train.optimizer import learning_rate_at, make_optimizer
from halfbyte.train.step import Accumulate, StepResult, batch_logits, summed_loss, train_step
from halfbyte.train.ways import fast_way, why_not_fast

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

UNNAMED_CONTEXT = 2048  # of a base whose config names no length


def _scale(alpha: float, r: int, by_root: bool) -> float:
    return alpha / (r**0.5 if by_root else r)


def _own_scale(model: "PeftModel") -> float:
    """Of an adapter that the run goes on from: by its own settings, which are kept."""
    config = cast("LoraConfig", model.peft_config[str(model.active_adapter)])
    return _scale(config.lora_alpha, config.r, config.use_rslora)


def _fast(model: nn.Module, computing: Computing, dtype: torch.dtype) -> Accumulate | None:
    """The fast path's gradients, where the run takes it: made when they are first asked for, with weights that are not kept."""
    if computing.path != "fast" or why_not_fast(model, dtype, computing.fp8):
        return None
    lean = replace(computing, layers=tuple(replace(layer, weights="4bit") for layer in computing.layers))
    made = cache(lambda: fast_way(model, lean, dtype, record=False))
    return lambda batch, scale: made()(batch, scale)


def subject_of(
    recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, plan: Plan, model: "PeftModel", build: Callable[[], "PeftModel"]
) -> Subject:
    """model: base and new adapter as training has them. build: makes them once more."""
    dtype, pad, train = DTYPES[plan.precision], pad_id(tokenizer), recipe.train
    marks = answer_marks(tokenizer, prepared.template, base)
    section = recipe.adapter
    talks = prepared.template.kind != "text"
    computing = plan.computing

    def encode_row(messages: Sequence[Message]) -> Tokens:
        return encode_example(render_record(Record("", 0, messages=tuple(messages)), prepared.template, tokenizer), tokenizer)

    def epoch(number: int) -> Iterator[list[Batch]]:
        return epoch_steps(prepared.train, computing.micro_batch_size, computing.gradient_accumulation_steps, pad, recipe.seed, number)

    def step(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer) -> StepResult:
        scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=dtype == torch.float16)
        return train_step(model, batches, optimizer, train.max_grad_norm, dtype, scaler)

    def generate(model: nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        return [answer.ids for answer in generate_answers(model, prompts, marks, Sampling(new_tokens), dtype, len(prompts))]

    def rate(step: int) -> float:
        return learning_rate_at(step, train.learning_rate, train.schedule, plan.warmup_steps, plan.total_steps)

    return Subject(
        fast=_fast(model, computing, dtype), fp8=computing.fp8,
        model=model, build=build, dtype=dtype, tokenizer=tokenizer, begin_ids=tuple(begin_ids(tokenizer)), end_ids=tuple(marks.end), pad_id=pad,
        context=base.context or UNNAMED_CONTEXT, max_length=recipe.data.max_length,
        rows=prepared.train, encode_row=encode_row if talks else None,
        encode_prompt=partial(prompt_ids, template=prepared.template, tokenizer=tokenizer) if talks else None,
        collate=partial(make_batch, pad_id=pad), epoch=epoch, rows_per_step=computing.micro_batch_size * computing.gradient_accumulation_steps,
        logits=partial(batch_logits, dtype=dtype), loss=summed_loss,
        make_optimizer=lambda model: make_optimizer(plan.optimizer, model.parameters(), train.learning_rate, train.weight_decay), step=step,
        rate=rate, total_steps=plan.total_steps, peak_rate=train.learning_rate, recompute=recomputing,
        evaluate=lambda model, batches: measure_loss(model, batches, dtype).mean, generate=generate,
        save=lambda model, folder: save_adapter(model, folder, base.place, base.revision), reloaded=adapter_beside,
        scale=_scale(section.alpha, section.r, section.kind == "rslora") if section.init_from is None else _own_scale(model),
        trained="all" if isinstance(prepared.section, TextData) else prepared.section.loss,
        epochs=None if train.max_steps else train.num_epochs, begins_as_base=section.init_from is None, asked=section if section.init_from is None else None,
        quant=recipe.quant if base.quantization is None else None,
        max_norm=train.max_grad_norm, warmup_steps=plan.warmup_steps, weight_decay=train.weight_decay,
    )  # fmt: skip
