"""Every case, in the order of the list, and the golden file: what each is answered, as text that a reviewer can read."""

import importlib
from pathlib import Path

from bad_inputs.case import Case, Seen, shown

PARTS = ("recipes", "models", "dangers", "surroundings")
GOLDEN = Path(__file__).parent / "golden.txt"
HEAD = "What a user reads, case by case. Written by `python tests/bad_inputs/write_golden.py`; compared by test_bad_inputs.py.\n\n"


def cases() -> list[Case]:
    return [case for part in PARTS for case in importlib.import_module(f"bad_inputs.{part}").CASES]


def as_golden(answers: list[tuple[Case, Seen]]) -> str:
    return HEAD + "\n".join(shown(case, seen) for case, seen in answers)


def read_golden() -> dict[str, str]:
    """What stands in it for each case, by the case's name."""
    parts = GOLDEN.read_text(encoding="utf-8").removeprefix(HEAD).split("\n# ")
    return {part.removeprefix("# ").split("\n", 1)[0]: "# " + part.removeprefix("# ").rstrip("\n") + "\n" for part in parts}
