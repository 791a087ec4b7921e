"""SECURITY 3.4: a token is in no file that a run writes and in no line that a command prints. Canaries stand everywhere where one could be picked up."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte.api.identity import kept_recipe
from halfbyte.errors import RecipeError
from halfbyte.evaluate.gate import promised
from halfbyte.recipe.load import load_data_or_recipe, parse_recipe
from halfbyte.redaction import HIDDEN, hide_in, hide_in_logs, hide_secrets, holds_secret
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import RunFolder
from toys import make_base

# Values that stand nowhere else.
CANARIES = {
    "HF_TOKEN": "hf_canaryCANARY0123456789canaryCANARY",
    "WANDB_API_KEY": "c0ffee01canary9876543210",
    "AWS_SECRET_ACCESS_KEY": "canary/AWS/9s8d7f6g5h4j3k",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0123456789",
    "OPENAI_API_KEY": "sk-canary0123456789abcdef",
    "GITHUB_TOKEN": "ghp_canary0123456789abcdefcanary0123456789",
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
    drawn = random.Random(0)  # rows that differ in a number alone are one row to the split, and none would be left to test on
    words = ["".join(drawn.choices("abcdefghijklmnop", k=5)) for _ in range(400)]
    rows = [f"{' '.join(drawn.sample(words, 5))},{' '.join(drawn.sample(words, 4))}\n" for _ in range(120)]
    (work / "talk.csv").write_text("prompt,response\n" + "".join(rows))
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
        "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
        "sk-" + "aB3dE6gH9jK2mN5pQ8sT" + "T3BlbkFJ" + "aB3dE6gH9jK2mN5pQ8sT",
        "sk-proj-" + "aB3dE6gH9_jK2mN5pQ8sTuV-" * 4,
        "sk-ant-api03-" + "aB3dE6gH9_jK2mN5pQ8sTuV-" * 4,
        "sk-or-v1-" + "0123456789abcdef" * 4,
        "ghp_" + "aB3dE6gH9jK2" * 3,
        "gho_" + "aB3dE6gH9jK2" * 3,
        "github_pat_" + "11ABCDEFG0aBcDeFgHiJkL" + "_" + "aB3dE6gH9jK2" * 5,
        "xoxb-123456789012-1234567890123-aB3dE6gH9jK2mN5pQ8sTuVwX",
        "AKIAIOSFODNN7EXAMPLE",
        "glpat-aB3dE6gH9jK2mN5pQ8sT",
        "https://me:pass@host/data.csv",
        "https://ghp_abcdefghijklmnop@host/x",  # whatever its length: the user of an address
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
        "data/hf_checkpoints/llama-7b",
        "/models/hf_pretrained_models/x",
        "/tmp/hf_experiments_1/b",
        "hf_transformer_models_of_the_first_series_2023",
        "corpora/opus-sk-en-sentences-2023.jsonl",
        "sk-learn-classification-v2",
        "data/sk-ant-colony-optimisation-of-routes-2023",
        "sk-proj-notes-on-the-second-series-of-2023",
        "ghp_notes_of_the_summer_2023.jsonl",
        "github_pat_rules",
        "glpat-notes.txt",
        "ASIA-PACIFIC-2023 and ASIA_PACIFIC_SALES_23",
        "xoxo-greetings-from-2023.txt",
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
    assert "(SOMEBODYS_API_KEY)" in holds_secret("base: plainlooking7")


def test_the_value_of_a_variable_that_is_a_place_stays(tmp_path, monkeypatch):
    """A file of keys, and a word of the folder that one works in, are no secrets; a short value is a word."""
    (tmp_path / "experiments-2023").mkdir()
    monkeypatch.chdir(tmp_path / "experiments-2023")
    monkeypatch.setenv("PROJECT_KEY", "experiments-2023")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("SHORT_TOKEN", "talk2023")
    for text in (f"{tmp_path}/experiments-2023/b", "data: talk2023"):
        assert hide_secrets(text) == text
        assert holds_secret(text) is None


def test_what_is_read_back_out_of_a_plan_is_what_was_written(tmp_path, monkeypatch):
    """The base is found again and the template writes the same, whatever a path looks like; what is told to people is hidden."""
    monkeypatch.setenv("RUN_TOKEN", "somewhere-2023")
    path = "/data/somewhere-2023/hf_" + "a1B2" * 9
    kept = {"base": path, "template": {"kind": "plain", "system": path}, "quant": {"kind": "nf4"}, "ledger": {"train_rows": 2}, "rows_sha256": "a-b-c"}
    run = RunFolder(tmp_path)
    run.write_plan(kept | {"notes": [path], "decisions": [{"name": "base", "value": path}], "settings": [{"key": "base", "value": path}]})
    plan = run.read_plan()
    assert {key: plan[key] for key in kept} == kept
    assert [plan["notes"][0], plan["decisions"][0]["value"], plan["settings"][0]["value"]] == ["/data/[hidden]/[hidden]"] * 3


def test_the_resolved_recipe_of_a_run_is_read_whatever_its_folder_is_called(tmp_path, monkeypatch):
    """Resume, evaluate, reproduce, gate. What is changed on the way is searched as before."""
    monkeypatch.setenv("RUN_TOKEN", "somewhere-2023")
    (tmp_path / "recipe.resolved.yaml").write_text("name: a\nbase: /data/somewhere-2023/b\ndata: {path: /data/hf_" + "a1B2" * 9 + "/a.txt, kind: text}\n")
    assert kept_recipe(RunFolder(tmp_path)).recipe.base == "/data/somewhere-2023/b"
    assert promised(tmp_path) == (None, None)
    with pytest.raises(RecipeError, match=r"data\.path: holds the value of a variable"):
        kept_recipe(RunFolder(tmp_path), ["data.path=/data/somewhere-2023/a.txt"])


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
