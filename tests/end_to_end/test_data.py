"""Data you can see, with the real commands on a toy base: what is shown is what trains, in every form that rows can take."""

import io
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from halfbyte import api
from halfbyte.cli import main as command_line
from halfbyte.cli.screen import Screen
from halfbyte.errors import DataError, HalfbyteError, Interrupted
from halfbyte.recipe.load import load_recipe, parse_recipe
from toy_files import STATED, rows_of, write_rows
from toys import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """Where the commands are called from, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def recipe_for(base: Path, file: str, kind: str, *changes: str):
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {file}\n  max_length: 96\n  licence: CC BY 4.0\nadapter:\n  r: 4\n"
        "train:\n  num_epochs: 1\n  batch_size: 4\n  learning_rate: 1e-3\nevaluate:\n  max_new_tokens: 2\n"
    )
    return parse_recipe(text, "toy.yaml", [*STATED[kind], *changes])


def halfbyte(monkeypatch, capfd, *words: object, columns: int = 120) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command, in this process."""
    monkeypatch.setattr("sys.argv", ["halfbyte", *map(str, words)])
    monkeypatch.setenv("COLUMNS", str(columns))
    capfd.readouterr()
    with pytest.raises(SystemExit) as raised:
        command_line.main()
    return raised.value.code or 0, *capfd.readouterr()


# What trains is what was shown


@pytest.mark.parametrize(("kind", "changes"), [
    ("prompt_response", []), ("prompt_response", ["data.packing=best_fit"]), ("messages", ["data.loss=last"]),
    ("messages", ["data.loss=all", "data.packing=best_fit", "train.gradient_accumulation_steps=2"]), ("label", ["data.augment=[typos,case]"]),
    ("text", ["data.augment=[shift]", "data.packing=best_fit"]), ("book", []), ("prompt_response", ["data.prompt_template='Q: {prompt} A: '"]),
], ids=str)  # fmt: skip
def test_the_labels_that_the_loop_saw_are_those_of_the_preview(base, place, kind, changes):
    """The supervision ledger's last line: the hash of what was fed to the model, batch by batch, is that of what `show` prints."""
    write_rows(place / "a.jsonl", kind, 60, 0)
    loaded = recipe_for(base, "a.jsonl", kind, "data.on_bad_row=skip", *changes)
    facts = dict(api.show(loaded, "tokens", 1)[1])
    run = api.train(loaded, place / "runs").path
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    labels = next(event for event in events if event["event"] == "labels")
    assert labels["same_as_preview"] is True
    assert labels["sha256"] == facts["labels"]
    ledger = json.loads((run / "report.json").read_text())["data"]
    assert ledger["records_read"] == 60 == sum(ledger["bins"].values()) + sum(left["count"] for left in ledger["left_out"])
    assert labels["rows"] == api.prepare(loaded).ledger["train_rows"] or "best_fit" in str(changes)
    assert json.loads((run / "plan.json").read_text())["licence"] == "CC BY 4.0"


def test_given_files_validate_and_test(base, place):
    for name, seed in (("a", 1), ("v", 2), ("t", 3)):
        write_rows(place / f"{name}.jsonl", "prompt_response", 30, seed, bad=0)
    loaded = recipe_for(base, "a.jsonl", "prompt_response", "data.validation_path=v.jsonl", "data.test_path=t.jsonl", "data.max_length=400")
    run = api.train(loaded, place / "runs").path
    report = json.loads((run / "report.json").read_text())
    held = report["data"]["bins"]
    left = sum(item["count"] for item in report["data"]["left_out"])
    assert sum(held.values()) + left == 90
    assert min(report["data"]["validation_rows"], report["data"]["test_rows"]) >= 25
    assert report["perplexity"]["tokens"] == report["data"]["test_tokens"]


def test_a_run_is_resumed_from_another_folder_with_its_cache_gone(base, place, monkeypatch):
    """Guards against changed copies that were drawn by the file's name: the resumed recipe has an absolute path, and refused its own data."""
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    loaded = recipe_for(base, "a.jsonl", "prompt_response", "data.augment=[typos,punctuation]", "data.packing=best_fit")
    with monkeypatch.context() as patch:
        patch.setattr(api, "run_training", lambda *args, **kwargs: (_ for _ in ()).throw(Interrupted("stopped")))
        with pytest.raises(Interrupted):
            api.train(loaded, place / "runs")
    shutil.rmtree(place / "cache")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    run = api.resume(place / "runs" / "toy").path
    assert json.loads((run / "report.json").read_text())["status"] == "finished"


