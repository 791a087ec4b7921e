"""What a run is made of, as run.json keeps it (runs/manifest.py), and whether a run that goes on is still made of it.

begin_manifest      when the run folder is made: recipe, plan, inputs, place
note_start          when the model is loaded: the adapter before step 1
note_outcome, note_metrics      when training and measuring are done
check_folder, check_inputs      before a run goes on; places_apart: what may move a last digit since
"""

import hashlib
import json
import os
import platform
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halfbyte import __version__
from halfbyte.checks.reproduce import asked_at_first
from halfbyte.data.store import tokenizer_hash
from halfbyte.errors import IntegrityError
from halfbyte.evaluate.neutral import NEUTRAL_TEXT
from halfbyte.model.adapter import ADAPTER_FILES, adapter_folder, adapter_state
from halfbyte.model.base import Base
from halfbyte.model.identity import base_identity, hash_file
from halfbyte.recipe.load import Loaded, parse_resolved
from halfbyte.runs.cache import cache_folder
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.manifest import (
    ENVIRONMENT,
    FORM,
    MANIFEST,
    Difference,
    Manifest,
    differences,
    digest_of,
    plan_digest,
    read_manifest,
    recipe_differences,
    write_manifest,
)
from halfbyte.runs.report import read_events
from halfbyte.runs.settle import settle

if TYPE_CHECKING:
    from halfbyte.api import Planned
    from halfbyte.train.loop import Outcome

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers")
PARTS = ("train", "validation", "test")
WEIGHTS_KEPT = "weights.json"
RESOLVED = "recipe.resolved.yaml"
READS_TOKENIZERS = ("place.versions.transformers", "place.versions.tokenizers")
# How a step is computed, as far as it decides in which order numbers are added.
SPLIT = ("path", "micro_batch_size", "gradient_accumulation_steps", "layers")


def begin_manifest(run: RunFolder, planned: "Planned", plan: dict[str, Any]) -> None:
    """`plan`: what plan.json is about to hold."""
    write_manifest(run.path, {
        "form": FORM, "id": uuid.uuid4().hex, "name": run.path.name, "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": planned.recipe.model_dump(mode="json"), "plan": plan_digest(plan), "inputs": inputs_of(planned), "place": place_of(planned),
    })  # fmt: skip


def note_start(run: RunFolder, model: nn.Module) -> None:
    """Kept from the first start; a resumed run has the same adapter before its first step, and puts the saved one in its place."""
    manifest = read_manifest(run.path)
    if "start" not in manifest:
        write_manifest(run.path, {**manifest, "start": {"adapter_sha256": adapter_digest(model), "numbers": numbers_by_type(model)}})


def note_outcome(run: RunFolder, outcome: "Outcome") -> None:
    """The adapter's hash is that of adapter_model.safetensors, which adapter.sha256 holds too."""
    manifest = read_manifest(run.path)
    manifest.pop("metrics", None)
    found = {
        "adapter_sha256": run.adapter_hash.read_text(encoding="utf-8").strip(), "steps": outcome.steps, "best_step": outcome.best_step,
        "stopped": outcome.stopped,
    }  # fmt: skip
    write_manifest(run.path, {**manifest, "outcome": found})


def note_metrics(run: RunFolder) -> None:
    """Base and tuned of every figure that was compared at the end."""
    compared = settle(read_events(run.events)[0]).rows["comparison"].values()
    metrics = {f"{one['group']}, {one['metric']}": {"base": one.get("base"), "tuned": one.get("tuned")} for one in compared}
    write_manifest(run.path, {**read_manifest(run.path), "metrics": metrics})


# What is kept


def inputs_of(planned: "Planned") -> dict[str, Any]:
    """Hashes of all that the run reads."""
    recipe, prepared, tokenizer = planned.recipe, planned.prepared, planned.tokenizer
    chat = tokenizer.chat_template if prepared.template.kind == "chat" else None
    found: dict[str, Any] = {
        "data": prepared.sources,
        "split": {**dict(zip(PARTS, prepared.fingerprint.split("-"), strict=True)), "labels": prepared.labels},
        "template": digest_of([prepared.template.as_json(), chat]),
        "tokenizer": tokenizer_hash(tokenizer),
        "base": base_identity(planned.base, cache_folder() / WEIGHTS_KEPT),
        "neutral": hash_file(Path(recipe.evaluate.neutral_path or NEUTRAL_TEXT)),
    }
    if recipe.adapter.init_from is not None:
        folder = adapter_folder(recipe.adapter.init_from)
        found["init_from"] = {name: hash_file(folder / name) for name in ADAPTER_FILES}
    return found


