"""lm-eval on a task of our own files: base and tuned are told apart, and its likelihoods are ours. Skipped, and said so, where lm-eval is not installed."""

import importlib.util
import json
import random

import numpy as np
import pytest
import torch

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate import harness
from halfbyte.evaluate.harness import HarnessResult, as_lm, compare_task, keep_result, run_tasks
from halfbyte.model.adapter import without_adapter
from halfbyte.runs.folder import RunFolder
from toy_evaluations import make_run
from toy_training import adapted, logits
from toys import WORDS, make_tokenizer

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='lm-eval is not installed: pip install "halfbyte[harness]"')
CHOICES = ("the sea", "the old", "the lamp")
QUESTIONS = [
    {"question": " ".join(random.Random(number).sample(WORDS.split(), 6)), "choices": CHOICES, "answer": number % 3} for number in range(24)
]  # fmt: skip
TASK = """
task: keeper
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}?"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """
task: pages
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with two tasks; their data are read from it and kept beside it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks the machine about itself in other processes, for seconds
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, text in (("keeper", TASK), ("pages", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "questions.jsonl"))
    return folder


def our_likelihoods(model, tokenizer) -> np.ndarray:
    """(questions, choices) the plain way: a row at a time, unpadded, the log-probabilities of the choice's tokens added up."""
    found = []
    for one in QUESTIONS:
        for choice in CHOICES:
            asked, said = (tokenizer(text, add_special_tokens=False).input_ids for text in (f"{one['question']}?", f" {choice}"))
            ids = [tokenizer.bos_token_id, *asked, *said]
            told = torch.log_softmax(logits(model, [ids])[0].double(), -1)  # (T, V)
            found.append(sum(float(told[place - 1, ids[place]]) for place in range(1 + len(asked), len(ids))))
    return np.array(found).reshape(len(QUESTIONS), len(CHOICES))


def their_likelihoods(model, tokenizer) -> np.ndarray:
    from lm_eval.api.instance import Instance

    asked = [
        Instance("loglikelihood", {}, (f"{one['question']}?", f" {choice}"), place, metadata=("keeper", place, 1))
        for place, one in enumerate(QUESTIONS) for choice in CHOICES
    ]  # fmt: skip
    told = as_lm(model, tokenizer, 5, 256, torch.float32).loglikelihood(asked)
    return np.array([likelihood for likelihood, _ in told]).reshape(len(QUESTIONS), len(CHOICES))


@needs_lm_eval
def test_its_likelihoods_and_accuracy_are_ours(toy_base, tasks):
    """To 1e-6 of the sum, in padded batches against single rows."""
    model, tokenizer = adapted(toy_base(), stirred=True), make_tokenizer()
    result = run_tasks(model, tokenizer, ["keeper"], include=tasks, batch_size=5, context=256)
    answers = [one["answer"] for one in QUESTIONS]
    (compared,) = [one for task, one in result.compared if (task, one.metric.name) == ("keeper", "acc")]
    with without_adapter(model):
        base, theirs = our_likelihoods(model, tokenizer), their_likelihoods(model, tokenizer)
    np.testing.assert_allclose(theirs, base, rtol=1e-6)
    tuned = our_likelihoods(model, tokenizer)
    np.testing.assert_allclose(their_likelihoods(model, tokenizer), tuned, rtol=1e-6)
    assert not np.allclose(base, tuned, rtol=1e-3)
    assert compared.base == (base.argmax(1) == answers).mean()
    assert compared.tuned == (tuned.argmax(1) == answers).mean()
    assert compared.base != compared.tuned
    assert result.results["tuned"]["keeper"]["acc,none"] == compared.tuned
    assert (compared.rows, compared.test) == (len(QUESTIONS), "McNemar exact")


