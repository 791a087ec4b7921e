"""What is made of a batch, and of a step that is recorded: exactly the supervised tokens, and nothing that a recording needs is let go of."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from halfbyte.data.batches import IGNORE
from halfbyte.fast import recorded
from halfbyte.fast.decoder import FastDecoder, filled_up, flatten
from halfbyte.fast.parking import Shelf
from halfbyte.fast.recorded import MOST, Recorder
from halfbyte.train.step import summed_loss
from toy_fast import adapted, batch_of, by_hand, farthest, trained

F64 = torch.float64


def test_flatten_gives_exactly_the_supervised_tokens_of_the_step():
    """One-hot logits of a token's place: train/step.summed_loss picks the same pairs of place and target."""
    for packed in (False, True):
        batch = batch_of([[5, 1, 4], [1], [7, 2]] if packed else [[10], [1], [9]], packed=packed)
        ids, places, targets, positions, lengths = flatten(batch)
        kept = [(row, column) for row, length in enumerate(batch.lengths) for column in range(length)]
        assert ids.tolist() == [int(batch.ids[place]) for place in kept]
        assert sum(lengths) == len(ids) == batch.tokens
        assert lengths == ((5, 1, 4, 1, 7, 2) if packed else (10, 1, 9))
        assert positions.tolist() == [place for length in lengths for place in range(length)]
        assert len(places) == batch.supervised
        # Any logits: the loss over the picked places is that of the plain path.
        logits = torch.randn(*batch.ids.shape, 320, dtype=F64)
        flat = torch.stack([logits[place] for place in kept]).float()
        picked = torch.nn.functional.cross_entropy(flat[places], targets, reduction="sum")
        torch.testing.assert_close(picked, summed_loss(logits, batch.labels))
        expected = [(kept.index((row, column)), int(batch.labels[row, column + 1])) for row, column in kept
                    if column + 1 < batch.lengths[row] and batch.labels[row, column + 1] != IGNORE]  # fmt: skip
        assert list(zip(places.tolist(), targets.tolist())) == expected


@pytest.mark.parametrize("supervised", [0, 1, 255, 256, 257])
def test_targets_of_none_fill_up_and_change_nothing(supervised):
    places, targets = filled_up(torch.arange(supervised), torch.full((supervised,), 7))
    assert len(places) == len(targets) == -(-supervised // 256) * 256
    assert places[:supervised].tolist() == list(range(supervised))
    assert set(targets[supervised:].tolist()) <= {-1}


class AsItIs:
    """A recorder that records keys alone."""

    def __init__(self):
        self.keys = []

    def run(self, key, function, given):
        assert len(given[1]) == 256
        self.keys.append(key)
        return function(*given)


def test_filled_up_targets_add_no_loss_and_no_gradient():
    """What a recorded step is given, run as it is."""
    model = adapted("llama")
    batch = batch_of([[9], [14]])
    loss, expected = by_hand(model, [batch], 0.1)
    decoder = FastDecoder(model, F64)

    decoder.recorder = AsItIs()
    assert float(decoder.accumulate(batch, 0.1)) == pytest.approx(loss, rel=1e-12)
    assert farthest({name: parameter.grad for name, parameter in trained(model).items()}, expected) < 1e-12


def test_a_recording_belongs_to_lengths_and_to_where_the_adapters_lie():
    model = adapted("llama")
    decoder = FastDecoder(model, F64)
    decoder.recorder = AsItIs()
    parameter = next(iter(trained(model).values()))
    for change in (None, lambda: parameter.mul_(2), lambda: setattr(parameter, "data", parameter.data.clone())):
        with torch.no_grad():
            _ = change and change()
        decoder.accumulate(batch_of([[9], [14]]), 0.1)
    decoder.accumulate(batch_of([[14], [9]]), 0.1)
    first, second, third, fourth = decoder.recorder.keys
    assert first == second
    assert len({first, third, fourth}) == 3


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs that replay nothing."""

    class Graph:
        replays = 0

        def replay(self):
            type(self).replays += 1

    monkeypatch.setattr(recorded.torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(recorded.torch.cuda, "graph_pool_handle", lambda: 1)
    monkeypatch.setattr(recorded.torch.cuda, "graph", lambda graph, pool, capture_error_mode: nullcontext())
    return Graph


def test_what_a_recording_reads_lives_as_long_as_it_does(graphs):
    """The borders of packed documents were let go of after the step that was recorded; a longer row took the place of the memory that waits."""
    recorder, shelf = Recorder(lambda: shelf.memory()), Shelf(torch.device("cpu"))
    seen = []

    def step():
        borders = torch.arange(3)
        seen.append(weakref.ref(borders))
        shelf.put(0, [torch.ones(4)])
        recorder.run("short", lambda x: x + borders.sum(), (torch.zeros(()),))

    step()
    step()
    place = weakref.ref(shelf.memory()[0])
    shelf.take(0)
    shelf.put(0, [torch.ones(9)])
    gc.collect()
    assert [one() is None for one in seen] == [True, False]
    assert place() is not None
    assert shelf.memory()[0] is not place()


def test_the_second_step_of_a_shape_is_recorded_and_few_shapes_are(graphs):
    recorder = Recorder(list)
    for number in range(MOST + 2):
        for _ in range(3):
            assert recorder.run(number, lambda x: x * 2, (torch.tensor(3.0),)) == 6.0
    assert graphs.replays == 2 * MOST
