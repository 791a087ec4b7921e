"""Proofs before step 1, on the user's own model, rows and functions: what is about to run computes what it says (docs/checks.md).

Each proof holds one part of the set-up against its definition; none knows a particular fault. Rows and text come first, because ids that the model
does not know would end the process on a GPU. Afterwards everything is as it was: a run with proofs is, to the bit, the run without.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from halfbyte.checks.of_batches import OF_BATCHES
from halfbyte.checks.of_marks import OF_MARKS
from halfbyte.checks.of_model import OF_MODEL
from halfbyte.checks.of_order import OF_ORDER
from halfbyte.checks.of_paths import OF_PATHS
from halfbyte.checks.of_rows import OF_ROWS
from halfbyte.checks.of_steps import OF_STEPS
from halfbyte.checks.of_talks import OF_TALKS
from halfbyte.checks.of_use import DEEP, OF_USE
from halfbyte.checks.proof import Claim, Proof, lead
from halfbyte.checks.subject import Subject
from halfbyte.checks.trial import Trial, kept

WITHOUT_MODEL = [*OF_ROWS, *OF_TALKS, *OF_MARKS, *OF_ORDER]
CLAIMS = [*WITHOUT_MODEL, *OF_MODEL, *OF_BATCHES, *OF_STEPS, *OF_PATHS, *OF_USE]


def prove(subject: Subject, deep: bool = False, listener: Callable[[Proof], None] | None = None) -> list[Proof]:
    """In order, each told to the listener when it is done. A faulty set-up fails its proofs and raises nothing; only memory that runs out is raised."""
    proofs: list[Proof] = []
    with kept(subject.model):
        trial = Trial(subject, everything=deep)
        try:
            for claim in [*CLAIMS, *(DEEP if deep else [])]:
                if claim in OF_PATHS and subject.fast is None:
                    continue  # one path alone: nothing to compare
                proof = _proof(claim, trial, proofs)
                proofs.append(proof)
                if listener:
                    listener(proof)
        finally:
            trial.put_values_back()
    if trial.device.type == "cuda":
        torch.cuda.empty_cache()
    return proofs


def _proof(claim: Claim, trial: Trial, before: list[Proof]) -> Proof:
    """With the time that it took."""
    if claim not in WITHOUT_MODEL and before[0].passed is False:
        return Proof(claim.name, None, f"not looked at: {before[0].told}")
    began = time.monotonic()
    trial.clear()
    proof = lead(claim, trial)
    return replace(proof, seconds=time.monotonic() - began)
