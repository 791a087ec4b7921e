"""The verbs for Python: instant to import, a recipe however it is at hand, results that show themselves, training seen while it runs."""

import inspect
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import halfbyte
from halfbyte import notebook
from halfbyte.errors import DataError, IntegrityError, Interrupted, PromiseError, RecipeError
from halfbyte.notebook import Run, _load
from halfbyte.notebook import curve as curves
from halfbyte.notebook.curve import Curve
from halfbyte.notebook.views import Rows, View, run_view
from toy_files import write_rows
from toys import make_base

COMPARISON = {
    "event": "comparison", "group": "text", "metric": "perplexity <b>", "unit": "test text", "base": 43.12, "tuned": 32.1, "difference": -11.02,
    "interval": [-12.0, -10.0], "p_value": 0.0005, "verdict": "better", "rows": 70, "units": 70,
}  # fmt: skip
REPORT = {
    "name": "toy", "status": "finished", "comparisons": [COMPARISON],
    "verdict": {"word": "better", "title": "Better than its base", "sentence": "Perplexity fell <i>.", "others": None},
}  # fmt: skip


# Importing


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_importing_halfbyte_imports_nothing_else():
    seen = in_a_new_process("import sys, halfbyte; print(sorted({'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'IPython'} & set(sys.modules)))")
    assert seen == "[]"


@pytest.mark.parametrize("before", ["", "import halfbyte.train.loop as loop, halfbyte.evaluate.loss, halfbyte.generate.engine; assert loop.run_training; "])
def test_rooms_that_have_the_name_of_a_verb_are_called_too(before):
    """Python binds the room over the verb as soon as anything is imported from it."""
    names = "('train', 'evaluate', 'generate')"
    assert in_a_new_process(f"import halfbyte; {before}print(all(callable(getattr(halfbyte, name)) for name in {names}))") == "True"
    assert in_a_new_process(f"{before}import halfbyte; print(*inspect.signature(halfbyte.train).parameters)".replace("import", "import inspect, ", 1)) == (
        "recipe runs changes"
    )


def test_every_name_is_there_and_no_other():
    for name in halfbyte.__all__:
        assert callable(getattr(halfbyte, name))
        assert name in dir(halfbyte)
        assert getattr(notebook, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        halfbyte.trian  # noqa: B018


def test_the_verbs_are_those_of_the_api():
    from halfbyte import api

    # Of the first three api has the parts: open_tuned, answer_all, reply. The others read what runs left, without a model.
    others = {"Run", "chat", "generate", "compare", "gate", "rate"}
    assert all(callable(getattr(api, name)) for name in set(halfbyte.__all__) - others)


def test_a_called_room_is_the_verb(monkeypatch):
    monkeypatch.setattr(notebook, "train", lambda recipe, **changes: (recipe, changes))
    assert halfbyte.train("r.yaml", train={"max_steps": 2}) == ("r.yaml", {"train": {"max_steps": 2}})
    assert inspect.ismodule(halfbyte.train)


# Recipes


def test_a_file_a_dictionary_and_words_over_them(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\na,b\n")
    (tmp_path / "r.yaml").write_text(f"data:\n  path: {tmp_path / 'a.csv'}\ntrain:\n  max_steps: 7\n  batch_size: 2\n")
    plain = {"name": "r", "data": {"path": tmp_path / "a.csv"}, "train": {"max_steps": 7, "batch_size": 2}}
    changes = {"train": {"max_steps": 20, "learning_rate": 1e-05}, "base": "owner/name", "data": {"redact": ["email"], "system": None}}
    of_file, of_dictionary = _load(tmp_path / "r.yaml", changes), _load(plain, changes)
    assert of_file.recipe == of_dictionary.recipe == _load(str(tmp_path / "r.yaml"), changes).recipe
    train = of_file.recipe.train
    assert (train.max_steps, train.batch_size, train.learning_rate) == (20, 2, 1e-05)
    assert of_file.recipe.base == "owner/name"
    assert of_file.recipe.data.redact == ["email"]
    assert "train.max_steps=20" in of_dictionary.text, "recipe.yaml of the run tells what was asked"
    assert plain["data"]["path"] == tmp_path / "a.csv", "the caller's dictionary is as it was"


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1).filter(str.strip))
@example("null")
@example("5")
@example("a: b # c")
@example("line\nline\r\n\x85\u2028end")
@example("'quoted\" \\n")
@example("\U0001f600 {prompt}")
@example("\u00cf\x85\U0005c970")
def test_a_text_arrives_as_it_was_given(text):
    text = text.encode("utf-8", "ignore").decode()  # halves of characters are no text
    if not text.strip():
        return
    plain = {"name": "r", "data": {"path": "a.csv"}, "evaluate": {"prompts": [text]}}
    assert _load(plain, {"data": {"system": text}}).recipe.data.system == text
    assert _load(plain, {}).recipe.evaluate.prompts == [text]
    assert _load(plain, {"evaluate": {"prompts": [text, "x"]}}).recipe.evaluate.prompts == [text, "x"]


