"""Which kind of data a file holds, and in which columns, by looking at its first rows.

Every decision has its reason, and two readings that are equally good are refused: a wrong guess would train on the wrong column.
A column is recognised by its whole name, in any case, never by part of a word. What the recipe states is only checked.
"""

import difflib
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex

from halfbyte.data.continuity import follow_one_another
from halfbyte.data.rows import Row
from halfbyte.data.shapes import ROLES, SHAREGPT_ROLES, named_type, turn_marks
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import (
    AutoData,
    InstructionData,
    LabelData,
    MessagesData,
    PairData,
    SettledData,
    ShareGPTData,
    SomeData,
    StructureData,
    TaggedData,
    TextData,
)  # fmt: skip

PROMPT_NAMES = ("prompt", "instruction", "question", "comment", "query", "input", "user", "human")
RESPONSE_NAMES = ("response", "answer", "reply", "output", "completion", "assistant")
# What an instruction is about: Alpaca's name, and Dolly's where that is not there.
INPUT_NAMES = ("input", "context")
TEXT_NAMES = ("text", "content", "body", "passage", "document", "review", "sentence")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "intent", "rating", "stars")
CHAT_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
# Names that say nothing alone: sentence and meaning representation, in the two spellings of ViGGO.
STRUCTURE_NAMES = (("target", "meaning_representation"), ("ref", "mr"))
# Tags that part the turns of one column, in the spellings that are met.
TAGS = (("<HUMAN>:", "<ASSISTANT>:"), ("### Human:", "### Assistant:"), ("Human:", "Assistant:"), ("USER:", "ASSISTANT:"), ("User:", "Assistant:"))
# A row of a book cut by a text splitter is a paragraph or more; a message or a review is usually shorter.
BOOK_ROW_CHARACTERS = 400
# A column with so few values among so many rows is a class.
MOST_CLASSES = 50
MOST_UNUSED_NAMED = 8
# Names of columns in a message, and how long one of several words usually is at most.
SHOWN_NAME, LONGEST_NAMED = 40, 60
# How the rows of a text file are called as a column.
TEXT_COLUMN = "text"
SECTIONS: dict[str, type[SettledData]] = {
    "text": TextData, "prompt_response": PairData, "structure": StructureData, "instruction": InstructionData,
    "messages": MessagesData, "sharegpt": ShareGPTData, "tagged": TaggedData, "label": LabelData,
}  # fmt: skip
STATE_IT = "state it behind the file or the recipe: "
STATE_KIND = f"{STATE_IT}data.kind=prompt_response data.prompt_column=... data.response_column=..., or data.kind=text data.column=..."
STATE_COLUMN = "state it with data.column=..."


@dataclass(frozen=True)
class Seen:
    """What is seen of a source before it is read through."""

    where: str
    columns: list[str]
    """None of a text."""
    types: dict[str, str]
    """Columns without cells, for their type cannot become text."""
    head: Sequence[Row]
    """The first rows."""
    joint: str
    """What joins the rows of a text again."""


@dataclass(frozen=True)
class _Reading:
    """One way to read the columns."""

    kind: str
    names: dict[str, str]
    """Keys of the section and what they are."""
    reason: str


def settle(section: SomeData, seen: Seen) -> tuple[SettledData, list[Decision]]:
    """Fills in kind, columns and rows where the recipe leaves them open. Raises DataError for what it states and the file has not."""
    if isinstance(section, AutoData):
        settled, decision = _find(section, seen)
    else:
        said = ", ".join(name for _, name in _named(section))
        settled, decision = section, Decision("data", section.kind, "as stated" + f": {said}" * bool(said))
    more: list[Decision] = []
    if isinstance(settled, TextData):
        settled, more = _settle_text(settled, seen)
    if seen.columns:
        _must_have(seen, _named(settled))
        _must_differ(seen, _named(settled))
        for key, name in _named(settled):
            _must_hold(seen, name, lists=isinstance(settled, MessagesData | ShareGPTData) and key == "data.column")
    else:
        _refuse_columns(settled, seen)
    if isinstance(settled, TaggedData):
        _check_tags(settled, seen)
    if isinstance(settled, LabelData):
        _check_pattern(settled)
    used = {name for _, name in _named(settled)}
    unused = [name for name in seen.columns if name not in used]
    if unused:
        names = ", ".join(unused[:MOST_UNUSED_NAMED]) + ", ..." * (len(unused) > MOST_UNUSED_NAMED)
        decision = replace(decision, reason=f"{decision.reason}; not used: {names}")
    return settled, [decision, *more]


# What the recipe states, or what was found


def _named(section: SettledData) -> list[tuple[str, str]]:
    """Every column that the section names, with its key."""
    names = [(f"data.{key}", getattr(section, key)) for key in type(section).model_fields if key == "column" or key.endswith("_column")]
    return [(key, name) for key, name in names if name is not None]


