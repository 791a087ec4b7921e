"""Record -> Example: pieces of text, each trained or not. The only place where a conversation gets its form.

Training, evaluation, generation, chat and serving all come through here, so that what is asked at the end is, id for id,
what was trained. Text of a user that looks like a control mark of the tokenizer (`</s>`, `[INST]`) becomes a literal piece:
it is tokenised as text, never as the mark.

A chat template is a program that sees the whole conversation, so where an answer stands in its text is found by running it:
the answer begins where the prompt of its turn ends and ends with the first mark that the template writes behind its content.
That takes three runs an answer. A conversation of the same roles takes the same form, though, unless the template asks
something of the contents: `Probe` finds out what it asks, and rows that give the same answers are filled into that form.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from halfbyte.data.metered import TemplateTooLarge, metered
from halfbyte.data.probe import EVERY_SORT, Asked, Probe, concat, plain
from halfbyte.data.records import Message, Record
from halfbyte.errors import DataError, ModelError
from halfbyte.recipe.plan import Decision

PLAIN_TEMPLATE = "### Prompt:\n{prompt}\n\n### Response:\n"
# Private-use characters that stand in for contents and for a user's control marks while a template is filled.
FIRST_STAND_IN = 0xF0000
OWN_FORM = "write the form into data.prompt_template"
FOLD = "data.system_as=user puts the system text before the first prompt"
# A span is what is written before an answer (False), or an answer with its end mark (True).
Span = tuple[str, bool]


class Piece(NamedTuple):
    """Text of an example. `trained`: its tokens are in the loss. `literal`: control marks in it are plain text.
    `answer`: the assistant says it; what it says is tokenised apart from what it is asked, trained or not."""

    text: str
    trained: bool
    literal: bool = False
    answer: bool = False


@dataclass(frozen=True, slots=True)
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
    fold_system: bool = False
    """The system text is put before the first prompt, for templates that know no system role."""
    instruction: str | None = None
    """A text put before every prompt, with a blank line between."""

    def as_json(self) -> dict[str, str | bool | None]:
        return asdict(self)


def choose_template(
    asked: str, system: str | None, tokenizer: PreTrainedTokenizerBase, fold_system: bool = False, instruction: str | None = None
) -> tuple[Template, Decision]:
    """The tokenizer's chat template where it has one; a plain one, said aloud, where it has none."""
    if asked != "chat":
        return Template("format", asked, system, fold_system, instruction), Decision("template", "prompt_template", "the recipe writes its own")
    if tokenizer.chat_template:
        return Template("chat", "", system, fold_system, instruction), Decision("template", "chat", "the tokenizer's own chat template")
    shown = PLAIN_TEMPLATE.replace("\n", "\\n")
    reason = "the base has no chat template; data.prompt_template writes another"
    return Template("format", PLAIN_TEMPLATE, system, fold_system, instruction), Decision("template", shown, reason)


def render_record(record: Record, template: Template, tokenizer: PreTrainedTokenizerBase, loss: str = "answers") -> Example:
    """Trained are the `answers`, each with the mark that ends it and nothing behind that mark; only the `last` answer; or `all` there is."""
    if not record.messages:
        return render_text(record)
    pieces = _writer(template, tokenizer, tokenizer.get_chat_template() if template.kind == "chat" else "", len(tokenizer)).write(record, loss)
    return Example(pieces, record.file, record.line)


def render_text(record: Record) -> Example:
    """A text is trained whole, and nothing in it is read as a control mark."""
    return Example([Piece(record.text, trained=True, literal=True)], record.file, record.line)


