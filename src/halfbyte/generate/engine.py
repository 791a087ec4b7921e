"""Token ids in, token ids out: batched decoding for reports and files, streaming for chat.

The inside is transformers' generate; callers know only the two functions, so that a faster engine can
take its place. Every setting is given here: nothing is inherited from the base's generation_config.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from halfbyte.model.precision import compute_in


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


def generate_batch(model: nn.Module, prompts: list[list[int]], marks: Marks, sampling: Sampling, dtype: torch.dtype, batch_size: int = 8) -> list[list[int]]:
    """One answer a prompt, in order, without the prompt and without the end mark."""
    answers: list[list[int]] = []
    with _ready(model, marks, sampling):
        for start in range(0, len(prompts), batch_size):
            answers += _decode(model, prompts[start : start + batch_size], marks, dtype, streamer=None)
    return answers


def generate_stream(
    model: nn.Module, prompt: list[int], marks: Marks, sampling: Sampling, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]
) -> list[int]:
    """Decodes one prompt; `show` gets each finished piece of text as it comes. Returns the ids of the answer."""

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    with _ready(model, marks, sampling):
        return _decode(model, [prompt], marks, dtype, Shown(tokenizer, skip_prompt=True, skip_special_tokens=True))[0]


@contextmanager
def _ready(model: nn.Module, marks: Marks, sampling: Sampling) -> Iterator[None]:
    """Eval mode, our settings and nothing of the base's; everything as before afterwards."""
    was_training, config = model.training, model.generation_config
    greedy = sampling.temperature == 0
    settings = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=not greedy, repetition_penalty=sampling.repetition_penalty,
        eos_token_id=marks.end, pad_token_id=marks.pad, use_cache=True, **settings,
    )  # fmt: skip
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owner_config, owner.generation_config = owner.generation_config, model.generation_config
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed)
            yield
    finally:
        model.train(was_training)
        owner.generation_config, model.generation_config = owner_config, config


@torch.no_grad()
def _decode(model: nn.Module, prompts: list[list[int]], marks: Marks, dtype: torch.dtype, streamer: TextStreamer | None) -> list[list[int]]:
    """Padded on the left, so that every prompt ends where its answer begins."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), marks.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    with compute_in(device, dtype):
        out = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), streamer=streamer)
    return [_until_end(row[longest:], marks.end) for row in out.tolist()]


def _until_end(ids: list[int], end: list[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in end:
            return ids[:place]
    return ids
