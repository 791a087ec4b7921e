"""A short training: what moves and what does not, what the seed decides, which state is kept, and what stops it."""

import math

import pytest
import torch

from halfbyte.data.batches import in_order
from halfbyte.errors import TrainingError
from halfbyte.model.adapter import adapter_state
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.schema import NF4, Adapter, Train
from halfbyte.train import loop as loops
from halfbyte.train.checkpoint import load_checkpoint
from halfbyte.train.step import train_step
from tolerances import HALF_PRECISION
from toy_training import NONE, PAD, adapted, frozen_tensors, random_rows, row, run_toy, same, toy_plan, trained_tensors

ROWS = random_rows([9, 22, 14, 30, 6, 17, 25, 12, 19, 8])
SECTION = Train(learning_rate=2e-2, batch_size=2)


@pytest.mark.parametrize("quant", [NF4(), NF4(double_quant=False), NONE], ids=str)
def test_the_base_stays_and_every_adapter_moves(toy_base, tmp_path, quant):
    model = adapted(toy_base(), quant=quant)
    frozen, before = frozen_tensors(model), trained_tensors(model)
    assert all(not tensor.any() for name, tensor in before.items() if "lora_B" in name)
    course = run_toy(toy_base(), tmp_path, ROWS, SECTION, toy_plan(len(ROWS), SECTION, total=2), model=model, validate=None)
    after = trained_tensors(model)
    assert course.told("step", "step") == [1, 2]
    assert [name for name, tensor in after.items() if "lora_B" in name and not tensor.any()] == []
    assert [name for name in after if torch.equal(after[name], before[name])] == []  # A moves at step 2, once B is not 0
    assert same(frozen_tensors(model), frozen)


def test_training_lowers_the_loss(toy_base, tmp_path):
    """A rhyme of six words learnt by heart."""
    rows = [row([5, 6, 7, 8, 9, 10] * 4)] * 8
    section = Train(learning_rate=1e-2, batch_size=4)
    course = run_toy(toy_base(), tmp_path, rows, section, toy_plan(8, section, total=30, eval_steps=30), adapter=Adapter(r=8))
    losses = course.told("step", "loss")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_one_seed_gives_one_run_digit_for_digit(toy_base, tmp_path, dropout):
    folder, adapter = toy_base(), Adapter(r=4, dropout=dropout)
    plan = toy_plan(len(ROWS), SECTION, total=7)
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number)  # what was drawn before does not matter
        runs.append(run_toy(folder, tmp_path / str(number), ROWS, SECTION, plan, adapter=adapter, seed=seed))
    first, again, other = ([course.told("step", "loss", "learning_rate", "grad_norm", "tokens"), course.told("validation", "loss")] for course in runs)
    assert len(first[0]) == 7
    assert first == again
    assert same(trained_tensors(runs[0].model), trained_tensors(runs[1].model))
    assert [mine[0] for mine in first[0]] != [theirs[0] for theirs in other[0]]
    left, right = (trained_tensors(runs[number].model) for number in (0, 2))
    assert not any(torch.equal(left[name], right[name]) for name in left)


def test_each_row_is_trained_once_an_epoch_in_another_order(toy_base, tmp_path, monkeypatch):
    seen = []

    def step(model, batches, *rest):
        seen.append([ids[ids != PAD].tolist() for batch in batches for ids in batch.ids])
        return train_step(model, batches, *rest)

    monkeypatch.setattr(loops, "train_step", step)
    section = Train(learning_rate=1e-3, batch_size=2, gradient_accumulation_steps=2)
    run_toy(toy_base(), tmp_path, ROWS, section, toy_plan(len(ROWS), section, total=6), validate=None)
    epochs = [[*seen[start], *seen[start + 1], *seen[start + 2]] for start in (0, 3)]
    assert [len(step) for step in seen] == [4, 4, 2, 4, 4, 2]
    assert all(sorted(epoch) == sorted(item.ids for item in ROWS) for epoch in epochs)
    assert epochs[0] != epochs[1]


