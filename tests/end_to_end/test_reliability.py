"""Killed, cut off, damaged and out of disk: the scripts behind docs/reliability.md, with fewer trials."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(BENCHMARKS))
    import bit_flips
    import disk_full
    import kills
    import save_cut_points

    yield {"bit_flips": bit_flips, "disk_full": disk_full, "kills": kills, "save_cut_points": save_cut_points}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def same_environment(monkeypatch, tmp_path):
    """The scripts set variables of their own."""
    for name in ("HALFBYTE_CACHE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, str(tmp_path / "cache") if name == "HALFBYTE_CACHE" else "")


@pytest.mark.parametrize("path", ["loop", "beside"])
def test_sixty_kills_lose_nothing(scripts, tmp_path, path):
    """kill -9 at a random moment, then a resume to the end: the adapter of the uninterrupted run, to the bit. Saves before the next step, and beside it."""
    found = scripts["kills"].kill_many(scripts["kills"].SUBJECTS[path], tmp_path / "kills.jsonl", 30, at_once=2)
    assert len(found) >= 30
    assert [one for one in found if one["error"] or not one["identical"] or one["lost"] or one["left_over"]] == []
    assert len({one["resumed_from"] for one in found}) >= 5, "the kills came at a few moments only"


def test_every_call_of_a_save_may_fail_or_be_the_last(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts["save_cut_points"].disk, "PIECE", scripts["save_cut_points"].PIECE)
    found = scripts["save_cut_points"].sweep(tmp_path)
    cuts = [one for start in found.values() for one in start["cuts"]]
    assert [one for one in cuts if one["wrong"]] == []
    assert len(cuts) >= 140
    assert {one["is"] for one in cuts} == {"open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir"}


def test_damage_is_named_before_it_is_used(scripts, tmp_path):
    tally = scripts["bit_flips"].measure(tmp_path, flips=120)
    assert tally.missed == []
    assert sum(tally.tried.values()) > 1000


def test_a_full_disk_costs_no_checkpoint(scripts, tmp_path):
    """On a tmpfs of a megabyte, where that may be mounted; the same by the layer that fails is in tests/unit/train/test_keeper.py."""
    try:
        saves = scripts["disk_full"].sweep(tmp_path / "disk")
    except PermissionError as error:
        pytest.skip(str(error))
    assert [one for one in saves if not one["good"]] == []
    assert len(saves) >= 5
    assert json.dumps(saves)
