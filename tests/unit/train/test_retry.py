"""A step that memory is too short for is taken again in less, and stays the step: BAD_INPUTS 103.

A fault in a module of the toy says what a GPU would: it raises while more rows are computed than there is room for, or while activations are kept.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfbyte.data.batches import epoch_steps
from halfbyte.errors import OutOfMemory
from halfbyte.model.load import decoder_layers
from halfbyte.model.room import is_out_of_memory
from halfbyte.recipe.plan import Computing, Placement
from halfbyte.recipe.schema import Adapter, Train
from halfbyte.train.retry import changed_computing
from tolerances import SPLIT_LOSS
from toy_training import PAD, Course, adapted, random_rows, run_toy, same, toy_plan, trained_tensors
from toys import make_base

ROWS = [replace(row, line=number + 1) for number, row in enumerate(random_rows([9, 14, 6, 11, 8, 13, 7, 10]))]
REFUSED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB.\nmore"
TOTAL = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def train(base, folder, *, room=None, dropout=0.0, checkpointing=None, precision="float32", error=None, once=False, rows=4, where="up_proj") -> Course:
    """`room(inputs, module)` says whether a projection of layer 1 has room; `where` names it. `once`: refused a single time."""
    section = Train(batch_size=rows, gradient_accumulation_steps=4 // rows, learning_rate=1e-2, gradient_checkpointing=checkpointing)
    model = adapted(base, Adapter(r=4, alpha=8, dropout=dropout), precision=precision)
    layer = decoder_layers(model)[1]
    refused = []

    def refuse(module: nn.Module, inputs) -> None:
        if room is not None and torch.is_grad_enabled() and layer.training and not room(inputs[0], layer) and not (once and refused):
            refused.append(inputs[0].shape)
            raise error or torch.OutOfMemoryError(REFUSED)

    getattr(layer.mlp, where).register_forward_pre_hook(refuse)
    plan = toy_plan(len(ROWS), section, TOTAL, eval_steps=2, precision=precision)
    placements = (Placement(activations="recomputed" if checkpointing else "kept"),) * 2
    plan = replace(plan, computing=replace(plan.computing, layers=placements))
    course = run_toy(base, folder, ROWS, section, plan, model=model)
    course.refused = len(refused)
    return course


def losses(course: Course) -> list[float]:
    return course.told("step", "loss")


def test_layers_are_recomputed_first_and_nothing_changes_to_the_bit(base, tmp_path):
    """With dropout too: the random state is that of before the step, and recomputing draws it again."""
    whole = train(base, tmp_path / "whole", dropout=0.2)
    course = train(base, tmp_path / "short", dropout=0.2, room=lambda _, layer: layer.gradient_checkpointing)
    assert course.refused == 2  # one layer is recomputed, which is not enough, then both
    assert losses(course) == losses(whole)
    assert same(trained_tensors(course.model), trained_tensors(whole.model))
    told = course.told("memory_change", "step", "micro_batch_size", "activations")
    assert told == [(1, 4, ["recomputed", "kept"]), (1, 4, ["recomputed", "recomputed"])]
    assert "1 of 2 layers are recomputed from here on; losses are the same to the bit" in course.told("memory_change", "message")[0]


def test_the_message_names_step_part_module_and_row(base, tmp_path):
    course = train(base, tmp_path, room=lambda ids, _: ids.shape[0] <= 2, checkpointing=False)
    seen = course.told("memory_change", "message")[0]
    first = next(epoch_steps(ROWS, 4, 1, PAD, seed=0, epoch=0))[0]
    longest = max(range(4), key=lambda row: first.lengths[row])
    where = "forward pass, model.layers.1.mlp.up_proj, micro-batch 1 of 1"
    assert seen.startswith(
        f"out of memory in step 1: 2.00 GiB asked for in the {where}, longest row {first.origins[longest]} ({first.lengths[longest]} tokens); "
    )


def test_the_backward_pass_is_told_apart(base, tmp_path):
    """A recomputed layer runs a second time there."""
    calls = []
    course = train(base, tmp_path, room=lambda *_: calls.append(1) or len(calls) != 2, checkpointing=True)
    assert "2.00 GiB asked for in the backward pass, model.layers.1.mlp.up_proj" in course.told("memory_change", "message")[0]
    assert course.told("step", "step") == list(range(1, TOTAL + 1))


def test_the_loss_over_the_vocabulary_is_named(base, tmp_path, monkeypatch):
    whole, calls = torch.nn.functional.cross_entropy, []

    def refuse(*given, **named):
        calls.append(1)
        if torch.is_grad_enabled() and len(calls) < 6:
            raise torch.OutOfMemoryError(REFUSED)
        return whole(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", refuse)
    assert "2.00 GiB asked for in the forward pass, loss over the vocabulary" in train(base, tmp_path).told("memory_change", "message")[0]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_fewer_rows_at_a_time_give_the_same_losses_to_rounding(base, tmp_path, precision):
    """Of four rows two fit: the run is, to the bit, the run that was begun with two at a time, and to rounding the one with four."""
    fits = {"room": lambda ids, _: ids.shape[0] <= 2, "checkpointing": False, "precision": precision}
    course = train(base, tmp_path / "short", **fits)
    half = train(base, tmp_path / "half", rows=2, checkpointing=False, precision=precision)
    whole = train(base, tmp_path / "whole", checkpointing=False, precision=precision)
    assert course.refused == 1
    assert course.told("memory_change", "micro_batch_size", "gradient_accumulation_steps") == [(2, 2)]
    assert losses(course) == losses(half)
    assert same(trained_tensors(course.model), trained_tensors(half.model))
    if precision == "float32":
        assert losses(course) == pytest.approx(losses(whole), rel=SPLIT_LOSS)
    assert course.told("step", "step") == list(range(1, TOTAL + 1))


def test_a_failure_in_mid_run_goes_on_from_the_last_step(base, tmp_path):
    """At the third step, in its second micro-batch: what the first one had added to the gradients is dropped."""
    seen = []

    def room(ids, _) -> bool:
        seen.append(ids.shape[0])
        return len(seen) != 6

    course = train(base, tmp_path / "short", rows=2, room=room, checkpointing=False)
    whole = train(base, tmp_path / "whole", rows=2, checkpointing=False)
    assert course.told("memory_change", "step", "micro_batch_size") == [(3, 1)]
    assert "micro-batch 2 of 2" in course.told("memory_change", "message")[0]
    assert losses(course)[:2] == losses(whole)[:2]
    assert losses(course) == pytest.approx(losses(whole), rel=SPLIT_LOSS)
    assert course.told("step", "step") == list(range(1, TOTAL + 1))


def test_dropout_that_draws_otherwise_is_told(base, tmp_path):
    fits = {"room": lambda ids, _: ids.shape[0] <= 2, "checkpointing": False}
    assert "dropout is drawn for each micro-batch" in train(base, tmp_path / "drawn", dropout=0.2, **fits).told("memory_change", "message")[0]
    assert "dropout" not in train(base, tmp_path / "none", **fits).told("memory_change", "message")[0]


def test_where_nothing_can_give_way_it_is_said_and_the_checkpoint_is_left(base, tmp_path):
    """The recipe says that nothing is to be recomputed, and there is one row at a time."""
    with pytest.raises(
        OutOfMemory, match=r"^out of memory in step 1: 2\.00 GiB asked for in the forward pass, .*micro-batch 1 of 4, longest row toy:\d"
    ) as caught:
        train(base, tmp_path, rows=1, room=lambda *_: False, checkpointing=False)
    assert caught.value.exit_code == 3


def test_memory_that_runs_out_in_the_update_is_not_tried_again(base, tmp_path, monkeypatch):
    """Half of the weights may have moved. Guards against a step that is taken one and a half times."""

    tried = []

    def refuse(*given, **named) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError(REFUSED)

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", refuse)
    with pytest.raises(OutOfMemory, match="asked for in the update, state of the optimizer"):
        train(base, tmp_path)
    assert len(tried) == 1


def test_gradients_that_were_divided_already_are_no_hindrance(base, tmp_path, monkeypatch):
    """float16: memory runs out between the division by the loss scale and the update. Guards against a scaler that refuses to divide the new ones."""
    whole = train(base, tmp_path / "whole", precision="float16")
    clip, calls = nn.utils.clip_grad_norm_, []

    def refuse(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError(REFUSED)
        return clip(*given, **named)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", refuse)
    course = train(base, tmp_path / "short", precision="float16")
    assert course.told("memory_change", "step") == [2]
    assert losses(course) == losses(whole)


@pytest.mark.parametrize(("error", "asked"), [
    (MemoryError(), ""), (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes."), "4 MB asked for "),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
])  # fmt: skip
def test_every_way_to_say_it_is_understood(base, tmp_path, error, asked):
    course = train(base, tmp_path, error=error, once=True, room=lambda *_: False, checkpointing=False)
    assert f"in step 1: {asked}in the forward pass" in course.told("memory_change", "message")[0]
    assert course.told("step", "step") == list(range(1, TOTAL + 1))


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_left_alone(base, tmp_path, error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        train(base, tmp_path, error=error, room=lambda *_: False)


def test_a_resumed_run_is_computed_as_it_ended():
    kept, event = (Placement(),) * 2, {"event": "memory_change", "phase": "train", "message": "", "activations": ["recomputed", "kept"]}
    planned = Computing(4, 1, kept)
    changed = changed_computing(planned, [event | {"micro_batch_size": 2, "gradient_accumulation_steps": 2}, {"event": "step", "step": 3}])
    assert changed == Computing(2, 2, (Placement(activations="recomputed"), Placement()))
    leaner = Computing(1, 4, (Placement("cpu", "cpu"), Placement()))
    assert changed_computing(leaner, [event | {"micro_batch_size": 2, "gradient_accumulation_steps": 2}]) == leaner
    for damaged in ({"micro_batch_size": 3, "gradient_accumulation_steps": 2}, {"micro_batch_size": None}, {"activations": ["melted", 7]}, {"activations": 3}):
        assert changed_computing(planned, [event | {"activations": None} | damaged]) == planned
    assert changed_computing(planned, []) == planned
