"""SECURITY 3.4: a token is in no file that a run writes and in no line that a command prints. Canaries stand everywhere where one could be picked up."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte.errors import RecipeError
from halfbyte.recipe.load import load_data_or_recipe, parse_recipe
from halfbyte.redaction import HIDDEN, hide_in, hide_in_logs, hide_secrets, holds_secret
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import RunFolder
from toys import make_base

# Values that stand nowhere else.
CANARIES = {
    "HF_TOKEN": "hf_canaryCANARY0123456789",
    "WANDB_API_KEY": "c0ffee01canary9876543210",
    "AWS_SECRET_ACCESS_KEY": "canary/AWS/9s8d7f6g5h4j3k",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0123456789",
    "OPENAI_API_KEY": "sk-canary0123456789abcdef",
    "GITHUB_TOKEN": "ghp_canary0123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "canary-pass-31415926",
}
IN_NETRC, IN_ADDRESS = "netrcCanary2718281828", "addressCanary16180339"
ALL = [*CANARIES.values(), IN_NETRC, IN_ADDRESS]
KEPT = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "HALFBYTE_CACHE")}


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """A function: words -> what `halfbyte words` prints, called in a folder whose home has a .netrc and whose environment is full of canaries."""
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine huggingface.co login me password {IN_NETRC}\n")
    work = tmp_path_factory.mktemp("work")
    make_base(work / "base")
    (work / "talk.csv").write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(60)))
    (work / "toy.yaml").write_text(
        "base: base\ndata:\n  path: talk.csv\n  max_length: 64\ntrain:\n  max_steps: 2\nevaluate:\n  max_new_tokens: 2\n  max_answers: 2\n"
    )
    environment = {**KEPT, **CANARIES, "HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["HF_HOME"] = str(home / "hf")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "halfbyte", *words], cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False)

    call.work, call.home = work, home  # type: ignore[attr-defined]
    return call


def found_in(text: str) -> list[str]:
    return [canary for canary in ALL if canary in text]


@pytest.mark.slow
def test_no_canary_is_written_or_printed(called):
    """The toy way, and every way to hand a secret in where it does not belong. The files of the run are read as bytes."""
    said = []
    for words in (
        ["train", "toy.yaml"],
        ["train", "toy.yaml", "train.learning_rate=1e-3"],
        ["evaluate", "runs/toy"],
        ["compare", "runs/toy", "runs/toy-2"],
    ):
        done = called(*words)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    for words in (
        ["train", "toy.yaml", f"hub_token={CANARIES['HF_TOKEN']}"],
        ["train", "toy.yaml", f"data.path=https://me:{IN_ADDRESS}@host/talk.csv"],
        ["train", "toy.yaml", f"base=https://me:{IN_ADDRESS}@host/base"],
        ["audit", f"https://me:{IN_ADDRESS}@host/talk.csv"],
        ["train", f"https://me:{IN_ADDRESS}@host/toy.yaml"],
        ["new", f"https://me:{IN_ADDRESS}@host/talk.csv"],
        ["chat", f"runs/{CANARIES['WANDB_API_KEY']}"],
        ["train", "toy.yaml", f"system={CANARIES['AWS_SECRET_ACCESS_KEY']}"],
        ["plan", "toy.yaml", f"base={CANARIES['GITHUB_TOKEN']}/x", "--gpu", "24GB"],
    ):
        done = called(*words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        said.append(done.stdout + done.stderr)
    assert not found_in("\n".join(said))
    files = [file for folder in (called.work, Path(KEPT.get("HALFBYTE_CACHE", called.work))) for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 30
    spilled = {str(file): canary for file in files for canary in ALL if canary.encode() in file.read_bytes()}
    assert not spilled


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hf_token",
        "hub_token",
        "api_key",
        "wandb_api_key",
        "password",
        "secret",
        "client_secret",
        "aws_access_key",
        "key",
        "credentials",
        "train.hub_token",
        "track.api_key",
        "data.password",
    ],
)
def test_a_key_for_a_secret_is_refused_with_the_mend(key):
    with pytest.raises(RecipeError, match="secrets have no place in a recipe") as caught:
        parse_recipe("data: {path: a.txt}\n", "a.yaml", [f"{key}=whatever"])
    assert "HF_TOKEN" in caught.value.message
    assert "whatever" not in caught.value.message


@pytest.mark.parametrize("key", ["max_new_tokens=8", "evaluate.max_new_tokens=8", "data.group_column=key", "data.licence=token"])
def test_keys_that_only_sound_like_one_pass(key):
    parse_recipe("data: {path: a.txt, kind: text}\n", "a.yaml", [key])


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuv",
        "sk-proj-abcdefgh1234567890",
        "ghp_abcdefghijklmnopqrst",
        "github_pat_abcdefghij0123",
        "AKIAIOSFODNN7EXAMPLE",
        "glpat-abcdefghij012345",
        "https://me:pass@host/data.csv",
        "https://ghp_abcdefghijklmnop@host/x",
        "s3://key:secret@bucket/x",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_refused_in_a_recipe_and_hidden_elsewhere(secret):
    text = f"name: a\ndata:\n  path: a.txt\n  kind: text\n# {secret}\n"
    with pytest.raises(RecipeError, match=r"^a\.yaml:5: holds ") as caught:
        parse_recipe(text, "a.yaml", [])
    assert caught.value.hint
    assert secret not in caught.value.message
    shown = hide_secrets(f"cannot open {secret} now")
    assert secret not in shown
    assert HIDDEN in shown
    assert shown.endswith(" now")


def test_an_address_with_a_password_as_data_is_refused():
    with pytest.raises(RecipeError, match="holds user and password") as caught:
        load_data_or_recipe(Path("https://me:pass@host/talk.csv"))
    assert "pass@" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "hub:owner/name@main",
        "https://host:8080/a@b",
        "me@example.org wrote",
        "risk-averse task-oriented sk-learn",
        "the token is a word",
        "C:/Users/me@home",
        "tokens: 512",
        "hf_hub",
    ],
)
def test_what_is_no_secret_stays(text):
    assert holds_secret(text) is None
    assert hide_secrets(text) == text


def test_the_value_of_a_variable_is_hidden_whatever_its_form(monkeypatch):
    monkeypatch.setenv("SOMEBODYS_API_KEY", "plainlooking7")
    monkeypatch.setenv("SORT_KEY", "embedded")
    assert hide_in({"a": ["x plainlooking7 y", {"b": "plainlooking7"}]}) == {"a": ["x [hidden] y", {"b": HIDDEN}]}
    assert holds_secret("base: embedded") is None


def test_events_and_plans_hide_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    heard = []
    EventLog(tmp_path / "events.jsonl", heard.append).append({"event": "failed", "message": f"401 with {CANARIES['HF_TOKEN']}"})
    RunFolder(tmp_path).write_plan({"decisions": [{"reason": f"https://me:{IN_ADDRESS}@host"}]})
    written = (tmp_path / "events.jsonl").read_text() + (tmp_path / "plan.json").read_text() + json.dumps(heard)
    assert not found_in(written)
    assert written.count(HIDDEN) == 3


def test_log_lines_of_any_library_hide_secrets(caplog):
    before = logging.getLogRecordFactory()
    try:
        hide_in_logs()
        hide_in_logs()  # once is enough, twice does no harm
        logging.getLogger("some.library").warning("GET %s with %s", f"https://me:{IN_ADDRESS}@host", {"authorization": CANARIES["GITHUB_TOKEN"]})
        logging.getLogger("some.library").warning("%d of %d", 1, 2)
    finally:
        logging.setLogRecordFactory(before)
    assert not found_in(caplog.text)
    assert "1 of 2" in caplog.text


def test_a_bug_is_told_without_secrets(monkeypatch, capsys):
    """The last place: a traceback shows the text of the error."""
    from halfbyte.cli import main as entry

    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    monkeypatch.setattr(entry, "app", lambda **options: {}[CANARIES["HF_TOKEN"]])
    with pytest.raises(SystemExit):
        entry.main()
    told = capsys.readouterr().err
    assert "KeyError" in told
    assert not found_in(told)
