"""A row -> what it says: one function a kind of data. A row that says nothing is Refused, with the reason and what was seen in it.

Texts stay as they stand, but for the blanks around tagged turns and around classes. An instruction is joined with its input, and so
are the parts of one message; a class may be read as another (data.merge_labels).
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import regex

from halfbyte.data.records import Message, Record
from halfbyte.data.rows import Row
from halfbyte.errors import DataError
from halfbyte.recipe.schema import (
    InstructionData,
    LabelData,
    MessagesData,
    PairData,
    SettledData,
    ShareGPTData,
    StructureData,
    TaggedData,
    TextData,
)  # fmt: skip

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {**ROLES, "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
# Who speaks for a program, and the keys under which an assistant calls one, in OpenAI's format and in ShareGPT's.
TOOL_ROLES = {"tool", "function", "function_call", "tool_call", "function_response", "tool_response", "observation"}
TOOL_CALLS = ("tool_calls", "function_call")
# How OpenAI's format says that an answer is not trained, as JSON and as Parquet write it.
NO_WEIGHT = ("0", "0.0")
# Seconds for data.label_pattern in one cell, most of which take less than a thousandth.
LONGEST_SEARCH_S = 2
# Of a cell or of the list of classes, in a message.
SHOWN_CHARACTERS, SHOWN_CLASSES = 60, 12
LEFT_AWAY = "conversations end with a turn that no answer follows, which is left away"
BLANKS = "labels have blanks around them, which are taken off"
LEFT_AWAY_ONCE = "1 conversation ends with a turn that no answer follows, which is left away"


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that is no record. `bad`: malformed, to be mended or skipped; otherwise it has nothing to learn from and is only counted."""

    file: str
    line: int
    reason: str
    """The bin of the ledger."""
    seen: str
    """What was found in this row."""
    bad: bool = False


Shape = Callable[[Row], Record | Refused]


def shape_for(section: SettledData, told: Counter[str]) -> Shape:
    """The function that makes records of rows; in `told` it counts what it left away (LEFT_AWAY) and classes that it read as another."""
    shape, column = _SHAPES[section.kind], section.group_column
    if column is None:
        return lambda row: shape(row, section, told)

    def grouped(row: Row) -> Record | Refused:
        record, group = shape(row, section, told), _cell(row, column)
        if isinstance(record, Refused):
            return record
        return group if isinstance(group, Refused) else replace(record, group=group)

    return grouped


@lru_cache
def turn_marks(user_tag: str, assistant_tag: str) -> re.Pattern[str]:
    """Finds tags; the name of the group that matched is the role.

    A tag that begins with a letter (User:) also stands inside sentences, so it counts only where a line begins.
    """
    ways = {"user": user_tag, "assistant": assistant_tag}
    longest_first = sorted(ways, key=lambda role: len(ways[role]), reverse=True)
    return re.compile("|".join(rf"{'^[ ]*' if ways[role][:1].isalnum() else ''}(?P<{role}>{re.escape(ways[role])})" for role in longest_first), re.MULTILINE)


def _refuse(row: Row, reason: str, seen: str, bad: bool = False) -> Refused:
    return Refused(row.file, row.line, reason, seen, bad)


def _cell(row: Row, column: str) -> str | Refused:
    cell = row.cells.get(column, "")
    if isinstance(cell, str):
        return cell
    return _refuse(row, f"{column} is not text", f"{column} is {named_type(cell)}, need text", bad=True)


def named_type(cell: Any) -> str:
    return "text" if isinstance(cell, str) else "a list" if isinstance(cell, list) else "an object" if isinstance(cell, dict) else "nothing"


def _text_record(row: Row, section: TextData, told: Counter[str]) -> Record | Refused:
    text = _cell(row, section.column or "text")
    if isinstance(text, Refused):
        return text
    return Record(row.file, row.line, text=text) if text.strip() else _refuse(row, "empty", "the text is empty")


def _pair_record(row: Row, section: PairData | StructureData, told: Counter[str]) -> Record | Refused:
    return _pair(row, _cell(row, section.prompt_column), _cell(row, section.response_column))


def _instruction_record(row: Row, section: InstructionData, told: Counter[str]) -> Record | Refused:
    parts = [_cell(row, column) for column in (section.instruction_column, section.input_column) if column]
    refused = next((part for part in parts if isinstance(part, Refused)), None)
    asked = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    return refused or _pair(row, asked, _cell(row, section.output_column))


