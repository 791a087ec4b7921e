"""Chat templates of the families that people fine-tune, written by us from their published formats, each on the embedded
tokenizer plus the family's own special tokens, and what an answer must be when it is read back."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import halfbyte
from halfbyte.data.records import Message, Record
from halfbyte.data.render import PLAIN_TEMPLATE, Example, Piece, Template, render_prompt, render_record
from halfbyte.data.tokens import Tokens, encode_example, encode_pieces

# Every conversation of a family that insists on user and assistant in turn.
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
QWEN3_TURNS = """{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role != 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- else %}
        {%- set content = m.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""


def as_it_stands(answer: str, last: bool) -> str:
    return answer


def trimmed(answer: str, last: bool) -> str:
    return answer.strip()


def thoughtful(answer: str, last: bool) -> str:
    """The last answer begins with its (empty) thoughts and loses line ends before its first word."""
    return "<think>\n\n</think>\n\n" + answer.lstrip("\n") if last else answer


def thoughtful_when_asked(answer: str, last: bool) -> str:
    """As `thoughtful`, where the prompt has opened the thoughts already."""
    return "\n</think>\n\n" + answer.lstrip("\n") if last else answer


@dataclass(frozen=True)
class Family:
    template: str
    end: str
    """What ends an answer, blanks before the mark included."""
    eos: str
    bos: str | None = None
    adds_bos: bool = False
    """The tokenizer begins every text with its begin mark."""
    marks: tuple[str, ...] = ()
    """Special tokens beside begin and end."""
    eats_blanks: tuple[str, ...] = ()
    """Special tokens that take blanks and line ends on their right into themselves."""
    opens: str = ""
    """What the template says before an answer and behind the prompt."""
    writes: Callable[[str, bool], str] = as_it_stands
    """What the template makes of an answer; the second value tells the last turn."""
    knows_system: bool = True
    begins_each_turn: bool = False
    """The template writes the begin mark before each turn of the user."""
    adds_end: bool = False
    """The template writes no end mark: the tokenizer's is put behind every answer."""
    asks_contents: bool = False
    """The template looks for `</think>` in what is said."""
    chats: bool = True
    """False for a base model without a chat template, which gets our plain one."""

    def said(self, answer: str, last: bool) -> str:
        """What must be learned of an answer, to the byte."""
        return self.opens + self.writes(answer, last) + self.end

    @property
    def form(self) -> Template:
        return Template("chat" if self.chats else "format", "" if self.chats else PLAIN_TEMPLATE, fold_system=not self.knows_system)


def chatml(head: str, body: str = "m['content']") -> str:
    return (
        head + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + " + body + " + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


FAMILIES = {
    # Mistral-7B-Instruct v0.1: blanks inside [INST] on both sides, none before the answer; no system text; [INST] is no token.
    "mistral-v0.1": Family(
        "{{ bos_token }}" + ALTERNATE + "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}{% endfor %}",
        end="</s>", eos="</s>", bos="<s>", adds_bos=True, knows_system=False,
    ),
    # v0.3: no blank before [/INST], one before the answer, which is trimmed; a system text stands in the last prompt only, so that an answered
    # conversation has none.
    "mistral-v0.3": Family(
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}{{ bos_token }}"
        + ALTERNATE + "{% for m in messages %}{% if m['role'] == 'user' %}{% if loop.last and system is defined %}"
        "{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
        end="</s>", eos="</s>", bos="<s>", adds_bos=True, marks=("[INST]", "[/INST]"), opens=" ", writes=trimmed, knows_system=False,
    ),
    # Llama 2 chat: everything is trimmed, and each exchange is a text of its own with <s> and </s>.
    "llama-2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}{% set content = system + m['content'] if loop.first "
        "else m['content'] %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        end=" </s>", eos="</s>", bos="<s>", adds_bos=True, opens=" ", writes=trimmed, begins_each_turn=True,
    ),
    "llama-3": Family(
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        end="<|eot_id|>", eos="<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True, writes=trimmed,
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    ),
    # Qwen 2.5: ChatML with a system text of its own where none is given, and no begin mark.
    "qwen-2.5": Family(
        chatml("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"),
        end="<|im_end|>", eos="<|im_end|>", marks=("<|im_start|>", "<|endoftext|>"),
    ),
    # Qwen 3: earlier thoughts are dropped, the last answer begins with its own.
    "qwen-3": Family(
        QWEN3_TURNS + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        end="<|im_end|>", eos="<|im_end|>", marks=("<|im_start|>", "<|endoftext|>"), writes=thoughtful, asks_contents=True,
    ),
    # Qwen 3 Thinking: the prompt opens the thoughts, which an earlier answer does not have.
    "qwen-3-thinking": Family(
        QWEN3_TURNS + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
        end="<|im_end|>", eos="<|im_end|>", marks=("<|im_start|>", "<|endoftext|>"), writes=thoughtful_when_asked, asks_contents=True,
    ),
    # Gemma: the assistant is called model, all is trimmed, no system text.
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + ALTERNATE
        + "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        end="<end_of_turn>", eos="<eos>", bos="<bos>", adds_bos=True, marks=("<start_of_turn>", "<end_of_turn>"), writes=trimmed, knows_system=False,
    ),
    # Falcon chat: names and colons, no marks at all.
    "falcon": Family(
        "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if m['role'] == 'system' %}{{ 'System: ' }}{% elif m['role'] == 'user' %}"
        "{{ 'User: ' }}{% else %}{{ 'Falcon: ' }}{% endif %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}",
        end="<|endoftext|>", eos="<|endoftext|>", opens=" ", adds_end=True,
    ),
    # Zephyr: Llama's tokenizer, whose begin mark the template leaves to the tokenizer.
    "zephyr": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        end="</s>", eos="</s>", bos="<s>", adds_bos=True,
    ),
    # Phi 3: marks that eat the blanks behind them; the text ends with a second mark once the conversation is over.
    "phi-3": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        end="<|end|>", eos="<|endoftext|>", bos="<s>", adds_bos=True, marks=("<|end|>",),
        eats_blanks=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    # The embedded base's own.
    "embedded": Family("", end="</s>", eos="</s>", bos="<s>", adds_bos=True),
    # The same as a base model that was never taught to chat.
    "plain": Family("", end="</s>", eos="</s>", bos="<s>", adds_bos=True, chats=False),
}  # fmt: skip


