"""benchmarks/security_mutations.py takes the controls out in many minutes; here only that its list fits the source and the tests as they are."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def controls(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import security_mutations

    return security_mutations.CONTROLS


def test_every_control_stands_once_in_its_file_and_has_its_test(controls):
    for name, control in controls.items():
        assert (ROOT / "src" / "halfbyte" / control.file).read_text(encoding="utf-8").count(control.text) == 1, name
        file, _, test = control.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8") if test else (ROOT / file).is_file(), name


def test_what_was_measured_is_of_every_control(controls):
    raw = json.loads((ROOT / "benchmarks" / "results" / "security_mutations.json").read_text(encoding="utf-8"))
    assert raw["noticed"] == dict.fromkeys(controls, True)
