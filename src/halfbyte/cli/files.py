"""Prompts from a file and answers to a file, for `halfbyte generate`."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from halfbyte.errors import DataError

Write = Callable[[list[str], list[str]], None]


def read_prompts(file: Path) -> list[str]:
    """Raises DataError with the line where a prompt is missing."""
    if not file.is_file():
        raise DataError(f"{file}: no such file", hint="give the prompts with --input FILE")
    with open(file, encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".jsonl":
            prompts = [_from_json(line, f"{file}:{number}") for number, line in enumerate(stream, 1) if line.strip()]
        elif file.suffix == ".csv":
            reader = csv.DictReader(stream)
            if "prompt" not in (reader.fieldnames or []):
                raise DataError(f"{file}: no column 'prompt'; columns are {', '.join(reader.fieldnames or [])}", hint="name the column with the prompts `prompt`")
            prompts = [row["prompt"] for row in reader]
        elif file.suffix == ".txt":
            prompts = [line.rstrip("\r\n") for line in stream if line.strip()]
        else:
            raise DataError(f"{file}: prompts are read from .txt, .jsonl or .csv", hint="one prompt a line in a .txt file is enough")
    if not prompts:
        raise DataError(f"{file}: holds no prompt", hint="write one prompt a line")
    return prompts


@contextmanager
def write_answers(file: Path) -> Iterator[Write]:
    """Opens a new file at once, so that a name that is taken is told before anything is computed; written as answers come."""
    if file.suffix not in (".jsonl", ".csv"):
        raise DataError(f"{file}: answers are written to .jsonl or .csv", hint="give another name with --output")
    try:
        stream = open(file, "x", encoding="utf-8", newline="")
    except FileExistsError as error:
        raise DataError(f"{file} exists and is left as it is", hint="choose another name with --output") from error
    with stream:
        table = csv.writer(stream)
        if file.suffix == ".csv":
            table.writerow(["prompt", "response"])

        def write(prompts: list[str], answers: list[str]) -> None:
            for prompt, answer in zip(prompts, answers, strict=True):
                if file.suffix == ".csv":
                    table.writerow([prompt, answer])
                else:
                    stream.write(json.dumps({"prompt": prompt, "response": answer}, ensure_ascii=False) + "\n")
            stream.flush()

        yield write


def _from_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}", hint='write {"prompt": "..."} on each line') from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f"{where}: no text under 'prompt'", hint='write {"prompt": "..."} on each line')
    return value["prompt"]
