"""What the loop tells of what it trained on."""

import json
from dataclasses import replace
from functools import partial

import pytest

import toy_training
from halfbyte.data.batches import IGNORE, labels_hash
from halfbyte.errors import IntegrityError
from halfbyte.recipe.schema import Train
from halfbyte.train import loop as loops
from toy_training import random_rows, run_toy, toy_plan

ROWS = random_rows([9, 12, 14, 10, 6, 17, 5], untrained=2)
SECTION = Train(learning_rate=1e-3, batch_size=2)


@pytest.fixture
def course(toy_base, tmp_path, monkeypatch):
    """A training of 9 steps, 4 an epoch, that expects these labels."""

    def train(expected, total=9, **how):
        monkeypatch.setattr(toy_training, "run_training", partial(loops.run_training, labels_expected=expected))
        return run_toy(toy_base(), tmp_path, ROWS, SECTION, toy_plan(len(ROWS), SECTION, total=total, eval_steps=3), validate=None, **how)

    return train


def spoil(monkeypatch, epoch_to_spoil, change):
    """One batch of the second step is another than was asked for."""
    plain = loops.epoch_steps

    def steps(rows, batch_size, accumulation, pad_id, seed, epoch, done):
        for number, batches in enumerate(plain(rows, batch_size, accumulation, pad_id, seed, epoch, done), start=done):
            yield [change(batches[0]), *batches[1:]] if (epoch, number) == (epoch_to_spoil, 1) else batches

    monkeypatch.setattr(loops, "epoch_steps", steps)


def forget_a_label(batch):
    labels = batch.labels.clone()
    assert labels[0, 3] != IGNORE
    labels[0, 3] = IGNORE
    return replace(batch, labels=labels)


def test_the_first_epoch_tells_the_fingerprint_of_what_it_trained(course):
    told = course(labels_hash(ROWS)).told("labels", "rows", "sha256", "same_as_preview")
    assert told == [(7, labels_hash(ROWS), True)]


def test_without_a_preview_the_fingerprint_is_told_and_not_compared(course):
    assert course(None).told("labels", "rows", "sha256", "same_as_preview") == [(7, labels_hash(ROWS), None)]


def test_an_epoch_that_was_not_finished_cannot_be_compared(course):
    """What was seen is told, and no word that it was the same."""
    assert course(labels_hash(ROWS), total=3).told("labels", "rows", "same_as_preview") == [(6, None)]


@pytest.mark.parametrize("change", [
    forget_a_label, lambda batch: replace(batch, ids=batch.ids.roll(1, 1)), lambda batch: replace(batch, lengths=(batch.lengths[0] - 1, *batch.lengths[1:])),
])  # fmt: skip
def test_one_wrong_label_stops_the_run_at_the_end_of_the_epoch(course, monkeypatch, tmp_path, change):
    """Between the preview and the step stands code; what it changes must not pass in silence."""
    spoil(monkeypatch, 0, change)
    with pytest.raises(IntegrityError, match=r"epoch 1 \([78] documents, [0-9a-f]{32}\) are not the ones that were prepared") as raised:
        course(labels_hash(ROWS))
    assert "do not use this run" in raised.value.hint
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-3"]  # nothing is saved of step 4, which ended the epoch


def test_a_wrong_label_is_told_even_without_a_preview(course, monkeypatch):
    spoil(monkeypatch, 0, forget_a_label)
    assert course(None).told("labels", "sha256") != [labels_hash(ROWS)]


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_run_goes_on_with_the_fingerprint(course, tmp_path, stop):
    """Step 4 ends the epoch: it is told once, by whichever run trained that step."""
    first = course(labels_hash(ROWS), stop_after=stop)
    state = json.loads((tmp_path / f"step-{stop}" / "state.json").read_text())["progress"]
    assert state["documents"] == min(2 * stop, 7)
    assert int(state["labels"], 16) > 0
    second = course(labels_hash(ROWS), resume_from=tmp_path / f"step-{stop}")
    assert [len(run.told("labels", "rows")) for run in (first, second)] == [int(stop >= 4), int(stop < 4)]
    assert (first.told("labels", "same_as_preview") + second.told("labels", "same_as_preview")) == [True]
