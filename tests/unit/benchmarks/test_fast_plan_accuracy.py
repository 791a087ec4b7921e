"""What the fast path's configurations stand for, and that all that was measured is counted."""

import json
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from halfbyte.budget.fast import fast_peak
from halfbyte.fast.decoder import flatten

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def accuracy():
    sys.path.insert(0, str(BENCHMARKS))
    import fast_plan_accuracy

    yield fast_plan_accuracy
    sys.path.remove(str(BENCHMARKS))


def test_there_are_at_least_forty_and_those_of_a_base_stand_together(accuracy):
    found = accuracy.cases()
    assert len(found) >= 40
    assert len({case.name for case in found}) == len(found)
    bases = [(case.shape, case.layers, case.rank, case.targets) for case in found]
    assert len(set(bases)) == 1 + sum(a != b for a, b in pairwise(bases))


def test_what_is_predicted_is_what_is_run(accuracy):
    """Documents and learned tokens of the batch that is made."""
    for case in accuracy.cases():
        batch = accuracy.batch_of(case, 99, torch.Generator().manual_seed(0))
        ids, places, *_, lengths = flatten(batch)
        given = accuracy.work_of(case, accuracy.settings_of(case))
        assert (lengths, len(places), len(ids)) == (given.lengths, given.supervised, given.tokens), case.name
        assert batch.supervised == given.supervised


def test_what_failed_counts_as_wrong_and_what_ran_out_is_said(accuracy, tmp_path, capsys):
    right, off, failed = accuracy.cases()[:3]
    peaks = {case.name: fast_peak(accuracy.work_of(case, accuracy.settings_of(case))) for case in (right, off)}
    found = {
        case.name: {
            **asdict(case), "device": "a GPU", "versions": {}, "peak_allocated": peaks[case.name].allocated_bytes, "seconds": 1.0, "fits": case is right,
            "peak_reserved": int(peaks[case.name].reserved_bytes * (1.01 if case is right else 1.2)),
        } for case in (right, off)
    }  # fmt: skip
    found[failed.name] = {**asdict(failed), "failed": "RuntimeError"}
    (tmp_path / "fast_plan_accuracy.json").write_text(json.dumps(found))
    accuracy.judge(tmp_path)
    claims = {one["claim"]: one["value"] for one in json.loads((tmp_path / "claims.json").read_text())}
    assert claims["fast-memory-plan-within-5pct"] == pytest.approx(1 / 3, abs=1e-3)
    assert claims["fast-memory-plan-ran-out"] == 1
    said = capsys.readouterr().out
    assert "RAN OUT" in said
    assert failed.name in said
