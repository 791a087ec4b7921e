"""Reads other people's training scripts and notebooks without running them: files -> one syntax tree, in which every line knows where it stands.

Python files and the code cells of notebooks are parsed with ast, several files one behind the other, as a project runs them. Lines of
IPython (%magic, !command, name?) are put aside, and the packages that they install are kept. Needs no torch.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError

LARGEST_BYTES = 50_000_000
ENDINGS = (".py", ".ipynb")
REQUIREMENTS = re.compile(r"requirements.*\.txt", re.I)
# Cell magics whose cell is Python all the same.
PYTHON_CELLS = ("%%time", "%%timeit", "%%capture", "%%prun")
# Lines that IPython takes for itself; `value = !command` gives a value.
SHELL_VALUE = re.compile(r"^(\s*[\w.,\s]+?=\s*)[!%].*$")
INSTALL = re.compile(r"\bpip3?\s+install\s+(.*)")
PACKAGE = re.compile(r"""["']?([A-Za-z][\w.-]*)(?:\[[\w,\s-]*\])?\s*(==|<=|~=|<)\s*([\w.*]+)""")
# What a token of a hub or of a tracker looks like: never shown, wherever it stands.
SECRET = re.compile(r"\b(?:hf_|ghp_|gho_|AKIA)[A-Za-z0-9]{16,}|\b(?:sk-|github_pat_|wandb_v1_)[A-Za-z0-9_-]{16,}|\b[0-9a-f]{40}\b")


@dataclass(frozen=True)
class Place:
    """A line of a file. `cell` counts all cells of a notebook from 1, those with text too; `line` starts anew in each."""

    file: str
    cell: int | None
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.cell is None else f"{self.file}, cell {self.cell}, line {self.line}"


@dataclass(frozen=True)
class Pin:
    """A version that a line of `pip install` asks for."""

    package: str
    sign: str
    version: str
    line: int


@dataclass
class Script:
    """What was read. Line numbers of the tree count through all files; `places` says where each stands."""

    tree: ast.Module = field(default_factory=lambda: ast.Module([], []))
    places: list[Place] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    outputs: list[tuple[range, str]] = field(default_factory=list)
    """Of a notebook that was saved after it ran: the lines of a cell, and the text that it printed."""
    unread: list[str] = field(default_factory=list)
    """Cells that are not Python."""

    def place(self, line: int) -> Place:
        return self.places[line - 1]


def read_scripts(paths: list[Path]) -> Script:
    """Raises DataError for a file that is not there, no notebook or not Python; a single cell that is not Python is told and passed over."""
    script = Script()
    for path in paths:
        if is_requirements(path):
            _add_requirements(script, path)
            continue
        cells = _cells(path)
        before = len(script.unread)
        for cell, text, output in cells:
            _add(script, str(path), cell, text, output)
        refused = script.unread[before:]
        if refused and len(refused) == len([text for _, text, _ in cells if text.strip()]):
            raise DataError(refused[0], hint="give a training script in Python 3, or a notebook of one")
    return script


def is_requirements(path: Path) -> bool:
    """requirements.txt and its sisters, whose pins everyone gets who installs the project."""
    return bool(REQUIREMENTS.fullmatch(path.name))


def without_secrets(text: str) -> str:
    return SECRET.sub("[a secret]", text)


def _cells(path: Path) -> list[tuple[int | None, str, str]]:
    """(number of the cell or None, code, what it printed)."""
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: is neither a script (.py) nor a notebook (.ipynb)", hint="recipes go with --recipe; data with halfbyte audit")
    text = _text(path)
    if path.suffix.lower() == ".py":
        return [(None, text, "")]
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{where}: not JSON, so it is no notebook: {error}", hint="save it again from Jupyter") from error
    listed = notebook.get("cells") if isinstance(notebook, dict) else None
    if listed is None and isinstance(notebook, dict):  # nbformat 3
        listed = [cell for sheet in _list(notebook.get("worksheets")) if isinstance(sheet, dict) for cell in _list(sheet.get("cells"))] or None
    if not isinstance(listed, list):
        raise DataError(f"{path}: JSON, but no notebook: it has no cells", hint="data go with halfbyte audit")
    cells = [(number, cell) for number, cell in enumerate(listed, 1) if isinstance(cell, dict) and cell.get("cell_type") == "code"]
    return [(number, _joined(cell.get("source", cell.get("input", ""))), _printed(cell.get("outputs"))) for number, cell in cells]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise DataError(f"{path}: larger than 50 MB", hint="clear the outputs of the notebook, and try again")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint="give a script or a notebook") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder", hint="name the files in it, each with --notebook") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8", hint="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="are you allowed to read it?") from error


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _joined(source: Any) -> str:
    """Text of a notebook is one text or a list of lines."""
    return "".join(str(line) for line in source) if isinstance(source, list) else str(source)