def test_a_list_that_is_used_twice_is_no_alias():
    words = ["email"]
    assert _load({"name": "r", "data": {"path": "a.csv", "redact": words, "augment": []}, "evaluate": {"prompts": words}}, {}).recipe.data.redact == words


def test_a_slip_is_told_with_its_hint_below_the_traceback():
    with pytest.raises(RecipeError, match="no such key; did you mean 'train") as caught:
        halfbyte.train({"data": {"path": "a.csv"}}, train={"learning_rat": 1})
    assert caught.value.__notes__ == ["hint: halfbyte recipe --explain lists every key"]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DataError, match="no run there"):
        _ = Run(tmp_path).report


# The curve

STEPS = [{"event": "step", "step": step, "loss": 5.0 / step, "tokens_per_second": 100.0} for step in range(1, 101)]
VALIDATION = {"event": "validation", "step": 100, "loss": 3.0, "tokens": 9, "best": True}


def test_without_jupyter_every_validation_is_a_line(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    curve = Curve()
    curve.total = 100
    for event in [{**VALIDATION, "step": 0, "loss": 4.0}, *STEPS, VALIDATION, {"event": "note", "message": "odd \x1b[2J"}, {"event": "comparison"}]:
        curve.on_event(event)
    curve.close()
    assert capsys.readouterr().out == "step 0 of 100: validation 4.000\nstep 100 of 100: loss 0.050, validation 3.000\nodd \\u001b[2J\n"


@pytest.fixture
def jupyter(monkeypatch):
    """Stands in for a kernel: `shown` gets what a cell shows, an update as a pair."""
    shown = []
    handle = types.SimpleNamespace(update=lambda html: shown.append(("update", html)))

    def display(html, display_id):
        shown.append(html)
        return handle

    ipython, inner = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython, inner.HTML, inner.display = object, str, display
    for name, module in (("ipykernel", types.ModuleType("ipykernel")), ("IPython", ipython), ("IPython.display", inner)):
        monkeypatch.setitem(sys.modules, name, module)
    return shown


def test_in_jupyter_one_chart_is_drawn_again_at_most_once_a_second(jupyter, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(curves, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    curve = Curve()
    for event in STEPS:
        curve.on_event(event)
        now[0] += 0.1  # ten seconds of training
    assert 9 <= len(jupyter) <= 11
    assert isinstance(jupyter[0], str)
    assert all(kind == "update" for kind, _ in jupyter[1:])
    curve.on_event(VALIDATION)
    curve.close()
    last = jupyter[-1][1]
    assert "<svg" in last
    assert "training: 5 at 1, then to 0.05 at 100" in last
    assert "best validation loss 3" in last
    assert capsys.readouterr().out == ""


def test_a_kernel_without_a_shell_shows_nothing(jupyter, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    Curve().on_event(VALIDATION)
    assert jupyter == []
    assert "validation 3.000" in capsys.readouterr().out


def test_a_resumed_run_draws_no_step_twice(jupyter):
    curve = Curve()
    for event in [*STEPS[:50], {"event": "resume", "step": 20}, *STEPS[20:30]]:
        curve.on_event(event)
    assert [x for x, _ in curve.training] == list(range(1, 31))


# What is shown


def test_a_run_shows_its_verdict_and_its_scores():
    view = run_view(Path("runs/toy"), REPORT)
    text, html = repr(view), view._repr_html_()
    assert text.splitlines()[0] == "▲ toy, finished: Better than its base"
    for said in ("43.1", "32.1", "−11.0 (−12.0 to −10.0)", "▲ better", "runs/toy/report.html"):
        assert said in text
        assert said in html
    assert "<b>" not in html.replace("<p><b>", "", 1).replace("</b>", "")
    assert "perplexity &lt;b&gt;" in html
    assert "fell &lt;i&gt;." in html


def test_a_run_that_compared_nothing_shows_itself_too():
    report = {**REPORT, "status": "interrupted", "comparisons": [], "verdict": {**REPORT["verdict"], "word": "not compared"}}
    assert "verdict" not in run_view(Path("r"), report)._repr_html_()


def test_a_view_escapes_what_it_shows():
    view = View(1, "<script>", ["<p>", Rows(["<x>"], [["<y>\n\x1b"]])])
    assert not {"<script>", "<x>", "<y>", "\x1b"} & set(view._repr_html_().replace("<", "\n<").replace(">", ">\n").split("\n"))
    assert "\x1b" not in repr(view)
    assert 'srcdoc="&lt;a title=&quot;b&quot;&gt;"' in View(1, "t", [], page='<a title="b">')._repr_html_()


# The whole way, on a toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("toy")
    base = make_base(place / "base")
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    recipe = {
        "name": "toy", "base": base, "data": {"path": place / "a.jsonl", "max_length": 96}, "adapter": {"r": 4}, "train": {"max_steps": 2},
        "evaluate": {"max_new_tokens": 4, "max_answers": 0},
    }  # fmt: skip
    assert "40 rows read" in repr(halfbyte.prepare(recipe))
    assert "max_steps of the recipe" in halfbyte.plan(recipe)._repr_html_()
    assert "«" in repr(halfbyte.show(recipe, rows=1))
    assert "40 records" in repr(halfbyte.audit(place / "a.jsonl"))
    assert "[EMAIL]" not in repr(halfbyte.audit(recipe, data={"redact": ["email"]}))  # `data` is the section, whatever is audited
    return halfbyte.train(recipe, runs=place / "runs", train={"batch_size": 2})


def test_train_generate_chat_evaluate(toy, capsys):
    assert toy.report["status"] == "finished"
    assert "halfbyte.train" in toy.report["command"]
    assert "batch_size=2" in (toy.path / "recipe.yaml").read_text()
    assert "2 a step" in (toy.path / "plan.json").read_text()
    assert toy.path.name in repr(toy)
    one, two = toy.generate(["hello", "there"], max_new_tokens=3)
    assert halfbyte.generate(toy, "hello", max_new_tokens=3) == one
    assert halfbyte.generate(str(toy.path), ["there"], max_new_tokens=3) == [two]
    capsys.readouterr()
    talk = halfbyte.chat(toy, max_new_tokens=3, temperature=0)
    talk.say("hello")
    assert capsys.readouterr().out.strip() in repr(talk)
    talk.say("and then?")
    assert [turn["role"] for turn in talk.messages] in (["user", "assistant"] * 2, ["user", "assistant"])
    assert halfbyte.evaluate(toy).path == toy.path


def test_compare_and_gate(toy, tmp_path):
    with pytest.raises(DataError, match="are one run"):
        halfbyte.compare(toy, toy.path)
    shutil.copytree(toy.path, tmp_path / "twin")
    versus = halfbyte.compare(toy, tmp_path / "twin")
    assert "twin" in repr(versus)
    assert "verdict" in versus._repr_html_()
    assert "keeps what was promised" in repr(halfbyte.gate(toy, max_forgetting=10.0))
    with pytest.raises(PromiseError, match="not kept") as caught:
        halfbyte.gate(toy, min_gain=0.99)
    assert "report.html has the figures" in caught.value.__notes__[0]


def test_a_run_is_made_again_and_the_first_difference_named(toy, tmp_path):
    again = halfbyte.reproduce(toy, runs=tmp_path)
    assert again.value.identical
    assert "identical: 2 steps" in repr(again)
    assert str(tmp_path / "toy") in again._repr_html_()
    assert halfbyte.reproduce(toy, check=True).value.identical
    assert repr(halfbyte.reproduce(toy, against=Run(tmp_path / "toy"))) == repr(again)
    other = halfbyte.reproduce(toy, check=True, train={"learning_rate": 1e-3})
    assert not other.value.identical
    assert "other input: train.learning_rate: " in repr(other)
    with pytest.raises(IntegrityError, match=r"train\.learning_rate") as caught:
        halfbyte.reproduce(toy, train={"learning_rate": 1e-3})
    assert "put the old ones back" in caught.value.__notes__[0]
    with pytest.raises(RecipeError, match="makes none"):
        halfbyte.reproduce(toy, against=toy, anyway=True)


def test_a_run_that_is_cut_is_the_run_that_is_not(toy, tmp_path, monkeypatch):
    from halfbyte.api import cuts

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # set by the verb where it is not; here so that it is put back
    proof = halfbyte.verify_resume(toy.path / "recipe.resolved.yaml", steps=2)
    assert proof.value.identical
    assert repr(proof).startswith("identical: 2 steps, cut behind 1 of them")
    assert repr(proof).count("same") == 2
    step, digests = {"step": 1, "rows": "a", "learning_rate": 0.1, "loss": 2.0, "grad_norm": 1.0, "tokens": 5}, ("a", "b")
    monkeypatch.setattr(cuts, "_course", lambda planned, place, listener, cut=None: ([step | {"loss": 2.5} if cut else step], digests[cut is not None]))
    proof = halfbyte.verify_resume(toy.path / "recipe.resolved.yaml", steps=2)
    assert not proof.value.identical
    assert "step 1 has another loss" in repr(proof)
    assert "2.0, when cut 2.5" in proof._repr_html_()
    with pytest.raises(RecipeError, match="cannot be cut"):
        halfbyte.verify_resume(toy.path / "recipe.resolved.yaml", steps=1)


def test_rating_asks_until_the_answer_is_a_vote(monkeypatch, capsys):
    from halfbyte import api
    from halfbyte.evaluate import rate

    pairs = [rate.Pair(name, "Hello\x1b?", {"base": "hm", "tuned": "Hello!"}, a="tuned") for name in ("one", "two")]

    def stand_in(path, ask, seed):
        votes = [ask(pair, place, len(pairs)) for place, pair in enumerate(pairs, 1)]
        assert votes == ["a", "tie"]
        return rate.rate_votes([pair.winner(vote) for pair, vote in zip(pairs, votes, strict=True)], 0)

    said = iter(["what?", "A", "="])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    monkeypatch.setattr(api, "rate", stand_in)
    rating = halfbyte.rate("runs/toy")
    assert (rating.value.wins, rating.value.losses, rating.value.ties) == (1, 0, 1)
    assert repr(rating) == rating.value.sentence
    out = capsys.readouterr().out
    assert "1 of 2: Hello\\u001b?" in out
    assert "A: Hello!\n\nB: hm\n" in out
    assert not {"base", "tuned"} & set(out.split())


def test_an_interrupted_run_says_how_to_go_on(toy, tmp_path, monkeypatch):
    from halfbyte import api

    def stop(*words, **more):
        raise Interrupted("stopped")

    monkeypatch.setattr(api, "run_training", stop)
    with pytest.raises(Interrupted) as caught:
        halfbyte.train(toy.path / "recipe.resolved.yaml", runs=tmp_path)
    assert caught.value.__notes__ == [f"go on with: halfbyte.resume({str(tmp_path / 'toy')!r})"]
    assert Run(tmp_path / "toy").report["status"] != "finished"
    monkeypatch.undo()
    assert halfbyte.resume(tmp_path / "toy").report["status"] == "finished"
