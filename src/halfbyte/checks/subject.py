"""What is proven of: one set-up, as a run is about to use it. Each field is the very object, or the very function, that training uses.

A proof calls these and nothing else, so that it speaks of the user's run and not of a copy of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from halfbyte.data.batches import Batch
from halfbyte.data.records import Message
from halfbyte.data.tokens import Tokens
from halfbyte.recipe.schema import FP4, NF4, Adapter, NoQuant
from halfbyte.train.step import Accumulate, StepResult

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Subject:
    """One set-up. Nothing in it may be left changed by a proof: values, modes, gradients and random states are put back."""

    model: "PeftModel"
    """Base and new adapter, each layer in its place, before the first step."""
    build: Callable[[], "PeftModel"]
    """The same once more from disk and seed; as slow, and as large, as the first time."""
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    begin_ids: tuple[int, ...]
    """What every text begins with, () for tokenizers without."""
    end_ids: tuple[int, ...]
    """At any of these an answer ends when it is generated."""
    pad_id: int
    context: int
    """Longest row of the base, in tokens."""
    max_length: int
    """Longest row of the recipe, in tokens."""

    rows: Sequence[Tokens]
    """What is trained on."""
    encode_row: Callable[[Sequence[Message]], Tokens] | None
    """A conversation -> ids, and which are trained. None for plain text."""
    encode_prompt: Callable[[Sequence[Message]], list[int]] | None
    """A conversation that ends with the user -> what generation is given."""
    collate: Callable[[Sequence[Tokens]], Batch]
    epoch: Callable[[int], Iterator[list[Batch]]]
    """Number of an epoch, from 0 -> the micro-batches of each optimizer step."""
    rows_per_step: int

    logits: Callable[[nn.Module, Batch], Tensor]
    """-> (B, T, V), in the mode that the model is in."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """logits (B, T, V), labels (B, T) -> sum over the supervised tokens, ()."""
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    step: Callable[[nn.Module, list[Batch], torch.optim.Optimizer], StepResult]
    """One optimizer step; raises when loss or gradient are not finite."""
    rate: Callable[[int], float]
    """Learning rate of step 1..total_steps."""
    total_steps: int
    peak_rate: float
    recompute: Callable[[nn.Module, bool], AbstractContextManager[None]]
    """Inside, the activations of every layer are recomputed in the backward pass, or of none."""

    evaluate: Callable[[nn.Module, Sequence[Batch]], float]
    """Mean loss over the supervised tokens, as validation measures it."""
    generate: Callable[[nn.Module, list[list[int]], int], list[list[int]]]
    """Prompts, how many new tokens at most -> greedy answers, computed as one batch."""
    save: Callable[[nn.Module, Path], None]
    """The adapter into a new folder."""
    reloaded: Callable[[nn.Module, Path], AbstractContextManager[nn.Module]]
    """Inside, the model answers with the adapter of a folder beside the base that is loaded, read as whoever uses it later reads it."""
    scale: float
    """What the product of the adapter's matrices is multiplied by, alpha/r or alpha/sqrt(r), by the recipe."""

    trained: str = "answers"
    """Of a conversation, what the rows train: its `answers`, the `last` one, or `all` there is."""
    epochs: float | None = None
    """Passes over the rows that were asked for; None where steps were."""
    begins_as_base: bool = True
    """The new adapter changes nothing before the first step; one that goes on from another does."""
    afresh: Callable[[Path, list[int]], Tensor] | None = None
    """An adapter's folder, the ids of a row -> (T, V) on the CPU, from base and adapter as another process reads them."""
    asked: Adapter | None = None
    """The adapter that the recipe asks for; None for one that goes on from another, whose own settings are kept."""
    quant: NF4 | FP4 | NoQuant | None = None
    """How the base is kept, by the recipe; None for one that is 4-bit already."""
    max_norm: float | None = None
    """What a step scales longer gradients down to."""
    warmup_steps: int | None = None
    """Of the schedule; one that is asked for longer than the run never reaches the peak, which the plan has told."""
    weight_decay: float | None = None
    """Of every group of the optimizer."""
    fast: Accumulate | None = None
    """The fast path's gradients, where the run takes it."""
    fp8: bool = False
    """Whether the fast path multiplies with the frozen weights in 8 bits."""
