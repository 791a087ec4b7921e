"""What the program decides for itself, and the reason that it gives."""

from dataclasses import replace

import pytest

from halfbyte.recipe.plan import (
    Computing,
    Decision,
    Machine,
    Placement,
    as_asked,
    choose_optimizer,
    choose_precision,
    choose_steps,
    make_plan,
    tell_computing,
)
from halfbyte.recipe.schema import Train

CPU = Machine("cpu", "CPU, 2 cores", 2, None, 8_000_000_000)
T4 = Machine("cuda", "Tesla T4", 2, (7, 5), 16_000_000_000)
A100 = Machine("cuda", "A100", 8, (8, 0), 40_000_000_000)
H100 = Machine("cuda", "H100", 8, (9, 0), 80_000_000_000)


def plan_of(rows: int = 10, machine: Machine = CPU, has_validation: bool = True, **train):
    return make_plan(Train(**train), machine, rows, has_validation, [], [], as_asked(Train(**train), None, 2))


def test_precision_follows_the_chip():
    assert choose_precision("auto", T4) == Decision(
        "precision", "float16", "Tesla T4 (capability 7.5) has no bfloat16: float16 with loss scaling, adapters in float32"
    )
    assert choose_precision("auto", A100) == Decision("precision", "bfloat16", "A100 (capability 8.0) computes in bfloat16")
    assert choose_precision("auto", H100).value == "bfloat16"
    assert choose_precision("auto", CPU) == Decision("precision", "float32", "no GPU found")


@pytest.mark.parametrize("machine", [CPU, T4, A100])
@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
def test_a_precision_that_is_asked_for_is_kept(asked, machine):
    decision = choose_precision(asked, machine)
    assert decision.value == asked
    assert decision.reason.startswith("the recipe asks for it")
    assert ("loss scaling" in decision.reason) == (asked == "float16" and machine is not CPU)
    # PyTorch says yes to bfloat16 on older chips and imitates it.
    assert ("only imitates it" in decision.reason) == (asked == "bfloat16" and machine is T4)