def _printed(outputs: Any) -> str:
    parts = []
    for output in _list(outputs):
        if isinstance(output, dict):
            data = output.get("data")
            shown = list(data.values()) if isinstance(data, dict) else []
            parts += [_joined(part) for part in (output.get("text", ""), *shown) if isinstance(part, (str, list))]
            parts += [str(output["ename"])] if "ename" in output else []
    return "\n".join(parts)


def _add_requirements(script: Script, path: Path) -> None:
    offset = len(script.places)
    for number, line in enumerate(_text(path).splitlines(), 1):
        script.places.append(Place(str(path), None, number, line))
        script.pins += [Pin(name.lower(), sign, version, offset + number) for name, sign, version in PACKAGE.findall(line.partition("#")[0])]


def _add(script: Script, file: str, cell: int | None, text: str, output: str) -> None:
    """Parses one cell, or one file, and puts it behind what is there."""
    lines = re.split(r"\r\n|\r|\n", text)
    offset = len(script.places)
    script.places += [Place(file, cell, number, line) for number, line in enumerate(lines, 1)]
    magic = lines[0].lstrip() if cell is not None else ""
    if magic.startswith("%%") and not magic.startswith(PYTHON_CELLS):
        _keep_pins(script, text, offset)
        return
    kept, error = list(lines), None
    for _ in range(len(lines) + 1):  # each round puts a line aside, or is the last
        try:
            tree = ast.parse("\n".join(kept))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as wrong:
            error = wrong
            if isinstance(wrong, SyntaxError) and wrong.lineno and _set_aside(kept, wrong.lineno - 1, script, offset):
                continue
            break
        ast.increment_lineno(tree, offset)
        script.tree.body += tree.body
        if output:
            script.outputs.append((range(offset + 1, offset + len(lines) + 1), output))
        return
    at = error.lineno if isinstance(error, SyntaxError) and error.lineno else 1
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    script.unread.append(f"{script.place(min(offset + at, len(script.places)))}: not Python 3: {said}")


def _set_aside(lines: list[str], index: int, script: Script, offset: int) -> bool:
    """Where the line is one of IPython's, something of Python that does nothing takes its place. False where it is not."""
    if index >= len(lines):
        return False
    line = lines[index]
    bare = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    if match := SHELL_VALUE.match(line):
        taken, new = _with_continuations(lines, index), f"{match[1]}None"
    elif bare.startswith(("%", "!")):
        taken, new = _with_continuations(lines, index), f"{indent}pass"
    elif bare.startswith("?") or bare.endswith("?"):
        taken, new = [index], f"{indent}pass"
    else:
        return False
    _keep_pins(script, " ".join(lines[number].rstrip("\\") for number in taken), offset + index)
    for number in taken:
        lines[number] = ""
    lines[index] = new
    return True


def _with_continuations(lines: list[str], index: int) -> list[int]:
    taken = [index]
    while lines[taken[-1]].rstrip().endswith("\\") and taken[-1] + 1 < len(lines):
        taken.append(taken[-1] + 1)
    return taken


def _keep_pins(script: Script, text: str, offset: int) -> None:
    for number, line in enumerate(text.split("\n")):
        if found := INSTALL.search(line):
            script.pins += [Pin(name.lower(), sign, version, offset + number + 1) for name, sign, version in PACKAGE.findall(found[1])]
