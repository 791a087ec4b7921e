"""run.json: what a run was made of and what came of it, so that it can be gone on with, or made again, and compared.

    id          of this run alone; every checkpoint carries it
    recipe      every key, as the run was begun with
    plan        a hash of what plan.json settles (plan.json itself is the record of the decisions)
    inputs      hashes of whatever the run read: data, split, template, tokenizer, base, adapter that it began from, neutral text
    place       versions, machine, threads: what may move a last digit
    start       the adapter before the first step, and how many numbers the model has of each type
    outcome     the adapter at the end and what training came to
    metrics     base and tuned, as measured at the end

Written whole at the start and completed twice. It ends in a hash of itself. Of the environment it holds the variables of ENVIRONMENT alone.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import IntegrityError
from halfbyte.runs.disk import write_whole

MANIFEST = "run.json"
FORM = 1
Manifest = dict[str, Any]
# Variables that change how a result is computed. None of them can hold a secret.
ENVIRONMENT = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_LAUNCH_BLOCKING",
)  # fmt: skip
# What plan.json settles and no resumed run may change.
SETTLED = ("precision", "optimizer", "total_steps", "steps_per_epoch", "warmup_steps", "eval_steps")
OF_THE_PLAN = (*SETTLED, "quant", "template", "base_fingerprint", "ledger", "rows_sha256")
# Keys that say where a file is, whose content is hashed; and keys that change no number of the run.
PLACES = ("base", "data.path", "data.validation_path", "data.test_path", "evaluate.neutral_path", "adapter.init_from")
FREE = ("name", "memory_budget", "track.report_to", "train.keep_checkpoints")


@dataclass(frozen=True)
class Difference:
    """One thing that is not what it was."""

    what: str
    """Its dotted place in the manifest, such as `inputs.base.weights.model.safetensors`."""
    before: Any
    now: Any
    rows: tuple[int | None, int | None] | None = None
    """Of a hash of rows: how many they were and are, where that is known."""

    def __str__(self) -> str:
        before, now = _shown(self.before), _shown(self.now)
        name = _named(self.what)
        if self.rows is not None:
            return f"{name}: {_tell_rows(*self.rows)}"
        if before == "none":
            return f"{name}: {'content' if _is_hash(self.now) else now}, which the run did not have"
        if now == "none":
            return f"{name}: {'its content' if _is_hash(self.before) else before} is not there"
        if _is_hash(self.before) and _is_hash(self.now):
            return f"{name}: other content (sha256 {before} -> {now})"
        return f"{name}: {before} -> {now}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Readers see the old one or the new one, never half."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    write_whole(folder / MANIFEST, json.dumps({**content, "sha256": digest_of(content)}, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises IntegrityError when there is none, or when it is not what was written."""
    file = folder / MANIFEST
    if not file.is_file():
        raise IntegrityError(f"{file} is missing: nothing tells what the run was begun with", hint="put it back from a copy of the run, or start a new run")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = manifest["sha256"] == digest_of(content)
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise IntegrityError(f"{file} is not what was written", hint="put it back from a copy of the run, or start a new run")
    return manifest


def digest_of(content: Any) -> str:
    """sha256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def plan_digest(plan: dict[str, Any]) -> str:
    """Of what must not change in plan.json; how the step is computed in the memory that there is may."""
    return digest_of({key: plan.get(key) for key in OF_THE_PLAN})


def recipe_differences(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """Keys of two resolved recipes that differ and matter; where files are does not, for their content is compared."""
    return [found for found in differences(before, now, "recipe") if found.what.removeprefix("recipe.") not in (*PLACES, *FREE)]


def differences(before: Any, now: Any, what: str = "") -> list[Difference]:
    """Every leaf that differs, in the order of `before`, then what is new."""
    return list(_differing(before, now, what))


def _differing(before: Any, now: Any, what: str) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _differing(before.get(key), now.get(key), f"{what}.{key}" if what else str(key))
    elif before != now:
        yield Difference(what, before, now)


def _tell_rows(before: int | None, now: int | None) -> str:
    if before is None or now is None:
        return "other rows"
    return f"{before} -> {now}" if before != now else f"not the same {before}: some are others, or stand in another order"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) in (32, 64) and all(letter in "0123456789abcdef" for letter in value)


def _shown(value: Any) -> str:
    """Short enough for a line."""
    if value is None:
        return "none"
    if _is_hash(value):
        return value[:12]
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Dotted places in the manifest -> what a person calls them. The longest that fits is taken.
NAMES = {
    "recipe.": "", "inputs.data.path.": "data.path, ",
    "inputs.data.validation_path.": "data.validation_path, ", "inputs.data.test_path.": "data.test_path, ", "inputs.split.train": "training rows",
    "inputs.split.validation": "validation rows", "inputs.split.test": "test rows", "inputs.split.labels": "what is trained of the rows",
    "inputs.template": "template", "inputs.tokenizer": "tokenizer",
    "inputs.base.config": "base config.json", "inputs.base.weights.": "base weights ", "inputs.base.commit": "base",
    "inputs.neutral": "neutral text",
    "inputs.init_from.": "adapter.init_from ", "place.versions.": "version of ", "place.code": "code of halfbyte", "place.machine.": "machine ",
    "place.environment.": "environment ", "place.threads": "threads", "plan.": "plan ",
}  # fmt: skip


def _named(what: str) -> str:
    start = max((name for name in NAMES if what.startswith(name)), key=len, default=None)
    return what if start is None else (NAMES[start] + what.removeprefix(start)).strip()