def render_prompt(messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """All that stands before the next answer; nothing of it is trained. messages: role and content, user last."""
    if template.kind == "text":
        return [Piece(messages[-1]["content"], trained=False, literal=True)]
    return _writer(template, tokenizer, tokenizer.get_chat_template() if template.kind == "chat" else "", len(tokenizer)).ask(messages)


@lru_cache(maxsize=8)
def _writer(template: Template, tokenizer: PreTrainedTokenizerBase, source: str, size: int) -> "_Writer":
    """One for each template and tokenizer; `source` and `size` tell that a tokenizer was given another template or more tokens."""
    return _Writer(template, tokenizer, source)


class _Writer:
    """Writes conversations with one template and one tokenizer; keeps the compiled template and the forms that it has learned."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.template = template
        self.names = tokenizer.special_tokens_map
        self.eos_token, self.bos_token = tokenizer.eos_token, tokenizer.bos_token or ""
        # The longest first, since one mark may hold another.
        marks = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
        self.mark = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        self.first_letters = {mark[0] for mark in marks}
        self.forms: dict[tuple[str, ...], Form | None] = {}
        if template.kind == "chat":
            try:
                # Not compiled there: what is constant is computed when a template is compiled.
                self.environment = metered(_compile_jinja_template("").environment)
                self.environment.concat = concat  # type: ignore[method-assign]
                self.compiled = self.environment.from_string(source)
            except TemplateError as error:
                raise ModelError(f"the chat template of this base cannot be read: {error}", hint=OWN_FORM) from error

    def write(self, record: Record, loss: str) -> list[Piece]:
        where = f"{record.file}:{record.line}: "
        roles, contents = self._turns(record.messages, where)
        length = len(roles) - roles[::-1].index("assistant")  # what follows the last answer has no label and changes none
        roles, contents = roles[:length], contents[:length]
        hidden, stand_ins = self._hide_marks(contents)
        spans = self._spans(roles, hidden, where)
        last = len(spans) - 1
        pieces = [
            Piece(text, loss == "all" or (answer and (loss == "answers" or at == last)), False, answer) for at, (text, answer) in enumerate(spans) if text
        ]
        return _reveal(pieces, stand_ins)

    def ask(self, messages: Sequence[Message]) -> list[Piece]:
        roles, contents = self._turns(messages, "")
        hidden, stand_ins = self._hide_marks(contents)
        if self.template.kind == "format":
            spans = self._repeat_format(roles, hidden, "", asks=True)
        else:
            self._check_that_all_is_kept(roles, "", asks=True)
            spans = self._run_template(roles, hidden, "", asks=True)
        return _reveal([Piece(text, False, False, answer) for text, answer in spans if text], stand_ins)

    def _turns(self, messages: Sequence[Message], where: str) -> tuple[tuple[str, ...], list[str]]:
        """Roles and contents, with the template's system text where there is none, in its place."""
        roles, contents = tuple([message["role"] for message in messages]), [message["content"] for message in messages]
        if self.template.instruction:
            contents = [f"{self.template.instruction}\n\n{said}" if role == "user" else said for role, said in zip(roles, contents)]
        if self.template.system is not None and "system" not in roles:
            roles, contents = ("system", *roles), [self.template.system, *contents]
        if self.template.fold_system and roles[0] == "system":
            if roles[1:2] == ("user",):
                roles, contents = roles[1:], [f"{contents[0]}\n\n{contents[1]}", *contents[2:]]
            else:
                roles = ("user", *roles[1:])
        for turn, role in enumerate(roles[1:], 2):
            if role == roles[turn - 2]:
                raise DataError(f"{where}turns {turn - 1} and {turn} are both of the {role}", hint="join them to one turn, or leave the row out")
        return roles, contents

    def _hide_marks(self, contents: list[str]) -> tuple[list[str], dict[str, str]]:
        """Puts a private-use character, one that no content holds, in place of each control mark in the contents."""
        text = "\n".join(contents)
        if not any(letter in text for letter in self.first_letters) or not self.mark.search(text):
            return contents, {}
        marks = sorted({found for content in contents for found in self.mark.findall(content)})
        stand_ins = dict(zip(marks, _free(text)))
        hidden = [self.mark.sub(lambda found: stand_ins[found.group()], content) for content in contents]
        return hidden, {stand_in: mark for mark, stand_in in stand_ins.items()}

    def _spans(self, roles: tuple[str, ...], contents: list[str], where: str) -> list[Span]:
        if self.template.kind == "format":
            return self._repeat_format(roles, contents, where)
        if roles not in self.forms:
            self.forms[roles] = self._learn_form(roles, where)
        form = self.forms[roles]
        if form is not None and form.fits(contents):
            return [(text.format(*contents), answer) for text, answer in form.spans]
        return self._run_template(roles, contents, where)

    # Templates of our own: a format that is repeated turn by turn

    def _repeat_format(self, roles: tuple[str, ...], contents: list[str], where: str, asks: bool = False) -> list[Span]:
        """The system text stands first; a blank line stands before every turn but the first; the end mark behind every answer."""
        if "system" in roles[1:]:
            raise DataError(f"{where}turn {roles.index('system', 1) + 1} is a system text; it can only be the first", hint="make it the first turn")
        before, after = self.template.format.split("{prompt}", 1)
        text = self.bos_token if self.bos_token and before.startswith(self.bos_token) else ""
        before = before[len(text) :]
        spans: list[Span] = []
        for role, content in zip(roles, contents):
            if role == "system":
                text += content + "\n\n"
            elif role == "user":
                text += ("\n\n" if spans else "") + before + content + after
            else:
                spans += [(text, False), (content + self._end_mark(), True)]
                text = ""
        return [*spans, (text, False)] if asks else spans

    def _end_mark(self) -> str:
        if self.eos_token is None:
            raise ModelError("the tokenizer of this base has no end mark (eos_token), so a model could never learn to stop")
        return str(self.eos_token)

    # Chat templates

    def _run_template(self, roles: tuple[str, ...], contents: Sequence[str], where: str, asks: bool = False) -> list[Span]:
        """What the template writes, cut where answers begin and end. `asks`: up to where the next answer begins; else up to the last answer's end."""
        whole = self._fill(roles, contents, where, asks)
        spans: list[Span] = []
        done = 0
        for turn, role in enumerate(roles):
            if role == "assistant":
                start, end, mark = self._find_answer(whole, roles, contents, turn, where, asks)
                spans += [(whole[done:start], False), (whole[start:end] + mark, True)]
                done = end
        return [*spans, (whole[done:], False)] if asks else spans

    def _find_answer(self, whole: str, roles: tuple[str, ...], contents: Sequence[str], turn: int, where: str, asks: bool) -> tuple[int, int, str]:
        """Where in `whole` the answer of a turn begins and ends, and the end mark to put behind it if the template writes none."""
        content = plain(contents[turn])
        last = not asks and turn == len(roles) - 1
        stand_ins = _stand_ins(contents)
        shadow = self._fill(roles, [*contents[:turn], *stand_ins[turn:]], where, asks)
        lead, _, rest = shadow.partition(stand_ins[turn])
        behind = re.split(f"[{''.join(stand_ins)}]", rest, maxsplit=1)[0]
        mark = self.mark.search(behind)
        closing = behind[: mark.end()] if mark else ""
        asked = self._fill(roles[:turn], contents[:turn], where, asks=True) if "user" in roles[:turn] else None
        if asked is not None and whole.startswith(asked):
            start = len(asked)
        elif whole.startswith(lead) and not (last and asked is not None):
            start = len(lead)  # an earlier turn that the template rewrites: what it writes before the content is not learned
        else:
            raise ModelError(f"{where}the chat template writes a prompt differently once it is answered", hint=OWN_FORM)
        begins = len(lead) if whole.startswith(lead) else start
        for said in (content, content.rstrip(), content.lstrip(), content.strip()):  # a template may take blanks off
            if whole.startswith(said + (closing or behind), begins):
                end = begins + len(said) + len(closing)
                return start, end, "" if closing else self._end_mark()
        # The template asks what the content says: it sets thoughts in its own way, or takes them out of an earlier turn.
        ends = whole.find(closing, begins) if closing else -1
        kept = whole[begins:ends].strip()
        whole_answer = whole[:ends].rstrip().endswith(content.strip())  # it may begin in the prompt, where that opens the thoughts
        if ends < 0 or not kept or not (whole_answer or (not last and content.strip().endswith(kept))):
            raise DataError(f"{where}the chat template changes the text of an answer (turn {turn + 1})", hint=OWN_FORM)
        return start, ends + len(closing), ""

    def _fill(self, roles: tuple[str, ...], contents: Sequence[str], where: str, asks: bool) -> str:
        """`asks`: it ends where the answer begins."""
        try:
            return self._fill_unguarded(roles, contents, asks)
        except (TemplateTooLarge, RecursionError, MemoryError) as error:
            said = str(error) or "it takes more memory than there is"
            raise ModelError(f"{where}the chat template of this base does what no honest one needs: {said}", hint=OWN_FORM) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            hint = "data.prompt_template writes another"
            if roles[0] == "system" and self._can_fill(roles[1:], contents[1:], asks):
                raise DataError(f"{where}the chat template of this base knows no system text ({error})", hint=FOLD) from error
            raise DataError(f"{where}the chat template refuses this row: {error}", hint=hint) from error

    def _can_fill(self, roles: tuple[str, ...], contents: Sequence[str], asks: bool) -> bool:
        try:
            self._fill_unguarded(roles, contents, asks)
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError):
            return False
        return True

    def _fill_unguarded(self, roles: tuple[str, ...], contents: Sequence[str], asks: bool) -> str:
        self.environment.meter.reset()
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]
        return plain(self.compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=asks, **self.names))

    def _check_that_all_is_kept(self, roles: tuple[str, ...], where: str, asks: bool = False) -> None:
        stand_ins = _stand_ins(roles)
        written = self._fill(roles, stand_ins, where, asks)
        for turn, (role, stand_in) in enumerate(zip(roles, stand_ins), 1):
            if stand_in not in written:
                raise DataError(f"{where}the chat template leaves out turn {turn} ({role})", hint=FOLD if role == "system" else OWN_FORM)

    def _learn_form(self, roles: tuple[str, ...], where: str) -> "Form | None":
        """The form of all conversations with these roles, or None if it depends on what they say in ways that cannot be told."""
        self._check_that_all_is_kept(roles, where)
        asked = Asked()
        probes = [Probe.of(stand_in + EVERY_SORT + stand_in, asked) for stand_in in _stand_ins(roles)]
        try:
            spans = self._run_template(roles, probes, where)
        except (DataError, ModelError):
            return None
        written = "".join(text for text, _ in spans)
        looks_for = sorted(asked.looks_for)
        if asked.other or any(text in EVERY_SORT for text in looks_for) or any(written.count(probe) != 1 for probe in probes):
            return None
        patterns = []
        for text, answer in spans:
            pattern = _escaped(text)
            for at, probe in enumerate(probes):
                pattern = pattern.replace(_escaped(plain(probe)), f"{{{at}}}")
            patterns.append((pattern, answer))
        return Form(patterns, looks_for, asked.trims)


