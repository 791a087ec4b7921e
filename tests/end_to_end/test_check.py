"""`halfbyte check`, and the proofs that every train begins with: told, kept in the report, and the end of the run where one fails."""

import json
import os
import subprocess
import sys

import pytest
import torch

import halfbyte.api.subject
from halfbyte import api
from halfbyte.errors import ProofError
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import open_run, read_report
from halfbyte.runs.report import read_events
from toys import make_base


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A recipe over twelve short pairs; two steps."""
    folder = tmp_path_factory.mktemp("check")
    base, file = make_base(folder / "base"), folder / "talk.csv"
    file.write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(12)), encoding="utf-8")
    data = f"data:\n  path: {file}\n  max_length: 64\n  test_share: 0\n  validation_share: 0\n"
    return f"name: toy\nbase: {base}\n{data}train:\n  max_steps: 2\nevaluate:\n  max_new_tokens: 4\n"


@pytest.fixture
def broken(monkeypatch):
    """The loss that training uses compares each token with itself."""
    whole = halfbyte.api.subject.summed_loss
    monkeypatch.setattr(halfbyte.api.subject, "summed_loss", lambda logits, labels: whole(logits, labels.roll(1, 1)))


def run_check(text, tmp_path, *words):
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "halfbyte", "check", str(recipe), *words], capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False, timeout=300
    )


def test_check_proves_a_set_up_and_trains_nothing(text, tmp_path):
    """In a fresh process too."""
    done = run_check(text, tmp_path, "--deep", "--json")
    assert done.returncode == 0, done.stderr
    proofs = {proof["name"]: proof for proof in json.loads(done.stdout)}
    assert {name for name, proof in proofs.items() if proof["passed"] is not True} == {"packing"}
    assert "to the bit" in proofs["fresh process"]["told"]
    assert not (tmp_path / "runs").exists()


def test_a_set_up_that_is_not_sound_is_refused_with_cause_and_mend(text, broken):
    events = []
    with pytest.raises(ProofError, match=r"not proven, loss: .* likely: labels are shifted") as refused:
        api.check(parse_recipe(text, "toy.yaml", []), events.append)
    assert refused.value.exit_code == 5
    assert refused.value.hint
    assert {event["name"] for event in events if event["event"] == "proof" and event["passed"] is False} >= {"loss"}


def test_a_failed_proof_ends_a_run_before_its_first_step(text, broken, tmp_path):
    with pytest.raises(ProofError):
        api.train(parse_recipe(text, "toy.yaml", []), tmp_path)
    run = open_run(tmp_path / "toy")
    kinds = [event["event"] for event in read_events(run.events)[0]]
    assert "step" not in kinds
    assert kinds[-1] == "failed"
    report = read_report(run.path)
    assert report["status"] == "failed"
    assert {row["name"] for row in report["proofs"]["rows"] if row["passed"] is False} >= {"loss"}
    assert "does not hold" in (run.path / "report.html").read_text(encoding="utf-8")


def test_a_run_tells_what_was_proven_and_how_long_it_took(text, tmp_path):
    run = api.train(parse_recipe(text, "toy.yaml", []), tmp_path)
    proofs = read_report(run.path)["proofs"]
    assert len(proofs["rows"]) >= 20
    assert all(row["passed"] is not False and row["told"] for row in proofs["rows"])
    assert proofs["seconds"] > 0
    for name in ("report.html", "report.md"):
        page = (run.path / name).read_text(encoding="utf-8")
        assert "Proven before step 1" in page
        assert f"looked at in {proofs['seconds']:.1f} s" in page


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_memory_that_runs_out_in_a_proof_is_no_finding_and_no_bug(error):
    """It was a failed proof of the optimizer, or a traceback."""
    from halfbyte.checks.proof import Claim, lead

    def short(trial: object) -> str:
        raise error

    with pytest.raises(type(error)):
        lead(Claim("first steps", short, "the optimizer", "mend it"), None)


def test_a_run_whose_proofs_find_no_memory_says_so(text, tmp_path, monkeypatch):
    from halfbyte.errors import OutOfMemory

    def short(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(api, "prove_planned", short)
    with pytest.raises(OutOfMemory, match="out of memory in the proofs") as caught:
        api.train(parse_recipe(text, "toy.yaml", []), tmp_path / "runs")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    with pytest.raises(OutOfMemory, match="in the proofs"):
        api.check(parse_recipe(text, "toy.yaml", []))
