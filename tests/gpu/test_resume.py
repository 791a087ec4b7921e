"""Resume on the chip, in deterministic mode: the run that is cut is the run that was left alone, to the bit. Skips, and says so, without a GPU."""

import os

import pytest
import torch

from halfbyte import api
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.manifest import read_manifest
from toys import make_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

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
  batch_size: 4
  learning_rate: 1e-2
  max_steps: 6
evaluate:
  max_new_tokens: 4
"""
SENTENCE = "the keeper lit the lamp and the sea was quiet. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """cuBLAS reads its variable when it is first used in a process: run this file alone if others took it before."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    place = tmp_path_factory.mktemp("resume").resolve()
    make_base(place / "base", hidden_size=256, intermediate_size=512, num_attention_heads=4)
    (place / "tale.txt").write_text("\n\n".join(f"{number}. {SENTENCE * 5}" for number in range(40)), encoding="utf-8")
    return place


def recipe(folder, *changes):
    return parse_recipe(TEXT.format(folder=folder), "toy.yaml", list(changes))


@pytest.mark.parametrize("change", ["train.precision=bfloat16", "train.precision=float16", "data.packing=best_fit", "train.gradient_checkpointing=true"])
def test_cut_behind_every_step_it_is_the_same_run(folder, change):
    proof = api.verify_resume(recipe(folder, change), 6)
    assert proof.identical, proof.sentence


def test_a_run_made_again_is_identical(folder, tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = api.train(recipe(folder), tmp_path)
        found = api.reproduce(first.path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.identical, found.sentence
    assert read_manifest(first.path)["place"]["machine"]["device"] == "cuda"
