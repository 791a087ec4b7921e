"""Prompts from a file and answers to a file, for `halfbyte generate`."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from halfbyte.data.records import csv_rows
from halfbyte.errors import DataError, MachineError

Write = Callable[[list[str], list[str]], None]
PROMPT_ENDINGS = (".txt", ".jsonl", ".csv")
LINE_OF_JSON = 'write {"prompt": "..."} on each line'


def read_prompts(file: Path) -> list[str]:
    """Raises DataError with the line where a prompt is missing."""
    if not file.is_file():
        raise DataError(f"{file}: no such file", hint="give the prompts with --input FILE")
    kind = file.suffix.lower()
    if kind not in PROMPT_ENDINGS:
        raise DataError(f"{file}: prompts are read from {', '.join(PROMPT_ENDINGS)}", hint="one prompt a line in a .txt file is enough")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: byte 0x{error.object[error.start]:02X} is not UTF-8", hint="save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}", hint="are you allowed to read it?") from error
    if kind == ".csv":
        prompts = _from_csv(text, file)
    else:
        lines = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
        prompts = [_from_json(line, f"{file}:{number}") if kind == ".jsonl" else line for number, line in lines]
    if not prompts:
        raise DataError(f"{file}: holds no prompt", hint="write one prompt a line")
    return prompts


@contextmanager
def write_answers(file: Path) -> Iterator[Write]:
    """Opens a new file at once, so that a name that is taken is told before anything is computed; written as answers come.

    Where no answer comes, because the run is not there for instance, no file is left.
    """
    kind = file.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise DataError(f"{file}: answers are written to .jsonl or .csv", hint="give another name with --output")
    try:
        file.touch(exist_ok=False)
    except FileExistsError as error:
        raise DataError(f"{file} exists and is left as it is", hint="choose another name with --output") from error
    except OSError as error:
        raise MachineError(f"{file}: cannot be written: {error.strerror}", hint="choose another place with --output") from error
    try:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)

            def write(prompts: list[str], answers: list[str]) -> None:
                if kind == ".csv" and not stream.tell():
                    table.writerow(["prompt", "response"])
                for prompt, answer in zip(prompts, answers, strict=True):
                    if kind == ".csv":
                        table.writerow([prompt, answer])
                    else:
                        stream.write(json.dumps({"prompt": prompt, "response": answer}, ensure_ascii=False) + "\n")
                stream.flush()

            yield write
    finally:
        if file.is_file() and not file.stat().st_size:
            file.unlink()


def _from_csv(text: str, file: Path) -> list[str]:
    prompts: list[str] = []
    place: int | None = None
    for line, cells in csv_rows(text, file):
        if place is not None:
            prompts.append(_checked(cells[place], f"{file}:{line}"))
        elif "prompt" in cells:
            place = cells.index("prompt")
        else:
            raise DataError(f"{file}:{line}: no column 'prompt'; columns are {', '.join(cells)}", hint="name the column with the prompts `prompt`")
    return prompts


def _from_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}", hint=LINE_OF_JSON) from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f"{where}: no text under 'prompt'", hint=LINE_OF_JSON)
    return _checked(value["prompt"], where)


def _checked(prompt: str, where: str) -> str:
    if not prompt.strip():
        raise DataError(f"{where}: the prompt is empty", hint="fill it, or take the line out")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise DataError(f"{where}: the prompt holds half a character (a lone surrogate)", hint="write the whole character")
    return prompt
