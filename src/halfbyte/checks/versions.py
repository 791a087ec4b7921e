"""The versions that halfbyte was tested with, the oldest that it takes, and those below which a library has a known hole. Needs no import of any of them.

TESTED is what constraints.txt pins, FLOORS what pyproject.toml asks for; a test holds them equal.
"""

import re
from importlib.metadata import PackageNotFoundError, version

TESTED = {
    "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0", "bitsandbytes": "0.50.2", "tokenizers": "0.23.3",
    "safetensors": "0.8.0", "huggingface_hub": "2.4.0", "jinja2": "3.1.6", "pyarrow": "25.0.0", "datasets": "5.2.0", "numpy": "2.4.6",
}  # fmt: skip
FLOORS = {
    "torch": "2.11", "transformers": "5.17", "peft": "0.21", "accelerate": "1.15", "bitsandbytes": "0.50", "tokenizers": "0.23", "safetensors": "0.8",
    "huggingface_hub": "1.3", "jinja2": "3.1.6", "pyarrow": "20", "datasets": "5", "numpy": "2",
}  # fmt: skip
# package -> (first version without the holes, which)
HOLES = {
    "torch": ("2.10", "CVE-2025-32434: loading a .bin runs code even with weights_only; CVE-2026-24747"),
    "transformers": ("5.3.0", "CVE-2026-1839 (before 5.0): a checkpoint runs code; CVE-2026-4372 (4.56 to 5.2): a config.json does"),
    "jinja2": ("3.1.6", "CVE-2024-56326, CVE-2025-27516: a chat template leaves the sandbox"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: a Parquet file runs code"),
}


def numbers(text: str) -> tuple[int, ...]:
    """2.10.0+cpu -> (2, 10): the numbers at the beginning, without zeros at the end, so that 2.10 and 2.10.0 are one."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    parts = [int(part) for part in found[0].split(".")] if found else [0]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def outside_matrix() -> list[str]:
    """Packages that are older than what the tests passed on, or a major version newer, in words for the plan."""
    found = {name: has for name in TESTED if (has := installed(name)) is not None}
    odd = [
        f"{name} {has} (tested: {FLOORS[name]} to {TESTED[name]})"
        for name, has in found.items()
        if numbers(has) < numbers(FLOORS[name]) or numbers(has)[0] > numbers(TESTED[name])[0]
    ]
    return [f"outside of the versions that halfbyte was tested with: {', '.join(odd)}; halfbyte doctor says more"] if odd else []
