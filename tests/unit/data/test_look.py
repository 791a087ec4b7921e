"""`halfbyte new FILE`: the recipe it writes loads, says what was found, prepares as it says, and holds whatever the file is called."""

import json
import random
from pathlib import Path

import pytest

import halfbyte
from halfbyte.data.look import run_name, write_recipe_for
from halfbyte.data.prepare import prepare_data
from halfbyte.errors import DataError, RecipeError
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import PairData, Recipe, TextData
from toy_files import KINDS, rows_of
from toy_tokenizers import tokenizer_of

SAMPLES = Path(halfbyte.__file__).parent / "samples"
PAIRS = "prompt,response\n" + "".join(f"question {i},answer {i}\n" for i in range(20))


def written_for(file: Path, base: str = "embedded", *stated: str) -> tuple[str, Recipe]:
    text = write_recipe_for(file, base, list(stated))
    loaded = parse_recipe(text, "new.yaml", [])
    assert loaded.notes == []
    return text, loaded.recipe


@pytest.mark.parametrize("sample", sorted(file.name for file in SAMPLES.iterdir() if file.suffix != ".yaml"))
def test_each_sample_gets_a_recipe_that_loads(sample):
    text, recipe = written_for(SAMPLES / sample)
    assert recipe.data.path == str(SAMPLES / sample)
    assert recipe.base == "embedded"
    kinds = {"game_meanings.csv": "structure", "comment_replies.csv": "prompt_response", "gothic_tale.txt": "text"}
    assert recipe.data.kind == kinds.get(sample, recipe.data.kind)
    assert all(line.startswith(("#", "  ")) or ": " in line or line in ("", "data:", "adapter:", "train:", "evaluate:") for line in text.splitlines())


# Every kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_of_every_kind_prepares_to_the_same_decision(tmp_path, kind):
    """What the recipe states is what looking found: the same section, the same split, row by row."""
    draw = random.Random(kind)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(rows_of(kind, draw)) + "\n" for _ in range(120)))
    text, recipe = written_for(file, "embedded", "data.on_bad_row=skip")
    assert recipe.data.kind == {"book": "text"}.get(kind, kind)
    found = prepare_data(parse_recipe("", "x", [f"data.path={file}", "data.on_bad_row=skip"]).recipe.data, 0, tokenizer_of("bytes", "chatml"))
    # What `new` adds on top of what it found: a length for texts, the list of classes and an instruction for labels.
    added = {"max_length", "labels", "instruction"} if kind in ("text", "book", "label") else set()
    stated, looked = recipe.data.model_dump(exclude=added), found.section.model_dump(exclude=added)
    if kind in ("text", "book"):
        looked["separator"] = "auto"
    assert stated == looked
    again = prepare_data(recipe.data, 0, tokenizer_of("bytes", "chatml"))
    split = next(decision for decision in again.decisions if decision.name == "split")
    assert f"{split.value}: {split.reason}" in text
    assert next(decision for decision in found.decisions if decision.name == "split") == split
    if kind not in ("text", "book"):
        sides = [[{(row.file, row.line) for row in part} for part in (made.train, made.validation, made.test)] for made in (found, again)]
        assert kind == "label" or sides[0] == sides[1]


def test_a_recipe_for_pairs_names_the_columns_and_the_reasons():
    text, recipe = written_for(SAMPLES / "comment_replies.csv")
    assert (recipe.data.prompt_column, recipe.data.response_column) == ("Comment", "Response")
    assert "columns 'Comment' and 'Response' are known names of prompt and response" in text
    assert "rows that share a prompt or a response" in text


def test_a_recipe_for_labels_lists_the_classes_and_asks_for_one(tmp_path):
    """`no`, `1` and `null` are classes here, and not false, a number and nothing."""
    labels = ["no", "1", "null", "a: b", "x, y", "[z]", "it's", "07", "a\\b", "\u00e9t\u00e9"]
    file = tmp_path / "a.csv"
    rows = "".join(f'text number {n} of many,"{labels[n % len(labels)]}"\n' for n in range(160))
    file.write_text("text,label\n" + rows)
    _, recipe = written_for(file)
    assert recipe.data.labels == sorted(labels)
    assert recipe.data.instruction == f"Which class is this text? Answer with one of: {', '.join(sorted(labels))}."
    prepared = prepare_data(recipe.data, 0, tokenizer_of("bytes", "chatml"))
    assert prepared.ledger["left_out"] == []


