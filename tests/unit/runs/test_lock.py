"""One writer at a time, on one machine; one that was killed is taken over from, one on another machine is believed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from halfbyte.errors import DataError, MachineError
from halfbyte.runs import lock
from halfbyte.runs.folder import new_run
from halfbyte.runs.lock import FILE, locked, this_process

HOLD = """
import sys, time
from pathlib import Path
from halfbyte.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_an_orderly_end_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with locked(tmp_path) as before:
            assert before is None
            assert json.loads((tmp_path / FILE).read_text()) == {**asdict(this_process()), "since": json.loads((tmp_path / FILE).read_text())["since"]}
        assert (tmp_path / FILE).read_text() == ""


def test_a_second_one_is_refused_by_name(tmp_path, holder):
    with pytest.raises(DataError, match=rf"is being written by process {holder.pid} on .* \(since 20") as raised, locked(tmp_path):
        pass
    assert raised.value.exit_code == 2
    assert "Ctrl-C" in raised.value.hint


def test_one_that_was_killed_is_taken_over_from(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path) as before:
        assert before is not None
        assert before.pid == holder.pid
    with locked(tmp_path) as before:
        assert before is None


def without_flock(monkeypatch):
    """A share that knows no locks."""

    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def test_without_flock_the_file_decides(tmp_path, holder, monkeypatch):
    without_flock(monkeypatch)
    with pytest.raises(DataError, match=f"process {holder.pid} "), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path) as before:
        assert before.pid == holder.pid


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another boot of this machine", "host": None}, {"pid": 2**22 + 1}])
def test_a_process_number_that_came_again_is_not_the_holder(tmp_path, monkeypatch, change):
    """The same number, of a process that began at another time; before the last boot, on this host; of no process."""
    without_flock(monkeypatch)
    here = this_process()
    if change.get("host", "") is None:
        change = {"boot": None, "pid": 2**22 + 1}
    (tmp_path / FILE).write_text(json.dumps(asdict(replace(here, **change))))
    with locked(tmp_path) as before:
        assert before == replace(here, **change)


def test_another_machine_is_believed(tmp_path):
    """flock may not have been passed on, so nobody here can know whether it is gone."""
    there = replace(this_process(), host="far-away", boot="another")
    (tmp_path / FILE).write_text(json.dumps(asdict(there)))
    with pytest.raises(DataError, match=r"is locked by process .* on far-away .*, which is not this machine") as raised, locked(tmp_path):
        pass
    assert f"remove {tmp_path / FILE}" in raised.value.hint
    (tmp_path / FILE).unlink()
    with locked(tmp_path) as before:
        assert before is None


@pytest.mark.parametrize("text", ["", "1234", "{", '{"pid": 1}', "[]", "null"])
def test_words_that_were_cut_off_are_nobody_s(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with locked(tmp_path) as before:
        assert before is None


def test_where_no_lock_can_be_written_it_is_one_line(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(MachineError, match=r"\.lock: cannot be written: is a directory"), locked(tmp_path):
        pass


def test_the_first_to_come_clears_away_what_a_killed_run_left(tmp_path):
    with new_run(tmp_path, "toy") as run:
        pass
    run.checkpoints.mkdir()
    for left in (run.path / ".report.json.0a.part", run.checkpoints / ".latest.0a.part"):
        left.write_text("half")
    (run.checkpoints / ".step-4.tmp-0a").mkdir()
    with run.locked():
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "checkpoints"]
        assert list(run.checkpoints.iterdir()) == []


def test_this_process_knows_when_it_began():
    here = this_process()
    time.sleep(0.02)
    assert here.started is not None
    assert here.started == this_process().started
    assert here.boot
