"""claims.json: every figure that the project states, written by the script that measured it."""

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("halfbyte", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from source" if name == "halfbyte" else "absent"
    return found


def where() -> str:
    """Chip and cores; never a host name."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    import os

    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def _as_typed(words: list[str]) -> list[str]:
    """The command without the options that only say where figures went and files lay."""
    for option in ("--results", "--data", "--peers", "--scratch"):
        if option in words:
            place = words.index(option)
            words = words[:place] + words[place + 2 :]
    return words


def save_raw(name: str, content: object, results: Path = RESULTS) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record(
    claim: str,
    value: float,
    unit: str,
    results: Path = RESULTS,
    place: str | None = None,
    taken_with: dict[str, str] | None = None,
    beside: dict[str, Any] | None = None,
) -> None:
    """Adds or replaces one claim. `command` is the command that runs now; `place` and `taken_with` (versions) are of a measurement that was taken elsewhere;
    `beside`: what else is to be said of it, such as peak_gb."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / "claims.json"
    claims = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    claims = [one for one in claims if one["claim"] != claim]
    command = "python " + " ".join(_as_typed(sys.argv))
    claims.append({
        "claim": claim, "value": value, "unit": unit, "command": command, "where": place or where(),
        "date": datetime.now(UTC).date().isoformat(), "versions": taken_with or versions(),
        **(beside or {}),
    })  # fmt: skip
    file.write_text(json.dumps(sorted(claims, key=lambda one: one["claim"]), indent=1) + "\n", encoding="utf-8")
