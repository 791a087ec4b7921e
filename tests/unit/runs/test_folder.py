"""What is read back out of a run's folder is what was written, or an error that says which file is not."""

import pytest

from halfbyte.errors import IntegrityError
from halfbyte.runs.folder import RunFolder, read_report


@pytest.mark.parametrize(("text", "seen"), [("", "Expecting value"), ("[]", "it has no keys"), ("null", "it has no keys"), ("{}", "it has no base_")])
def test_a_file_of_another_form_is_told_as_damaged(tmp_path, text, seen):
    for name in ("plan.json", "report.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match=rf"plan\.json is damaged: {seen}"):
        RunFolder(tmp_path).read_plan("base_fingerprint")
    with pytest.raises(IntegrityError, match=r"report\.json is damaged") as raised:
        read_report(tmp_path)
    assert "halfbyte evaluate" in raised.value.hint


def test_what_is_whole_is_given_back(tmp_path):
    (tmp_path / "plan.json").write_text('{"base_fingerprint": "x"}', encoding="utf-8")
    (tmp_path / "report.json").write_text('{"status": "finished"}', encoding="utf-8")
    assert RunFolder(tmp_path).read_plan("base_fingerprint") == {"base_fingerprint": "x"}
    assert read_report(tmp_path) == {"status": "finished"}
