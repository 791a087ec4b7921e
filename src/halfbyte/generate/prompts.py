"""What generation is given: the ids of a prompt, what ends an answer, and what fills a batch."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from halfbyte.data.records import Message, Record
from halfbyte.data.render import Template, render_prompt, render_record
from halfbyte.data.tokens import encode_example, encode_pieces
from halfbyte.generate.engine import Marks
from halfbyte.model.base import Base


def prompt_ids(messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Id for id what training puts before the next answer."""
    return encode_pieces(render_prompt(messages, template, tokenizer), tokenizer)


def answer_marks(tokenizer: PreTrainedTokenizerBase, template: Template, base: Base) -> Marks:
    """What ends an answer: the tokenizer's end mark, the base's own list, and whatever the template ends a turn with."""
    end = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    own = base.config.get("eos_token_id")
    end |= set(own if isinstance(own, list) else [own] if isinstance(own, int) else [])
    if template.kind == "chat":
        turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        row = encode_example(render_record(Record("", 0, messages=turns), template, tokenizer), tokenizer)
        end.add(row.ids[-1])
    return Marks(sorted(end), pad_id(tokenizer))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Padding has no label in training and is masked in generation, so any id will do that is not the end mark."""
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if token is not None and token != tokenizer.eos_token_id:
            return int(token)
    return 0 if tokenizer.eos_token_id != 0 else 1