def _must_have(seen: Seen, named: list[tuple[str, str]]) -> None:
    """Raises DataError with all columns that are not there."""
    missing = [(key, name) for key, name in named if name not in seen.columns]
    if not missing:
        return
    alike = {column.strip().lower(): column for column in seen.columns}
    near = {key: difflib.get_close_matches(name.strip().lower(), list(alike), n=1, cutoff=0.6) for key, name in missing}
    meant = " ".join(f"{key}={alike[found[0]]!r}" if len(missing) > 1 else repr(alike[found[0]]) for key, found in near.items() if found)
    said = ", ".join(f"no column {name!r} ({key})" for key, name in missing)
    raise DataError(f"{seen.where}: {said}; columns are {', '.join(seen.columns)}", hint=f"did you mean {meant}?" if meant else "name one of them")


def _must_differ(seen: Seen, named: list[tuple[str, str]]) -> None:
    """What is asked and what is answered are two columns; rows may be grouped by any."""
    keys: dict[str, str] = {}
    for key, name in named:
        if key != "data.group_column" and keys.setdefault(name, key) != key:
            raise DataError(f"{seen.where}: {keys[name]} and {key} are both {name!r}", hint="name another column for one of them")


def _must_hold(seen: Seen, name: str, lists: bool) -> None:
    """Raises DataError where no row that was looked at holds what the column is asked for; single rows are told when they are read."""
    need = "a list of messages" if lists else "text"
    if name in seen.types:
        mend = f"save the column as {need}, or state other columns with data.kind=... and data.column=..."
        raise DataError(f"{seen.where}: column {name} is {seen.types[name]}, need {'a list of messages' if lists else 'string'}", hint=mend)
    rows = [row for row in seen.head if row.cells.get(name, "") != ""]
    if not rows or any(isinstance(row.cells[name], list if lists else str) for row in rows):
        return
    cell = rows[0].cells[name]
    if lists and isinstance(cell, str):
        hint = "if it is JSON inside a text, parse it once more and save it as JSONL"
        raise DataError(f"{rows[0].file}:{rows[0].line}: {name} is text, not a list", hint=hint)
    hint = "name another column, or state data.kind=messages for lists of messages" if isinstance(cell, list) else "name another column"
    raise DataError(f"{rows[0].file}:{rows[0].line}: {name} is {named_type(cell)}, need {need}", hint=hint)


def _refuse_columns(section: SettledData, seen: Seen) -> None:
    """A text file has no columns; that its rows are called `text` may be said."""
    if not isinstance(section, TextData | TaggedData):
        raise DataError(f"{seen.where}: a text has no columns, and {section.kind} needs them", hint="use data.kind=text for a text file")
    for key, name in _named(section):
        if key != "data.column" or name != TEXT_COLUMN:
            raise DataError(f"{seen.where}: a text has no columns, so there is no {name!r} ({key})", hint=f"leave {key} out")


def _check_tags(section: TaggedData, seen: Seen) -> None:
    if not section.user_tag.strip() or not section.assistant_tag.strip() or section.user_tag == section.assistant_tag:
        raise DataError(f"data.user_tag and data.assistant_tag are {section.user_tag!r} and {section.assistant_tag!r}", hint="write two tags that differ")
    roles = {mark.lastgroup for row in seen.head for mark in turn_marks(section.user_tag, section.assistant_tag).finditer(_text(row, section.column))}
    for role, tag in (("user", section.user_tag), ("assistant", section.assistant_tag)):
        if role not in roles:
            place = " where a line begins" if tag[0].isalnum() else ""
            raise DataError(
                f"{seen.where}: {tag!r} stands{place} in none of the first {len(seen.head)} rows of {section.column!r}",
                hint="state the tags with data.user_tag=... data.assistant_tag=...",
            )


def _check_pattern(section: LabelData) -> None:
    if section.label_pattern is None:
        return
    try:
        groups = regex.compile(section.label_pattern).groups
    except regex.error as error:
        raise DataError(f"data.label_pattern: {section.label_pattern!r} is no regular expression: {error}", hint="mend it") from error
    if not groups:
        raise DataError(f"data.label_pattern: {section.label_pattern!r} has no group", hint="put the part that is the class in brackets: (...)")


def _settle_text(section: TextData, seen: Seen) -> tuple[TextData, list[Decision]]:
    decisions = []
    if section.column is None and seen.columns:
        name, reason = _text_column(seen)
        section = section.model_copy(update={"column": name})
        decisions.append(Decision("column", name, reason))
    if section.rows == "auto":
        rows = "book"
        if seen.columns:
            rows, reason = _book_or_separate([_text(row, str(section.column)) for row in seen.head])
            decisions.append(Decision("rows", rows, f"{reason}; data.rows states it otherwise"))
        section = section.model_copy(update={"rows": rows})
    if section.separator == "auto" and section.rows == "book":
        section = section.model_copy(update={"separator": seen.joint})
    return section, decisions