@needs_lm_eval
def test_figures_are_those_of_its_own_front_door(toy_base, tasks):
    """simple_evaluate also sets the seeds of the whole process; ours leaves them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model, tokenizer = adapted(toy_base(), stirred=True), make_tokenizer()
    (tasks / "shots.yaml").write_text((tasks / "keeper.yaml").read_text().replace("keeper", "shots") + "num_fewshot: 2\nfewshot_split: test\n")
    before = torch.get_rng_state()
    ours = run_tasks(model, tokenizer, ["keeper", "shots"], include=tasks, context=256)
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()
    theirs = simple_evaluate(
        as_lm(model, tokenizer, 8, 256, torch.float32), tasks=["keeper", "shots"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    assert ours.results["tuned"]["shots"] != ours.results["tuned"]["keeper"]
    for task in ("keeper", "shots"):
        assert ours.results["tuned"][task]["acc,none"] == theirs["results"][task]["acc,none"]


@needs_lm_eval
def test_perplexities_of_whole_texts_are_compared_too(toy_base, tasks):
    model = adapted(toy_base(), stirred=True)
    model.train()
    result = run_tasks(model, make_tokenizer(), ["pages"], include=tasks, limit=7, context=256)
    assert {one.metric.name: one.metric.kind for _, one in result.compared} == {"word_perplexity": "exp_ratio", "bits_per_byte": "ratio"}
    for _, one in result.compared:
        assert one.tuned == pytest.approx(result.results["tuned"]["pages"][f"{one.metric.name},none"], rel=1e-9)
        assert one.base != one.tuned
        assert one.rows == 7
        assert not one.metric.higher_is_better
    assert model.training
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["comparisons"][0]["task"] == "pages"


@needs_lm_eval
@pytest.mark.parametrize(("named", "message", "hint"), [
    (["keper"], "lm-eval knows no task 'keper'", "did you mean keeper"),
    ([], "no task is named", "--include-path"),
    (["gone"], "task 'gone' cannot be loaded", "network"),
])  # fmt: skip
def test_tasks_that_cannot_be_asked_are_told(toy_base, tasks, named, message, hint, monkeypatch):
    """lm-eval's own list is left aside: reading it takes half a minute."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, include_defaults=True: TaskManager(include_path=include_path, include_defaults=False))
    (tasks / "gone.yaml").write_text(TASK.replace("keeper", "gone").format(file=tasks / "nowhere.jsonl"))
    with pytest.raises(DataError, match=message) as raised:
        run_tasks(adapted(toy_base()), make_tokenizer(), named, include=tasks)
    assert hint in raised.value.hint


@needs_lm_eval
def test_a_folder_that_is_not_there_is_told(toy_base, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        run_tasks(adapted(toy_base()), make_tokenizer(), ["keeper"], include=tmp_path / "nowhere")


def test_without_lm_eval_the_line_that_installs_it_is_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more))
    with pytest.raises(DataError, match="not installed") as raised:
        harness.check_installed()
    assert raised.value.hint == 'pip install "halfbyte[harness]"'


def told(values: dict[str, list], figures: dict[str, float], higher: dict[str, bool]) -> dict:
    """What simple_evaluate returns of one task, as far as it is read."""
    samples = [
        {"doc_id": number, "filter": chosen, "metrics": [name], name: value}
        for key, rows in values.items() for name, chosen in [key.split(",")] for number, value in enumerate(rows)
    ]  # fmt: skip
    return {"samples": {"t": samples[::-1]}, "results": {"t": {"alias": "t", **figures}}, "higher_is_better": {"t": higher}}


def test_a_metric_is_compared_where_its_rows_give_its_figure():
    """Rows of each filter apart, by the number of the question; a figure that is no mean of its rows (a corpus BLEU, a text) is left out."""
    higher = {"acc": True, "bleu": True, "said": True}
    base = told(
        {"acc,none": [1, 0, 0, 0], "acc,strict": [0, 0, 0, 0], "bleu,none": [3, 4, 5, 6], "said,none": ["a", "b", "c", "d"]},
        {"acc,none": 0.25, "acc,strict": 0.0, "bleu,none": 17.0}, higher,
    )  # fmt: skip
    tuned = told(
        {"acc,none": [1, 1, 0, 1], "acc,strict": [0, 0, 1, 0], "bleu,none": [3, 4, 5, 6], "said,none": ["a", "b", "c", "d"]},
        {"acc,none": 0.75, "acc,strict": 0.25, "bleu,none": 17.0}, higher,
    )  # fmt: skip
    assert sorted((one.metric.name, one.base, one.tuned, one.differing) for one in compare_task("t", base, tuned)) == [
        ("acc", 0.25, 0.75, 2), ("acc (strict)", 0.0, 0.25, 1),
    ]  # fmt: skip


def test_other_questions_are_not_compared():
    base, tuned = (told({"acc,none": rows}, {"acc,none": 1.0}, {"acc": True}) for rows in ([1, 1, 1], [1, 1]))
    assert compare_task("t", base, tuned) == []


def test_results_are_added_to_what_was_measured_before(tmp_path):
    run = RunFolder(make_run(tmp_path / "r"))
    for task in ("first", "second"):
        file = keep_result(run, HarnessResult("1.0", [task], None, {"base": {}, "tuned": {}}, []))
    kept = json.loads(file.read_text())
    assert [one["tasks"] for one in kept] == [["first"], ["second"]]
    assert kept[0]["adapter"] == run.adapter_hash.read_text().strip()


def test_damaged_results_are_not_written_over(tmp_path):
    run = RunFolder(make_run(tmp_path / "r"))
    file = keep_result(run, HarnessResult("1.0", ["first"], None, {}, []))
    file.write_text("[{")
    with pytest.raises(IntegrityError, match="damaged"):
        keep_result(run, HarnessResult("1.0", ["second"], None, {}, []))
    assert file.read_text() == "[{"