def test_a_recipe_for_a_column_of_texts_says_book_or_separate(tmp_path):
    (tmp_path / "short.csv").write_text("text,source\n" + "".join(f"a short text {n},1\n" for n in range(30)))
    pages = (" ".join(f"name{name}" for name in range(30 * page, 30 * page + 90)) for page in range(60))
    (tmp_path / "long.csv").write_text("text,source\n" + "".join(f"{page},1\n" for page in pages))
    text, recipe = written_for(tmp_path / "short.csv")
    assert (recipe.data.column, recipe.data.rows, recipe.data.max_length) == ("text", "separate", 256)
    assert "a text of its own each" in text
    assert written_for(tmp_path / "long.csv")[1].data.rows == "book"


# What is stated


def test_what_is_stated_stays(tmp_path):
    """Guards against keys that `new` was told and did not write: another recipe than was asked for."""
    (tmp_path / "a.txt").write_text("One paragraph of it.\n\nAnother one.\n\n" * 40)
    _, recipe = written_for(tmp_path / "a.txt", "embedded", "data.kind=text", "data.separator=' | '", "data.gap=7", "data.redact=[email]", "data.max_length=99")
    assert (recipe.data.separator, recipe.data.gap, recipe.data.redact, recipe.data.max_length) == (" | ", 7, ["email"], 99)
    assert written_for(tmp_path / "a.txt", "embedded", "data.kind=text")[1].data.separator == "auto"


def test_files_that_validate_and_test_are_looked_at_too(tmp_path):
    for name, count in (("a", 30), ("b", 7)):
        lines = "".join(json.dumps(rows_of("prompt_response", random.Random(f"{name}{n}"))) + "\n" for n in range(count))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    text, recipe = written_for(tmp_path / "a.jsonl", "embedded", f"data.test_path={tmp_path / 'b.jsonl'}")
    assert recipe.data.test_path == str(tmp_path / "b.jsonl")
    assert "# 37 rows read" in text
    assert "7 test records: as given; " in text


def test_columns_that_nobody_knows_can_be_stated(tmp_path):
    """Guards against a dead end: the hint asked for keys that `new` did not take."""
    file = tmp_path / "fragen.csv"
    file.write_text("Frage;Antwort\n" + "".join(f"Was ist {i}?;Das ist {i}.\n" for i in range(20)), encoding="utf-8")
    with pytest.raises(DataError, match="cannot tell what the columns"):
        write_recipe_for(file, "embedded")
    text = write_recipe_for(file, "embedded", ["data.kind=prompt_response", "data.prompt_column=Frage", "data.response_column=Antwort"])
    assert parse_recipe(text, "x.yaml", []).recipe.data.prompt_column == "Frage"


def test_a_word_that_is_no_key_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(PAIRS)
    with pytest.raises(RecipeError, match=r"data\.max_lenght: no such key; did you mean 'data\.max_length'"):
        write_recipe_for(tmp_path / "a.csv", "embedded", ["data.max_lenght=3"])


@pytest.mark.parametrize("licence", ["CC BY-SA 4.0", "4.0", "null", "no", "MIT: see #1", 'my "own"'])
def test_the_licence_is_asked_once_and_kept(tmp_path, licence):
    (tmp_path / "a.csv").write_text(PAIRS)
    asked = []
    text = write_recipe_for(tmp_path / "a.csv", "embedded", None, lambda: (asked.append(1), licence)[1])
    assert parse_recipe(text, "x", []).recipe.data.licence == licence
    assert len(asked) == 1
    text = write_recipe_for(tmp_path / "a.csv", "embedded", [f"data.licence={json.dumps(licence)}"], lambda: pytest.fail("asked though it is stated"))
    assert parse_recipe(text, "x", []).recipe.data.licence == licence


def test_a_licence_that_nobody_knows_is_a_line_to_fill_in(tmp_path):
    (tmp_path / "a.csv").write_text(PAIRS)
    text = write_recipe_for(tmp_path / "a.csv", "embedded", None, lambda: None)
    assert "  licence: null    # write it here" in text
    assert parse_recipe(text, "x", []).recipe.data.licence is None


def test_nothing_is_asked_about_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        write_recipe_for(tmp_path / "a.csv", "embedded", None, lambda: pytest.fail("asked"))


# What is told


def test_what_was_found_and_left_out_is_told(tmp_path):
    """Guards against an encoding and a delimiter that were guessed and not told."""
    file = tmp_path / "a.csv"
    file.write_bytes((PAIRS.replace(",", ";") + "caf\u00e9;x\n;y\n").encode("cp1252"))
    text, _ = written_for(file)
    assert "# 22 rows read; 1 left out: empty prompt or response" in text
    assert "# encoding cp1252: " in text
    assert "# delimiter ';': " in text