def _book_or_separate(texts: Sequence[str]) -> tuple[str, str]:
    """Length alone is no evidence: reviews are as long as the pieces of a book (continuity.py)."""
    middle = statistics.median(map(len, texts))
    said = f"half of them have {middle:.0f} characters or more"
    if middle < BOOK_ROW_CHARACTERS:
        return "separate", f"{said}: a text of its own each"
    book, why = follow_one_another(texts)
    return ("book", f"{said}, and {why}: consecutive pieces of one text, joined") if book else ("separate", f"{said}, but {why}: a text of its own each")


def _text_column(seen: Seen) -> tuple[str, str]:
    known = _known(seen, TEXT_NAMES)
    if len(known) == 1:
        return known[0], "the known name of a text column"
    if len(seen.columns) == 1:
        return seen.columns[0], "the only column"
    raise DataError(f"{seen.where}: which of the columns {', '.join(known or seen.columns)} holds the text?", hint=STATE_COLUMN)


# What is found by looking


def _find(section: AutoData, seen: Seen) -> tuple[SettledData, Decision]:
    """What the recipe states rules readings out; that a key stands there with its default, as in the recipe that a run keeps, states nothing."""
    stated = {key: value for key, value in section.model_dump(exclude_unset=True).items() if value != AutoData.model_fields[key].default}
    if section.column is not None and seen.columns:
        _must_have(seen, [("data.column", section.column)])
        seen = replace(seen, columns=[section.column])
    readings = [*_chat_readings(seen), *_pair_readings(seen), *_label_readings(seen)] if seen.columns else []
    readings = readings or [_text_reading(seen)]
    strange = [[key for key in stated if key not in SECTIONS[reading.kind].model_fields] for reading in readings]
    fitting = [reading for reading, keys in zip(readings, strange, strict=True) if not keys]
    if not fitting:
        keys, kind = ", ".join(f"data.{key}" for key in strange[0]), readings[0].kind
        raise DataError(f"{seen.where}: {keys}: {kind} data have no such key ({readings[0].reason})", hint="take it out, or state data.kind")
    if len(fitting) > 1:
        ways = "; or ".join(f"{reading.kind} ({reading.reason})" for reading in fitting)
        raise DataError(f"{seen.where}: can be read in {len(fitting)} ways: {ways}", hint=STATE_IT + ", or ".join(map(_command, fitting)))
    reading = fitting[0]
    reason = reading.reason
    if section.column is not None and reading.kind == "text":
        reason = f"the recipe names the column {section.column!r}, which holds no turns"
    return SECTIONS[reading.kind].model_validate({**reading.names, **stated, "kind": reading.kind}), Decision("data", reading.kind, reason)


def _command(reading: _Reading) -> str:
    """What states this reading, as it is typed in a shell."""
    return " ".join([f"data.kind={reading.kind}", *(f"data.{key}={shlex.quote(name)}" for key, name in reading.names.items())])


def _known(seen: Seen, names: Sequence[str]) -> list[str]:
    return [column for column in seen.columns if column.strip().lower() in names]


def _chat_readings(seen: Seen) -> Iterator[_Reading]:
    for name in _known(seen, CHAT_NAMES):
        cells = [row.cells[name] for row in seen.head if name in row.cells]
        turns: list[dict[str, Any]] = [turn for cell in cells if isinstance(cell, list) for turn in cell if isinstance(turn, dict)]
        roles = {str(turn.get("role")).strip().lower() for turn in turns}
        if any("from" in turn and "value" in turn for turn in turns):
            yield _Reading("sharegpt", {"column": name}, f"column {name!r} holds lists of turns with `from` and `value`")
        elif roles & (SHAREGPT_ROLES.keys() - ROLES.keys()):
            yield _Reading("sharegpt", {"column": name}, f"column {name!r} holds lists of turns with the roles of ShareGPT")
        elif turns or seen.types.get(name, "").startswith(("list", "large_list")):
            yield _Reading("messages", {"column": name}, f"column {name!r} holds lists of messages")
        elif any(isinstance(cell, str) and cell.lstrip().startswith(("[{", "{")) for cell in cells):
            yield _Reading("messages", {"column": name}, f"column {name!r} holds messages as text")


