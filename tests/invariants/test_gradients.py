"""What must not change the gradient or the loss: how rows fall into batches, padding, recomputation, what is not trained."""

import pytest
import torch
from torch import nn

from halfbyte.data.batches import IGNORE, Batch, epoch_steps, in_order
from halfbyte.evaluate.loss import measure_loss
from halfbyte.recipe.schema import Adapter
from halfbyte.train.step import summed_loss, train_step
from tolerances import SAME_GRADIENT, SAME_LOSS
from toy_training import CPU, PAD, adapted, gradients, one_batch, random_rows, row, same

UNEQUAL = [3, 40, 7, 22, 15, 5, 31, 11]


def farthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest difference of two gradients, relative to the largest entry of the tensor."""
    return max(float((left[name] - right[name]).abs().max() / right[name].abs().max()) for name in left)


@pytest.fixture
def model(toy_base):
    return adapted(toy_base(), stirred=True)


@pytest.mark.parametrize("untrained", [1, 2])
def test_how_rows_are_split_does_not_change_the_gradient(model, untrained):
    """1 x 8, 2 x 4, 4 x 2 and 8 x 1: a mean of means would weigh the short rows more (CORRECTNESS 1.0)."""
    rows = random_rows(UNEQUAL, untrained=untrained)
    whole = gradients(model, in_order(rows, 8, PAD))
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for size in (4, 2, 1):
        assert farthest(gradients(model, in_order(rows, size, PAD)), whole) <= SAME_GRADIENT
    single = [gradients(model, [batch]) for batch in in_order(rows, 1, PAD)]
    mean_of_means = {name: sum(gradient[name] for gradient in single) / len(single) for name in whole}
    assert farthest(mean_of_means, whole) > 1000 * SAME_GRADIENT


@pytest.mark.parametrize("kind", ["falcon", "qwen3"])
def test_how_rows_are_split_does_not_change_the_gradient_of_others(toy_base, kind):
    model, rows = adapted(toy_base(kind), stirred=True), random_rows(UNEQUAL)
    assert farthest(gradients(model, in_order(rows, 1, PAD)), gradients(model, in_order(rows, 8, PAD))) <= SAME_GRADIENT


def test_the_last_smaller_step_of_an_epoch_weighs_its_own_tokens(model):
    """5 rows, accumulation 4: the step of the one row left over has the gradient of that row, not a quarter of it."""
    rows = random_rows(UNEQUAL[:5])
    *_, last = epoch_steps(rows, 1, 4, PAD, seed=0, epoch=0)
    assert [len(batch.ids) for batch in last] == [1]
    left_over = next(item for item in rows if item.ids == last[0].ids[0].tolist())
    assert same(gradients(model, last), gradients(model, [one_batch([left_over])]))


def test_recomputing_activations_changes_nothing(toy_base):
    """Gradient checkpointing with frozen embeddings once trained the last layers only (CORRECTNESS 1.13). With dropout, so that its draw is repeated."""
    folder, section = toy_base(), Adapter(r=4, dropout=0.3)
    batches = in_order(random_rows(UNEQUAL), 4, PAD)
    found = []
    for checkpointing in (False, True):
        model = adapted(folder, section, stirred=True)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            calls = count_calls(model.get_base_model().model.layers[0].mlp)
        torch.manual_seed(0)
        found.append(gradients(model, batches))
    assert calls == [2 * len(batches)]  # once forward, once again in the backward pass
    assert same(*found)
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())


def count_calls(module: nn.Module) -> list[int]:
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    module.register_forward_pre_hook(count)
    return calls


def padded(rows, left: int, right: int) -> Batch:
    """Each row with `left` and `right` more places of padding than the longest needs, to its sides."""
    plain = one_batch(rows)
    ids = nn.functional.pad(plain.ids, (left, right), value=PAD)
    return Batch(ids, nn.functional.pad(plain.labels, (left, right), value=IGNORE), plain.lengths)


@pytest.mark.parametrize("amount", [1, 17])
def test_padding_on_the_right_does_not_change_loss_or_gradient(model, amount):
    rows = random_rows([9, 14])
    plain, more = one_batch(rows), padded(rows, 0, amount)
    assert measure_loss(model, [more], torch.float32).tokens == 9 + 14 - 2
    assert measure_loss(model, [more], torch.float32).mean == pytest.approx(measure_loss(model, [plain], torch.float32).mean, rel=SAME_LOSS)
    assert farthest(gradients(model, [more]), gradients(model, [plain])) <= SAME_GRADIENT


def test_padding_on_the_left_is_seen_by_a_model_without_a_mask(model):
    """Why make_batch pads on the right, where no mask is needed: on the left it would change the loss."""
    rows = random_rows([9, 14])
    left = measure_loss(model, [padded(rows, 5, 0)], torch.float32).mean
    assert left != pytest.approx(measure_loss(model, [one_batch(rows)], torch.float32).mean, rel=1e-3)


def test_what_the_padding_is_does_not_matter(model):
    """The end mark may be the pad id: its label follows its place."""
    rows = random_rows([9, 14])
    batch = one_batch(rows)
    other = Batch(torch.where(batch.ids == PAD, 1, batch.ids), batch.labels, batch.lengths)
    assert (batch.ids != other.ids).sum() == 5
    assert same(gradients(model, [other]), gradients(model, [batch]))


class NextNumber(nn.Module):
    """Predicts id + 1 with certainty."""

    def __init__(self, size: int):
        super().__init__()
        self.table = nn.Parameter(torch.roll(torch.eye(size), 1, dims=1) * 100)

    def forward(self, input_ids, use_cache):
        return type("Out", (), {"logits": self.table[input_ids]})


def test_labels_are_shifted_once():
    """Loss 0 for a model that predicts the next token; with no shift, or two, it would be 100 (CORRECTNESS 1.26)."""
    model = NextNumber(20)
    counting = one_batch([row([3, 4, 5, 6, 7]), row([10, 11, 12])])
    assert measure_loss(model, [counting], torch.float32).mean < 1e-6
    standing = one_batch([row([3, 3, 3])])
    assert measure_loss(model, [standing], torch.float32).mean == pytest.approx(100)
    skipping = one_batch([row([3, 5, 7])])
    assert measure_loss(model, [skipping], torch.float32).mean == pytest.approx(100)


def test_a_token_that_is_not_trained_does_not_move_the_loss():
    """Its label is left out; what follows it is asked for given it."""
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORE, IGNORE, 4, 5, IGNORE, 7], [IGNORE, 3, IGNORE, IGNORE, IGNORE, IGNORE]])
    expected = sum(-logits[b, t - 1].log_softmax(-1)[labels[b, t]] for b in range(2) for t in range(6) if labels[b, t] != IGNORE)
    torch.testing.assert_close(summed_loss(logits, labels), expected)
    moved = logits.clone()
    moved[0, 0] += 5 * torch.randn(11)  # predicts the untrained place 1
    moved[0, 3] += 5 * torch.randn(11)  # predicts the untrained place 4
    moved[:, 5] += 5 * torch.randn(11)  # predicts what comes after the end
    assert summed_loss(moved, labels) == summed_loss(logits, labels)
    moved[0, 1] += 5 * torch.randn(11)  # predicts the trained place 2
    assert summed_loss(moved, labels) != summed_loss(logits, labels)


def test_a_prompt_is_not_in_the_loss_but_in_the_context(model):
    """Another last prompt token changes the answer's loss by what the model makes of it, and by nothing else."""
    ids = random_rows([12])[0].ids
    asked = one_batch([row(ids, untrained=6)])
    assert measure_loss(model, [asked], torch.float32).tokens == 6
    all_trained = one_batch([row(ids)])
    assert measure_loss(model, [all_trained], torch.float32).tokens == 11
    assert not same(gradients(model, [asked]), gradients(model, [all_trained]))
    logits = model(input_ids=asked.ids).logits[0].detach()
    by_hand = -sum(float(logits[t - 1].double().log_softmax(-1)[ids[t]]) for t in range(6, 12)) / 6
    assert measure_loss(model, [asked], torch.float32).mean == pytest.approx(by_hand, rel=SAME_LOSS)


def test_the_step_tells_the_loss_it_trained_on(model):
    batches = in_order(random_rows(UNEQUAL), 3, PAD)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()
    result = train_step(model, batches, optimizer, 1.0, torch.float32, torch.amp.GradScaler("cpu", enabled=False))
    measured = measure_loss(model, batches, torch.float32)
    assert result.loss == pytest.approx(measured.mean, rel=SAME_LOSS)
    assert (result.supervised, result.tokens) == (measured.tokens, sum(UNEQUAL))
    assert next(model.parameters()).device == CPU