# Which state is kept


def scripted(*losses):
    """A validation that says these, the first before training begins."""
    left = list(losses)
    return lambda: (left.pop(0), 10)


def course_with(folder, path, losses, **train):
    section = Train(learning_rate=2e-2, batch_size=2, **train)
    return run_toy(folder, path, ROWS, section, toy_plan(len(ROWS), section, total=len(losses) - 1, eval_steps=1), validate=scripted(*losses))


@pytest.mark.parametrize(("losses", "best"), [
    ([9.0, 3.0, 1.0, 2.0], 2), ([0.5, 3.0, 2.0, 1.0], 3), ([9.0, 1.0, 2.0, 3.0], 1), ([9.0, math.nan, 2.0, 3.0], 2), ([9.0, 2.0, math.nan, -math.inf], 1),
    ([9.0, 2.0, 2.0, 2.0], 1),
])  # fmt: skip
def test_the_best_state_is_the_one_that_is_kept(toy_base, tmp_path, losses, best):
    """Validation 3, 1, 2: step 2. The base before training does not count, nor does a loss that is not finite."""
    course = course_with(toy_base(), tmp_path, losses, keep_checkpoints=1)
    assert course.outcome.best_step == best
    assert course.outcome.steps == 3
    assert same(adapter_state(course.model), load_checkpoint(tmp_path / f"step-{best}").adapter)
    others = {step: load_checkpoint(tmp_path / f"step-{step}").adapter for step in {best, 3} - {best}}
    assert not any(same(adapter_state(course.model), state) for state in others.values())
    assert {path.name for path in tmp_path.glob("step-*")} == {f"step-{best}", "step-3"}
    assert [step for step, is_best in course.told("validation", "step", "best") if is_best][-1] == best


def test_without_validation_or_without_a_finite_one_the_last_state_is_kept(toy_base, tmp_path):
    plan = toy_plan(len(ROWS), SECTION, total=3, eval_steps=2)
    course = run_toy(toy_base(), tmp_path / "none", ROWS, SECTION, plan, validate=None)
    assert same(adapter_state(course.model), load_checkpoint(tmp_path / "none" / "step-3").adapter)
    assert course.told("validation", "step") == []
    course = course_with(toy_base(), tmp_path / "nan", [9.0, math.nan, math.nan])
    assert course.outcome.best_step is None
    assert same(adapter_state(course.model), load_checkpoint(tmp_path / "nan" / "step-2").adapter)


def test_a_best_checkpoint_that_is_damaged_is_said_and_the_last_state_kept(toy_base, tmp_path):
    said = scripted(9.0, 1.0, 2.0, 3.0)

    def validate():
        if (tmp_path / "step-2").exists():
            (tmp_path / "step-1" / "adapter.safetensors").write_bytes(b"damaged")
        return said()

    course = run_toy(toy_base(), tmp_path, ROWS, SECTION, toy_plan(len(ROWS), SECTION, total=3, eval_steps=1), validate=validate)
    assert course.outcome.best_step is None
    assert same(adapter_state(course.model), load_checkpoint(tmp_path / "step-3").adapter)
    assert "step-1/adapter.safetensors is not what was saved" in course.told("note", "message")[0]


def test_early_stopping_waits_as_long_as_it_was_asked_to(toy_base, tmp_path):
    losses = [9.0, 3.0, 2.0, 2.5, 1.5, 1.6, 1.7, 1.8, 1.0]
    course = course_with(toy_base(), tmp_path / "two", losses, early_stopping_patience=2)
    assert (course.outcome.stopped, course.outcome.steps, course.outcome.best_step) == ("early stopping", 6, 4)
    assert same(adapter_state(course.model), load_checkpoint(tmp_path / "two" / "step-4").adapter)
    course = course_with(toy_base(), tmp_path / "four", losses, early_stopping_patience=4)
    assert (course.outcome.stopped, course.outcome.steps, course.outcome.best_step) == ("finished", 8, 8)


