"""compare, rate and gate as commands: what they print, what they write, and with what they leave."""

import importlib.util
import json

import pytest
import typer
from typer.testing import CliRunner

from halfbyte.cli import verdicts
from halfbyte.errors import DataError, PromiseError, RecipeError
from toy_evaluations import ACCURACY, answer, make_run, shares

ROWS = 8


@pytest.fixture
def halfbyte(monkeypatch):
    """A function: words and standard input -> what was printed. Errors come as they were raised; `main` shows them."""
    monkeypatch.setenv("COLUMNS", "300")
    app = typer.Typer()
    for command in (verdicts.compare, verdicts.rate, verdicts.gate):
        app.command()(command)

    def call(*words, typed: str = "") -> str:
        return CliRunner().invoke(app, [str(word) for word in words], input=typed, catch_exceptions=False).output

    return call


def make_answered(path, right: int = ROWS):
    answers = [answer(number, f"no {number}", f"yes {number}") for number in range(ROWS)]
    return make_run(path, [("labels", ACCURACY, shares([0] * ROWS), shares([1] * right + [0] * (ROWS - right)))], answers)


def report_of(run, **changes):
    one = {
        "group": "text",
        "metric": "perplexity",
        "kind": "exp_ratio",
        "higher_is_better": False,
        "base": 43.2,
        "tuned": 32.1,
        "rows": 70,
        "verdict": "better",
    }
    (run / "report.json").write_text(json.dumps({"comparisons": [{**one, **changes}], "generations": []}))
    return run


# compare


def test_compare_says_the_verdict_first_and_then_the_figures(halfbyte, tmp_path):
    first, second = make_answered(tmp_path / "few", 0), make_answered(tmp_path / "many")
    said = halfbyte("compare", first, second, "--json", tmp_path / "out.json")
    lines = [line for line in said.split("\n") if line.strip()]
    assert lines[0].startswith(f"{second} is better than {first}: accuracy")
    assert lines[1].split()[:4] == ["on", "figure", "few", "many"]
    assert lines[2].split()[0] == "labels"
    assert lines[2].split()[-1] == "better"
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["comparisons"][0]["second"] == 1.0


def test_compare_writes_over_nothing_and_looks_before_it_computes(halfbyte, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(DataError, match="exists and is left as it is"):
        halfbyte("compare", "nowhere", "nowhere", "--json", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "mine"


# rate


def test_rate_reads_a_vote_a_line_from_a_pipe(halfbyte, tmp_path):
    run = make_answered(tmp_path / "r")
    said = halfbyte("rate", run, typed="a\nB\n=\ns\nq\n")
    assert f"5 of {ROWS}" in said
    assert f"6 of {ROWS}" not in said
    assert "of 2 blind pairs that were decided (1 tie;" in said
    assert len((run / "evaluation" / "votes.jsonl").read_text().splitlines()) == 3


def test_the_end_of_the_pipe_is_the_end_of_the_votes(halfbyte, tmp_path):
    assert "of 1 blind pairs" in halfbyte("rate", make_answered(tmp_path / "r"), typed="a\n")


def test_a_line_that_is_no_vote_is_told_and_the_votes_before_it_stay(halfbyte, tmp_path):
    run = make_answered(tmp_path / "r")
    with pytest.raises(DataError, match="line 2: 'maybe' is no vote"):
        halfbyte("rate", run, typed="a\nmaybe\nb\n")
    assert len((run / "evaluation" / "votes.jsonl").read_text().splitlines()) == 1


def test_rate_tells_neither_model_and_shows_no_control_characters(halfbyte, tmp_path):
    answers = [answer(number, "\x1b[31mred\x07", "[bold]plain[/bold]", prompt="\x1b]0;title\x07who?") for number in range(2)]
    run = make_run(tmp_path / "r", [("labels", ACCURACY, shares([0] * 2), shares([1] * 2))], answers)
    shown = halfbyte("rate", run, typed="").split("A person")[0]
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]plain[/bold]" in shown
    assert "(empty)" not in shown


def test_rate_by_a_page(halfbyte, tmp_path):
    run = make_answered(tmp_path / "r")
    page = tmp_path / "page.html"
    assert f"{ROWS} pairs" in halfbyte("rate", run, "--page", page)
    with pytest.raises(DataError, match="exists and is left as it is"):
        halfbyte("rate", run, "--page", page)
    names = [part.split('"')[0] for part in page.read_text().split('type="radio" name="')[1::3]]
    adapter = (run / "adapter.sha256").read_text().strip()
    (tmp_path / "votes.json").write_text(json.dumps({"adapter": adapter, "seed": 0, "votes": dict.fromkeys(names, "a")}))
    assert f"{ROWS} votes taken" in halfbyte("rate", run, "--votes", tmp_path / "votes.json")
    assert f"0 votes taken from {tmp_path / 'votes.json'}; {ROWS} pairs had a vote before, which stays" in halfbyte(
        "rate", run, "--votes", tmp_path / "votes.json"
    )
    with pytest.raises(DataError, match="all 8 pairs are voted on"):
        halfbyte("rate", run, "--page", tmp_path / "another.html")
    with pytest.raises(RecipeError, match="--page or --votes"):
        halfbyte("rate", run, "--page", "x.html", "--votes", "y.json")


# gate


def test_gate_prints_a_line_for_each_promise(halfbyte, tmp_path):
    run = report_of(make_run(tmp_path / "r"))
    assert halfbyte("gate", run, "--min-gain", "5%").startswith("kept: a gain of at least 5.0%")
    said = halfbyte("gate", run, "--min-gain", "0.05", "--verdict", "better").strip().split("\n")
    assert [line.split(":")[0] for line in said] == ["kept", "kept"]


def test_a_promise_that_is_not_kept_leaves_with_6_and_all_lines(halfbyte, tmp_path):
    run = report_of(make_run(tmp_path / "r"))
    with pytest.raises(PromiseError) as raised:
        halfbyte("gate", run, "--min-gain", "30%", "--verdict", "better")
    assert raised.value.exit_code == 6
    assert [line.split(":")[0] for line in raised.value.message.split("\n")] == ["kept", "not kept"]


def test_the_recipe_promises_and_the_command_line_overrides(halfbyte, tmp_path):
    run = report_of(make_run(tmp_path / "r"))
    (run / "recipe.resolved.yaml").write_text("name: r\ndata:\n  path: a.txt\nevaluate:\n  min_gain: 0.3\n")
    with pytest.raises(PromiseError, match=r"not kept: a gain of at least 30\.0%"):
        halfbyte("gate", run)
    assert halfbyte("gate", run, "--min-gain", "20%").startswith("kept")


@pytest.mark.parametrize("text", ["5", "a lot", "-5%", "-0.1", "nan", "inf", "%", ""])
def test_a_share_is_written_as_percent_or_below_one(halfbyte, tmp_path, text):
    """A bare 5 might be 5 % or 500 %: a gate must not guess."""
    run = report_of(make_run(tmp_path / "r"))
    with pytest.raises(RecipeError, match="is no share"):
        halfbyte("gate", run, f"--min-gain={text}")


# Harness


def test_tasks_without_lm_eval_are_refused_before_a_model_is_loaded(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more))
    with pytest.raises(DataError, match="not installed"):
        verdicts.evaluate_tasks(tmp_path / "nowhere", "a,b")
