"""From a file to a report and on to evaluation, generation and chat: the real commands on a toy base."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from halfbyte import api
from halfbyte.cli.main import main
from halfbyte.errors import DataError, IntegrityError, Interrupted
from halfbyte.generate.engine import Sampling
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import open_run
from toys import WORDS, make_base

SENTENCE = "the keeper lit the lamp and the sea was quiet. "
# No two alike, since rows that are nearly the same stay on one side of the split.
PAIRS = [(" ".join(random.Random(i).sample(WORDS.split(), 9)), f"the old man {i}, let me in.") for i in range(24)]
STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def write_data(folder: Path, kind: str) -> Path:
    file = folder / ("tale.txt" if kind == "text" else "talk.csv")
    if kind == "text":
        file.write_text("\n\n".join(f"{number}. {SENTENCE * 5}" for number in range(20)), encoding="utf-8")
    else:
        with open(file, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("prompt", "response"), *PAIRS])
    return file


def recipe_for(base: Path, file: Path, *changes: str):
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {file}\n  max_length: 64\nadapter:\n  r: 4\n  dropout: 0.1\n"
        f"train:\n  max_steps: {STEPS}\n  batch_size: 2\n  eval_steps: 2\n  learning_rate: 1e-2\nevaluate:\n  max_new_tokens: 6\n"
    )
    return parse_recipe(text, "toy.yaml", list(changes))


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """kind of data -> a finished run, made once; tests that change one copy it first."""
    made = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = api.train(recipe_for(base, write_data(folder, kind)), folder / "runs", command="halfbyte train toy.yaml").path
        return made[kind]

    return run


def told(run: Path, kind: str | None = None) -> list[dict]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if kind in (None, event["event"])]


def halfbyte(monkeypatch, capfd, *words: str) -> tuple[int, str, str]:
    """The command, in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setattr(sys, "argv", ["halfbyte", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "400")
    capfd.readouterr()
    with pytest.raises(SystemExit) as raised:
        main()
    return raised.value.code or 0, *capfd.readouterr()


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_run_leaves_its_files_its_events_and_its_report(runs, kind):
    run = runs(kind)
    names = {path.name for path in run.iterdir()}
    assert names == {
        "recipe.yaml",
        "recipe.resolved.yaml",
        "run.json",
        "plan.json",
        "events.jsonl",
        "adapter",
        "adapter.sha256",
        "checkpoints",
        "evaluation",
        "report.json",
        "report.html",
        "report.md",
        ".lock",
    }
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (run / "adapter").iterdir()
    }
    assert not list(run.rglob("*.bin")) + list(run.rglob("*.pt")) + list(run.rglob("*.part"))
    kinds = [event["event"] for event in told(run) if event["event"] != "proof"]
    assert kinds[:7] == ["run", "data", "model", "memory", "proofs", "memory", "validation"]
    assert kinds[7:20] == ["step", "step", "validation", "checkpoint"] * 2 + ["labels", "choice", "memory", "measuring", "test_opened"]
    assert kinds[20:23] == ["measurement", "perplexity", "perplexity"]
    assert set(kinds[23:-2]) == {"generation", "comparison"} | ({"replies"} if kind == "pairs" else set())
    assert kinds[-2:] == ["memory", "end"]
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert set(report) == {
        "perplexity", "name", "status", "base_model", "device", "versions", "command", "started", "data", "model", "training", "evaluation", "validation",
        "generations", "decisions", "notes", "verdict", "comparisons", "rating", "classes", "answered_classes", "structure", "replies", "choice",
        "test_opened", "memory", "time", "curves", "proofs", "licences", "hashes", "labels_as_previewed", "recipe", "seed", "adapter_sha256", "answers",
            "settings",
    }  # fmt: skip
    assert (report["status"], report["command"], report["model"]["share_4bit"]) == ("finished", "halfbyte train toy.yaml", 1.0)
    assert report["training"]["steps"] == STEPS
    assert report["perplexity"]["tuned"] < report["perplexity"]["base"]
    assert len(report["generations"]) >= 1
    ledger = report["data"]
    assert ledger["records_read"] == (20 if kind == "text" else len(PAIRS))
    assert report["perplexity"]["tokens"] == ledger["test_tokens"]
    assert [row["tokens"] for row in report["validation"]] == [ledger["validation_tokens"]] * 3
    if kind == "pairs":
        assert ledger["train_rows"] + ledger["validation_rows"] + ledger["test_rows"] + sum(left["count"] for left in ledger["left_out"]) == len(PAIRS)


