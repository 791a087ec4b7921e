"""Perplexity is exp of summed loss over summed tokens, whatever the batches, and in eval mode."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from halfbyte.data.batches import Batch, in_order
from halfbyte.data.pack import PackedRows, best_fit
from halfbyte.data.tokens import Tokens
from halfbyte.evaluate import loss as loss_module
from halfbyte.evaluate.loss import Loss, RowLosses, measure_loss, perplexity_scores, row_losses
from halfbyte.evaluate.windows import sliding_windows
from halfbyte.recipe.schema import Adapter
from tolerances import PERPLEXITY, SAME_LOSS
from toy_training import PAD, adapted, one_batch, random_rows, row

LENGTHS = [3, 40, 7, 22, 15, 5, 31, 11]
F32 = torch.float32


class Uniform(nn.Module):
    """Every token is as likely as any other."""

    def __init__(self, vocabulary):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.7))
        self.vocabulary = vocabulary
        self.config = PretrainedConfig(vocab_size=vocabulary)

    def forward(self, input_ids, use_cache):
        return type("Out", (), {"logits": self.level.expand(*input_ids.shape, self.vocabulary)})


@pytest.mark.parametrize("vocabulary", [2, 320, 32000])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(vocabulary, size):
    rows = [row([token % vocabulary for token in item.ids], untrained=2) for item in random_rows(LENGTHS)]
    uniform = Uniform(vocabulary)
    for measured in (measure_loss(uniform, in_order(rows, size, 0), F32), row_losses(uniform, rows, F32, size, 0).total):
        assert measured.tokens == sum(length - 2 for length in LENGTHS)
        assert measured.perplexity == pytest.approx(vocabulary, rel=PERPLEXITY)


@pytest.fixture
def model(toy_base):
    return adapted(toy_base(), Adapter(r=4, dropout=0.5), stirred=True).eval()


def reference(model, rows):
    """The definition, row by row and token by token, in float64."""
    total, count = 0.0, 0
    for item in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.ids]), use_cache=False).logits[0].double()
        for place in range(1, len(item.ids)):
            if item.trained[place]:
                total -= float(logits[place - 1].log_softmax(-1)[item.ids[place]])
                count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("untrained", [1, 2])
def test_it_is_the_definition_whatever_the_batches(model, untrained):
    """Batch size, order and padding change nothing; a mean of batch means and a mean of exponentials would differ."""
    rows = random_rows(LENGTHS, untrained=untrained)
    expected, tokens = reference(model, rows)
    for size in (1, 2, 3, 8):
        for order in (rows, rows[::-1], rows[3:] + rows[:3]):
            measured = measure_loss(model, in_order(order, size, PAD), F32)
            assert measured.tokens == tokens
            assert measured.perplexity == pytest.approx(expected, rel=SAME_LOSS)
    each = [measure_loss(model, [batch], F32) for batch in in_order(rows, 1, PAD)]
    assert abs(math.exp(sum(one.mean for one in each) / len(each)) / expected - 1) > 1e-3
    assert abs(sum(one.perplexity for one in each) / len(each) / expected - 1) > 1e-3


def test_each_row_has_its_own_loss_in_the_order_of_the_rows(model):
    rows = random_rows(LENGTHS, untrained=2)
    each = [measure_loss(model, in_order([one], 1, PAD), F32) for one in rows]
    for size in (1, 3, 8):
        measured = row_losses(model, rows, F32, size, PAD)
        assert measured.tokens.tolist() == [one.tokens for one in each]
        np.testing.assert_allclose(measured.loss, [one.mean * one.tokens for one in each], rtol=SAME_LOSS)
        turned = row_losses(model, rows[::-1], F32, size, PAD)
        np.testing.assert_allclose(turned.loss[::-1], measured.loss, rtol=SAME_LOSS)


def test_it_is_transformers_own_loss(model):
    rows = random_rows(LENGTHS)
    measured = row_losses(model, rows, F32, 3, PAD)
    for index, one in enumerate(rows):
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            theirs = float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (len(one.ids) - 1)
        assert measured.loss[index] == pytest.approx(theirs, rel=SAME_LOSS)
    with torch.no_grad():
        ids, labels = (torch.tensor([[*one.ids, *[fill] * (40 - len(one.ids))] for one in rows]) for fill in (PAD, -100))
        whole = float(model(input_ids=ids, labels=labels, use_cache=False).loss)
    assert measured.total.mean == pytest.approx(whole, rel=SAME_LOSS)


@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_packed_documents_lose_what_they_lose_alone(toy_base, kind):
    model = adapted(toy_base(kind), stirred=True)
    rows = random_rows(LENGTHS, untrained=2)
    alone = row_losses(model, rows, F32, 2, PAD)
    packed = PackedRows(rows, best_fit(np.array(LENGTHS), 48))
    assert len(packed) < len(rows)
    together = row_losses(model, packed, F32, 2, PAD)
    members = np.split(packed.packs.members, packed.packs.offsets[1:-1])
    np.testing.assert_allclose(together.loss, [alone.loss[chosen].sum() for chosen in members], rtol=SAME_LOSS)
    assert together.tokens.tolist() == [alone.tokens[chosen].sum() for chosen in members]


def test_a_batch_has_no_more_logits_than_allowed(model, monkeypatch):
    """And never fewer rows than one, the longest first; a row without a label loses nothing."""
    monkeypatch.setattr(loss_module, "MOST_LOGITS", 30 * model.config.vocab_size)
    rows = [*random_rows(LENGTHS), Tokens([5, 6, 7], [False] * 3, "toy", 1)]
    shapes, told = [], []
    handle = model.register_forward_pre_hook(lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    measured = row_losses(model, rows, F32, 4, PAD, lambda done, whole: told.append((done, whole)))
    handle.remove()
    assert shapes == [(1, 40), (1, 31), (1, 22), (2, 15), (4, 7)]
    assert told == [(1, 9), (2, 9), (3, 9), (5, 9), (9, 9)]
    assert (measured.loss[-1], measured.tokens[-1]) == (0, 0)
    assert measured.total.mean == pytest.approx(measure_loss(model, in_order(rows, 3, PAD), F32).mean, rel=SAME_LOSS)


def test_rows_are_scored_in_eval_mode(model):
    rows = random_rows(LENGTHS)
    expected = row_losses(model, rows, F32, 3, PAD)
    model.train()
    for _ in range(2):
        assert (row_losses(model, rows, F32, 3, PAD).loss == expected.loss).all()
    assert model.training
    with pytest.raises(IndexError):
        row_losses(model, [row([5, 100_000])], F32, 1, PAD)
    assert model.training


def test_windows_give_each_id_the_context_that_it_has(model):
    """With windows as long as the text the loss is that of the text in one row; with the stride of a block that of the blocks."""
    text = random_rows([60])[0]
    blocks = [Tokens([0, *text.ids[start : start + 15]], [False] + [True] * 15, "toy", 1) for start in range(0, 60, 15)]
    whole = row_losses(model, [Tokens([0, *text.ids], [False] + [True] * 60, "toy", 1)], F32, 1, PAD)
    for window, stride in ((61, 7), (61, 60), (80, 20)):
        windows, _ = sliding_windows(blocks, [0], window, stride)
        assert row_losses(model, windows, F32, 2, PAD).total.mean == pytest.approx(whole.total.mean, rel=SAME_LOSS)
    windows, _ = sliding_windows(blocks, [0], 16, 15)
    assert row_losses(model, windows, F32, 2, PAD).total == row_losses(model, blocks, F32, 2, PAD).total
    windows, _ = sliding_windows(blocks, [0], 16, 5)
    other = row_losses(model, windows, F32, 2, PAD).total
    assert other.tokens == 60
    assert other.mean != pytest.approx(whole.total.mean, rel=SAME_LOSS)


def test_the_scores_of_a_part_are_its_sums():
    losses = RowLosses(np.array([2.0, 4.0, 0.0]), np.array([1, 3, 0]))
    nats, tokens = perplexity_scores(losses).sum(0)
    assert math.exp(nats / tokens) == pytest.approx(losses.total.perplexity)
    assert perplexity_scores(losses).shape == (3, 2)
    assert math.isnan(RowLosses(np.zeros(0), np.zeros(0, np.int64)).total.mean)


def test_more_padding_changes_nothing(model):
    batch = one_batch(random_rows(LENGTHS))
    wide = Batch(nn.functional.pad(batch.ids, (0, 50), value=PAD), nn.functional.pad(batch.labels, (0, 50), value=-100), batch.lengths)
    assert measure_loss(model, [wide], F32).mean == pytest.approx(measure_loss(model, [batch], F32).mean, rel=SAME_LOSS)


def test_dropout_is_off_inside_and_the_mode_is_put_back(model):
    batches = in_order(random_rows(LENGTHS), 3, PAD)
    inside = []
    model.register_forward_pre_hook(lambda *_: inside.append((model.training, torch.is_grad_enabled())))
    model.train()
    first, second = measure_loss(model, batches, F32), measure_loss(model, batches, F32)
    assert first == second
    assert model.training
    assert next(module for module in model.modules() if isinstance(module, nn.Dropout)).training
    model.eval()
    assert measure_loss(model, batches, F32) == first
    assert not model.training
    assert set(inside) == {(False, False)}
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(input_ids=batches[0].ids).logits, model(input_ids=batches[0].ids).logits)  # dropout would be seen


def test_the_mode_is_put_back_when_it_fails(model):
    model.train()
    with pytest.raises(IndexError):
        measure_loss(model, [one_batch([row([5, 100_000])])], F32)
    assert model.training


def test_nothing_measured_is_no_perplexity_of_one(model):
    measured = measure_loss(model, [], F32)
    assert measured.tokens == 0
    assert math.isnan(measured.perplexity)


def test_a_loss_beyond_all_bounds_has_no_finite_perplexity():
    assert Loss(mean=1e4, tokens=1).perplexity == math.inf
    assert Loss(mean=math.log(49.4), tokens=9).perplexity == pytest.approx(49.4)
    assert math.isnan(Loss(mean=math.nan, tokens=1).perplexity)
