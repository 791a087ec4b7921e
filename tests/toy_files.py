"""Files of rows as people have them, of every kind: good ones, repeated ones and bad ones."""

import json
import random
from pathlib import Path

WORDS = [
    "the",
    "keeper",
    "lit",
    "lamp",
    "and",
    "sea",
    "was",
    "quiet",
    "who",
    "comes",
    "there",
    "said",
    "old",
    "man",
    "what",
    "do",
    "you",
    "want",
    "at",
    "this",
    "hour",
    "walked",
    "long",
    "way",
    "over",
    "hills",
]


def sentence(draw: random.Random, least: int = 1, most: int = 20) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def rows_of(kind: str, draw: random.Random) -> dict:
    asked, answered = sentence(draw), sentence(draw)
    if draw.random() < 0.15:
        asked = sentence(draw, 60, 200)
    if draw.random() < 0.1:
        answered = sentence(draw, 80, 200)
    turns = [(role, sentence(draw)) for _ in range(draw.randint(1, 4)) for role in ("user", "assistant")][: draw.randint(2, 8) if draw.random() < 0.95 else 1]
    return {
        "text": {"text": sentence(draw, 1, 120)},
        "book": {"text": sentence(draw, 80, 200)},
        "prompt_response": {"prompt": asked, "response": answered},
        "structure": {"target": asked, "meaning_representation": answered},
        "instruction": {"instruction": asked, "input": draw.choice(["", sentence(draw)]), "output": answered},
        "messages": {"messages": [{"role": role, "content": said} for role, said in turns]},
        "sharegpt": {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": said} for role, said in turns]},
        "tagged": {"text": "".join({"user": "<HUMAN>: ", "assistant": "<ASSISTANT>: "}[role] + said + "\n" for role, said in turns)},
        "label": {"text": asked, "label": draw.choice("abc")},
    }[kind]


# What a recipe states of each kind; the keys of prompts and answers need it.
STATED = {
    "text": ["data.kind=text", "data.rows=separate"], "book": ["data.kind=text", "data.rows=book"],
    "prompt_response": ["data.kind=prompt_response", "data.prompt_column=prompt", "data.response_column=response"],
    "structure": ["data.kind=structure", "data.prompt_column=target", "data.response_column=meaning_representation"],
    "instruction": ["data.kind=instruction", "data.input_column=input"], "messages": ["data.kind=messages"], "sharegpt": ["data.kind=sharegpt"],
    "tagged": ["data.kind=tagged", "data.column=text"], "label": ["data.kind=label", "data.text_column=text", "data.label_column=label"],
}  # fmt: skip
PAIRS = STATED["prompt_response"]
KINDS = ("text", "book", "prompt_response", "structure", "instruction", "messages", "sharegpt", "tagged", "label")
CHATS = KINDS[2:]


def spoiled(row: dict, draw: random.Random) -> str:
    """A line of a file that people have: empty cells, cells of the wrong kind, keys that are missing, no JSON at all."""
    name = draw.choice(list(row))
    how = draw.randrange(6)
    if how == 0:
        return json.dumps({**row, name: "" if isinstance(row[name], str) else []})
    if how == 1:
        return json.dumps({**row, name: 7 if name != "label" else ""})
    if how == 2:
        return json.dumps({key: value for key, value in row.items() if key != name})
    if how == 3:
        return json.dumps(row)[: draw.randint(3, 9)]
    if how == 4:
        return json.dumps({**row, name: "   "})
    return json.dumps([1, 2])


def write_rows(file: Path, kind: str, count: int, seed: int, bad: float = 0.1) -> int:
    """A JSONL file with good, bad and repeated rows; returns how many."""
    draw = random.Random(f"{kind} {seed}")
    lines: list[str] = []
    for number in range(count):
        row = rows_of(kind, draw)
        if number >= 10 and draw.random() < bad:
            lines.append(spoiled(row, draw))
        elif number and draw.random() < 0.1:
            lines.append(draw.choice(lines))
        else:
            lines.append(json.dumps(row))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
