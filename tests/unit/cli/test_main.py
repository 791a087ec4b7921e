"""The command line from outside: how fast it answers, what it leaves on stderr, and with which exit code."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import halfbyte
from halfbyte.recipe.explain import every_key
from halfbyte.recipe.load import load_recipe

SAMPLES = Path(halfbyte.__file__).parent / "samples"
DATA = [sample for sample in sorted(SAMPLES.iterdir()) if sample.suffix != ".yaml"]
LONGEST_HELP_SECONDS = 0.4
COMMANDS = ("quickstart", "new", "audit", "show", "prepare", "plan", "train", "evaluate", "chat", "generate", "recipe")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """halfbyte in a process of its own, as a shell starts it."""
    env = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-m", "halfbyte", *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=60)


def refused(*words: str, cwd: Path) -> list[str]:
    """The lines on stderr of a command that the user must mend: what, and how."""
    done = run(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.rstrip("\n").split("\n")
    assert lines[-1].startswith("hint: ")
    return lines


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\n" + "".join(f"question {i},answer {i}\n" for i in range(20)))
    (tmp_path / "r.yaml").write_text("data:\n  path: a.csv\ntrain:\n  max_steps: 1\n")
    return "r.yaml"


# Help


def test_help_answers_at_once(tmp_path):
    """torch alone takes seconds to import. Processor time, the best of three: what a neighbour takes is not counted."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
    assert min(seconds) < LONGEST_HELP_SECONDS


def test_version(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"halfbyte {halfbyte.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, tmp_path):
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"halfbyte {command}" in done.stdout


def test_recipe_explain_lists_every_key(tmp_path):
    done = run("recipe", "--explain", cwd=tmp_path)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.split("\n") if line.strip()]
    for key, default, sentence in every_key():
        assert any(words[0] == key and default.split()[0] == words[1] and sentence.split()[0] in words for words in lines), key


# Refusals


def test_a_wrong_recipe_is_two_lines_and_exit_code_2(tmp_path, recipe):
    (tmp_path / recipe).write_text("data:\n  path: a.csv\n  max_lenght: 9\n")
    for command in ("plan", "train"):
        assert refused(command, recipe, cwd=tmp_path) == [
            "r.yaml:3: data.max_lenght: no such key; did you mean 'data.max_length'?", "hint: halfbyte recipe --explain lists every key",
        ]  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_all_problems_are_shown_with_those_of_the_command_line(tmp_path, recipe):
    said = refused("plan", recipe, "train.max_steps=0", "adapter.alhpa=3", "nonsense", cwd=tmp_path)
    assert sorted(said[:-1]) == [
        "adapter.alhpa: no such key; did you mean 'adapter.alpha'?", "nonsense: not an override; write section.key=value",
        "train.max_steps: input should be greater than or equal to 1, got 0",
    ]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [
    (["plan", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
    (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
    (["prepare", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
    (["show", "nowhere.csv"], "nowhere.csv: no such file"),
    (["audit", "nowhere.csv"], "nowhere.csv: no such file"),
    (["train", "a.csv"], "a.csv: is data, not a recipe"),
    (["plan", "r.yaml", "data.path=nowhere.csv"], "data.path: there is no file nowhere.csv"),
    (["train"], "give a recipe, or --resume RUN, and not both"),
    (["train", "r.yaml", "--resume", "runs/r"], "give a recipe, or --resume RUN, and not both"),
    (["new", "nowhere.csv"], "nowhere.csv: no such file"),
    (["generate", "runs/r", "-i", "nowhere.txt", "-o", "out.csv"], "nowhere.txt: no such file"),
    (["generate", "runs/r", "-i", "a.csv", "-o", "a.csv"], "a.csv exists and is left as it is"),
])  # fmt: skip
def test_what_is_missing_is_two_lines_and_exit_code_2(tmp_path, recipe, words, message):
    lines = refused(*words, cwd=tmp_path)
    assert lines[0] == message
    assert len(lines) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "r.yaml"]


def test_a_word_in_brackets_is_shown_and_not_taken_for_colour(tmp_path, recipe):
    assert refused("plan", recipe, "[bold]x", cwd=tmp_path)[0] == "[bold]x: not an override; write section.key=value"


def test_a_command_that_does_not_exist_leaves_with_2(tmp_path):
    done = run("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# new


@pytest.mark.parametrize("sample", DATA, ids=lambda sample: sample.stem)
def test_new_writes_a_recipe_that_loads(tmp_path, sample):
    done = run("new", sample, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = tmp_path / f"{sample.stem}.yaml"
    assert done.stdout == f"{written.read_text()}\nWritten to {written.name}. Next: halfbyte train {written.name}\n"
    loaded = load_recipe(written, ["train.max_steps=3"])
    assert loaded.notes == []
    assert loaded.recipe.train.max_steps == 3
    assert loaded.recipe.data.path == str(sample)


def test_new_writes_over_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    assert refused("new", DATA[0], "-o", "mine.yaml", cwd=tmp_path)[0] == "mine.yaml exists and is left as it is"
    assert (tmp_path / "mine.yaml").read_text() == "mine"


# Overrides


def test_overrides_stand_behind_the_file(tmp_path, recipe):
    """The whole way to a plan, which imports torch: the one slow test here."""
    done = run("plan", recipe, "train.max_steps=7", "train.batch_size=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = next(line for line in done.stdout.split("\n") if line.startswith("steps"))
    assert steps.split()[1] == "7"
    assert "max_steps of the recipe" in steps
    assert "20 rows, 2 a step" in steps
