"""What runs here took teaches the next plan: with made-up histories, and the file that keeps them."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.budget import history
from halfbyte.budget.choose import Way, price
from halfbyte.budget.forecast import Target, target_of
from halfbyte.budget.history import History, Taken, calibrated, recall, remember, taken_by
from halfbyte.budget.rates import Effort, step_seconds
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work

TARGET = target_of("RTX 4090")
GPU = Effort(3e15, 1e14, 0.0, 4e12, 1000.0, 0.0, 224.0, 0.0)
HOST = Effort(1e12, 1e10, 0.0, 1e9, 40_000.0, 224.0, 600.0, 0.0)
COPIES = Effort(1e12, 1e10, 0.0, 1e9, 1000.0, 0.0, 100.0, 4e11)
CONFIG = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path))
    return tmp_path


def run(effort: Effort = GPU, time: float = 1.0, memory: float = 1.0, driver: int = 800_000_000, target: Target = TARGET, **more: object) -> Taken:
    """A run that took `time` and `memory` of what was predicted."""
    predicted = step_seconds(effort, target.rates)
    taken = Taken("llama 32 x 4096", 2, 8, 2048, "activations kept", 10**10, int(memory * 10**10), driver, predicted, time * predicted, effort)
    return replace(taken, **more)


def seconds(effort: Effort, *runs: Taken) -> float:
    return step_seconds(effort, calibrated(TARGET, History(list(runs))).rates)


def file_in(folder: Path) -> Path:
    (file,) = (folder / "machines").glob("*.json")
    return file


# What the plan learns


def test_without_history_nothing_changes():
    assert calibrated(TARGET, History()) == TARGET


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("runs", [[GPU], [HOST], [COPIES], [GPU, HOST, HOST], [GPU, HOST, COPIES, GPU, GPU]])
def test_a_constant_factor_becomes_exact(factor, runs):
    for effort in (GPU, HOST, COPIES):
        assert seconds(effort, *(run(one, factor) for one in runs)) == pytest.approx(factor * step_seconds(effort, TARGET.rates), rel=1e-9)


def test_each_side_learns_from_the_steps_that_it_held_up():
    """A slow processor beside a GPU as fast as its datasheet."""
    runs = [run(GPU, 1.0), run(HOST, 2.0), run(COPIES, 1.5)] * 3
    for effort, factor in ((GPU, 1.0), (HOST, 2.0), (COPIES, 1.5)):
        assert seconds(effort, *runs) == pytest.approx(factor * step_seconds(effort, TARGET.rates), rel=0.02)


@pytest.mark.parametrize("others", [1, 2, 5])
def test_one_run_beside_another_program_spoils_nothing(others):
    runs = [*(run(GPU, 1.1) for _ in range(others)), run(GPU, 6.0)]
    assert seconds(GPU, *runs) == pytest.approx(1.1 * step_seconds(GPU, TARGET.rates))


def test_recent_runs_count():
    """The old card was slower; the window is of twenty."""
    old, new = [run(GPU, 3.0, 1.2, 2 * 10**9)] * 50, [run(GPU, 0.9, 1.05)] * 20
    learnt = calibrated(TARGET, History([*old, *new]))
    assert step_seconds(GPU, learnt.rates) == pytest.approx(0.9 * step_seconds(GPU, TARGET.rates))
    assert learnt.memory_factor == pytest.approx(1.05)
    assert learnt.driver_bytes == 800_000_000


@pytest.mark.parametrize(("taken", "factor"), [([0.8], 1.0), ([0.97, 1.03, 1.01], 1.03), ([1.1, 0.9], 1.1), ([2.0], 1.25)])
def test_memory_is_raised_by_the_worst_and_never_lowered(taken, factor):
    assert calibrated(TARGET, History([run(memory=one) for one in taken])).memory_factor == pytest.approx(factor)


def test_a_plan_that_was_too_low_is_not_low_twice():
    """A run that ran out took at most its limit, which is what was planned: each time the next gets more, until it is enough."""
    needed, runs, factor = 1.15, [], 1.0
    for _ in range(4):
        if factor >= needed:
            break
        runs.append(run(memory=factor, ran_out=True))
        factor = calibrated(TARGET, History(runs)).memory_factor
    assert needed <= factor <= needed * 1.05
    assert len(runs) == 3
    assert calibrated(TARGET, History(runs)).rates == TARGET.rates  # how long it would have taken, nobody knows
    assert calibrated(TARGET, History(runs)).rates_from == TARGET.rates_from


def test_memory_learns_from_its_own_family_and_version():
    kept = History([run(memory=1.2, shape="falcon 32 x 4544"), run(memory=1.15, halfbyte="0.0.1"), run(memory=1.04)])
    assert calibrated(TARGET, kept, family="llama").memory_factor == pytest.approx(1.04)
    assert calibrated(TARGET, kept, family="falcon").memory_factor == pytest.approx(1.2)
    assert calibrated(TARGET, kept).memory_factor == pytest.approx(1.2)
    assert calibrated(TARGET, kept, family="qwen3").memory_factor == 1.0


def test_the_largest_driver_counts_unless_it_is_another_program():
    assert calibrated(TARGET, History([run(driver=700_000_000), run(driver=950_000_000)])).driver_bytes == 950_000_000
    assert calibrated(TARGET, History([run(driver=700_000_000), run(driver=30 * 10**9)])).driver_bytes == 700_000_000
    assert calibrated(TARGET, History([run(driver=0)])).driver_bytes == TARGET.driver_bytes


def test_the_plan_says_from_how_many_runs_it_knows():
    assert calibrated(TARGET, History([run()])).rates_from == "measured on this machine: 1 run"
    assert calibrated(TARGET, History([run()] * 40)).rates_from == "measured on this machine: 20 runs"


# What is kept of a run


def test_a_run_planned_with_what_was_learnt_teaches_the_same():
    """Predictions are kept without it: otherwise the second run would undo the first."""
    work = Work(read_shape(CONFIG), 2, 64, ())
    target = TARGET
    runs: list[Taken] = []
    for _ in range(3):
        choice = price(work, Way(2, kept=4), target.bounds)
        bare = price(work, Way(2, kept=4), TARGET.bounds)
        runs.append(taken_by(choice, target, int(1.1 * bare.torch_bytes), 10**9, 1.3 * bare.step_seconds))
        target = calibrated(TARGET, History(runs))
        assert target.memory_factor == pytest.approx(1.1, rel=1e-4)
        assert price(work, Way(2, kept=4), target.bounds).step_seconds == pytest.approx(1.3 * bare.step_seconds, rel=1e-6)
    assert runs[2].predicted_bytes == pytest.approx(runs[0].predicted_bytes, rel=1e-6)
    assert runs[2].predicted_seconds == pytest.approx(runs[2].measured_seconds, rel=1e-6)


def test_shorter_rows_than_planned_do_not_make_the_gpu_look_fast():
    work = Work(read_shape({**CONFIG, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}), 4, 4096, ())
    full, short = (price(replace(work, tokens=tokens), Way(4, kept=4), TARGET.bounds) for tokens in (4096, 1024))
    assert full.step_seconds > 3 * short.step_seconds
    taken = taken_by(full, TARGET, 10**9, 0, short.step_seconds, tokens=1024.4)
    assert taken.predicted_seconds == pytest.approx(short.step_seconds)
    assert taken.tokens == 4096


# The file


def test_what_is_remembered_is_recalled():
    one, two = run(), run(HOST, 1.2, 1.1, ran_out=True)
    assert recall("NVIDIA H200") == History()
    remember("NVIDIA H200", one)
    assert remember("NVIDIA H200", two).runs == [one, two]
    assert recall("NVIDIA H200") == History([one, two])
    assert recall("NVIDIA GeForce RTX 4090") == History()


def test_a_gpu_is_the_same_under_its_long_name_and_a_slice_is_not():
    remember("NVIDIA GeForce RTX 4090", run())
    assert len(recall("RTX 4090").runs) == 1
    assert recall("NVIDIA GeForce RTX 4090 MIG 1g.5gb").runs == []


def test_another_torch_is_another_machine(monkeypatch):
    remember("H200", run())
    monkeypatch.setattr(history, "version", lambda _: "99.0")
    assert recall("H200").runs == []


def test_two_hundred_runs_are_kept(monkeypatch):
    monkeypatch.setattr(history, "MOST_RUNS", 3)
    for time in range(1, 6):
        remember("H200", run(time=time))
    assert [round(one.measured_seconds / one.predicted_seconds) for one in recall("H200").runs] == [3, 4, 5]


def in_place_of_a_run(content: object) -> str:
    return json.dumps({"runs": [content]})


@pytest.mark.parametrize("text", [
    "", "{", "[]", "3", "{}", '{"runs": 3}', '{"runs": [3]}', in_place_of_a_run({}), in_place_of_a_run({"effort": {}}), "\udcff",
])  # fmt: skip
def test_a_damaged_file_is_told_put_aside_and_begun_anew(cache, text):
    remember("H200", run())
    file = file_in(cache)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    told = recall("H200")
    assert told.runs == []
    assert str(file) in told.notes[0]
    assert calibrated(TARGET, told) == TARGET
    after = remember("H200", run(HOST))
    assert after.runs == [run(HOST)]
    assert "was damaged" in after.notes[0]
    assert file.with_name(f"{file.name}.damaged").read_bytes() == text.encode("utf-8", "surrogateescape")
    assert recall("H200") == History([run(HOST)])


@pytest.mark.parametrize(("key", "value"), [
    ("predicted_bytes", 0), ("measured_bytes", "x"), ("measured_seconds", float("nan")), ("predicted_seconds", -1), ("driver_bytes", None), ("new", 1),
])  # fmt: skip
def test_a_figure_that_is_none_is_damage(cache, key, value):
    remember("H200", run())
    file = file_in(cache)
    kept = json.loads(file.read_text())
    kept["runs"][0][key] = value
    file.write_text(json.dumps(kept))
    assert recall("H200").notes


def test_a_folder_that_cannot_be_written_is_a_note(cache):
    (cache / "machines").write_text("in the way")
    after = remember("H200", run())
    assert after.runs == [run()]
    assert "cannot be written" in after.notes[0]


def add_ten(number: int) -> None:
    for _ in range(10):
        remember("H200", run(time=number + 1))


def test_processes_wait_for_each_other():
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(add_ten, range(3))
    assert len(recall("H200").runs) == 30