def _pair_readings(seen: Seen) -> Iterator[_Reading]:
    for prompt_name, response_name in STRUCTURE_NAMES:
        prompts, responses = _known(seen, (prompt_name,)), _known(seen, (response_name,))
        if len(prompts) == len(responses) == 1:
            names = {"prompt_column": prompts[0], "response_column": responses[0]}
            yield _Reading("structure", names, f"columns {prompts[0]!r} and {responses[0]!r} are known names of sentence and meaning")
    instructions, outputs = _known(seen, ("instruction",)), _known(seen, ("output",))
    inputs = next(filter(None, (_known(seen, (name,)) for name in INPUT_NAMES)), [])
    if not outputs and inputs:
        outputs = _known(seen, RESPONSE_NAMES)
    if len(instructions) == len(outputs) == 1 and len(inputs) <= 1:
        names = {"instruction_column": instructions[0], "output_column": outputs[0], **({"input_column": inputs[0]} if inputs else {})}
        said = ", ".join(repr(name) for name in (*instructions, *inputs, *outputs))
        yield _Reading("instruction", names, f"columns {said} are the names of instruction data")
        return
    prompts, responses, texts = _known(seen, PROMPT_NAMES), _known(seen, RESPONSE_NAMES), _known(seen, TEXT_NAMES)
    what_is_asked = "prompt" if prompts else "text"
    if responses and not prompts and len(texts) == 1:
        # What answers a text may be what is to be learnt, or the text alone.
        prompts = texts
        yield _text_reading(seen)
    if not prompts or not responses:
        return
    for what, found in (("prompt", prompts), ("response", responses)):
        if len(found) > 1:
            raise DataError(f"{seen.where}: which of the columns {', '.join(found)} is the {what}?", hint=STATE_KIND)
    names = {"prompt_column": prompts[0], "response_column": responses[0]}
    yield _Reading("prompt_response", names, f"columns {prompts[0]!r} and {responses[0]!r} are known names of {what_is_asked} and response")


def _label_readings(seen: Seen) -> Iterator[_Reading]:
    texts = _known(seen, TEXT_NAMES) or [name for name in _known(seen, PROMPT_NAMES) if len(seen.columns) == 2]
    if len(texts) != 1:
        return
    named = _known(seen, LABEL_NAMES)
    # A column without cells is no rival to one that has some, but alone it would have been the class.
    for label in [name for name in named if name not in seen.types] or named:
        values = len({_text(row, label) for row in seen.head})
        if values <= MOST_CLASSES and (len(seen.head) <= 10 or values <= len(seen.head) / 2):
            said = f"column {label!r} has {values} value{'s' * (values > 1)} in {len(seen.head)} rows beside the text {texts[0]!r}"
            yield _Reading("label", {"text_column": texts[0], "label_column": label}, said)


def _text_reading(seen: Seen) -> _Reading:
    if seen.columns and all(map(_is_sentence, seen.columns)):
        first = ", ".join(repr(name[:SHOWN_NAME]) for name in seen.columns[:2])
        hint = "put the names of the columns above it, or state data.kind and the columns if these are their names"
        raise DataError(f"{seen.where}: the first line looks like data, not like names of columns: {first}", hint=hint)
    if not seen.columns:
        column, reason = TEXT_COLUMN, "a text file; its pieces are joined again and cut into blocks"
    elif len(seen.columns) > 1 and not _known(seen, TEXT_NAMES):
        raise DataError(f"{seen.where}: cannot tell what the columns {', '.join(seen.columns)} are for", hint=STATE_KIND)
    else:
        column, why = _text_column(seen)
        reason = f"column {column!r}: {why}"
    tags = _find_tags(seen.head, column)
    if tags:
        said = f"column {column!r} holds turns" if seen.columns else "paragraphs hold turns"
        return _Reading("tagged", {"column": column, "user_tag": tags[0], "assistant_tag": tags[1]}, f"{said} behind {tags[0]} and {tags[1]}")
    return _Reading("text", {"column": column} if seen.columns else {}, reason)


def _is_sentence(name: str) -> bool:
    """Several words that are long or end like a sentence: no one calls a column so."""
    name = name.strip()
    return " " in name and (len(name) > LONGEST_NAMED or name.endswith((".", "!", "?")))


def _find_tags(head: Sequence[Row], column: str) -> tuple[str, str] | None:
    """Tags that part the turns of nine rows in ten."""
    for tags in TAGS:
        marks = turn_marks(*tags)
        tagged = 0
        for row in head:
            text = _text(row, column)
            found = [(mark.lastgroup, mark.start()) for mark in marks.finditer(text)]
            tagged += bool(found) and found[0][0] == "user" and not text[: found[0][1]].strip() and any(role == "assistant" for role, _ in found)
        if tagged >= 0.9 * len(head):
            return tags
    return None


def _text(row: Row, column: str) -> str:
    cell = row.cells.get(column, "")
    return cell if isinstance(cell, str) else ""
