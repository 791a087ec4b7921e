"""Files are the old ones or the new ones; a full disk is one line with sizes."""

import errno
import os

import pytest

from halfbyte.errors import MachineError
from halfbyte.runs import disk
from halfbyte.runs.disk import check_room, clear_left_overs, told, try_to_remove, write_new, write_whole
from halfbyte.runs.events import EventLog
from toy_disk import Counted, full


def test_a_file_is_old_or_new_wherever_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    write_whole(file, "old")
    counted = Counted()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", counted)
        write_whole(file, "old")
    assert counted.calls == ["open", "write", "fsync", "replace", "fsync"]
    for at in range(1, len(counted.calls) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", Counted(at, full))
            with pytest.raises(MachineError, match=r"plan\.json: cannot be written: disk full: needs 3 B, .* are free"):
                write_whole(file, "new")
        assert file.read_text() == ("new" if at == 5 else "old")
        assert list(tmp_path.iterdir()) == [file]
        write_whole(file, "old")


def test_a_short_write_goes_on(tmp_path, monkeypatch):
    class Short(Counted):
        def __getattr__(self, name):
            return (lambda handle, left: os.write(handle, left[:3])) if name == "write" else getattr(os, name)

    monkeypatch.setattr(disk, "os", Short())
    write_new(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_what_libraries_of_another_language_say_is_understood(tmp_path):
    with pytest.raises(MachineError, match="adapter: cannot be written: disk full: needs 2 MB, "), told(tmp_path / "adapter", 2_000_000):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(MachineError, match="permission denied"), told(tmp_path / "adapter"):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(RuntimeError, match="something else"), told(tmp_path / "adapter"):
        raise RuntimeError("something else")


def test_room_is_checked_with_sizes(tmp_path, monkeypatch):
    check_room(tmp_path, 1, "checkpoints")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(disk, "free_bytes", lambda place: 4_100_000)
    with pytest.raises(MachineError, match=r"disk full: checkpoints need 12\.3 MB, 4\.1 MB are free") as raised:
        check_room(tmp_path, 12_300_000, "checkpoints")
    assert raised.value.hint.startswith("make room for 8.2 MB more")


@pytest.mark.parametrize("at", range(1, 6))
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, at):
    def refuse():
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(disk, "os", Counted(at, refuse))
    with pytest.raises(MachineError, match="cannot be written: read-only file system"):
        check_room(tmp_path, 1, "checkpoints")


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".step-1.tmp-0a").symlink_to(tmp_path / "mine")
    (tmp_path / "runs" / "step-2").mkdir()
    (tmp_path / "runs" / "step-2" / "deep").symlink_to(tmp_path / "mine")
    clear_left_overs(tmp_path / "runs")
    assert try_to_remove(tmp_path / "runs" / "step-2")
    assert list((tmp_path / "runs").iterdir()) == []
    assert (tmp_path / "mine" / "a").read_text() == "a"


def test_an_event_that_does_not_fit_leaves_no_half_line(tmp_path, monkeypatch):
    """The disk takes a few bytes and then no more."""
    log = EventLog(tmp_path / "events.jsonl")
    log.append({"event": "step", "step": 1})
    before = log.file.read_bytes()
    real = open

    class Filling:
        def __init__(self, stream):
            self.stream, self.asked = stream, 0

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            self.stream.close()

        def fileno(self):
            return self.stream.fileno()

        def write(self, line):
            self.asked += 1
            if self.asked == 2:
                full()
            return self.stream.write(line[:7])

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *args, **more: Filling(real(*args, **more)))
        with pytest.raises(MachineError, match=r"events\.jsonl: cannot be written: disk full: needs \d+ B"):
            log.append({"event": "step", "step": 2})
    assert log.file.read_bytes() == before


@pytest.mark.parametrize("size", [0, 1, disk.COMPARED, disk.COMPARED + 1, 2 * disk.COMPARED + 7])
def test_a_file_holds_the_bytes_that_were_meant_and_no_others(tmp_path, size):
    file, meant = tmp_path / "file", bytes(number % 251 for number in range(size))
    file.write_bytes(meant)
    assert disk.holds(file, memoryview(meant))
    others = [meant + b"?", meant[:-1], meant[:-1] + b"?", b"?" + meant[1:]] if size else [b"?"]
    for other in others:
        file.write_bytes(other)
        assert not disk.holds(file, memoryview(meant))
