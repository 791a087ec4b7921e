"""The notebooks of examples/ run as they stand on the embedded base, for a few steps: in plain Python, and in Jupyter where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RUNS = {
    "youtube-replies": ["youtube-replies"], "games": ["game-meaning", "game-act"], "frankenstein": ["frankenstein"], "mental-health": ["mental-health"],
    "wikitext-chat": ["wikitext", "wikitext-chat"],
}  # fmt: skip
# Runs the cells in order in one namespace; what ends a cell is shown both ways, as Jupyter would.
RUNNER = """
import ast, json, sys
space = {"__name__": "__main__", "display": lambda *shown, **how: None}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), space)
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), space) if last else None
        if value is not None:
            print(repr(value), len(value._repr_html_()))
"""


@pytest.fixture
def surroundings(real_data) -> dict[str, str]:
    return {**os.environ, "HALFBYTE_DATA": str(real_data.resolve()), "HALFBYTE_EXAMPLE_STEPS": "5", "HF_HUB_OFFLINE": "1"}


def check_runs(place: Path, notebook: Path) -> None:
    assert sorted(path.name for path in (place / "runs").iterdir()) == sorted(RUNS[notebook.stem])
    for name in RUNS[notebook.stem]:
        report = json.loads((place / "runs" / name / "report.json").read_text(encoding="utf-8"))
        assert report["status"] == "finished"
        assert report["training"]["steps"] == 5
        assert report["comparisons"]


def test_there_is_a_notebook_for_each_of_the_five_tasks():
    assert {path.stem for path in NOTEBOOKS} == set(RUNS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_the_recipes_make_of_it(notebook):
    """`python scripts/write_notebooks.py` after a change of a recipe."""
    spec = importlib.util.spec_from_file_location("write_notebooks", ROOT / "scripts" / "write_notebooks.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["write_notebooks"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    one = next(one for one in script.NOTEBOOKS if one.file == notebook.stem)
    assert notebook.read_text(encoding="utf-8") == script.as_text(one)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_holds_no_output(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert "".join(code[0]["source"]).splitlines()[-1].startswith('BASE = "embedded"')
    if importlib.util.find_spec("nbformat"):
        import nbformat

        nbformat.validate(nbformat.from_dict(content))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_plain_python(notebook, surroundings, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(notebook)], cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 5: loss" in done.stdout, "a line at the validation"
    check_runs(tmp_path, notebook)


def test_data_that_are_not_there_are_told_with_their_source(tmp_path):
    """Before anything is imported that takes time."""
    surroundings = {**os.environ, "HALFBYTE_DATA": "nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / "examples" / "games.ipynb")], cwd=tmp_path, env=surroundings, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nowhere/viggo/validation.csv <- github.com/jjuraska/data2text-nlg, data/video_game/valid.csv" in done.stderr


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_jupyter(notebook, surroundings, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    check_runs(tmp_path, notebook)
    shown = [output for cell in content.cells for output in cell.get("outputs", []) if "text/html" in output.get("data", {})]
    assert any("<svg" in output["data"]["text/html"] for output in shown), "the curve"
    assert any("verdict" in output["data"]["text/html"] for output in shown), "the table of base against tuned"
