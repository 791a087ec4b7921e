"""Record -> Example: pieces of text, each trained or not. The only place where a prompt gets its form.

Training, evaluation, generation and chat all come through `render_prompt`, so that what is asked at
the end is, id for id, what was trained. Text of the user that looks like a control mark of the
tokenizer (`</s>`, `[INST]`) becomes a literal piece: it is tokenised as text, never as the mark.
"""

import re
from dataclasses import dataclass
from itertools import count

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from halfbyte.data.records import Record
from halfbyte.errors import DataError, ModelError
from halfbyte.recipe.plan import Decision

PLAIN_TEMPLATE = "### Prompt:\n{prompt}\n\n### Response:\n"
# Private-use characters that stand in for a user's control marks while a template is rendered.
FIRST_STAND_IN = 0xF0000
Message = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """Text of an example. `trained`: its tokens are in the loss. `literal`: control marks in it are plain text."""

    text: str
    trained: bool
    literal: bool = False


@dataclass(frozen=True)
class Example:
    """What one row or one text says, in order."""

    pieces: list[Piece]
    file: str
    line: int


@dataclass(frozen=True)
class Template:
    """How a prompt is written. `kind` is `text` (no prompt at all), `chat` (the tokenizer's template) or `format`."""

    kind: str
    format: str = ""
    system: str | None = None

    def as_json(self) -> dict[str, str | None]:
        return {"kind": self.kind, "format": self.format, "system": self.system}


def choose_template(asked: str, system: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[Template, Decision]:
    """The tokenizer's chat template where it has one; a plain one, said aloud, where it has none."""
    if asked != "chat":
        return Template("format", asked), Decision("template", "prompt_template", "the recipe writes its own")
    if tokenizer.chat_template:
        return Template("chat", system=system), Decision("template", "chat", "the tokenizer's own chat template")
    if system is not None:
        raise ModelError("data.system: this base has no chat template to put a system text into", hint="write it into data.prompt_template")
    shown = PLAIN_TEMPLATE.replace("\n", "\\n")
    return Template("format", PLAIN_TEMPLATE), Decision("template", shown, "the base has no chat template; data.prompt_template writes another")


def render_text(record: Record) -> Example:
    """A text: everything is trained, nothing is read as a control mark."""
    return Example([Piece(record.fields["text"], trained=True, literal=True)], record.file, record.line)


def render_pair(record: Record, template: Template, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Prompt and response. Trained: the response with the mark that ends it, and nothing behind that mark."""
    prompt, response = record.fields["prompt"], record.fields["response"]
    try:
        if template.kind == "chat":
            pieces = _render_chat_pair(prompt, response, template, tokenizer)
        else:
            pieces = [*render_prompt([{"role": "user", "content": prompt}], template, tokenizer), *_split_marks(response, True, tokenizer)]
            pieces.append(Piece(_end_mark(tokenizer), trained=True))
    except TemplateError as error:
        raise DataError(f"{record.file}:{record.line}: the chat template refuses this row: {error}", hint="data.prompt_template writes another") from error
    return Example(pieces, record.file, record.line)


def render_prompt(messages: list[Message], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """All that stands before the answer; nothing of it is trained. messages: role and content, user last."""
    if template.kind == "text":
        return [Piece(messages[-1]["content"], trained=False, literal=True)]
    if template.kind == "format":
        before, after = template.format.split("{prompt}", 1)
        return [Piece(before, False), *_split_marks(messages[-1]["content"], False, tokenizer), Piece(after, False)]
    hidden, stand_ins = _hide_marks(_with_system(messages, template), tokenizer)
    return _reveal(_fill_template(hidden, tokenizer, asks=True), stand_ins, trained=False)


def _render_chat_pair(prompt: str, response: str, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    messages = _with_system([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], template)
    hidden, stand_ins = _hide_marks(messages, tokenizer)
    before = _fill_template(hidden[:-1], tokenizer, asks=True)
    whole = _fill_template(hidden, tokenizer, asks=False)
    if not whole.startswith(before):
        raise ModelError("the chat template writes a prompt differently once it is answered", hint="write the form into data.prompt_template")
    answer = whole[len(before) :]
    said = hidden[-1]["content"].rstrip()
    begins = answer.find(said.lstrip())
    if begins < 0:
        raise ModelError("the chat template changes the text of an answer", hint="write the form into data.prompt_template")
    ends = begins + len(said.lstrip())
    blanks = hidden[-1]["content"][len(said) :]
    ends += len(blanks) if answer.startswith(blanks, ends) else 0  # a template may take them off
    mark = re.compile("|".join(map(re.escape, _marks(tokenizer))) or "(?!)").search(answer, ends)
    kept = answer[: mark.end()] if mark else answer[:ends] + _end_mark(tokenizer)
    return [*_reveal(before, stand_ins, trained=False), *_reveal(kept, stand_ins, trained=True)]


def _fill_template(messages: list[Message], tokenizer: PreTrainedTokenizerBase, asks: bool) -> str:
    """`asks`: it ends where the answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))


def _with_system(messages: list[Message], template: Template) -> list[Message]:
    if template.system is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": template.system}, *messages]


def _end_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer of this base has no end mark (eos_token), so a model could never learn to stop")
    return str(tokenizer.eos_token)


def _marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every text that the tokenizer reads as one control token, the longest first, since one may hold another."""
    return sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)


def _split_marks(text: str, trained: bool, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    hidden, stand_ins = _hide_marks([{"role": "user", "content": text}], tokenizer)
    return _reveal(hidden[0]["content"], stand_ins, trained)


def _hide_marks(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Message], dict[str, str]]:
    """Puts a private-use character, one that no content holds, in place of each control mark in the contents."""
    contents = "".join(message["content"] for message in messages)
    free = (chr(code) for code in count(FIRST_STAND_IN) if chr(code) not in contents)
    stand_ins = {mark: next(free) for mark in _marks(tokenizer) if mark in contents}
    hidden = []
    for message in messages:
        content = message["content"]
        for mark, stand_in in stand_ins.items():
            content = content.replace(mark, stand_in)
        hidden.append({**message, "content": content})
    return hidden, {stand_in: mark for mark, stand_in in stand_ins.items()}


def _reveal(text: str, stand_ins: dict[str, str], trained: bool) -> list[Piece]:
    if not stand_ins:
        return [Piece(text, trained)] if text else []
    parts = re.split("([" + "".join(stand_ins) + "])", text)
    return [Piece(stand_ins.get(part, part), trained, literal=part in stand_ins) for part in parts if part]