class Form(NamedTuple):
    """What the template writes of every conversation with the same roles, as patterns of str.format, and what it asks of contents."""

    spans: list[Span]
    looks_for: list[str]
    trims: bool

    def fits(self, contents: list[str]) -> bool:
        """Whether the template finds in these what it found in the probes: nothing that it looks for, and no blanks to take off."""
        for content in contents:
            if not content or (self.trims and (content[0].isspace() or content[-1].isspace())):
                return False
            for text in self.looks_for:
                if text in content:
                    return False
        return True


def _escaped(text: str) -> str:
    """As a pattern of str.format that writes it."""
    return text.replace("{", "{{").replace("}", "}}")


def _free(text: str) -> Iterator[str]:
    """Private-use characters that the text does not hold."""
    return (chr(code) for code in count(FIRST_STAND_IN) if chr(code) not in text)


def _stand_ins(contents: Sequence[str]) -> list[str]:
    """A character for each content, that none of them holds."""
    return [stand_in for _, stand_in in zip(contents, _free("".join(contents)))]


def _reveal(pieces: list[Piece], stand_ins: dict[str, str]) -> list[Piece]:
    """Control marks of the user's come back, as literal pieces."""
    if not stand_ins:
        return pieces
    stand_in = re.compile("([" + "".join(stand_ins) + "])")
    return [piece._replace(text=stand_ins.get(part, part), literal=part in stand_ins) for piece in pieces for part in stand_in.split(piece.text) if part]
