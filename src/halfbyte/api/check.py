"""The proofs of checks/ on a recipe's set-up: what `check` shows, and what every training begins with."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from halfbyte.api.memory import adapt_new, load_for
from halfbyte.api.subject import subject_of
from halfbyte.checks.preflight import prove
from halfbyte.checks.proof import Proof
from halfbyte.checks.subject import Subject
from halfbyte.errors import ModelError, ProofError
from halfbyte.recipe.load import dump_recipe
from halfbyte.runs.events import Event

if TYPE_CHECKING:
    from peft import PeftModel

    from halfbyte.api import Planned


def prove_planned(planned: "Planned", model: "PeftModel", log: Callable[[Event], None], deep: bool = False) -> list[Proof]:
    """Each proof is an event, and so is the time of all."""
    began = time.monotonic()
    proofs = prove(subject_planned(planned, model, deep), deep, lambda proof: log({"event": "proof", **proof.as_json()}))
    log({"event": "proofs", "passed": sum(proof.passed is True for proof in proofs), "seconds": round(time.monotonic() - began, 2)})
    return proofs


def refuse_failed(proofs: list[Proof]) -> None:
    """Raises ProofError when a proof failed, with all that did."""
    failed = [proof for proof in proofs if proof.passed is False]
    if failed:
        lines = [f"not proven, {proof.name}: {proof.told}; likely: {proof.likely}" for proof in failed]
        raise ProofError("\n".join(lines), hint=failed[0].hint)


def subject_planned(planned: "Planned", model: "PeftModel", deep: bool = False) -> Subject:
    recipe, machine, settled = planned.recipe, planned.machine, planned.plan

    def build() -> "PeftModel":
        return adapt_new(load_for(recipe, planned.base, machine, settled), recipe, machine, settled)[0]

    subject = subject_of(recipe, planned.base, planned.tokenizer, planned.prepared, settled, model, build)
    waits = any(layer.weights == "cpu" for layer in settled.computing.layers)
    return replace(subject, afresh=_asker(planned)) if deep and not waits else subject


def _asker(planned: "Planned") -> Callable[[Path, list[int]], Tensor]:
    """Asks api/fresh.py, in a process of its own, for the logits of an adapter."""

    def ask(adapter: Path, ids: list[int]) -> Tensor:
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder)
            (job / "recipe.yaml").write_text(dump_recipe(planned.recipe), encoding="utf-8")
            (job / "job.json").write_text(json.dumps({"adapter": str(adapter), "ids": ids, "precision": planned.plan.precision}), encoding="utf-8")
            done = subprocess.run([sys.executable, "-m", "halfbyte.api.fresh", folder], capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().split("\n")
                raise ModelError(f"a fresh process could not read base and adapter: {lines[-1]}", hint="is there memory for a second model?")
            return load_file(job / "logits.safetensors")["logits"]

    return ask
