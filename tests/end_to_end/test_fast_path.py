"""A run on the fast path, where it is asked for on a CPU: it is the plain run to rounding, resumes as itself, and says which path it took."""

import json

import pytest

from halfbyte import api
from halfbyte.errors import ModelError
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.report import read_events
from toy_subjects import TALK
from toys import make_base

# Four steps in float32, each of whose rounding moves the weights of the next.
SAME = 1e-4


def written(folder, kind):
    file = folder / "talk.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in TALK), encoding="utf-8")
    make_base(folder / "base", kind)
    return (
        f"name: toy\nbase: {folder / 'base'}\ndata:\n  path: {file}\n  kind: prompt_response\n  prompt_column: prompt\n  response_column: response\n"
        "  validation_share: 0\n  test_share: 0\nadapter:\n  r: 4\n  dropout: 0\ntrain:\n  max_steps: 4\n  batch_size: 2\n  gradient_accumulation_steps: 2\n"
        "  learning_rate: 1e-2\n"
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return written(tmp_path_factory.mktemp("given"), "mistral")


def losses(run):
    return [event["loss"] for event in read_events(run.events)[0] if event["event"] == "step"]


@pytest.mark.parametrize(("kind", "words"), [("mistral", []), ("falcon", ["data.packing=best_fit", "train.gradient_checkpointing=true"])])
def test_it_is_the_plain_run(kind, words, tmp_path):
    given = written(tmp_path, kind)
    plain = api.train(parse_recipe(given, "toy.yaml", words), tmp_path / "plain")
    fast = api.train(parse_recipe(given, "toy.yaml", [*words, "train.fast_path=on"]), tmp_path / "fast")
    assert losses(fast) == pytest.approx(losses(plain), rel=SAME)
    assert losses(fast)[-1] < losses(fast)[0]
    assert fast.read_plan()["computing"]["path"] == "fast"
    assert plain.read_plan()["computing"]["path"] == "plain"
    assert [event for event in read_events(fast.events)[0] if event["event"] == "proof" and event["name"] == "fast path" and event["passed"]]


def test_it_resumes_as_itself(given):
    proof = api.verify_resume(parse_recipe(given, "toy.yaml", ["train.fast_path=on"]), 3)
    assert proof.identical, proof.sentence


def test_what_it_cannot_do_is_refused_by_name(given, tmp_path):
    with pytest.raises(ModelError, match=r"train.fast_path is on, and it cannot be taken: .*dropout"):
        api.train(parse_recipe(given, "toy.yaml", ["train.fast_path=on", "adapter.dropout=0.1"]), tmp_path)


FP8 = ["train.fast_path=on", "train.precision=bfloat16", "train.compute=fp8"]


def test_in_fp8_it_says_so_and_is_near_the_run_without(given, tmp_path):
    """The adapters' own products are in 16 bits, and 4 steps move them alike."""
    without = api.train(parse_recipe(given, "toy.yaml", FP8[:2]), tmp_path / "without")
    run = api.train(parse_recipe(given, "toy.yaml", FP8), tmp_path / "fp8")
    assert losses(run) != losses(without)
    assert losses(run) == pytest.approx(losses(without), rel=0.05)
    assert run.read_plan()["computing"]["fp8"]
    assert any("fast path in FP8" in decision["value"] for decision in run.read_plan()["decisions"])
    assert "fast path in FP8" in (run.path / "report.html").read_text(encoding="utf-8")
    proof = next(event for event in read_events(run.events)[0] if event["event"] == "proof" and event["name"] == "fast path")
    assert proof["passed"]
    assert "in FP8" in proof["told"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train.compute=fp8"], "there is no GPU"),
        (["train.compute=fp8", "train.fast_path=off"], "there is no GPU"),
        (["train.compute=fp8", "train.fast_path=on"], "beside bfloat16, and this computes in float32"),
        ([*FP8, "adapter.dropout=0.1"], "the fast path, which is not taken: .*dropout"),
    ],
)
def test_where_fp8_cannot_be_it_is_refused_by_name(given, tmp_path, words, reason):
    with pytest.raises(ModelError, match=f"train.compute is fp8, and it cannot be taken: .*{reason}") as refused:
        api.train(parse_recipe(given, "toy.yaml", words), tmp_path)
    assert "\n" not in str(refused.value)


def test_fp8_is_not_for_falcon(tmp_path):
    with pytest.raises(ModelError, match=r"fp8, and it cannot be taken: .*falcon"):
        api.train(parse_recipe(written(tmp_path, "falcon"), "toy.yaml", FP8), tmp_path / "runs")