def test_a_second_run_of_a_recipe_gets_a_folder_of_its_own(base, runs, tmp_path):
    first = runs("text")
    file = first.parent.parent / "tale.txt"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = api.train(recipe_for(base, file), first.parent).path
    try:
        assert second.name == "toy-2"
        assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
        assert [event["loss"] for event in told(second, "step")] == [event["loss"] for event in told(first, "step")]
        assert [event["perplexity"] for event in told(second, "perplexity")] == [event["perplexity"] for event in told(first, "perplexity")]
    finally:
        shutil.rmtree(second)


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_evaluate_measures_from_disk_what_the_run_measured(runs, tmp_path, monkeypatch, capfd, kind):
    """Base and adapter loaded anew: what was saved is what was trained, to the last digit."""
    run = shutil.copytree(runs(kind), tmp_path / "run")
    first = told(run, "perplexity"), [(event["prompt"], event["base"], event["tuned"]) for event in told(run, "generation")]
    code, out, _ = halfbyte(monkeypatch, capfd, "evaluate", run)
    assert code == 0
    assert "perplexity" in out
    again = told(run, "perplexity")[2:]
    assert [(event["model"], event["loss"], event["tokens"]) for event in again] == [(event["model"], event["loss"], event["tokens"]) for event in first[0]]
    assert [(event["prompt"], event["base"], event["tuned"]) for event in told(run, "generation")][len(first[1]) :] == first[1]


def test_an_adapter_that_was_swapped_is_seen_by_evaluate(base, runs, tmp_path):
    """The other side of the test above: other weights on disk give another figure, missing ones none."""
    run = shutil.copytree(runs("text"), tmp_path / "run")
    other = api.train(recipe_for(base, runs("text").parent.parent / "tale.txt", "seed=5"), tmp_path / "other").path
    shutil.copy(other / "adapter" / "adapter_model.safetensors", run / "adapter")
    with pytest.raises(IntegrityError, match="is not what was written"):
        api.evaluate(run)
    open_run(run).seal_adapter()
    api.evaluate(run)
    losses = [event["loss"] for event in told(run, "perplexity") if event["model"] == "tuned"]
    assert losses[0] != losses[1]
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match="has no adapter yet"):
        api.evaluate(run)


@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_generate_answers_a_file_of_prompts(runs, tmp_path, monkeypatch, capfd, ending):
    prompts = ["who comes there?", "the keeper lit", "let me in, for the night is cold and the road is dark"]
    source, answers = tmp_path / f"prompts{ending}", tmp_path / "answers.jsonl"
    if ending == ".txt":
        source.write_text("\n".join(prompts))
    elif ending == ".jsonl":
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    else:
        with open(source, "w", newline="") as stream:
            csv.writer(stream).writerows([["prompt"], *([prompt] for prompt in prompts)])
    code, out, _ = halfbyte(monkeypatch, capfd, "generate", runs("pairs"), "-i", source, "-o", answers, "--max-new-tokens", "9", "--batch-size", "2")
    assert code == 0
    assert "3 of 3 answered" in out
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    tuned = api.open_tuned(runs("pairs"), fast_cpu=False)
    assert [row["response"] for row in rows] == [api.answer_all(tuned, [prompt], Sampling(9))[0] for prompt in prompts]


def test_chat_from_a_pipe(runs):
    """As a program would use it: prompts in, answers out, nothing else on stdout."""
    talk = "who comes there?\n/reset\n\nlet me in\n/quit\nnot read\n"
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", "chat", str(runs("pairs")), "--max-new-tokens", "5", "--temperature", "0"],
        input=talk, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    tuned = api.open_tuned(runs("pairs"))
    shown = []
    for asked in ("who comes there?", "let me in"):
        api.reply(tuned, [{"role": "user", "content": asked}], Sampling(5), shown.append)
        shown.append("\n")
    assert done.stdout == "".join(c for c in "".join(shown) if c.isprintable() or c == "\n")


# Interrupted, resumed, refused


def interrupted(monkeypatch, loaded, folder: Path, after: int) -> Path:
    """A run that was asked to stop after a step, as Ctrl-C asks."""
    steps = []

    @contextmanager
    def stop(signals):
        yield lambda: len(steps) >= after

    with monkeypatch.context() as patch:
        patch.setattr(api, "stop_on_signal", stop)
        with pytest.raises(Interrupted):
            api.train(loaded, folder, listener=lambda event: steps.append(event) if event["event"] == "step" else None)
    return folder / "toy"


def test_an_interrupted_run_is_resumed_to_the_same_end(base, runs, tmp_path, monkeypatch, capfd):
    whole = runs("text")
    run = interrupted(monkeypatch, recipe_for(base, whole.parent.parent / "tale.txt"), tmp_path, after=3)
    assert json.loads((run / "report.json").read_text())["status"] == "interrupted"
    assert not (run / "adapter").exists()
    code, out, _ = halfbyte(monkeypatch, capfd, "train", "--resume", run)
    assert code == 0
    assert "perplexity" in out
    assert [(event["step"], event["loss"]) for event in told(run, "step")] == [(event["step"], event["loss"]) for event in told(whole, "step")]
    assert [event["perplexity"] for event in told(run, "perplexity")] == [event["perplexity"] for event in told(whole, "perplexity")]
    same_bytes(run, whole)
    assert json.loads((run / "report.json").read_text())["status"] == "finished"


def same_bytes(run: Path, other: Path) -> None:
    mine, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, other))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)


