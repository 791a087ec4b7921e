"""Token ids in, token ids out: batched decoding for reports and files, streaming for chat.

The inside is transformers' generate; callers know only the three functions, so that a faster engine can
take its place. Every setting is given here: nothing is inherited from the base's generation_config.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from halfbyte.errors import DataError
from halfbyte.model.precision import compute_in
from halfbyte.model.room import AtATime


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy: the most likely token each time."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Marks:
    """Ids that end an answer, and the id that fills a batch."""

    end: list[int]
    pad: int


class Answer(NamedTuple):
    """Without the prompt and without the end mark."""

    ids: list[int]
    ended: bool
    """By an end mark, not by the limit."""


def generate_answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    marks: Marks,
    sampling: Sampling,
    dtype: torch.dtype,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    at_a_time: AtATime | None = None,
) -> list[Answer]:
    """One answer a prompt, in order. Prompts of about one length share a batch, the longest first: what does not fit is known at once.

    Once memory has run out fewer are answered at a time, which `at_a_time` tells and keeps.
    """
    answers: list[Answer] = [Answer([], ended=False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    done = 0
    with _ready(model, marks, sampling) as settings:

        def answer_some(some: list[int]) -> None:
            nonlocal done
            for index, answer in zip(some, _decode(model, [prompts[index] for index in some], marks, sampling, settings, dtype), strict=True):
                answers[index] = answer
            done += len(some)
            if progress:
                progress(done)

        (at_a_time or AtATime(batch_size)).each(order, answer_some)
    return answers


def generate_batch(
    model: PreTrainedModel, prompts: list[list[int]], marks: Marks, sampling: Sampling, dtype: torch.dtype, batch_size: int = 8,
    at_a_time: AtATime | None = None,
) -> list[list[int]]:  # fmt: skip
    """One answer a prompt, in order, without the prompt and without the end mark; fewer at a time once memory has run out, which `at_a_time` keeps."""
    answers: list[list[int]] = []
    with _ready(model, marks, sampling) as settings:

        def answer_some(some: list[list[int]]) -> None:
            answers.extend(answer.ids for answer in _decode(model, some, marks, sampling, settings, dtype))

        (at_a_time or AtATime(batch_size)).each(prompts, answer_some)
    return answers


def generate_stream(
    model: PreTrainedModel,
    prompt: list[int],
    marks: Marks,
    sampling: Sampling,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    show: Callable[[str], None],
) -> list[int]:
    """Decodes one prompt; `show` gets each finished piece of text as it comes. Returns the ids of the answer."""
    with _ready(model, marks, sampling) as settings:
        return _decode(model, [prompt], marks, sampling, settings, dtype, _Shown(tokenizer, marks, show))[0].ids


class _Shown:
    """Hands on the text of an answer as it grows; transformers calls put and end.

    The whole answer is decoded each time, because a tokenizer may write a token otherwise where a text begins.
    A character whose bytes are not all there yet decodes to U+FFFD and waits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: Marks, show: Callable[[str], None]):
        self.tokenizer, self.marks, self.show = tokenizer, marks, show
        self.ids: list[int] = []
        self.shown = 0
        self.prompt_is_next = True

    def put(self, ids: Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        self.ids += [token for token in ids.flatten().tolist() if token not in self.marks.end]
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            self._show_rest(text)

    def end(self) -> None:
        self._show_rest(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _show_rest(self, text: str) -> None:
        if len(text) > self.shown:
            self.show(text[self.shown :])
            self.shown = len(text)


class _RepetitionPenalty:
    """transformers' penalty on ids already there, but on real ones: its own takes the padding of a batch for something said."""

    def __init__(self, penalty: float, ids: Tensor, mask: Tensor):
        """ids and mask (B, T): the prompts as they stand in the batch."""
        self.prompts = torch.where(mask.bool(), ids, ids[:, -1:])  # a padded place repeats the last id of its prompt
        self.penalise = RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.penalise(torch.cat([self.prompts, input_ids[:, self.prompts.shape[1] :]], dim=1), scores)


@contextmanager
def _ready(model: PreTrainedModel, marks: Marks, sampling: Sampling) -> Iterator[GenerationConfig]:
    """Eval mode, our settings and nothing of the base's; everything as before afterwards."""
    greedy = sampling.temperature == 0
    drawn = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=not greedy, eos_token_id=marks.end or None, pad_token_id=marks.pad, use_cache=True, **drawn
    )
    was_training = model.training
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owners = owner.generation_config
    owner.generation_config = settings  # what `generate` is not given, it takes from here
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed)
            yield settings
    finally:
        model.train(was_training)
        owner.generation_config = owners


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    marks: Marks,
    sampling: Sampling,
    settings: GenerationConfig,
    dtype: torch.dtype,
    streamer: _Shown | None = None,
) -> list[Answer]:
    """Padded on the left, so that every prompt ends where its answer begins."""
    if not all(prompts):
        raise DataError(f"prompt {prompts.index([]) + 1} has no tokens, so there is nothing to go on from", hint="write at least one word")
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), marks.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    penalties = [_RepetitionPenalty(float(sampling.repetition_penalty), ids, mask)] if sampling.repetition_penalty != 1 else []
    with compute_in(device, dtype):
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList(penalties), streamer=streamer)
    return [_until_end(row[longest:], marks.end) for row in out.tolist()]


def _until_end(ids: list[int], end: list[int]) -> Answer:
    for place, token in enumerate(ids):
        if token in end:
            return Answer(ids[:place], ended=True)
    return Answer(ids, ended=False)
