"""What a run notices beside its work: BAD_INPUTS 112 and 120."""

import pytest

from halfbyte.api import watch as module
from halfbyte.api.watch import Watch
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.report import read_events


@pytest.fixture
def clocks(monkeypatch):
    """Clocks that the test sets: of the day, and the monotonic one."""
    now = {"day": 1000.0, "monotonic": 10.0}
    monkeypatch.setattr(module.time, "time", lambda: now["day"])
    monkeypatch.setattr(module.time, "monotonic", lambda: now["monotonic"])
    return now


def watching(folder) -> tuple[Watch, list]:
    heard = []
    return Watch(RunFolder(folder), EventLog(folder / "events.jsonl", heard.append), None), heard


def step(number: int, seconds: float) -> dict:
    return {"event": "step", "step": number, "tokens": 100, "tokens_per_second": 100 / seconds}


@pytest.mark.parametrize(("day", "told"), [
    (3602.0, "before step 7 the computer slept, or its clock was set forward: 3,600 s; seconds and rates of this run are counted without them"),
    (-3598.0, "before step 7 the computer had its clock set back: 3,600 s; seconds and rates of this run are counted without them"), (32.0, None), (2.0, None),
])  # fmt: skip
def test_a_jump_of_the_clock_is_told_once(tmp_path, clocks, day, told):
    watch, heard = watching(tmp_path)
    clocks["day"] += day
    clocks["monotonic"] += 2.0
    watch.hear(step(7, 2.0))
    watch.hear(step(8, 2.0))
    assert [event["message"] for event in heard] == [told] * (told is not None)


def test_a_stop_longer_than_the_grace_is_told_once_and_again_at_the_next_start(tmp_path):
    watch, heard = watching(tmp_path)
    watch.hear(step(1, 4.0))
    watch.hear({"event": "checkpoint", "step": 1, "path": "checkpoints/step-1", "seconds": 5.0})
    assert heard == []
    watch.hear({"event": "checkpoint", "step": 2, "path": "checkpoints/step-2", "seconds": 9.0})
    watch.hear({"event": "checkpoint", "step": 3, "path": "checkpoints/step-3", "seconds": 9.0})
    assert [event["message"][:72] for event in heard] == ["to stop and save takes about 13 s (a step 4 s, a save 9 s), longer than "]
    for event in (step(3, 4.0), {"event": "checkpoint", "step": 3, "path": "checkpoints/step-3", "seconds": 9.0}):
        watch.log.append(event)
    later, heard = watching(tmp_path)
    later.look_back()
    assert "takes about 13 s" in heard[0]["message"]


def test_the_last_words_name_the_last_whole_checkpoint(tmp_path):
    watch, _ = watching(tmp_path)
    assert watch.last_words().startswith("no checkpoint was saved yet; begin again with: halfbyte train --resume")
    watch.hear({"event": "checkpoint", "step": 340, "path": "checkpoints/step-340", "seconds": 0.1})
    assert watch.last_words() == f"the last whole checkpoint is step-340; go on with: halfbyte train --resume {tmp_path}"
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")[0]] == ["interrupted", "interrupted"]