def test_an_epoch_that_saw_other_labels_than_the_preview_is_an_error(base, place, monkeypatch):
    """The other side of the hash: rows that change between preview and loop stop the run."""
    from halfbyte.data.store import StoredRows
    from halfbyte.data.tokens import Tokens

    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    get = StoredRows.__getitem__

    def spoil(self, index):
        row = get(self, index)
        if isinstance(index, slice):
            return row
        first = row.trained.index(True)  # another word, which no proof before step 1 can know
        return Tokens([*row.ids[:first], 20, *row.ids[first + 1 :]], row.trained, row.file, row.line)

    monkeypatch.setattr(StoredRows, "__getitem__", spoil)
    with pytest.raises(HalfbyteError, match="are not the ones that were prepared") as caught:
        api.train(recipe_for(base, "a.jsonl", "prompt_response"), place / "runs")
    assert caught.value.exit_code == 5


# show


@pytest.mark.parametrize("stage", ["record", "example", "tokens", "batch"])
def test_show_prints_each_stage_of_a_file_without_a_recipe(place, monkeypatch, capfd, stage):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    first = json.loads((place / "a.jsonl").read_text().split("\n")[0])
    code, out, complaint = halfbyte(monkeypatch, capfd, "show", "a.jsonl", "--stage", stage, "--rows", "2", columns=400)
    assert (code, complaint) == (0, "")
    assert "data prompt_response (columns 'prompt' and 'response' are known names of prompt and response)" in out
    if stage in ("record", "example"):
        assert "a.jsonl:1\n" in out
        assert f"«{first['response']}" in out.replace("\n", " ") or first["response"][:40] in out
        assert "a.jsonl:3" not in out
    else:
        assert "\nlabels " in out
        assert "tokens trained" in out
    early = stage in ("record", "example")
    assert ("«to be trained, if the row is kept and fits»" if early else "«trained (in the loss)»") in out
    assert ("padding" in out) == (stage == "batch")
    assert "\x1b" not in out


def test_show_colours_what_trains_on_a_terminal(base, place):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    shown, facts = api.show(recipe_for(base, "a.jsonl", "prompt_response"), "tokens", 2)
    console = Console(force_terminal=True, width=80, color_system="truecolor", record=True, no_color=False)
    with console.capture() as captured:
        Screen(console).show_spans(shown, facts, "tokens")
    out = captured.get()
    assert "«" not in out
    coloured = "".join(re.findall(r"\x1b\[30;48[^m]*m([^\x1b]*)", out.split("read, not trained")[1])).replace("\n", "")
    trained = "".join(span.text for one in shown for span in one.spans if span.kind == "trained")
    assert coloured.replace(" ", "") == trained.replace(" ", "").replace("\n", "\u21b5")
    plain = re.sub(r"\x1b\[[^m]*m", "", out)
    assert max(len(line) for line in plain.split("\n")) <= 80


def test_a_batch_has_no_line(place, monkeypatch, capfd):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    code, _, complaint = halfbyte(monkeypatch, capfd, "show", "a.jsonl", "--stage", "batch", "--line", "3")
    assert code == 2
    assert complaint.startswith("--line: a batch has no line of its own")