@pytest.mark.parametrize("asked", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"])
def test_an_optimizer_that_needs_a_gpu_is_replaced_on_cpu_and_told(asked):
    assert choose_optimizer(asked, CPU) == Decision("optimizer", "adamw_torch", f"{asked} of bitsandbytes needs a GPU")
    assert choose_optimizer(asked, T4) == Decision("optimizer", asked, "the recipe asks for it")


def test_the_optimizer_follows_the_device():
    assert choose_optimizer("auto", CPU).value == "adamw_torch"
    assert choose_optimizer("auto", T4).value == "adamw_torch"
    assert choose_optimizer("auto", T4, pages=True).value == "paged_adamw_32bit"
    assert choose_optimizer("auto", CPU, pages=True).value == "adamw_torch"
    assert choose_optimizer("adamw_torch", T4).value == choose_optimizer("adamw_torch", CPU).value == "adamw_torch"


def test_without_a_gpu_rows_and_recomputation_are_those_of_the_recipe():
    asked = as_asked(Train(batch_size=3, gradient_accumulation_steps=2, gradient_checkpointing=True), None, 2)
    assert (asked.micro_batch_size, asked.gradient_accumulation_steps, asked.evaluate_rows) == (3, 2, 64)
    assert asked.layers == (Placement(activations="recomputed"),) * 2
    assert as_asked(Train(), 5, 2) == Computing(4, 1, (Placement(),) * 2, 5)


def test_the_way_of_computing_is_told_in_words():
    layers = (Placement("cpu", "cpu"), Placement("16bit", "recomputed"), Placement(), Placement())
    told = tell_computing(Computing(1, 4, layers, predicted_bytes=7_940_000_000, predicted_step_seconds=0.96, chosen=True))
    assert told.value == (
        "1 row at a time, 4 times a step, 2 of 4 layers recomputed, weights of 1 layers in the computer's memory, weights of 1 layers kept in 16 bits"
    )
    assert told.reason == "7.9 GB, 0.96 s a step predicted: the fastest way that fits"
    asked = tell_computing(Computing(4, 1, predicted_bytes=1_900_000_000))
    assert asked.reason == "as the recipe has it; 1.9 GB, roughly"
    assert tell_computing(Computing(4, 1)).value == "4 rows at a time, 1 time a step, no layer recomputed"


def test_the_path_is_told_and_why_it_is_not_the_fast_one():
    kinds = Placement(activations="thin"), Placement(activations="attention", parked=True), Placement(activations="recomputed"), Placement()
    fast = Computing(1, 4, kinds, predicted_bytes=7_940_000_000, chosen=True, path="fast", record=True, tight=True)
    assert tell_computing(fast).value == (
        "fast path, 1 row at a time, 4 times a step, 1 of 4 layers recomputed, 1 of 4 layers recomputed but for attention, "
        "gate and up of 1 of 4 layers recomputed, what is kept of 1 of 4 layers waits in the computer's memory, "
        "one piece of memory for all weights in 16 bits, recorded"
    )
    assert tell_computing(replace(fast, layers=(Placement(activations="thin"),) * 4, record=False, tight=False)).value == (
        "fast path, 1 row at a time, 4 times a step, gate and up of every layer recomputed"
    )
    plain = tell_computing(replace(fast, path="plain", plain_because="the adapter has dropout"))
    assert plain.value.startswith("1 row at a time")
    assert plain.reason == "7.9 GB predicted: the fastest way that fits; not the fast path: the adapter has dropout"


@pytest.mark.parametrize(("rows", "batch_size", "accumulation", "epochs", "total", "per_epoch"), [
    (16, 4, 1, 1, 4, 4),
    (17, 4, 1, 1, 5, 5),        # the last step of an epoch has one row
    (17, 4, 2, 3, 9, 3),
    (1, 8, 8, 1, 1, 1),
    (100, 4, 1, 0.5, 13, 25),   # half an epoch ends in the middle of a step
    (10, 10, 1, 0.01, 1, 1),    # never no step at all
    (400, 4, 1, 1.1, 110, 100),  # 100 * 1.1 is 110.00000000000001: one step too many until it was rounded
])  # fmt: skip
def test_steps(rows, batch_size, accumulation, epochs, total, per_epoch):
    train = Train(batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=epochs)
    decision, steps, epoch = choose_steps(train, rows)
    assert (steps, epoch) == (total, per_epoch)
    assert decision.value == str(total)
    steps_an_epoch = f"{per_epoch} step{'s' * (per_epoch > 1)} an epoch"
    assert f"{epochs:g} epochs ({rows} rows, {batch_size * accumulation} a step, {steps_an_epoch})" in decision.reason


def test_max_steps_wins_over_epochs():
    decision, steps, epoch = choose_steps(Train(max_steps=7, num_epochs=100), 17)
    assert (decision.value, steps, epoch) == ("7", 7, 5)
    assert decision.reason.startswith("max_steps of the recipe")


@pytest.mark.parametrize(("asked", "total", "steps"), [
    (0, 50, 0), (0.03, 50, 2), (0.07, 100, 7), (0.5, 3, 2), (0.001, 3, 1), (1, 50, 1), (10, 50, 10), (60, 50, 60),
])  # fmt: skip
def test_warm_up_is_a_share_below_one_and_a_count_from_one(asked, total, steps):
    plan = plan_of(max_steps=total, warmup_steps=asked)
    assert plan.warmup_steps == steps
    reason = next(decision.reason for decision in plan.decisions if decision.name == "learning rate")
    assert reason == f"cosine after {steps} warm-up step{'s' * (steps != 1)}"
    told = [note for note in plan.notes if "warm-up" in note]
    assert bool(told) == (steps > total)


def test_validation_comes_ten_times_a_run_or_as_asked():
    assert [plan_of(max_steps=steps).eval_steps for steps in (1, 9, 10, 11, 200)] == [1, 1, 1, 2, 20]
    assert plan_of(max_steps=200, eval_steps=7).eval_steps == 7
    assert plan_of(max_steps=200, eval_steps=200).notes == []
    assert plan_of(max_steps=200, eval_steps=201).notes == ["eval_steps 201 is beyond the last step: validated and saved at the end only"]


@pytest.mark.parametrize(("has_validation", "value", "reason"), [
    (True, "every 2 steps", "best checkpoint kept by validation loss"), (False, "none", "no validation rows: the last state is kept"),
])  # fmt: skip
def test_a_run_without_validation_rows_says_so(has_validation, value, reason):
    plan = plan_of(max_steps=20, has_validation=has_validation)
    assert Decision("validation", value, reason) in plan.decisions


def test_a_plan_holds_what_it_was_handed_and_goes_into_json():
    first = Decision("data", "text", "because")
    plan = make_plan(Train(learning_rate=1e-3, schedule="linear"), T4, 17, True, [first], ["a note"], Computing(4, 1))
    assert plan.decisions[0] == first
    assert plan.notes == ["a note"]
    assert [decision.name for decision in plan.decisions[1:]] == ["precision", "optimizer", "memory", "steps", "learning rate", "validation"]
    assert (plan.precision, plan.optimizer, plan.computing) == ("float16", "adamw_torch", Computing(4, 1))
    assert plan.as_json()["decisions"][0] == {"name": "data", "value": "text", "reason": "because"}
    assert all(decision.reason for decision in plan.decisions)