def _pair(row: Row, prompt: str | Refused, response: str | Refused) -> Record | Refused:
    if isinstance(prompt, Refused):
        return prompt
    if isinstance(response, Refused):
        return response
    if not prompt.strip() or not response.strip():
        return _refuse(row, "empty prompt or response", f"the {'response' if prompt.strip() else 'prompt'} is empty")
    return Record(row.file, row.line, messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": response}))


def _label_record(row: Row, section: LabelData, told: Counter[str]) -> Record | Refused:
    text, label = _cell(row, section.text_column), _cell(row, section.label_column)
    if isinstance(text, Refused):
        return text
    if isinstance(label, Refused):
        return label
    if label != label.strip():
        told[BLANKS] += 1
        label = label.strip()
    if not text.strip() or not label:
        return _refuse(row, "empty text or label", f"the {'label' if text.strip() else 'text'} is empty")
    if section.label_pattern:
        try:
            found = regex.search(section.label_pattern, label, timeout=LONGEST_SEARCH_S)
        except TimeoutError as error:
            seen = f"{row.file}:{row.line}: data.label_pattern is not done with {label[:SHOWN_CHARACTERS]!r} after {LONGEST_SEARCH_S} s"
            raise DataError(seen, hint="write it without one repetition inside another") from error
        matched = (found.group(1) or "").strip() if found else ""
        if not matched:
            return _refuse(row, "no class found", f"data.label_pattern finds no class in {label[:SHOWN_CHARACTERS]!r}", bad=True)
        label = matched
    if label in section.merge_labels:
        told[label] += 1
        label = section.merge_labels[label]
    if section.labels and label not in section.labels:
        return _refuse(row, "unknown label", _unknown_label(label, section.labels), bad=True)
    record = _pair(row, text, label)
    return replace(record, label=label) if isinstance(record, Record) else record


def label_meant(label: str, labels: list[str]) -> str | None:
    """The class that a mistyped one was meant to be. Not: neu for neg, class 1 for class 2, happy for unhappy."""
    for near in difflib.get_close_matches(label, labels, n=3, cutoff=0.75):
        same_digits = re.sub(r"\D", "", near) == re.sub(r"\D", "", label)
        if same_digits and near != label and not near.endswith(label) and not label.endswith(near):
            return near
    return None


def _unknown_label(label: str, labels: list[str]) -> str:
    near = label_meant(label, labels)
    shown = ", ".join(labels[:SHOWN_CLASSES]) + ", ..." * (len(labels) > SHOWN_CLASSES)
    return f"label {label[:SHOWN_CHARACTERS]!r} not in [{shown}]" + (f". Did you mean {near!r}?" if near else "")


def _tagged_record(row: Row, section: TaggedData, told: Counter[str]) -> Record | Refused:
    text = _cell(row, section.column)
    if isinstance(text, Refused):
        return text
    marks = list(turn_marks(section.user_tag, section.assistant_tag).finditer(text))
    if not text.strip():
        return _refuse(row, "empty", "the text is empty")
    if text[: marks[0].start() if marks else None].strip():
        seen = f"text stands before the first tag: {text.strip()[:SHOWN_CHARACTERS]!r}"
        return _refuse(row, "text before the first tag", seen, bad=True)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [{"role": str(mark.lastgroup), "content": text[mark.end() : end].strip()} for mark, end in zip(marks, ends, strict=True)]
    return _conversation(row, turns, told)


def _messages_record(row: Row, section: MessagesData, told: Counter[str]) -> Record | Refused:
    return _listed_turns(row, section, (("role", "content"),), ROLES, told)


def _sharegpt_record(row: Row, section: ShareGPTData, told: Counter[str]) -> Record | Refused:
    return _listed_turns(row, section, (("from", "value"), ("role", "content")), SHAREGPT_ROLES, told)


def _listed_turns(
    row: Row, section: MessagesData | ShareGPTData, keys: tuple[tuple[str, str], ...], roles: dict[str, str], told: Counter[str]
) -> Record | Refused:
    column, cell = section.column, row.cells.get(section.column)
    if cell is None:
        return _refuse(row, "empty", f"{column} is empty")
    if not isinstance(cell, list):
        mend = ": parse it once more" if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")) else ""
        return _refuse(row, f"{column} is no list", f"{column} is {named_type(cell)}, not a list{mend}", bad=True)
    turns: list[Message] = []
    for number, turn in enumerate(cell, 1):
        found = turn if isinstance(turn, dict) else {}
        role_key, content_key = next((pair for pair in keys if pair[0] in found), keys[0])
        role, content = found.get(role_key), found.get(content_key)
        if str(role).strip().lower() in TOOL_ROLES or any(found.get(key) for key in TOOL_CALLS):
            mend = "drop those turns, or set data.on_bad_row=skip"
            return _refuse(row, "tool call", f"message {number}: role {str(role)[:SHOWN_CHARACTERS]!r}: tool calls are not supported: {mend}", bad=True)
        content, strange = _joined_parts(content)
        if strange:
            cause = "images are not read" if "image" in strange else "only text is read"
            return _refuse(row, "content that is no text", f"message {number}: a part is {strange[:SHOWN_CHARACTERS]!r}: {cause}", bad=True)
        if not isinstance(role, str) or not isinstance(content, str):
            missing = role_key if not isinstance(role, str) else content_key
            what = f"{missing!r} is {named_type(found.get(missing))}, need text" if found else f"is {named_type(turn)}, need an object"
            return _refuse(row, "message without role or content", f"message {number}: {what}{_sharegpt(found, roles)}", bad=True)
        if role.strip().lower() not in roles:
            return _refuse(row, "unknown role", f"message {number}: role {role[:SHOWN_CHARACTERS]!r} unknown{_sharegpt(found, roles)}", bad=True)
        turns.append({"role": roles[role.strip().lower()], "content": content})
    answers = {number: cell[number - 1].get("weight") for number, turn in enumerate(turns, 1) if turn["role"] == "assistant"}
    return _refuse_untrained(row, answers, section.loss == "last") or _conversation(row, turns, told)


def _refuse_untrained(row: Row, weights: dict[int, Any], only_last: bool) -> Refused | None:
    """`weights`: of the answers. Which of them are trained can only be said of all rows: every one, or the last."""
    untrained = [number for number, weight in weights.items() if weight in NO_WEIGHT]
    if not untrained:
        return None
    ends = untrained[-1] == max(weights)
    if only_last and not ends:
        return None
    mend = "drop the key" + ", set data.loss=last" * (not ends) + ", or set data.on_bad_row=skip"
    return _refuse(row, "weight 0", f"message {untrained[-1]}: weight 0 (a turn that is not trained) is not supported: {mend}", bad=True)


def _joined_parts(content: Any) -> tuple[Any, str]:
    """Content that OpenAI's format parts ([{"type": "text", "text": ...}]) as one text, or the first type that is no text. Anything else as it is."""
    if not isinstance(content, list) or not content or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        return content, ""
    strange = next((part["type"] for part in content if part["type"] != "text"), "")
    texts = [part.get("text") for part in content]
    return ("".join(texts) if all(isinstance(text, str) for text in texts) else content), strange


def _sharegpt(turn: dict[str, Any], roles: dict[str, str]) -> str:
    """The mend, where a turn would be understood as ShareGPT's."""
    known = "from" in turn or str(turn.get("role")).strip().lower() in SHAREGPT_ROLES.keys() - ROLES.keys()
    return "; ShareGPT data? set data.kind=sharegpt" if known and roles is ROLES else ""


def _conversation(row: Row, turns: list[Message], told: Counter[str]) -> Record | Refused:
    """A conversation up to its last answer: what follows it teaches nothing."""
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        seen = f"ends with {turns[-1]['role']}" if turns else "holds no turn"
        return _refuse(row, "no assistant turn", f"{seen}: nothing to learn from")
    kept = turns[: answers[-1] + 1]
    spoken = [turn["role"] for turn in kept if turn["role"] != "system"]
    if "system" in [turn["role"] for turn in kept[1:]]:
        return _refuse(row, "a system turn behind another turn", "a system turn stands behind another turn; it can only be the first", bad=True)
    counts: Counter[str] = Counter()
    for turn in kept:
        counts[turn["role"]] += 1
        if turn["role"] != "system" and not turn["content"].strip():
            return _refuse(row, "empty turn", f"{turn['role']} turn {counts[turn['role']]} is empty")
    if spoken[0] == "assistant":
        return _refuse(row, "begins with the assistant", "the first turn is the assistant's, so it answers nothing")
    twice = next((first for first, second in pairwise(spoken) if first == second), None)
    if twice:
        return _refuse(row, "two turns of one side in a row", f"two {twice} turns follow each other", bad=True)
    if len(kept) < len(turns):
        told[LEFT_AWAY] += 1
    return Record(row.file, row.line, messages=tuple(kept))


_SHAPES: dict[str, Callable[[Row, Any, Counter[str]], Record | Refused]] = {
    "text": _text_record, "prompt_response": _pair_record, "structure": _pair_record, "instruction": _instruction_record,
    "messages": _messages_record, "sharegpt": _sharegpt_record, "tagged": _tagged_record, "label": _label_record,
}  # fmt: skip
