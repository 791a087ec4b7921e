"""SECURITY 3.2: the name of a run is a name and no path; a file that is there is never written through."""

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halfbyte.cli.main import app
from halfbyte.errors import DataError, HalfbyteError, RecipeError
from halfbyte.recipe.load import folder_name, load_recipe, parse_recipe
from halfbyte.runs import disk
from halfbyte.runs.disk import write_whole
from halfbyte.runs.folder import new_run, open_run

RECIPE = "data: {path: a.txt, kind: text}\n"
TRAVERSALS = [
    "..",
    ".",
    "...",
    "../x",
    "../../x",
    "..\\x",
    "..\\..\\x",
    "/x",
    "//x",
    "\\x",
    "\\\\host\\share",
    "//host/share",
    "C:",
    "C:x",
    "C:\\x",
    "c:/x",
    "x/../y",
    "x/../../y",
    "x/..",
    "x\\..\\y",
    "./x",
    "x/",
    "x//y",
    "....//x",
    "..../x",
    "....\\\\x",
    "..;/x",
    "%2e%2e%2fx",
    "%2e%2e/x",
    "..%2fx",
    "..%5cx",
    "%252e%252e%252fx",
    "..%252fx",
    "..%c0%afx",
    "..%ef%bc%8fx",
    "\uff0e\uff0e/x",
    "\uff0e\uff0e\uff0fx",
    "\u2025/x",
    "x\x00",
    "x\x00.yaml",
    "\x00",
    "x\n",
    "x\n../y",
    "x\r",
    "x\ty",
    " x",
    "x ",
    "x.",
    "..x/",
    ".x",
    ".ssh",
    "-x",
    "--runs",
    "~",
    "~/x",
    "~root",
    "$HOME",
    "${HOME}",
    "`id`",
    "$(id)",
    "x;id",
    "x|id",
    "x&id",
    "x>y",
    "x*",
    "x?",
    "con",
    "CON",
    "nul",
    "aux.txt",
    "com1",
    "lpt9.log",
    "prn",
    "a" * 65,
    "a" * 300,
    "\u0130x",
    "x\u202ey",
    "x\u200b",
    "\u00e9",
    "e\u0301",
    "X",
    "K\u212a",
    "",
]


@pytest.mark.parametrize("name", TRAVERSALS, ids=ascii)
def test_a_name_that_could_leave_the_folder_is_refused(name):
    assert len(TRAVERSALS) >= 60
    with pytest.raises(RecipeError, match=r"name: ") as caught:
        parse_recipe(f"name: {_yaml(name)}\n{RECIPE}", "a.yaml", [])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", TRAVERSALS, ids=ascii)
def test_the_name_that_a_file_gives_stays_in_the_folder(name, tmp_path):
    """The name of the recipe file, or of the data, becomes the name of the run."""
    made = folder_name(name)
    assert parse_recipe(RECIPE, "a.yaml", [], default_name=name).recipe.name == made
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    with new_run(tmp_path, made) as run:
        assert run.path.parent == tmp_path


def _yaml(name: str) -> str:
    import yaml

    return yaml.safe_dump(name, default_style='"', allow_unicode=False, width=10_000).strip()


def test_a_link_in_the_place_of_a_run_is_passed_over(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "toy").symlink_to(elsewhere)
    (runs / "toy-2").symlink_to(tmp_path / "nowhere")
    with new_run(runs, "toy") as run:
        assert run.path == runs / "toy-3"
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_links_inside_a_run_pass_and_links_out_do_not(tmp_path):
    run = tmp_path / "toy"
    (run / "checkpoints").mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    (run / "newest").symlink_to("checkpoints")
    assert open_run(run).path == run
    linked = tmp_path / "linked"
    linked.symlink_to(run)
    assert open_run(linked).path == linked
    (run / "checkpoints" / "out").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads out of the run folder"):
        open_run(run)


def test_a_planted_link_beside_a_file_is_not_written_through(tmp_path, monkeypatch):
    """Nobody can guess the name of the file beside it; here somebody did."""
    monkeypatch.setattr(disk.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".report.json.guessed.part").symlink_to(tmp_path / "mine")
    (tmp_path / "report.json").symlink_to(tmp_path / "mine")
    with pytest.raises((HalfbyteError, OSError)):
        write_whole(tmp_path / "report.json", "{}")
    assert (tmp_path / "mine").read_text() == "mine"
    write_whole(tmp_path / "report.json", "{}")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "report.json").read_text() == "{}"


@pytest.mark.parametrize("words", [["new", "DATA", "-o", "LINK"], ["show", "DATA", "--html", "LINK"]])
def test_an_output_that_is_a_link_is_left_alone(tmp_path, words):
    data = tmp_path / "talk.csv"
    data.write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(12)))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    done = CliRunner().invoke(app, [{"DATA": str(data), "LINK": str(link)}.get(word, word) for word in words])
    assert isinstance(done.exception, DataError)
    assert "exists and is left as it is" in done.exception.message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/stdin", "/proc/self/environ", "FIFO", "FOLDER"])
def test_a_recipe_is_a_file(tmp_path, place):
    """A device never ends, and a pipe waits for ever."""
    os.mkfifo(tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    file = {"FIFO": tmp_path / "fifo", "FOLDER": tmp_path}.get(place, Path(place))
    with pytest.raises(HalfbyteError):
        load_recipe(file)


def test_yaml_is_bounded_and_plain(tmp_path):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{i}: &b{i} [{','.join(['*' + ('a' if not i else f'b{i - 1}')] * 9)}]\n" for i in range(9))
    for text, words in (
        (bomb, "aliases"),
        ("a: 1\na: 2\n", "stands twice"),
        ("x: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("x: !!python/name:os.system\n", "not YAML"),
        ("[" * 1500, "not YAML"),
        ("x: !!binary |\n  not base64\n", "not YAML|no such key"),
    ):
        with pytest.raises(RecipeError, match=words):
            parse_recipe(text + RECIPE if words == "stands twice" else text, "a.yaml", [])
    (tmp_path / "large.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(RecipeError, match="larger than 1 MB"):
        load_recipe(tmp_path / "large.yaml")