def test_a_resume_after_early_stopping_trains_nothing_more(toy_base, tmp_path):
    """Guards against a resumed run that forgot that it had stopped, and went on to the last step."""
    folder, section = toy_base(), Train(learning_rate=2e-2, batch_size=2, early_stopping_patience=1)
    plan = toy_plan(len(ROWS), section, total=8, eval_steps=1)
    course = run_toy(folder, tmp_path, ROWS, section, plan, validate=scripted(9.0, 1.0, 2.0))
    again = run_toy(folder, tmp_path, ROWS, section, plan, resume_from=tmp_path / "step-2", validate=scripted())
    assert again.told("step", "step") == []
    assert again.outcome.stopped == course.outcome.stopped == "early stopping"
    assert same(trained_tensors(again.model), trained_tensors(course.model))


# What stops a step


class Broken(torch.nn.Module):
    """A model whose logits are spoilt after some steps."""

    def __init__(self, model, good_steps, value):
        super().__init__()
        self.model, self.left, self.value = model, good_steps, value

    def forward(self, **inputs):
        out = self.model(**inputs)
        self.left -= 1
        if self.left < 0:
            out.logits = out.logits * self.value
        return out


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(toy_base, tmp_path, value):
    model = adapted(toy_base())
    states = []

    class Watched(Broken):
        def forward(self, **inputs):
            states.append(trained_tensors(self.model))
            return super().forward(**inputs)

    section = Train(learning_rate=2e-2, batch_size=2)
    with pytest.raises(TrainingError, match=r"the loss is .* before the update") as raised:
        run_toy(toy_base(), tmp_path, ROWS, section, toy_plan(len(ROWS), section, total=5, eval_steps=2), model=Watched(model, 3, value), validate=None)
    assert "learning_rate" in raised.value.hint
    assert same(trained_tensors(model), states[3])
    assert not same(states[3], states[2])
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-2"]  # the last good one is whole
    assert load_checkpoint(tmp_path / "step-2").state["progress"]["step"] == 2


def spoil_gradients(model, at_call, value=math.inf):
    """The gradient of one lora_B becomes `value` in the given backward pass, counted from 1."""
    calls = [0]
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)

    def hook(gradient):
        calls[0] += 1
        return torch.full_like(gradient, value) if calls[0] == at_call else gradient

    parameter.register_hook(hook)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(toy_base, tmp_path, precision):
    model = adapted(toy_base(), precision=precision)
    spoil_gradients(model, at_call=2)
    section = Train(learning_rate=2e-2, batch_size=2)
    plan = toy_plan(len(ROWS), section, total=4, eval_steps=1, precision=precision)
    with pytest.raises(TrainingError, match=r"the gradient is .* before the update"):
        run_toy(toy_base(), tmp_path, ROWS, section, plan, model=model, validate=None)
    assert same({name: tensor.clone() for name, tensor in adapter_state(model).items()}, load_checkpoint(tmp_path / "step-1").adapter)


def test_a_float16_gradient_that_overflows_is_skipped_and_said(toy_base, tmp_path):
    model = adapted(toy_base(), precision="float16")
    spoil_gradients(model, at_call=2)
    section = Train(learning_rate=2e-2, batch_size=2)
    plan = toy_plan(len(ROWS), section, total=4, eval_steps=1, precision="float16")
    course = run_toy(toy_base(), tmp_path, ROWS, section, plan, model=model, validate=None)
    assert course.told("skipped", "step") == [2]
    assert "scaled by 32768" in course.told("skipped", "reason")[0]
    assert course.told("step", "step") == [1, 2, 3, 4]
    norms = course.told("step", "grad_norm")
    assert norms[1] is None
    assert all(norm > 0 for norm in (norms[0], norms[2], norms[3]))
    assert all(tensor.isfinite().all() for tensor in trained_tensors(model).values())