def test_show_writes_a_page(place, monkeypatch, capfd):
    draw = random.Random(0)
    rows = [rows_of("prompt_response", draw) for _ in range(30)]
    rows[0] = {"prompt": "<script>alert(1)</script> \u202e see https://example.org", "response": "it's & \x1b[2J done"}
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = halfbyte(monkeypatch, capfd, "show", "a.jsonl", "data.test_share=0", "data.validation_share=0", "--html", "a.html")
    assert (code, out) == (0, "Written to a.html\n")
    page = (place / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.startswith("<!doctype html>")
    code, _, complaint = halfbyte(monkeypatch, capfd, "show", "a.jsonl", "--html", "a.html")
    assert (code, complaint) == (2, "a.html exists and is left as it is\nhint: choose another name with --html\n")
    assert halfbyte(monkeypatch, capfd, "show", "a.jsonl", "--html", "no/a.html")[0] == 3


def test_show_begins_at_a_line_and_says_when_there_is_nothing(base, place):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    loaded = recipe_for(base, "a.jsonl", "prompt_response")
    for stage in ("record", "example", "tokens"):
        shown, _ = api.show(loaded, stage, 1, line=20)
        assert int(shown[0].title.split(":")[1].split()[0]) >= 20
        with pytest.raises(DataError, match=f"no {stage} to show from line 41 on"):
            api.show(loaded, stage, 1, line=41)


def test_a_record_is_shown_without_a_base(place):
    """Guards against a model that had to be there before a row of a file could be looked at."""
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    assert api.show(recipe_for(Path("owner/model-that-is-nowhere"), "a.jsonl", "prompt_response"), "record", 1)[0]


# prepare, plan and audit


@pytest.mark.parametrize("columns", [80, 120])
def test_prepare_shows_what_became_of_every_row(base, place, monkeypatch, capfd, columns):
    write_rows(place / "a.jsonl", "prompt_response", 80, 0)
    (place / "toy.yaml").write_text(recipe_for(base, "a.jsonl", "prompt_response").text.split("# given")[0])
    words = ["toy.yaml", "data.on_bad_row=skip", "data.augment=[typos]"]
    code, out, complaint = halfbyte(monkeypatch, capfd, "prepare", *words, columns=columns)
    assert (code, complaint) == (0, "")
    assert max(map(len, out.split("\n"))) <= columns
    ledger = api.prepare(load_recipe(Path("toy.yaml"), words[1:])).ledger
    assert "80 rows read" in out
    table = out.split("80 rows read")[1].split("rows of tokens:")[0]
    counts = [int(line.split()[-1]) for line in table.split("\n") if line.split() and line.split()[-1].isdigit()]
    assert sum(counts) == 80
    assert f"{ledger['train_rows']} to train, {ledger['validation_rows']} to validate, {ledger['test_rows']} to test, " in out.replace("\n", " ")
    assert f"{ledger['augmented']} of them changed copies" in out.replace("\n", " ")
    assert f"Share of {ledger['truncation']['answer_tokens']:,} answer tokens kept, by max_length" in out
    kept = next(line for line in out.split("\n") if line.startswith("here: the prompt gives way")).split()[-5:]
    assert kept == [f"{share:.1%}" for share in ledger["truncation"]["kept"].values()]
    assert len(kept) == 5
    assert halfbyte(monkeypatch, capfd, "prepare", *words, columns=columns)[1] == out, "found again, and told alike"


def test_plan_shows_the_ledger_and_asks_for_a_licence(base, place, monkeypatch, capfd):
    write_rows(place / "a.jsonl", "prompt_response", 80, 0, bad=0)
    (place / "toy.yaml").write_text(f"base: {base}\ndata:\n  path: a.jsonl\n  max_length: 96\n")
    _, out, _ = halfbyte(monkeypatch, capfd, "plan", "toy.yaml")
    assert "80 rows read" in out
    assert "data.licence is not stated" in out
    assert "data.licence is not stated" not in halfbyte(monkeypatch, capfd, "plan", "toy.yaml", "data.licence=MIT")[1]


@pytest.mark.parametrize("columns", [80, 120])
def test_audit_shows_findings_with_lines_and_mends(place, monkeypatch, capfd, columns):
    rows = [rows_of("prompt_response", random.Random(n)) for n in range(40)]
    rows[3]["response"] = "write to ann.miller@example.org"
    rows[7] = rows[3]
    (place / "a [b].jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, complaint = halfbyte(monkeypatch, capfd, "audit", "a [b].jsonl", columns=columns)
    assert (code, complaint) == (0, "")
    assert max(map(len, out.split("\n"))) <= columns
    assert "a [b].jsonl: 40 records" in out
    assert "personal data: email: 2 of 40" in out
    assert "    line 4: " in out
    assert "ann.miller" not in out
    assert "data.redact=[email]" in out
    assert "does not make data anonymous" in out.replace("\n", " ")
    code, out, _ = halfbyte(monkeypatch, capfd, "audit", "a [b].jsonl", "--json", columns=columns)
    found = json.loads(out)
    assert found["records"] == 40
    assert {"name", "count", "of", "samples", "advice", "level"} == set(found["findings"][0])
    assert "ann.miller" not in out


def test_audit_takes_a_recipe_with_all_its_parts(place, monkeypatch, capfd):
    for name in ("a", "t"):
        write_rows(place / f"{name}.jsonl", "label", 40, ord(name), bad=0)
    (place / "r.yaml").write_text("data:\n  path: a.jsonl\n  test_path: t.jsonl\n")
    assert "r.yaml: 80 records" in halfbyte(monkeypatch, capfd, "audit", "r.yaml")[1]


def test_clean_data_are_told_in_a_line(place):
    from halfbyte.data.audit import Audit

    console = Console(width=80)
    with console.capture() as captured:
        Screen(console).show_audit(Audit(7, []), "a.csv")
    assert captured.get().startswith("a.csv: 7 records, nothing found\n")


# Long work


def test_long_work_is_told_every_ten_seconds_without_a_terminal(monkeypatch):
    clock = iter(range(100, 200, 4))
    monkeypatch.setattr("halfbyte.cli.screen.time.monotonic", lambda: next(clock))
    console = Console(width=80)
    with console.capture() as captured, Screen(console) as screen:
        for rows in range(1000, 11_000, 1000):
            screen.on_event({"event": "progress", "stage": "reading", "rows": rows})
    assert captured.get() == "reading: 4,000 rows\nreading: 7,000 rows\nreading: 10,000 rows\n"


def test_long_work_shows_how_far_it_is_on_a_terminal():
    console = Console(force_terminal=True, width=80)
    with console.capture() as captured, Screen(console) as screen:
        screen.on_progress("tokenising", 12_000)
        assert screen.status is not None
    assert screen.status is None
    assert "tokenising: 12,000 rows" in captured.get()


@pytest.mark.parametrize("words", [["prepare"], ["audit"], ["show"], ["plan"]])
def test_every_command_that_reads_tells_how_far_it_is(base, place, monkeypatch, capfd, words):
    write_rows(place / "a.jsonl", "prompt_response", 1100, 0, bad=0)
    (place / "toy.yaml").write_text(f"base: {base}\ndata:\n  path: a.jsonl\n  max_length: 400\n  near_duplicates: ignore\n")
    told = []
    monkeypatch.setattr(Screen, "on_progress", lambda self, stage, rows: told.append((stage, rows)))
    assert halfbyte(monkeypatch, capfd, *words, "toy.yaml")[0] == 0
    assert ("reading", 1000) in told


# Refusals: two lines, exit code 2, no traceback


@pytest.mark.parametrize("command", ["show", "audit", "prepare", "plan", "new", "train"])
@pytest.mark.parametrize(("content", "words"), [
    (b"", "a.jsonl is empty"), (b'{"prompt": "a", "response": "b"}\n{"prompt": 1\n', "a.jsonl:2"), (b"PK\x03\x04 workbook", "a.jsonl"),
    (b'{"x": "a", "y": "b"}\n' * 5, "cannot tell what the columns x, y are for"), (None, "a.jsonl"),
])  # fmt: skip
def test_bad_data_are_two_lines_from_every_command(base, place, monkeypatch, capfd, command, content, words):
    if content is not None:
        (place / "a.jsonl").write_bytes(content)
    (place / "toy.yaml").write_text(f"base: {base}\ndata:\n  path: a.jsonl\n")
    file = "a.jsonl" if command in ("new", "show", "audit") else "toy.yaml"
    code, _, complaint = halfbyte(monkeypatch, capfd, command, file, *(["--stage", "record", "--rows", "9"] if command == "show" else []))
    assert code == 2, complaint
    assert "Traceback" not in complaint
    assert words in complaint.split("hint: ")[0]
    assert complaint.count("hint: ") == 1
    assert not (place / "runs").exists()


def test_a_cache_that_cannot_be_written_is_two_lines_and_exit_code_3(base, place, monkeypatch, capfd):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    (place / "toy.yaml").write_text(f"base: {base}\ndata:\n  path: a.jsonl\n  max_length: 400\n")
    (place / "file").write_text("")
    monkeypatch.setenv("HALFBYTE_CACHE", str(place / "file"))
    code, _, complaint = halfbyte(monkeypatch, capfd, "prepare", "toy.yaml")
    assert code == 3
    assert complaint.split("\n")[0].endswith("file/prepared: cannot be written: Not a directory")
    assert "set HALFBYTE_CACHE to another folder" in complaint
    assert "Traceback" not in complaint


# new


def test_new_asks_for_the_licence_on_a_terminal_and_keeps_it(place, monkeypatch, capfd):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Screen, "ask_licence", lambda self: asked.append(1) or "CC BY 4.0")
    assert halfbyte(monkeypatch, capfd, "new", "a.jsonl")[0] == 0
    assert load_recipe(Path("a.yaml")).recipe.data.licence == "CC BY 4.0"
    for number, words in enumerate((["--licence", "4.0"], ["data.licence=MIT"])):
        assert halfbyte(monkeypatch, capfd, "new", "a.jsonl", "-o", f"{number}.yaml", *words)[0] == 0
        assert load_recipe(Path(f"{number}.yaml")).recipe.data.licence == words[-1].removeprefix("data.licence=")
    assert halfbyte(monkeypatch, capfd, "new", "nowhere.csv")[0] == 2
    assert len(asked) == 1


def test_an_input_that_ends_is_no_licence(place, monkeypatch, capfd):
    """Ctrl-D at the question."""
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    code, out, complaint = halfbyte(monkeypatch, capfd, "new", "a.jsonl")
    assert (code, complaint) == (0, "")
    assert "Licence of the data" in out
    assert load_recipe(Path("a.yaml")).recipe.data.licence is None


def test_the_next_command_can_be_typed(place, monkeypatch, capfd):
    write_rows(place / "a.jsonl", "prompt_response", 40, 0, bad=0)
    _, out, _ = halfbyte(monkeypatch, capfd, "new", "a.jsonl", "-o", "my talks.yaml")
    assert out.endswith("train 'my talks.yaml'\n")
