"""Other people's scripts are read without being run, and their faults named where they stand."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doctor.variants import CASES, SFT, TRAINER
from halfbyte.checks.rule import Finding
from halfbyte.checks.script_rules import RULES, examine, examine_files
from halfbyte.checks.scripts import read_scripts
from halfbyte.errors import DataError

PROJECTS = Path(__file__).parent.parent.parent / "doctor"
LISTED = json.loads((PROJECTS / "listed.json").read_text(encoding="utf-8"))
FAULTS = [(project["files"], fault) for project in LISTED.values() for fault in project["faults"] if fault["found_by"]]


@pytest.fixture
def look(tmp_path):
    def at(text: str, name: str = "train.py") -> list[Finding]:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return examine(read_scripts([file]))

    return at


def notebook(*cells: str, outputs: dict[int, list[dict]] | None = None) -> str:
    listed = [{"cell_type": "markdown", "source": ["# Title"], "metadata": {}}]
    listed += [{"cell_type": "code", "source": cell, "outputs": (outputs or {}).get(number, []), "metadata": {}} for number, cell in enumerate(cells)]
    return json.dumps({"cells": listed, "nbformat": 4, "metadata": {}})


# The five projects, and scripts with which nothing is wrong


@pytest.mark.parametrize(("files", "fault"), FAULTS, ids=[f"{files[0][0]}{fault['number']}" for files, fault in FAULTS])
def test_the_known_faults_of_five_projects_are_named_at_their_lines(files, fault):
    """CORRECTNESS 0: the bugs are in the very notebooks people copy."""
    found, unread = examine_files([PROJECTS / name for name in files])
    assert not unread
    for wanted in fault["found_by"]:
        assert any(one.rule == wanted["rule"] and wanted["at"] in one.quoted for one in found), wanted


@pytest.mark.parametrize("file", sorted((PROJECTS / "clean").iterdir()), ids=lambda path: path.name)
def test_nothing_is_said_of_a_clean_script(file):
    found, unread = examine_files([file])
    assert not [f"{one.place}: {one.rule}: {one.seen}" for one in found]
    assert not unread


def test_every_rule_is_named_once_and_says_what_happens_and_the_mend():
    assert len({one.name for one in RULES}) == len(RULES) > 40
    for one in RULES:
        assert one.level in ("fault", "note")
        assert len(one.silently) > 20
        assert len(one.mend) > 8


# The same faults as others write them


@pytest.mark.parametrize(("rule", "text", "at"), CASES, ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)])
def test_a_fault_is_named_however_it_is_written(look, rule, text, at):
    lines = [one.quoted for one in look(text) if one.rule == rule]
    if at is None:
        assert not lines
    else:
        assert len(lines) == 1
        assert at in lines[0]


def test_every_rule_is_tried_here():
    """Beside the projects: each finds what it is for, in other words than theirs."""
    positive = {rule for rule, _, at in CASES if at is not None}
    assert positive | {"run-broke-off", "version-with-a-hole", "few-steps-a-pass"} == {one.name for one in RULES}


# Notebooks


def test_cells_and_lines_are_told_as_they_are_counted(look):
    """Cells with text count too; lines begin anew in each."""
    text = notebook("import os\n", "x = 1\nAutoTokenizer.from_pretrained('x', trust_remote_code=True)")
    (found,) = [one for one in look(text, "n.ipynb") if one.rule == "runs-code-of-a-stranger"]
    assert (found.place.cell, found.place.line) == (3, 2)
    assert str(found.place).endswith("n.ipynb, cell 3, line 2")


def test_what_ipython_adds_is_put_aside(look, tmp_path):
    text = notebook(
        "%matplotlib inline\n!pip install -q torch==2.1.0 \\\n    jinja2==3.0.3\nimport os",
        "%%bash\nif [ 1 ]; then\n  pip install pyarrow==12.0.0\nfi",
        "if True:\n    !nvidia-smi\n    %env A=1\nfiles = !ls it's\nos?\n?os\nx = 7 % 4\nprint(os, files, x)",
        "%%time\ny = 'a\\n%not magic\\n'\nprint(y)",
    )
    found = look(text, "n.ipynb")
    assert [(one.rule, one.place.cell, one.place.line) for one in found] == [("version-with-a-hole", 2, 2), ("version-with-a-hole", 3, 3)]
    assert "torch==2.1.0" in found[0].seen
    assert "jinja2==3.0.3" in found[0].seen
    assert not read_scripts([tmp_path / "n.ipynb"]).unread


@pytest.mark.parametrize(("wanted", "told"), [
    ("torch==2.9.1", True), ("torch==2.10.0", False), ("torch<2.10", True), ("torch<3", False), ("torch>=2.0", False), ("Jinja2==3.1.6", False),
    ("Jinja2~=3.1.2", True), ("transformers==5.2.0", True), ("'transformers[torch]==4.48.3'", True), ("pyarrow==14.0.0", True), ("pyarrow==14.0.1", False),
    ("numpy==1.26", False),
])  # fmt: skip
def test_pins_with_known_holes_are_told(look, wanted, told):
    assert [one.rule for one in look(notebook(f"!pip install {wanted}"), "n.ipynb")] == ["version-with-a-hole"] * told


def test_pins_of_a_file_of_requirements_are_told(tmp_path):
    """CORRECTNESS 0.2 h: a bad pin that is copied is a hole in every environment that is made from it."""
    file = tmp_path / "requirements.txt"
    file.write_text("numpy==1.26.4\nJinja2==3.0.3  # torch==2.0\nurllib3<3\n\ntorch>=2.0\n")
    (found,) = examine_files([file])[0]
    assert (found.rule, str(found.place)) == ("version-with-a-hole", f"{file}:2")
    assert "3.1.6" in found.seen


def test_a_training_that_broke_off_is_seen_in_what_the_notebook_printed(look):
    def bar(done: int) -> dict[int, list[dict]]:
        return {1: [{"output_type": "display_data", "data": {"text/html": [f"[{done}/220 3:34 < 11:25, Epoch 2.1/3]"]}}]}

    cells = (TRAINER + "m = v = a = 1\ntest = 2\ntrainer = Trainer(m, a, eval_dataset=v)", "trainer.train()")
    assert "run-broke-off" in {one.rule for one in look(notebook(*cells, outputs=bar(209)), "n.ipynb")}
    assert "run-broke-off" not in {one.rule for one in look(notebook(*cells, outputs=bar(220)), "n.ipynb")}
    stopped = {1: [{"output_type": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}]}
    assert "run-broke-off" in {one.rule for one in look(notebook(*cells, outputs=stopped), "n.ipynb")}


def test_what_a_notebook_printed_of_its_rows_counts(look):
    """That rows are prompts with answers, and how many there are, often stands nowhere else."""
    printed = {1: [{"output_type": "stream", "text": ["Dataset({num_rows: 100})\n", "User: a?\n", "Assistant: b\n"]}]}
    cells = (SFT, "print(rows[0])", "t = SFTTrainer(m, dataset_text_field='text', args=SFTConfig(max_steps=200, per_device_train_batch_size=10))")
    parts = {
        1: [{"output_type": "execute_result", "data": {"text/plain": ["DatasetDict({\n train: Dataset({ num_rows: 30 })\n test: Dataset({ num_rows: 9 }) })"]}}]
    }
    assert "few-steps-a-pass" in {one.rule for one in look(notebook(*cells, outputs=parts), "n.ipynb")}
    assert "few-steps-a-pass" not in {one.rule for one in look(notebook(*cells, outputs=printed), "n.ipynb")}
    assert {"whole-sequence-loss", "many-epochs"} <= {one.rule for one in look(notebook(*cells, outputs=printed), "n.ipynb")}
    assert not {"whole-sequence-loss", "many-epochs"} & {one.rule for one in look(notebook(*cells), "n.ipynb")}


def test_files_of_a_project_are_read_together(tmp_path):
    """What is quantised in one and used in another is seen from both."""
    (tmp_path / "a.py").write_text(
        SFT + "q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')\nm = AutoModelForCausalLM.from_pretrained('x', quantization_config=q)"
    )
    (tmp_path / "b.py").write_text(SFT + "m = AutoModelForCausalLM.from_pretrained('x', load_in_4bit=True)")
    found = {one.rule: one for one in examine_files([tmp_path / "a.py", tmp_path / "b.py"])[0]}
    assert found["other-quantisation"].place.file == str(tmp_path / "b.py")
    assert "loaded-twice" not in found, "two programs, each with its own memory"


# What cannot be read, and what must not be shown


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.py", b"def f(:\n    pass", "a.py:1: not Python 3: "),
    ("a.py", b"print 'x'", "a.py:1: not Python 3: "),
    ("a.py", b"\xff\xfe\x00", "byte 0 is not UTF-8"),
    ("a.py", b"x = '\x00'", "not Python 3: "),
    ("a.py", b"(" * 5000, "not Python 3: "),
    ("a.ipynb", b"{", "not JSON, so it is no notebook"),
    ("a.ipynb", b"[" * 100_000, "not JSON, so it is no notebook"),
    ("a.ipynb", b"[1, 2]", "no notebook: it has no cells"),
    ("a.ipynb", b'{"cells": 3}', "no notebook: it has no cells"),
    ("a.ipynb", b'{"cells": [{"cell_type": "code", "source": ["x = ("]}]}', "cell 1, line 1: not Python 3"),
    ("a.csv", b"x", "neither a script (.py) nor a notebook (.ipynb)"),
])  # fmt: skip
def test_what_is_no_script_is_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        examine_files([tmp_path / name])
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "a.py", tmp_path / "folder.py"):
        (tmp_path / "folder.py").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=path.name):
            read_scripts([path])


@pytest.mark.parametrize("content", [
    '{"cells": []}', '{"cells": [null, {"cell_type": "code"}, {"cell_type": "code", "source": null, "outputs": [3, {"data": 7, "text": null}]}]}',
    '{"worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1"], "outputs": []}]}], "nbformat": 3}',
])  # fmt: skip
def test_odd_notebooks_are_read(look, content):
    assert not [one for one in look(content, "n.ipynb") if one.rule != "name-never-given"]


def test_one_cell_that_is_no_python_does_not_hide_the_others(tmp_path):
    (tmp_path / "n.ipynb").write_text(notebook("x = (", "AutoTokenizer.from_pretrained('x', trust_remote_code=True)"))
    found, unread = examine_files([tmp_path / "n.ipynb"])
    assert [one.rule for one in found] == ["runs-code-of-a-stranger"]
    assert "cell 2, line 1: not Python 3" in unread[0]


def test_a_token_is_named_and_not_shown(tmp_path):
    """SECURITY 3.4: a report must not carry on what it warns of."""
    secret = "hf_" + "aB3dE" * 6
    (tmp_path / "a.py").write_text(f"login(token='{secret}')\nAutoTokenizer.from_pretrained('x', token='{secret}', trust_remote_code=True)")
    for words in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "halfbyte", "doctor", "--notebook", str(tmp_path / "a.py"), *words], capture_output=True, text=True, check=True, timeout=60
        )
        assert "token-typed-in" in done.stdout
        assert secret not in done.stdout + done.stderr
        assert "[a secret]" in done.stdout


def test_what_a_rule_saw_shows_no_token_either(look):
    """Words of the script that a rule repeats: here the name of a model."""
    load = f"AutoModelForCausalLM.from_pretrained('hf_{'aB3dE' * 6}')\n"
    (found,) = [one for one in look(TRAINER + load * 2) if one.rule == "loaded-twice"]
    assert "aB3dE" not in found.seen
    assert "[a secret]" in found.seen


def test_it_answers_at_once_and_runs_nothing(tmp_path):
    """In a process of its own: torch is not imported, the script's own lines do nothing."""
    (tmp_path / "a.py").write_text(f"import torch\nopen({str(tmp_path / 'ran')!r}, 'w')\n" + SFT)
    words = "import sys; sys.argv = ['halfbyte', 'doctor', sys.argv[1]]\nfrom halfbyte.cli.main import app\napp(standalone_mode=False)\n"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", words + "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))", str(tmp_path / "a.py")],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip().endswith("[]")
    assert not (tmp_path / "ran").exists()
    assert time.monotonic() - began < 20  # about one second where nothing else runs


def test_the_table_of_the_page_is_what_is_found(monkeypatch):
    root = PROJECTS.parent.parent
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import doctor_faults

    found = doctor_faults.compare()
    named, readable, listed = doctor_faults.counts(found)
    page = (root / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert doctor_faults.table(found) in page
    assert f"{named} of the {listed} are named" in page
    assert readable == named
    assert f"by {len(RULES)} rules" in page
    assert f": {len(RULES)} rules" in (root / "README.md").read_text(encoding="utf-8")
