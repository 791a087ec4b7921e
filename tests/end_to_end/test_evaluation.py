"""What `halfbyte train` and `halfbyte evaluate` measure of each kind of data, on a toy base: which figures, on which rows, and that they add up."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from halfbyte import api
from halfbyte.cli.main import main
from halfbyte.errors import DataError, MachineError, ModelError, RecipeError
from halfbyte.evaluate import measure as measuring
from halfbyte.evaluate.metrics import value_of
from halfbyte.evaluate.runs import read_answers, read_measured
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import open_run
from toys import WORDS, make_base

ROWS = 48


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def sentence(number: int, length: int = 9) -> str:
    return " ".join(random.Random(number).sample(WORDS.split(), length))


def rows_of(kind: str) -> list[tuple[str, str]]:
    answers = {
        "label": lambda number: ("lamp", "sea", "keeper")[number % 3],
        "structure": lambda number: f"inform(name[{sentence(number, 2)}], rating[{('good', 'poor')[number % 2]}])",
        "prompt_response": lambda number: sentence(number + 1000, 5),
    }
    return [(sentence(number), answers[kind](number)) for number in range(ROWS)]


COLUMNS = {"label": ("text_column", "label_column"), "structure": ("prompt_column", "response_column"), "prompt_response": ("prompt_column", "response_column")}


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """kind -> a finished run, made once."""
    made = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = train(base, tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return run


def train(base: Path, folder: Path, kind: str, *changes: str) -> Path:
    file = folder / "rows.csv"
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("asked", "said"), *rows_of(kind)])
    columns = dict(zip(COLUMNS[kind], ("asked", "said"), strict=True))
    text = (
        f"name: toy\nbase: {base}\ndata:\n  kind: {kind}\n  path: {file}\n  max_length: 96\n  test_share: 0.3\n"
        + "".join(f"  {key}: {name}\n" for key, name in columns.items())
        + "adapter:\n  r: 4\ntrain:\n  max_steps: 3\n  batch_size: 4\n  learning_rate: 1e-2\nevaluate:\n  max_new_tokens: 8\n"
    )
    return api.train(parse_recipe(text, "toy.yaml", list(changes)), folder / "runs").path


def told(run: Path, kind: str) -> list[dict]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == kind]


FIGURES = {
    "label": {"macro F1", "accuracy", "calibration error"},
    "structure": {"exact match", "slot F1", "slot precision", "slot recall", "act accuracy", "act and slots F1"},
    "prompt_response": {"chrF", "BLEU", "ROUGE-L", "length error", "ended by itself"},
}
PRIMARY = {"label": ("labels", "macro F1"), "structure": ("structure", "slot F1"), "prompt_response": ("text", "perplexity")}


@pytest.mark.parametrize("kind", list(FIGURES))
def test_each_kind_of_data_gets_its_figures_and_one_of_them_carries_the_verdict(runs, kind):
    run = runs(kind)
    compared = told(run, "comparison")
    named = {(one["group"], one["metric"]) for one in compared}
    assert FIGURES[kind] <= {name for _, name in named}
    assert {("text", "perplexity"), ("text", "bits per byte"), ("neutral text", "perplexity")} <= named
    assert [(one["group"], one["metric"]) for one in compared if one["primary"]] == [PRIMARY[kind]]
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["word"] in ("better", "no evidence", "worse")
    assert report["test_opened"] == 1


@pytest.mark.parametrize("kind", list(FIGURES))
def test_the_figures_of_the_report_follow_from_the_rows_that_are_kept(runs, kind):
    run = runs(kind)
    events = {(one["group"], one["metric"]): one for one in told(run, "comparison")}
    kept = read_measured(open_run(run))
    assert {(one.group, one.metric.name) for one in kept} == set(events)
    for one in kept:
        event = events[one.group, one.metric.name]
        assert value_of(one.metric, one.base) == pytest.approx(event["base"], rel=1e-12)
        assert value_of(one.metric, one.tuned) == pytest.approx(event["tuned"], rel=1e-12)
        assert len(one.base) == event["rows"]


def test_answers_are_those_to_the_test_rows_in_order(runs):
    run = runs("prompt_response")
    given = dict(rows_of("prompt_response"))
    answers = read_answers(open_run(run))
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert len(answers) == report["data"]["test_rows"] > 3
    assert all(given[answer.prompt] == answer.reference for answer in answers)
    assert [answer.row for answer in answers] == sorted((answer.row for answer in answers), key=lambda row: int(row.rpartition(":")[2]))


def test_classes_are_scored_both_ways_and_the_confusion_counts_every_row(runs):
    run = runs("label")
    (scored,), (answered,) = told(run, "classes"), told(run, "answered_classes")
    assert scored["classes"] == ["keeper", "lamp", "sea"]
    for found in (scored, answered):
        for side in ("base", "tuned"):
            assert np.sum(found["confusion"][side]) == found["rows"] > 3
    for side in ("base", "tuned"):
        assert np.array(answered["confusion"][side])[:, -1].sum() == answered["unparsable"][side]
    assert set(scored["by_likelihood"]) == {"base", "tuned"}
    assert (run / "evaluation" / "scorer.json").is_file()


def test_the_scorer_of_the_evaluation_serves_in_production(runs):
    """The classes that production finds for the test rows are those that the report counted."""
    run = runs("label")
    (scored,) = told(run, "classes")
    answers = read_answers(open_run(run))
    found = api.classify(run, [answer.prompt for answer in answers])
    said = [max(one["probabilities"], key=one["probabilities"].get) for one in found]
    counts = np.zeros((3, 4), int)
    for answer, label in zip(answers, said, strict=True):
        counts[scored["classes"].index(answer.reference), scored["classes"].index(label)] += 1
    assert counts.tolist() == scored["confusion"]["tuned"]
    with pytest.raises(DataError, match="no scorer there"):
        api.classify(runs("structure"), ["a"])


def test_a_second_measurement_says_the_same_and_counts_the_opening(runs):
    run = runs("structure")
    before = {(one["group"], one["metric"]): one for one in told(run, "comparison")}
    api.evaluate(run)
    after = {(one["group"], one["metric"]): one for one in told(run, "comparison")}
    assert [event["times"] for event in told(run, "test_opened")] == [1, 2]
    for name, one in after.items():
        assert one["tuned"] == pytest.approx(before[name]["tuned"], rel=1e-6), name
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["test_opened"] == 2


def test_another_measurement_replaces_the_first_whole_and_only_evaluate_keys_may_change(base, tmp_path):
    run = train(base, tmp_path, "prompt_response")
    assert {one["group"] for one in json.loads((run / "report.json").read_text(encoding="utf-8"))["comparisons"]} == {"text", "replies", "neutral text"}
    api.evaluate(run, changes=["evaluate.max_answers=0"])
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert {one["group"] for one in report["comparisons"]} == {"text", "neutral text"}
    assert report["replies"] is None
    assert not (run / "evaluation" / "answers.jsonl").exists()
    with pytest.raises(RecipeError, match="only keys of evaluate can be changed"):
        api.evaluate(run, changes=["data.max_length=5"])


def test_a_run_that_failed_while_it_was_measured_is_finished_once_it_is_measured(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(api, "measure", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(MachineError, match="no room") as caught:
            train(base, tmp_path, "prompt_response")
    assert "training is done and kept; halfbyte evaluate" in caught.value.hint
    run = tmp_path / "runs" / "toy"
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["status"] == "failed"
    api.evaluate(run)
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_a_model_without_a_finite_loss_is_told_and_not_left_out(base, tmp_path, monkeypatch):
    run = train(base, tmp_path, "prompt_response")
    found = measuring.row_losses

    def broken(*args):
        losses = found(*args)
        losses.loss[1] = np.nan
        return losses

    monkeypatch.setattr(measuring, "row_losses", broken)
    with pytest.raises(ModelError, match=r"rows\.csv:\d+: the loss of the base model is not a number"):
        api.evaluate(run)


def test_without_test_rows_nothing_is_compared_but_neutral_text(base, tmp_path):
    run = train(base, tmp_path, "prompt_response", "data.test_share=0")
    assert {one["group"] for one in told(run, "comparison")} == {"neutral text"}
    assert not told(run, "test_opened")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["perplexity"] is None
    assert report["verdict"]["word"] == "not compared"  # neutral text tells what was forgotten, not whether it is better


def test_a_class_that_training_never_saw_is_named_and_counts_as_wrong(base, tmp_path):
    file = tmp_path / "test.csv"
    with open(file, "w", newline="", encoding="utf-8") as stream:
        rows = [(sentence(5000 + number), label) for number, label in enumerate(["lamp", "sea", "ghost", "keeper"] * 2)]
        csv.writer(stream).writerows([("asked", "said"), *rows])
    run = train(base, tmp_path, "label", f"data.test_path={file}")
    (scored,) = told(run, "classes")
    assert (scored["unseen"], scored["classes"][-1]) == (["ghost"], "ghost")
    assert any("'ghost'" in note for note in scored["notes"])
    row = scored["confusion"]["tuned"][scored["classes"].index("ghost")]
    assert (sum(row), row[scored["classes"].index("ghost")]) == (2, 0)


def test_rows_without_room_for_an_answer_are_left_unanswered_and_told(base, tmp_path):
    """A base of absolute positions would fail at the end of a training that took hours."""
    context = json.loads((base / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    run = train(base, tmp_path, "prompt_response", f"evaluate.max_new_tokens={context - 12}", "train.max_steps=1")
    notes = [event["message"] for event in told(run, "note")]
    assert any("test rows are not answered: their prompts leave no room" in note for note in notes)
    assert not [one for one in told(run, "comparison") if one["group"] == "replies"]


def command(monkeypatch, capfd, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["halfbyte", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    capfd.readouterr()
    with pytest.raises(SystemExit) as raised:
        main()
    return raised.value.code or 0, *capfd.readouterr()


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_the_command_writes_classes_with_their_confidence_and_says_what_they_are_worth(runs, tmp_path, monkeypatch, capfd, ending):
    texts, out = tmp_path / "texts.txt", tmp_path / f"classes{ending}"
    texts.write_text("the keeper lit the lamp\nthe sea was quiet\n")
    code, said, _ = command(monkeypatch, capfd, "classify", runs("label"), "-i", texts, "-o", out)
    assert (code, "not calibrated" in said, "2 texts, 0 withheld" in said) == (0, True, True)
    rows = list(csv.DictReader(out.read_text().splitlines())) if ending == ".csv" else [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == texts.read_text().splitlines()
    assert all(row["label"] in ("keeper", "lamp", "sea") and 1 / 3 <= float(row["confidence"]) <= 1 for row in rows)
    assert command(monkeypatch, capfd, "classify", runs("label"), "-i", texts, "-o", out)[0] == 2  # nothing is written over


def test_the_command_measures_with_other_words_of_evaluate_and_keeps_promises_apart(runs, monkeypatch, capfd):
    run = runs("prompt_response")
    code, said, _ = command(monkeypatch, capfd, "evaluate", run, "evaluate.max_answers=2")
    assert (code, "note measured with evaluate.max_answers=2" in said) == (0, True)
    assert len(read_answers(open_run(run))) == 2
    assert command(monkeypatch, capfd, "evaluate", run, "--limit", "3")[0] == 2
    code, _, wrong = command(monkeypatch, capfd, "gate", run, "--min-gain", "99.9%")
    assert (code, "not kept: " in wrong) == (6, True)


def test_a_neutral_text_is_looked_for_before_training_and_found_from_any_folder(base, tmp_path, monkeypatch):
    """A path that led nowhere was told only when the training was done."""
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        train(base, tmp_path, "prompt_response", "evaluate.neutral_path=nowhere.txt")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "own.txt").write_text("\n\n".join(sentence(number, 40) for number in range(12)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = train(base, tmp_path, "prompt_response", "evaluate.neutral_path=own.txt", "train.max_steps=1")
    monkeypatch.chdir("/")
    api.evaluate(run)
    assert {one["unit"] for one in told(run, "comparison") if one["group"] == "neutral text"} == {str(tmp_path / "own.txt"), "own.txt"}