def place_of(planned: "Planned") -> dict[str, Any]:
    """Where and with what it is computed. It names no host and no user."""
    machine = planned.machine
    cuda = {"cuda": str(torch.version.cuda)} if machine.device == "cuda" else {}
    return {
        "versions": versions(), "code": code_digest(),
        "machine": {
            "device": machine.device, "name": machine.name, "system": f"{platform.system()} {platform.machine()}",
            "instructions": torch.backends.cpu.get_cpu_capability(), **cuda,
        },
        "threads": torch.get_num_threads(), "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }  # fmt: skip


def versions() -> dict[str, str]:
    return {"halfbyte": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def code_digest() -> str:
    """Of the modules of this package: between two releases a version says too little."""
    root = Path(__file__).parent.parent
    found = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return found.hexdigest()


def adapter_digest(model: nn.Module) -> str:
    """Of the trained tensors: name, type, shape and every byte."""
    found = hashlib.sha256()
    for name, tensor in sorted(adapter_state(model).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def numbers_by_type(model: nn.Module) -> dict[str, dict[str, int]]:
    """How many numbers are trained and frozen, by the type that they are stored in (4-bit weights lie in uint8, two in each)."""
    found: dict[str, dict[str, int]] = {"trained": {}, "frozen": {}}
    for parameter in model.parameters():
        kind, types = str(parameter.dtype).removeprefix("torch."), found["trained" if parameter.requires_grad else "frozen"]
        types[kind] = types.get(kind, 0) + parameter.numel()
    return found


# Before a run goes on


def check_folder(run: RunFolder) -> tuple[Manifest, Loaded]:
    """The run's files are those that it was begun with; its recipe as kept. Raises IntegrityError."""
    manifest = read_manifest(run.path)
    loaded = kept_recipe(run)
    changed = recipe_differences(asked_at_first(manifest), loaded.recipe.model_dump(mode="json"))
    if changed:
        seen = f"{run.path / RESOLVED} is not what the run was begun with: {_joined(changed)}"
        raise IntegrityError(seen, hint="put that back, or start a new run, which may go on from this one's adapter with adapter.init_from=RUN")
    if plan_digest(run.read_plan()) != manifest["plan"]:
        raise IntegrityError(f"{run.plan} is not what was written", hint="put it back from a copy of the run, or start a new run")
    return manifest, loaded


def kept_recipe(run: RunFolder, changes: list[str] | None = None) -> Loaded:
    """The resolved recipe in the run's folder. Raises IntegrityError where it is not there."""
    file = run.path / RESOLVED
    if not file.is_file():
        raise IntegrityError(f"{file} is missing", hint=f"put it back from a copy of the run; {MANIFEST} tells every key under `recipe`")
    return parse_resolved(file.read_text(encoding="utf-8"), str(file), changes or [])


def check_inputs(run: RunFolder, manifest: Manifest, planned: "Planned") -> None:
    """What a step depends on is what it was; data are compared by their rows (api), so that a file may be moved or written anew. Raises IntegrityError."""
    before, now = manifest["inputs"], inputs_of(planned)
    elsewhere = ["inputs.data.", "inputs.split."]
    if any(found.what in READS_TOKENIZERS for found in places_apart(manifest, planned)):
        elsewhere.append("inputs.tokenizer")  # another version may write the same tokenizer otherwise; the rows say whether it is the same
    changed = [found for found in differences(before, now, "inputs") if not found.what.startswith(tuple(elsewhere))]
    if changed:
        raise IntegrityError(
            f"{run.path} was begun with something else: {_joined(changed)}", hint="put the old one back, or start a new run with halfbyte train"
        )


def places_apart(manifest: Manifest, planned: "Planned") -> list[Difference]:
    """Versions, machine and threads that are others than at the beginning."""
    return differences(manifest["place"], place_of(planned), "place")


def check_base(run: RunFolder, base: Base) -> None:
    """For whoever uses a finished run: every byte of the base's weights, where run.json tells them. Raises IntegrityError."""
    if not (run.path / MANIFEST).is_file():  # a run of an earlier build: its fingerprint was compared
        return
    changed = differences(read_manifest(run.path)["inputs"]["base"], base_identity(base, cache_folder() / WEIGHTS_KEPT), "inputs.base")
    if changed:
        raise IntegrityError(
            f"base: {base.name} is not the model that this run was trained on: {_joined(changed)}", hint="put the old one back, or train again"
        )


def computed_otherwise(run: RunFolder, planned: "Planned") -> list[str]:
    """A note where a step is split or placed otherwise than when the run was begun: the same mathematics, in another order."""
    kept, now = (json.loads(json.dumps(one)) for one in (run.read_plan().get("computing") or {}, asdict(planned.plan.computing)))
    changed = [name.replace("_", " ") for name in SPLIT if name in kept and kept[name] != now[name]]
    return [f"a step is computed otherwise than when the run was begun ({', '.join(changed)}): the same step, but last digits may differ"] if changed else []


def _joined(changed: list[Difference]) -> str:
    return "; ".join(map(str, changed))
