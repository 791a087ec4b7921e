"""`halfbyte new FILE`: the recipe it writes loads, says what was found, and holds whatever the file is called."""

from pathlib import Path

import pytest

import halfbyte
from halfbyte.data.look import write_recipe_for
from halfbyte.errors import DataError
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import PairData, Recipe, TextData

SAMPLES = Path(halfbyte.__file__).parent / "samples"
PAIRS = "prompt,response\n" + "".join(f"question {i},answer {i}\n" for i in range(20))


def written_for(file: Path, base: str = "embedded") -> tuple[str, Recipe]:
    text = write_recipe_for(file, base)
    loaded = parse_recipe(text, "new.yaml", [])
    assert loaded.notes == []
    return text, loaded.recipe


@pytest.mark.parametrize("sample", sorted(file.name for file in SAMPLES.iterdir() if file.suffix != ".yaml"))
def test_each_sample_gets_a_recipe_that_loads(sample):
    text, recipe = written_for(SAMPLES / sample)
    assert recipe.data.path == str(SAMPLES / sample)
    assert recipe.base == "embedded"
    assert isinstance(recipe.data, TextData if sample.endswith(".txt") else PairData)
    assert all(line.startswith(("#", "  ")) or ": " in line or line in ("", "data:", "adapter:", "train:", "evaluate:") for line in text.splitlines())


def test_a_recipe_for_pairs_names_the_columns_and_the_reasons():
    text, recipe = written_for(SAMPLES / "comment_replies.csv")
    assert (recipe.data.prompt_column, recipe.data.response_column) == ("Comment", "Response")
    assert "columns 'Comment' and 'Response' are known names of prompt and response" in text
    assert "rows that share a prompt or a response stay on one side" in text


def test_a_recipe_for_a_column_of_texts_says_book_or_separate(tmp_path):
    (tmp_path / "short.csv").write_text("text,label\n" + "a short text,1\n" * 30)
    (tmp_path / "long.csv").write_text("text,label\n" + f"{'a long text ' * 40},1\n" * 30)
    text, recipe = written_for(tmp_path / "short.csv")
    assert (recipe.data.column, recipe.data.rows, recipe.data.max_length) == ("text", "separate", 256)
    assert "half of them have 12 characters or more: a text of its own each" in text
    assert written_for(tmp_path / "long.csv")[1].data.rows == "book"


def test_what_was_found_and_left_out_is_told(tmp_path):
    """Guards against an encoding and a delimiter that were guessed and not told."""
    file = tmp_path / "a.csv"
    file.write_bytes((PAIRS.replace(",", ";") + "caf\u00e9;x\n;y\n").encode("cp1252"))
    text, _ = written_for(file)
    assert "# 22 rows read; 1 left out: empty prompt or response" in text
    assert "# encoding cp1252: " in text
    assert "is not utf-8; read as Windows text (cp1252)" in text
    assert "# delimiter ';': " in text


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


def test_a_recipe_loads_whatever_the_columns_are_called(tmp_path):
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


def test_a_file_that_says_nothing_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="cannot tell what the columns x, y are for"):
        write_recipe_for(tmp_path / "a.csv", "embedded")


def test_columns_that_nobody_knows_can_be_stated(tmp_path):
    """Guards against a dead end: the hint asked for keys that `new` did not take."""
    file = tmp_path / "fragen.csv"
    file.write_text("Frage;Antwort\n" + "".join(f"Was ist {i}?;Das ist {i}.\n" for i in range(20)), encoding="utf-8")
    with pytest.raises(DataError, match="cannot tell what the columns"):
        write_recipe_for(file, "embedded")
    text = write_recipe_for(file, "embedded", ["data.kind=prompt_response", "data.prompt_column=Frage", "data.response_column=Antwort"])
    assert parse_recipe(text, "x.yaml", []).recipe.data.prompt_column == "Frage"