def test_rows_that_are_skipped_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": f"number {n}", "response": f"the {n}"}) + "\n" for n in range(20)) + "{nonsense\n")
    text, _ = written_for(tmp_path / "a.jsonl", "embedded", "data.on_bad_row=skip")
    assert "# 21 rows read; 1 left out: " in text


def test_long_looking_is_told(tmp_path):
    told = []
    (tmp_path / "a.csv").write_text("prompt,response\n" + "".join(f"question {i},answer {i}\n" for i in range(2500)))
    write_recipe_for(tmp_path / "a.csv", "embedded", progress=lambda stage, rows: told.append((stage, rows)))
    assert told[:2] == [("reading", 1000), ("reading", 2000)]


def test_a_file_that_says_nothing_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="cannot tell what the columns x, y are for"):
        write_recipe_for(tmp_path / "a.csv", "embedded")


# Names


@pytest.mark.parametrize(("name", "run"), [
    ("2024.csv", "2024"), ("no.csv", "no"), ("null.csv", "null"), ("2024-01-01.csv", "2024-01-01"), ("My Tale_v2 (x).csv", "my-tale_v2--x"),
    ("\u00e9\u00e9.csv", "run"), ("-.csv", "run"), ("a" * 100 + ".csv", "a" * 64), ('a "b" # c: d.csv', "a--b----c--d"), ("a\nb\tc\x07.csv", "a-b-c"),
    ("\U0001f600\u2028.csv", "run"), ("a\\b.csv", "a-b"),
])  # fmt: skip
def test_a_recipe_loads_whatever_the_file_is_called(tmp_path, name, run):
    """Guards against `name: 2024`, which is a number to YAML, and against a path or a comment cut at a line end."""
    file = tmp_path / name
    file.write_text(PAIRS)
    _, recipe = written_for(file)
    assert recipe.data.path == str(file)
    assert recipe.name == run


@pytest.mark.parametrize("name", ["train.csv", "test.jsonl", "data.csv.gz", "Validation.tsv"])
def test_a_file_that_only_says_which_part_it_is_has_its_folder_s_name(tmp_path, monkeypatch, name):
    folder = tmp_path / "My Talks"
    folder.mkdir()
    (folder / name).write_text("x")
    assert run_name(folder / name) == "my-talks"
    assert run_name(folder) == "my-talks"
    monkeypatch.chdir(folder)
    assert run_name(Path(name)) == "my-talks"
    assert run_name(Path(".")) == "my-talks"
    assert run_name(Path("hub:owner/talks")) == "talks"


@pytest.mark.parametrize("column", ["no", "1", "null", "2024-01-01", "1e5", "a: b", "#x", "Frage", "_", "=", "~"])
def test_a_recipe_loads_whatever_the_columns_are_called(tmp_path, column):
    """Guards against `prompt_column: no`, which is false to YAML."""
    file = tmp_path / "a.csv"
    file.write_text(f'"{column}",Response\n' + "".join(f"question {i},answer {i}\n" for i in range(20)))
    _, recipe = written_for(file, "embedded", "data.kind=prompt_response", f"data.prompt_column={json.dumps(column)}", "data.response_column=Response")
    assert recipe.data.prompt_column == column


def test_a_recipe_loads_with_blanks_and_line_ends_in_a_column_s_name(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('" Prompt\t","RESPONSE\n"\n' + "a,b\nc,d\ne,f\n", newline="")
    _, recipe = written_for(file)
    assert (recipe.data.prompt_column, recipe.data.response_column) == (" Prompt\t", "RESPONSE\n")


@pytest.mark.parametrize("base", ["embedded", "./my model", "owner/name@main", "@x", "a: b", "C:\\models"])
def test_the_base_is_the_one_that_was_given(tmp_path, base):
    (tmp_path / "a.csv").write_text(PAIRS)
    _, recipe = written_for(tmp_path / "a.csv", base)
    assert recipe.base == base
    assert recipe.train.learning_rate == (1e-3 if base == "embedded" else 2e-4)


@pytest.mark.parametrize(("rows", "epochs"), [(499, 5), (500, 3), (4999, 3), (5000, 1)])
def test_more_rows_need_fewer_epochs(tmp_path, rows, epochs):
    (tmp_path / "a.csv").write_text("prompt,response\n" + "".join(f"{i},{i}\n" for i in range(round(rows / 0.77))))
    text, recipe = written_for(tmp_path / "a.csv")
    assert f"# {rows} rows to train on" in text
    assert recipe.train.num_epochs == epochs


def test_pairs_and_texts_are_kinds_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_text(PAIRS)
    assert isinstance(written_for(tmp_path / "a.csv")[1].data, PairData)
    assert isinstance(written_for(SAMPLES / "gothic_tale.txt")[1].data, TextData)
