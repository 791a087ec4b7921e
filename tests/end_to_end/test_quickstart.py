"""The embedded base really learns, with the recipes that users start with; shortened, so that it takes half a minute."""

from pathlib import Path

import pytest

import halfbyte
from halfbyte import api
from halfbyte.recipe.load import load_recipe
from halfbyte.runs.folder import read_report

SAMPLES = Path(halfbyte.__file__).parent / "samples"
ROOT = Path(__file__).parent.parent.parent


def test_six_steps_of_the_quickstart_lower_the_perplexity(tmp_path):
    """The promises of `make quickstart`: real 4 bits, tuned below base, 3,000 held-out tokens or more and at most a quarter of the sample."""
    short = ["train.max_steps=6", "evaluate.max_new_tokens=8", f"data.path={SAMPLES / 'gothic_tale.txt'}"]
    run = api.train(load_recipe(SAMPLES / "quickstart.yaml", short), tmp_path)
    report = read_report(run.path)
    perplexity, data = report["perplexity"], report["data"]
    assert report["status"] == "finished"
    assert report["model"]["share_4bit"] == 1.0
    assert perplexity["tuned"] < 0.95 * perplexity["base"]
    assert perplexity["tokens"] == data["test_tokens"] >= 3000
    assert data["test_tokens"] + data["validation_tokens"] <= 0.25 * sum(data[f"{side}_tokens"] for side in ("train", "validation", "test"))
    assert len(report["generations"]) == 3


@pytest.mark.slow
@pytest.mark.data
def test_ten_steps_of_frankenstein_lower_the_perplexity_by_five_percent(tmp_path, real_data):
    path = real_data / "frankenstein" / "frankenstein_chunks.csv"
    short = ["train.max_steps=10", "evaluate.max_new_tokens=8", f"data.path={path}"]
    run = api.train(load_recipe(ROOT / "recipes" / "frankenstein.yaml", short), tmp_path)
    report = read_report(run.path)
    assert report["perplexity"]["tuned"] < 0.95 * report["perplexity"]["base"]
    assert {"reason": "Project Gutenberg header or licence", "count": 21} in report["data"]["left_out"]