@cache
def family_tokenizer(name: str):
    """The embedded tokenizer with the special tokens, the begin mark and the chat template of a family."""
    from tokenizers import AddedToken, processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(halfbyte.__file__).parent / "base")
    family = FAMILIES[name]
    if not family.template:
        tokenizer.chat_template = tokenizer.chat_template if family.chats else None
        return tokenizer
    names = [mark for mark in (family.bos, family.eos, *family.marks, *family.eats_blanks) if mark]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(mark, rstrip=mark in family.eats_blanks, special=True) for mark in names]})
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    begin = f"{family.bos} $A" if family.adds_bos else "$A"
    special = [(family.bos, tokenizer.convert_tokens_to_ids(family.bos))] if family.adds_bos else []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=begin, special_tokens=special)
    tokenizer.chat_template = family.template
    return tokenizer


# What random contents are made of: blanks at ends, line ends, scripts, emoji, digits, template syntax, marks of every family.
SORTS = [
    "the lamp", "Who is there?", "x", " ", "  ", "\n", "\n\n", "\t", "\r\n", "7", "1e5", "01", "don't", "\u00e9t\u00e9", "\u65e5\u672c\u8a9e",
    "\U0001f600\u200d\U0001f525", "\u202e", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0301", "\u200b", "</", "<", ">", "|", "[/",
    "{{ x }}", "{% if %}", "{0}", "{", "}", "%s", "\\n", "\x01", "\U000f0000", "\u2581", "\xa0", "user", "assistant", "User: ", "### Response:\n",
]  # fmt: skip
MARKS = sorted({mark for family in FAMILIES.values() for mark in (family.bos, family.eos, *family.marks, *family.eats_blanks) if mark})
MARKS += ["<<SYS>>", "<pad>", "<think>", "</think>"]


def random_content(draw: random.Random, family: Family, marks: bool) -> str:
    sorts = SORTS + [mark for mark in MARKS if marks and not (family.asks_contents and "think" in mark)]
    return "".join(draw.choices(sorts, k=draw.choice((0, 1, 1, 2, 3, 5, 9))))


def random_conversation(draw: random.Random, family: Family, marks: bool = True) -> tuple[Message, ...]:
    """One to six questions, each answered, and sometimes a system text. `marks`: contents may spell special tokens."""
    messages = [{"role": "system", "content": random_content(draw, family, marks)}] if draw.random() < 0.4 else []
    for _ in range(draw.randint(1, 6)):
        messages += [{"role": role, "content": random_content(draw, family, marks)} for role in ("user", "assistant")]
    return tuple(messages)


def encoded(name: str, messages: tuple[Message, ...], loss: str = "answers") -> Tokens:
    record = Record("chats.jsonl", 1, messages=messages)
    return encode_example(render_record(record, FAMILIES[name].form, family_tokenizer(name), loss), family_tokenizer(name))


def faults(name: str, messages: tuple[Message, ...], loss: str = "answers") -> list[str]:
    """What is wrong with the row that becomes of a conversation; [] if it is what it must be."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    row = encoded(name, messages, loss)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    must = [family.said(answer, number == len(answers)) for number, answer in enumerate(answers, 1)]
    if loss == "last":
        must = must[-1:]
    runs = [[token for token, _ in run] for trained, run in groupby(zip(row.ids, row.trained), key=lambda pair: pair[1]) if trained]
    found = []
    if [tokenizer.decode(run) for run in runs] != must:
        found.append(f"learned is {[tokenizer.decode(run) for run in runs]}, must be {must}")
    begins = len(answers) if family.begins_each_turn else 1 if family.bos else 0
    if row.ids.count(tokenizer.bos_token_id) != begins:
        found.append(f"{row.ids.count(tokenizer.bos_token_id)} begin marks, must be {begins}")
    asked = encode_pieces(render_prompt(messages[:-1], family.form, tokenizer), tokenizer)
    if row.ids[: len(asked)] != asked:
        found.append("the prompt of the last turn is not what the row begins with")
    return found


def spells_a_mark(name: str, messages: tuple[Message, ...]) -> bool:
    marks = [token.content for token in family_tokenizer(name).added_tokens_decoder.values()]
    return any(mark in message["content"] for message in messages for mark in marks)


def as_written(name: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages as the template is given them: a system text that it does not know stands in the first question."""
    if messages[0]["role"] != "system" or FAMILIES[name].knows_system:
        return messages
    return ({"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}, *messages[2:])


def same_marks(name: str, messages: tuple[Message, ...]) -> bool:
    """Whether the special tokens of our row are those that transformers writes if it reads contents as plain text."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    theirs = tokenizer.apply_chat_template(as_written(name, messages), return_dict=False, sanitize_control_tokens=True)
    ours = [token for token in encoded(name, messages).ids if not (family.adds_end and token == tokenizer.eos_token_id)]
    marks = tokenizer.added_tokens_decoder
    ours, theirs = ([token for token in ids if token in marks] for ids in (ours, theirs))
    begins = 1 if ours[:1] == [tokenizer.bos_token_id] != theirs[:1] else 0
    return theirs[: len(ours) - begins] == ours[begins:]


def compared(name: str, messages: tuple[Message, ...]) -> dict[str, bool]:
    """Our row beside apply_chat_template of transformers, of contents that spell no mark: the same text, the same ids once the
    pieces are joined, the same ids. Ours ends with the last end mark; it has the begin mark that a template leaves to the
    tokenizer; and the end marks that we add (adds_end) are taken off."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    theirs = as_written(name, messages)
    text = tokenizer.apply_chat_template(theirs, tokenize=False)
    ids = tokenizer.apply_chat_template(theirs, return_dict=False)
    example = render_record(Record("chats.jsonl", 1, messages=messages), family.form, tokenizer)
    added = family.eos if family.adds_end else ""
    said = "".join(piece.text.removesuffix(added) if piece.answer else piece.text for piece in example.pieces)
    rows = {"joined ids": encode_example(Example([Piece(said, False)], "", 0), tokenizer), "ids": encode_example(example, tokenizer)}
    begins = 1 if family.adds_bos and not said.startswith(family.bos or "") else 0
    found = {"text": text.startswith(said)}
    for how, row in rows.items():
        own = [token for token in row.ids[begins:] if not (family.adds_end and token == tokenizer.eos_token_id)]
        found[how] = ids[: len(own)] == own
    return found