def test_a_skipped_step_leaves_the_adapter_and_the_optimizer_as_they_were(toy_base):
    model = adapted(toy_base(), precision="float16", stirred=True)
    batches = in_order(ROWS[:4], 2, PAD)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    model.train()
    first = train_step(model, batches, optimizer, 1.0, torch.float16, scaler)
    before, moments = trained_tensors(model), [state["exp_avg"].clone() for state in optimizer.state.values()]
    spoil_gradients(model, at_call=1)
    skipped = train_step(model, batches, optimizer, 1.0, torch.float16, scaler)
    assert (first.skipped, skipped.skipped) == (False, True)
    assert same(trained_tensors(model), before)
    assert all(torch.equal(was, state["exp_avg"]) for was, state in zip(moments, optimizer.state.values(), strict=True))
    assert not train_step(model, batches, optimizer, 1.0, torch.float16, scaler).skipped
    assert not same(trained_tensors(model), before)


def test_float16_and_bfloat16_learn_as_float32_does(toy_base, tmp_path):
    """Loss scaling cancels out: the three courses differ by rounding, not by a factor."""
    plan = {name: toy_plan(len(ROWS), SECTION, total=12, precision=name) for name in ("float32", "bfloat16", "float16")}
    losses = {name: run_toy(toy_base(), tmp_path / name, ROWS, SECTION, plan[name], validate=None).told("step", "loss") for name in plan}
    for name in ("bfloat16", "float16"):
        assert losses[name] == pytest.approx(losses["float32"], abs=HALF_PRECISION)
    assert losses["float32"][0] - losses["float32"][-1] > 1


def test_loss_scaling_does_not_reach_the_optimizer(toy_base):
    """In float16 the gradient that is clipped, told and handed over is the true one, not 65,536 times it."""
    seen = {}

    class Spy(torch.optim.SGD):
        def step(self):
            seen[name] = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])

    norms = {}
    for name in ("float32", "float16"):
        model = adapted(toy_base(), precision=name, stirred=True).train()
        optimizer = Spy([p for p in model.parameters() if p.requires_grad])
        scaler = torch.amp.GradScaler("cpu", enabled=name == "float16")
        norms[name] = train_step(model, in_order(ROWS[:4], 2, PAD), optimizer, 0.5, DTYPES[name], scaler).grad_norm
    assert norms["float16"] == pytest.approx(norms["float32"], rel=HALF_PRECISION)
    assert (seen["float16"] - seen["float32"]).norm() < HALF_PRECISION * seen["float32"].norm()


def test_clipping_scales_the_gradient_to_the_norm_that_was_asked_for(toy_base):
    model = adapted(toy_base(), stirred=True)
    norms = {}

    class Spy(torch.optim.SGD):
        def step(self):
            norms["after"] = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.param_groups[0]["params"]))

    optimizer = Spy([p for p in model.parameters() if p.requires_grad])
    model.train()
    result = train_step(model, in_order(ROWS[:4], 2, PAD), optimizer, 1e-3, torch.float32, torch.amp.GradScaler("cpu", enabled=False))
    assert result.grad_norm > 1e-2
    assert norms["after"] == pytest.approx(1e-3, rel=1e-3)


def test_evaluation_in_training_leaves_no_trace(toy_base, tmp_path):
    """With dropout, and validating at every step or never: the same losses."""
    folder, adapter = toy_base(), Adapter(r=4, dropout=0.2)
    often, never = (
        run_toy(folder, tmp_path / str(every), ROWS, SECTION, toy_plan(len(ROWS), SECTION, total=6, eval_steps=every), adapter=adapter, validate=how)
        for every, how in ((1, "measure"), (6, None))
    )
    assert often.told("step", "loss") == never.told("step", "loss")
    assert len(often.told("validation", "loss")) == 7
