"""Perplexity is exp of summed loss over summed tokens, whatever the batches, and in eval mode."""

import math

import pytest
import torch
from torch import nn

from halfbyte.data.batches import Batch, in_order
from halfbyte.evaluate.loss import Loss, measure_loss
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

    def forward(self, input_ids, use_cache):
        return type("Out", (), {"logits": self.level.expand(*input_ids.shape, self.vocabulary)})


@pytest.mark.parametrize("vocabulary", [2, 320, 32000])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(vocabulary, size):
    rows = [row([token % vocabulary for token in item.ids], untrained=2) for item in random_rows(LENGTHS)]
    measured = measure_loss(Uniform(vocabulary), in_order(rows, size, 0), F32)
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