def test_a_finished_run_that_is_resumed_is_left_as_it_is(runs, tmp_path, monkeypatch, capfd):
    """It says so and changes nothing; nothing is trained twice."""
    run = shutil.copytree(runs("text"), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = halfbyte(monkeypatch, capfd, "train", "--resume", run)
    assert code == 0
    assert "is finished, so there is nothing to resume" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_died_while_it_measured_is_finished_without_training(runs, tmp_path):
    """Killed after the last step: the report is not there, and resume makes it."""
    run = shutil.copytree(runs("text"), tmp_path / "run")
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in lines if json.loads(line)["event"] not in ("end", "generation", "perplexity")), encoding="utf-8")
    (run / "report.json").unlink()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    steps = len(told(run, "step"))
    api.resume(run)
    assert len(told(run, "step")) == steps == STEPS
    assert json.loads((run / "report.json").read_text())["perplexity"] == json.loads((runs("text") / "report.json").read_text())["perplexity"]
    same_bytes(run, runs("text"))


@pytest.mark.parametrize(("change", "words"), [
    (lambda text: text.replace("quiet", "loud!"), "as many rows, but other tokens|train_"),
    (lambda text: text.replace("3. the", "3. eht"), "tokens"),
    (lambda text: text + "\n\nOne more paragraph.", "records_read 20 -> 21"),
], ids=["other words", "one word", "more"])  # fmt: skip
def test_changed_data_is_refused(base, tmp_path, monkeypatch, capfd, change, words):
    """Guards against a check by counts alone, which took another text of the same size."""
    file = write_data(tmp_path, "text")
    run = interrupted(monkeypatch, recipe_for(base, file), tmp_path / "runs", after=1)
    original = file.read_text(encoding="utf-8")
    file.write_text(change(original), encoding="utf-8")
    events = told(run)
    with pytest.raises(IntegrityError, match=words):
        api.resume(run)
    code, _, complaint = halfbyte(monkeypatch, capfd, "train", "--resume", run)
    assert code == 5
    assert "is not what the run was started with" in complaint
    assert "Traceback" not in complaint
    assert told(run) == events
    file.write_text(original, encoding="utf-8")
    api.resume(run)
    assert [event["step"] for event in told(run, "step")] == [1, 2, 3, 4]


def test_changed_data_is_refused_by_evaluate_too(runs, tmp_path):
    run = shutil.copytree(runs("text"), tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "rows_sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="other tokens"):
        api.evaluate(run)


def test_another_base_in_the_same_place_is_refused(base, runs, tmp_path, monkeypatch, capfd):
    """Same shapes, other weights: the adapter would load without a word, and answer wrongly."""
    folder = shutil.copytree(base, tmp_path / "base")
    run = api.train(recipe_for(folder, write_data(tmp_path, "text")), tmp_path / "runs").path
    make_base(folder, seed=1)
    (tmp_path / "prompts.txt").write_text("who comes there?")
    for words in (["evaluate", run], ["generate", run, "-i", tmp_path / "prompts.txt", "-o", tmp_path / "answers.jsonl"]):
        code, _, complaint = halfbyte(monkeypatch, capfd, *words)
        assert code == 5
        assert "is not the model that this run was trained on" in complaint


def test_a_run_without_a_whole_checkpoint_is_refused(base, tmp_path, monkeypatch, capfd):
    run = interrupted(monkeypatch, recipe_for(base, write_data(tmp_path, "text")), tmp_path / "runs", after=1)
    (run / "checkpoints" / "step-1" / "optimizer.safetensors").write_bytes(b"x")
    code, _, complaint = halfbyte(monkeypatch, capfd, "train", "--resume", run)
    assert code == 5
    assert "step-1/optimizer.safetensors is not what was saved" in complaint


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch, capfd):
    with pytest.raises(DataError, match="no run there"):
        api.resume(tmp_path)
    assert halfbyte(monkeypatch, capfd, "evaluate", tmp_path)[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_and_resume_ends_alike(base, tmp_path, number):
    """A real process: it is signalled in mid-training, exits 4 and names the way on; resumed, it ends as the run that was left alone."""
    file = write_data(tmp_path, "pairs")
    steps = "train.max_steps=120"
    loaded = recipe_for(base, file, steps)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(loaded.text, encoding="utf-8")
    command = [sys.executable, "-m", "halfbyte", "train", str(recipe), steps, "train.eval_steps=50", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "400"})
    run = tmp_path / "runs" / "toy"
    deadline = time.monotonic() + 120
    while not ((run / "events.jsonl").is_file() and len(told_so_far(run)) >= 10):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 4, complaint
    stopped = told(run, "interrupted")[0]["step"]
    assert 10 <= stopped < 120
    assert f"go on with: halfbyte train --resume {run}" in complaint
    assert "Traceback" not in complaint
    assert [event["step"] for event in told(run, "step")] == list(range(1, stopped + 1))
    assert (run / "checkpoints" / f"step-{stopped}" / "manifest.json").is_file()
    api.resume(run)
    whole = api.train(recipe_for(base, file, steps, "train.eval_steps=50"), tmp_path / "alone").path
    assert [(event["step"], event["loss"]) for event in told(run, "step")] == [(event["step"], event["loss"]) for event in told(whole, "step")]
    same_bytes(run, whole)


def told_so_far(run: Path) -> list[str]:
    return [line for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines() if '"event": "step"' in line]
