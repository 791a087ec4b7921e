"""Faults of evaluation and generation: what is measured, or shown, is not what the model is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from halfbyte.checks.subject import Subject
from halfbyte.data.batches import Batch
from halfbyte.evaluate.loss import evaluating
from planted_faults.planting import fault, mean_loss, padding, with_model

# Evaluation


@fault("1.20", "evaluation")
def mean_of_batch_means(subject: Subject) -> Subject:
    """Each batch's mean counts the same, however many tokens it has: the figure depends on how rows fall into batches."""

    @torch.no_grad()
    def evaluate(model: nn.Module, batches: Sequence[Batch]) -> float:
        with evaluating(model):
            means = [float(subject.loss(subject.logits(model, batch), batch.labels)) / batch.supervised for batch in batches]
        return sum(means) / len(means)

    return replace(subject, evaluate=evaluate)


@fault("1.20", "evaluation")
def padding_scored(subject: Subject) -> Subject:
    """Evaluation has a collator of its own, which gives labels to padding: the figure depends on the batch size."""
    measure = mean_loss(subject.logits, subject.loss)

    def scored(batch: Batch) -> Batch:
        return replace(batch, labels=torch.where(padding(batch), batch.ids, batch.labels))

    return replace(subject, evaluate=lambda model, batches: measure(model, [scored(batch) for batch in batches]))


@fault("1.20", "evaluation")
def divided_by_prompts_too(subject: Subject) -> Subject:
    """The loss of the answers is divided by the tokens of prompts and answers: perplexity looks splendid."""

    def evaluate(model: nn.Module, batches: Sequence[Batch]) -> float:
        tokens, supervised = sum(batch.tokens for batch in batches), sum(batch.supervised for batch in batches)
        return subject.evaluate(model, batches) * supervised / tokens

    return replace(subject, evaluate=evaluate)


@fault("1.27", "evaluation", toy="dropout")
def evaluated_in_training_mode(subject: Subject) -> Subject:
    """Nobody called `model.eval()`: dropout is on, and two evaluations differ."""

    @torch.no_grad()
    def evaluate(model: nn.Module, batches: Sequence[Batch]) -> float:
        model.train()
        return sum(float(subject.loss(subject.logits(model, batch), batch.labels)) for batch in batches) / sum(batch.supervised for batch in batches)

    return replace(subject, evaluate=evaluate)


@fault("1.27", "evaluation", toy="dropout")
def left_in_evaluation_mode(subject: Subject) -> Subject:
    """Validation switches the model to `eval` and nobody switches it back: from the first validation on there is no dropout."""

    def evaluate(model: nn.Module, batches: Sequence[Batch]) -> float:
        measured = subject.evaluate(model, batches)
        model.eval()
        return measured

    return replace(subject, evaluate=evaluate)


def _noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    reach = 5 / (output.shape[-2] * output.shape[-1]) ** 0.5
    return output + torch.empty_like(output).uniform_(-reach, reach)


@fault("1.27", "evaluation")
def noise_on_embeddings_in_evaluation(subject: Subject) -> Subject:
    """NEFTune's noise hangs on the embedding as a hook that does not ask whether the model is in training."""

    def damage(model: PeftModel) -> None:
        model.get_input_embeddings().register_forward_hook(_noise)

    return with_model(subject, damage)


# Generation


def _until_end(subject: Subject, answers: list[list[int]]) -> list[list[int]]:
    return [answer[: next((place for place, token in enumerate(answer) if token in subject.end_ids), len(answer))] for answer in answers]


@torch.no_grad()
def _go_on(model: nn.Module, ids: Tensor, new_tokens: int) -> list[list[int]]:
    """ids (B, T), nothing of which is masked -> the most likely tokens after them."""
    width = ids.shape[1]
    with evaluating(model):
        for _ in range(new_tokens):
            best = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, best[:, None]], dim=1)
    return ids[:, width:].tolist()


@fault("1.9", "answers")
def padded_prompts_without_a_mask(subject: Subject) -> Subject:
    """Prompts of a batch are padded on the left and the mask is not handed on: short ones are read behind padding."""

    def generate(model: nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[subject.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
        return _until_end(subject, _go_on(model, ids, new_tokens))

    return replace(subject, generate=generate)


@fault("1.9", "answers")
def prompts_padded_on_the_right(subject: Subject) -> Subject:
    """The tokenizer pads on the right, as for training: the first word of a short prompt's answer is what follows padding."""

    def generate(model: nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([prompt + [subject.pad_id] * (width - len(prompt)) for prompt in prompts])
        mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
        with evaluating(model), torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(subject.end_ids), pad_token_id=subject.pad_id
            )
        return _until_end(subject, out[:, width:].tolist())

    return replace(subject, generate=generate)


@fault("1.34", "answers")
def sampling_of_the_base(subject: Subject) -> Subject:
    """`generate` is given no settings of its own and takes the base's generation_config, which samples: answers that should be the same are not."""

    def generate(model: nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        answers = []
        with evaluating(model), torch.no_grad():
            for prompt in prompts:
                out = model.generate(
                    input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new_tokens,
                    do_sample=True, temperature=0.7, eos_token_id=list(subject.end_ids), pad_token_id=subject.pad_id,
                )  # fmt: skip
                answers.append(out[0, len(prompt) :].tolist())
        return _until_end(subject, answers)

    return replace(subject, generate=generate)
