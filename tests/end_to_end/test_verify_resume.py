"""`halfbyte verify-resume`: says identical where resuming is exact, and says what differs, and why, where it is not."""

import sys
import tempfile

import pytest
import torch

from halfbyte import api
from halfbyte.api import cuts
from halfbyte.recipe.load import parse_recipe
from toys import make_base

TEXT = """\
name: toy
base: {folder}/base
data:
  kind: text
  path: {folder}/tale.txt
  max_length: 64
adapter:
  r: 4
  dropout: 0.1
train:
  batch_size: 2
  learning_rate: 1e-2
"""
SENTENCE = "the keeper lit the lamp and the sea was quiet. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("verify").resolve()
    make_base(place / "base")
    (place / "tale.txt").write_text("\n\n".join(f"{number}. {SENTENCE * 5}" for number in range(20)), encoding="utf-8")
    (place / "toy.yaml").write_text(TEXT.format(folder=place), encoding="utf-8")
    return place


def recipe(folder):
    return parse_recipe(TEXT.format(folder=folder), "toy.yaml", [])


def verify(folder, monkeypatch, capfd):
    from halfbyte.cli.main import main

    monkeypatch.setattr(sys, "argv", ["halfbyte", "verify-resume", str(folder / "toy.yaml"), "--steps", "4"])
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, *capfd.readouterr()


def test_it_says_identical_and_leaves_nothing(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    code, out, complaint = verify(folder, monkeypatch, capfd)
    assert code == 0, complaint
    assert "identical: 4 steps, cut behind 3 of them" in out
    assert out.count("same") == 4
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


def test_a_random_state_that_is_not_put_back_is_seen(folder, monkeypatch, capfd):
    """Dropout draws other numbers from the second step on."""
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    code, out, complaint = verify(folder, monkeypatch, capfd)
    assert code == 5
    assert "step 2 has another loss" in complaint
    assert "please report it" in complaint
    assert "other loss" in out


def test_an_optimizer_that_is_not_put_back_is_seen(folder, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    proof = api.verify_resume(recipe(folder), 3)
    assert not proof.identical
    assert proof.repeats


def test_a_machine_that_does_not_repeat_itself_is_told_apart_from_the_cut(folder, monkeypatch):
    """Every model that is made begins a little elsewhere."""
    adapt, made = cuts.adapt_new, []

    def another(*args, **kwargs):
        model, decision = adapt(*args, **kwargs)
        made.append(None)
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).mul_(1 + 0.01 * len(made))
        return model, decision

    monkeypatch.setattr(cuts, "adapt_new", another)
    proof = api.verify_resume(recipe(folder), 2)
    assert proof.repeats is False
    assert "it is not the cut" in proof.sentence
