"""What evaluation left is read back as it was written, and nothing is built on a damaged file."""

import json

import numpy as np
import pytest

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.runs import open_evaluated, read_answers, read_measured
from halfbyte.runs.folder import RunFolder
from toy_evaluations import ACCURACY, BITS, PERPLEXITY, answer, losses, make_run, shares

RIGHT = shares([1, 0, 1])


@pytest.fixture
def run(tmp_path):
    units = {"text": np.array([0, 0, 1])}
    measured = [("answers", ACCURACY, RIGHT, RIGHT), ("text", PERPLEXITY, losses([3, 2, 1]), losses([2, 2, 1]))]
    return RunFolder(make_run(tmp_path / "r", measured, [answer(number) for number in range(3)], units))


def test_what_was_written_is_read(run):
    labels, text = read_measured(open_evaluated(run.path))
    assert (labels.group, labels.metric, labels.units) == ("answers", ACCURACY, None)
    assert np.array_equal(labels.tuned, RIGHT)
    assert text.metric == PERPLEXITY
    assert text.units.tolist() == [0, 0, 1]
    assert text.base[:, 0].tolist() == [30, 20, 10]
    first = read_answers(run)[0]
    assert (first.row, first.prompt, first.base, first.tuned, first.tuned_ended) == ("talk.csv:2", "question 0", "no", "yes", True)


def test_a_line_separator_inside_an_answer_is_text(run):
    file = run.path / "evaluation" / "answers.jsonl"
    first, *others = file.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = json.dumps({**json.loads(first), "tuned": "a\u2028b"}, ensure_ascii=False) + "\n"
    file.write_text("".join([changed, *others]), encoding="utf-8")
    assert read_answers(run)[0].tuned == "a\u2028b"


def test_answers_that_were_cut_between_two_lines_are_missed(run):
    file = run.path / "evaluation" / "answers.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(IntegrityError, match="answers, where 3 were scored"):
        read_answers(run)


@pytest.mark.parametrize("group", ["text", "labels", "neutral text"])
def test_rows_that_were_not_answered_have_no_answers(tmp_path, group):
    run = RunFolder(make_run(tmp_path / "r", [(group, BITS, losses([1]), losses([1]))]))
    assert read_answers(run) == []


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path):
    run = make_run(tmp_path / "r")
    with pytest.raises(DataError, match="no evaluation yet") as raised:
        open_evaluated(run)
    assert raised.value.hint == f"halfbyte evaluate {run}"


def test_no_run_and_no_adapter(tmp_path, run):
    with pytest.raises(DataError, match="no run there"):
        open_evaluated(tmp_path / "nowhere")
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match="no adapter yet"):
        open_evaluated(run.path)


def test_another_adapter_than_was_measured_is_refused(run):
    (run.adapter / "adapter_model.safetensors").write_bytes(b"another")
    with pytest.raises(IntegrityError, match="is not what was written"):
        open_evaluated(run.path)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("metrics.json", b"[{", "is no JSON"),
    ("metrics.json", b"{}", "holds no list"),
    ("metrics.json", b"[7]", "entry 1 is no metric"),
    ("metrics.json", b'[{"name": "x"}]', "entry 1 is no metric"),
    ("metrics.json", b'[{"name": "x", "kind": "guess", "higher_is_better": true, "unit": "", "labels": [], "group": "labels"}]', "no kind 'guess'"),
    ("metrics.json", b"\xff", "is no UTF-8"),
    ("answers.jsonl", None, "is missing"),
    ("answers.jsonl", b'{"row": "a:1"}\n', "line 1 has no 'prompt' as str"),
    ("answers.jsonl", b"{}\n{", "line 1"),
    ("statistics.npz", None, "is missing"),
    ("statistics.npz", b"", "cannot be read"),
    ("statistics.npz", b"PK\x03\x04 cut", "cannot be read"),
])  # fmt: skip
def test_a_damaged_file_is_told_with_its_name(run, file, content, message):
    path = run.path / "evaluation" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(IntegrityError, match=message) as raised:
        read_measured(run), read_answers(run)
    assert str(path) in raised.value.message
    assert raised.value.hint == f"halfbyte evaluate {run.path} measures it again"


@pytest.mark.parametrize("cut", [10, 100, 200, 0.5, 0.9, 0.99])
def test_a_cut_archive_never_passes(run, cut):
    path = run.path / "evaluation" / "statistics.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else cut])
    with pytest.raises(IntegrityError, match=r"statistics\.npz"):
        read_measured(run)


@pytest.mark.parametrize("place", range(0, 1000, 37))
def test_a_changed_byte_passes_unseen_or_is_an_integrity_error(run, place):
    """Never another error, and never other numbers: zip, zlib and numpy each fail in their own ways."""
    before = read_measured(run)
    path = run.path / "evaluation" / "statistics.npz"
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= 0xFF
    path.write_bytes(whole)
    try:
        after = read_measured(run)
    except IntegrityError:
        return
    for one, other in zip(before, after, strict=True):
        for name in ("base", "tuned", "units"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("arrays", "message"), [
    ({"0/base": RIGHT}, "'0/tuned' is missing"),
    ({"0/base": RIGHT, "0/tuned": RIGHT[:2]}, r"base has shape \(3, 2\), tuned \(2, 2\)"),
    ({"0/base": RIGHT, "0/tuned": RIGHT * np.nan}, "need finite numbers"),
    ({"0/base": RIGHT, "0/tuned": RIGHT[0]}, "need finite numbers in 2 dimensions"),
    ({"0/base": RIGHT, "0/tuned": RIGHT.astype(str)}, "need finite numbers"),
    ({"0/base": RIGHT, "0/tuned": RIGHT.astype(object)}, "cannot be read"),
    ({"0/base": RIGHT, "0/tuned": RIGHT, "units/labels": np.array([0])}, "documents of 1"),
    ({"0/base": RIGHT, "0/tuned": RIGHT, "units/label": np.arange(3)}, "array 'units/label' belongs to no metric"),
])  # fmt: skip
def test_statistics_that_do_not_fit_are_refused(tmp_path, arrays, message):
    """An array of objects would be unpickled, which may run anything: it is never read."""
    run = RunFolder(make_run(tmp_path / "r", [("labels", ACCURACY, RIGHT, RIGHT)], [answer(0)]))
    np.savez(run.path / "evaluation" / "statistics.npz", **arrays)
    with pytest.raises(IntegrityError, match=message):
        read_measured(run)
