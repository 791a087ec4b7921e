"""The learning rate of every step in closed form, and the optimizers by name."""

import math

import pytest
import torch
from bitsandbytes import optim

from halfbyte.train.optimizer import learning_rate_at, make_optimizer, set_learning_rate

PEAK = 3e-4


def rates(schedule, warmup, total):
    return [learning_rate_at(step, PEAK, schedule, warmup, total) for step in range(1, total + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (1, 10), (3, 10), (9, 10), (10, 10)])
def test_the_rate_of_every_step(schedule, warmup, total):
    """Warm-up is step / warmup of the peak; then the share of the way to the end, 0 at the first step after warm-up."""
    left = {"cosine": lambda share: (1 + math.cos(math.pi * share)) / 2, "linear": lambda share: 1 - share, "constant": lambda share: 1.0}[schedule]
    expected = [PEAK * step / warmup for step in range(1, warmup + 1)]
    expected += [PEAK * left(number / (total - warmup)) for number in range(total - warmup)]
    assert rates(schedule, warmup, total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_peak_is_reached_and_no_step_is_wasted(schedule):
    """No step trains with rate 0, neither the first (as in torch's LambdaLR) nor the last."""
    found = rates(schedule, 3, 12)
    assert max(found) == found[2] == found[3] == PEAK
    assert min(found) > 0
    assert found[:4] == sorted(found[:4])
    assert found[3:] == sorted(found[3:], reverse=True)


def test_a_warm_up_longer_than_the_run_is_cut_off():
    assert rates("cosine", 20, 10) == pytest.approx([PEAK * step / 20 for step in range(1, 11)])


def test_the_rate_is_set_in_every_group():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [a]}, {"params": [b], "lr": 9.0}], lr=1.0)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


@pytest.mark.parametrize(("name", "kind"), [
    ("adamw_torch", torch.optim.AdamW), ("paged_adamw_32bit", optim.PagedAdamW32bit),
    ("paged_adamw_8bit", optim.PagedAdamW8bit), ("adamw_8bit", optim.AdamW8bit),
])  # fmt: skip
def test_an_optimizer_is_what_it_is_called_and_holds_what_is_trained(name, kind):
    trained, frozen = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    optimizer = make_optimizer(name, [frozen, trained], learning_rate=0.25, weight_decay=0.5)
    assert type(optimizer) is kind
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == [trained]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.25, 0.5, (0.9, 0.999), 1e-8)


def test_every_name_of_the_recipe_is_known():
    from typing import get_args

    from halfbyte.recipe.schema import Train

    names = set(get_args(Train.model_fields["optimizer"].annotation)) - {"auto"}
    for name in names:
        make_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], 1e-3, 0.0)


def test_weight_decay_is_decoupled():
    """AdamW (arXiv 1711.05101): with gradient 0 a weight shrinks by rate x decay, whatever its moments."""
    weight = torch.nn.Parameter(torch.full((1,), 2.0))
    optimizer = make_optimizer("adamw_torch", [weight], learning_rate=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert float(weight) == pytest.approx(2.0 * (1 - 0.1 * 0.5))
