"""Proofs about gradients and the first steps: what the optimizer is given, what it holds, what moves, and what must not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.checks.of_model import fingerprints
from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.tolerance import BY_HEART, off
from halfbyte.checks.trial import (
    Gradient,
    Trial,
    ending,
    gradients_apart,
    length,
    supervised_of,
)
from halfbyte.errors import HalfbyteError
from halfbyte.train.step import StepResult

PLACES_KEPT = 32
"""A layer keeps about so many times its input for the backward pass; a row so much shorter fits where all is kept."""
RATE = 1e-4
"""Not the run's, which may be as small as to be rounded away in two steps: what is looked at is what moves, not how far."""


# Gradients


class Watched(torch.optim.Optimizer):
    """Takes the gradient that a step hands over, and changes nothing."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(list(trial.trained.values()), {"lr": 0.0})
        self.trial = trial
        self.seen: Gradient = {}
        self.base_has: list[str] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen = self.trial.gradient()
        self.base_has = [name for name, one in self.trial.model.named_parameters() if name not in self.trial.trained and one.grad is not None]


def accumulation(trial: Trial) -> str:
    """One gradient, one loss, one count, however rows fall into micro-batches; and those of a last, smaller step are its own rows'."""
    if trial.draws_in_training:
        raise NotHere("the base draws random numbers in training, so that no two passes are one thing")
    subject, reference = trial.subject, trial.reference
    if (lowest := min(reference.loss, reference.last_loss)) < BY_HEART:
        raise NotHere(f"the loss is {lowest:.1g} a token: the model knows rows by heart, and their gradients are as small as rounding")
    worst, clips = 0.0, []
    ways = [
        ("+".join("1" for _ in trial.rows), [[row] for row in trial.rows], reference.gradient, reference.loss, reference.supervised),
        ("+".join(str(len(rows)) for rows in trial.together), trial.together, reference.gradient, reference.loss, reference.supervised),
        ("a last step of 1", [[trial.rows[-1]]], reference.last_gradient, reference.last_loss, reference.last_supervised),
    ]
    with trial.in_training():
        for name, way, gradient, mean, supervised in ways:
            optimizer = Watched(trial)
            result = subject.step(trial.model, [trial.batch(rows) for rows in way], optimizer)
            if result.skipped:
                raise NotHere("a float16 gradient overflowed, and the step was left out as it should be")
            _counted(name, result, supervised, sum(len(row.ids) for rows in way for row in rows))
            if optimizer.base_has:
                raise Refuted(f"{optimizer.base_has[0]} of the base gets a gradient", "the base is not frozen", "train the adapter alone")
            if not off(result.loss, mean) <= trial.tolerance.loss:
                raise Refuted(*_uneven(f"{name}: the loss is {result.loss:.6g}, by its definition {mean:.6g}"))
            size, taken = length(gradient), length(optimizer.seen)
            if not abs(result.grad_norm - size) <= trial.tolerance.gradient * size:
                raise Refuted(*_uneven(f"{name}: the gradient's length is {result.grad_norm:.6g}, by its definition {size:.6g}"))
            if not taken > 0:
                raise Refuted(f"{name}: no gradient reaches the optimizer", "gradients are cleared before the update", "clear them after the update")
            if taken > size * (1 + trial.tolerance.gradient):
                raise Refuted(*_uneven(f"{name}: the gradient has grown from {size:.4g} to {taken:.4g}"))
            limit = subject.max_norm
            if limit is not None and abs(taken - min(size, limit)) > trial.tolerance.gradient * min(size, limit):
                raise Refuted(
                    f"{name}: a gradient of length {size:.4g} reaches the optimizer with {taken:.4g}, train.max_grad_norm is {limit:g}",
                    "gradients are cut to another length, or before they are whole", "scale the whole gradient to train.max_grad_norm where it is longer",
                )  # fmt: skip
            clips += [taken] if taken < size * (1 - trial.tolerance.gradient) else []
            scaled = {key: value * (size / taken) for key, value in optimizer.seen.items()}
            differs, where = gradients_apart(scaled, gradient)
            if not differs <= trial.tolerance.gradient * (1 if trial.subject.dtype == torch.float32 else 3):
                raise Refuted(*_uneven(f"{name}: the gradient of {where} is {differs:.2g} of its length from its definition"))
            worst = max(worst, differs)
            if any(one.grad is not None and bool(one.grad.any()) for one in trial.trained.values()):
                raise Refuted("gradients are left after the step", "they are not cleared, so each step adds those before it", "clear them after the update")
    if clips and max(clips) > min(clips) * (1 + 2 * trial.tolerance.gradient):
        raise Refuted(*_uneven(f"gradients are cut to lengths from {min(clips):.4g} to {max(clips):.4g}"))
    counts = [supervised_of(row) for row in trial.rows]
    seen = f"rows as {ways[0][0]}, as {ways[1][0]}, and {ways[2][0]}, {min(counts)} to {max(counts)} supervised tokens each"
    return f"{seen}: gradients {worst:.1g} from the definition"


def _counted(name: str, result: StepResult, supervised: int, tokens: int) -> None:
    if result.supervised != supervised or result.tokens != tokens:
        raise Refuted(
            f"{name}: a step tells of {result.supervised} supervised of {result.tokens} tokens, there are {supervised} of {tokens}",
            "padding or prompts are counted",
            "count what is labelled, and tokens without padding",
        )  # fmt: skip


def _uneven(seen: str) -> tuple[str, str, str]:
    return (
        seen,
        "each micro-batch is averaged by itself, or divided by another number than its own step's",
        "divide the sum by the supervised tokens of the step",
    )


def recomputation(trial: Trial) -> str:
    """With the same dropout, too; stirred, because the gradient of A is zero while B is."""
    trial.stir()
    try:
        return _recomputed(trial)
    finally:
        trial.put_values_back()


def _recomputed(trial: Trial) -> str:
    subject = trial.subject
    keeps_all = not any(getattr(layer, "gradient_checkpointing", False) for layer in trial.layers)
    row = trial.rows[-1] if keeps_all else ending(trial.rows[-1], max(4, trial.room // PLACES_KEPT))
    batch = trial.batch([row]).to(trial.device)
    found: list[tuple[float, Gradient, int]] = []
    calls = 0

    def count(layer: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1

    inner = [module for module in trial.layers[0].modules() if module is not trial.layers[0]]
    before = [getattr(layer, "gradient_checkpointing", False) for layer in trial.layers]
    for on in (False, True):
        calls = 0
        with trial.in_training(dropout=True), subject.recompute(trial.model, on):
            hook = inner[0].register_forward_pre_hook(count)
            try:
                torch.manual_seed(0)
                value = subject.loss(subject.logits(trial.model, batch), batch.labels)
                value.backward()
            finally:
                hook.remove()
            found.append((float(value.detach()), trial.gradient(), calls))
    if [getattr(layer, "gradient_checkpointing", False) for layer in trial.layers] != before:
        raise Refuted("recomputation stays switched when it should not", "it is not put back", "put it back")
    (kept_loss, kept_gradient, once), (again_loss, again_gradient, twice) = found
    differs, where = gradients_apart(again_gradient, kept_gradient)
    missing = [name for name in kept_gradient if kept_gradient[name].any() and not again_gradient[name].any()]
    hint = "recompute with non-reentrant checkpoints, whose inputs need no gradient"
    if missing:
        raise Refuted(f"recomputed, {len(missing)} adapters get no gradient, the first is {missing[0]}", "reentrant checkpoints behind frozen embeddings", hint)
    if not off(again_loss, kept_loss, supervised_of(row)) <= trial.tolerance.loss or not differs <= 3 * trial.tolerance.gradient:
        seen = f"recomputed, the loss is {again_loss:.6g} for {kept_loss:.6g}, the gradient of {where} {differs:.2g} of its length away"
        raise Refuted(seen, "the second run is not the first: dropout drawn anew, or weights exchanged between", hint)
    if twice <= once and once < 2:
        raise NotHere("no layer of this base is recomputed")
    return f"with it and without, over {len(row.ids)} tokens: gradients {differs:.1g} apart, losses {abs(again_loss - kept_loss):.1g}"


# The first steps


def first_steps(trial: Trial) -> str:
    """Two steps with the run's optimizer: every adapter has a gradient by then (while B is zero, A's is zero), all of them moved, and nothing else did.

    Of adapters on modules that the rows never reach, as a tower for pictures or an expert that no token goes to, only the number is told.
    """
    subject, model = trial.subject, trial.model
    optimizer = subject.make_optimizer(model)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if {id(one) for one in held} != {id(one) for one in trial.trained.values()} or len(held) != len(trial.trained):
        strange = sum(id(one) not in names for one in held)
        raise Refuted(
            f"the optimizer holds {len(held)} tensors, {strange} of them not the model's; {len(trial.trained)} are trained",
            "the optimizer was made for other tensors than the model's", "make the optimizer from the model as it is trained, once all is in its place",
        )  # fmt: skip
    decays = {group.get("weight_decay") for group in optimizer.param_groups}
    if subject.weight_decay is not None and decays != {subject.weight_decay}:
        seen = f"the optimizer decays weights by {sorted(map(str, decays))}, the recipe asks for {subject.weight_decay:g}"
        raise Refuted(seen, "train.weight_decay does not reach the optimizer", "hand it to every group")
    reference = trial.reference.gradient
    if trial.reference.loss < BY_HEART and not length(reference):
        raise NotHere("the model knows these rows by heart to the last digit: there is no gradient to follow")
    before = fingerprints(trial)
    batches = [trial.batch([row]) for row in trial.rows]
    try:
        with trial.in_training(), _gradients_seen(trial) as reached:
            for group in optimizer.param_groups:
                group["lr"] = RATE
            with _modules_run(trial) as first_run:
                results = [subject.step(model, batches, optimizer)]
            against = sum(float(((one.detach().cpu() - trial.values[name]) * reference[name]).sum()) for name, one in trial.trained.items())
            with _modules_run(trial) as second_run:
                results.append(subject.step(model, batches, optimizer))
        if any(result.skipped for result in results):
            raise NotHere("a float16 gradient overflowed, and the step was left out as it should be")
        alive = {name for name in trial.trained if bool(reached.get(name, False))}
        idle = _idle(trial, first_run & second_run, alive)
        dead = [name for name in trial.trained if name not in alive and name not in idle]
        if dead:
            seen = f"{len(dead)} of {len(trial.trained)} tensors of the adapter have no gradient after two steps, the first is {dead[0]}"
            raise Refuted(seen, *_why_dead(trial, dead))
        still = [name for name, one in trial.trained.items() if name not in idle and torch.equal(one.detach().cpu(), trial.values[name])]
        if still:
            seen = f"{len(still)} of {len(trial.trained)} tensors of the adapter did not move in two steps, the first is {still[0]}"
            raise Refuted(seen, "the optimizer does not hold them, or their updates are rounded away", "keep what is trained in float32, in the optimizer")
        if any(not bool(one.isfinite().all()) for one in trial.trained.values()):
            raise Refuted("after two steps an adapter is not finite", "the learning rate is too high", "lower train.learning_rate")
        after = fingerprints(trial)
        moved = [name for name in before if before[name][0] != after.get(name, (None, 0))[0]]
        if moved:
            raise Refuted(f"{len(moved)} tensors of the base moved, the first is {moved[0]}", "the base is not frozen", "train the adapter alone")
        if not against < 0:
            raise Refuted("the first step goes along its gradient, not against it", "the sign of the loss or of the update is wrong", "minimise the loss")
        losses = f"loss {results[0].loss:.4f}, then {results[1].loss:.4f}"
        reaches = f" ({len(idle)} are on modules that these rows do not reach, the first is {min(idle)})" if idle else ""
        return f"2 steps moved {len(trial.trained) - len(idle)} of {len(trial.trained)} adapters{reaches} and 0 of {len(before):,} other tensors; {losses}"
    finally:
        trial.put_values_back()


@contextmanager
def _gradients_seen(trial: Trial) -> Iterator[dict[str, Tensor]]:
    """By name, whether a gradient other than zero has arrived."""
    seen: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if parameter.grad is not None:
                now = parameter.grad.detach().any()
                seen[name] = now if name not in seen else seen[name] | now

        return look

    hooks = [parameter.register_post_accumulate_grad_hook(hook_for(name)) for name, parameter in trial.trained.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


OF_AN_ADAPTER = re.compile(r"\.(lora_|modules_to_save|trainable_tokens)")
OF_AN_EXPERT = re.compile(r"(experts?)\.\d+\.")


@contextmanager
def _modules_run(trial: Trial) -> Iterator[set[str]]:
    """Names of the modules with adapters, and of the layers, that ran."""
    ran: set[str] = set()

    def hook_for(name: str) -> Any:
        def look(module: nn.Module, inputs: Any) -> None:
            ran.add(name)

        return look

    owners = {_owner(name) for name in trial.trained}
    layers = {id(layer) for layer in trial.layers}
    hooks = [module.register_forward_pre_hook(hook_for(name)) for name, module in trial.model.named_modules() if name in owners or id(module) in layers]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def _owner(name: str) -> str:
    """Of a trained tensor, the module that it adapts."""
    return OF_AN_ADAPTER.split(name, maxsplit=1)[0]


def _idle(trial: Trial, ran: set[str], alive: set[str]) -> set[str]:
    """Trained tensors that may have no gradient: their module did not run, though the layer that it is in did. Of a list of experts it is enough that one
    has a gradient: what the others are given may be tokens that nothing is learned from. Embedding and head are in every pass."""
    always = {id(trial.model.get_input_embeddings()), id(trial.model.get_output_embeddings())}
    names = {id(module): name for name, module in trial.model.named_modules()}
    skipped = [f"{names[id(layer)]}." for layer in trial.layers if names[id(layer)] not in ran]
    experts = {OF_AN_EXPERT.sub(r"\1.*.", name) for name in alive if OF_AN_EXPERT.search(name)}
    idle = set()
    for name in trial.trained.keys() - alive:
        owner = _owner(name)
        rests = owner not in ran and id(trial.model.get_submodule(owner)) not in always and not any(name.startswith(layer) for layer in skipped)
        if rests or OF_AN_EXPERT.sub(r"\1.*.", name) in experts:
            idle.add(name)
    return idle


def _why_dead(trial: Trial, dead: list[str]) -> tuple[str, str]:
    """Cause and mend. A base that was never trained may multiply what goes into a module by zeros, as Gemma 3n does before its weights are learned: an
    adapter on it could never learn, for the base is frozen."""
    given: dict[str, bool] = {}

    def hook_for(name: str) -> Any:
        def look(module: nn.Module, inputs: Any) -> None:
            given[name] = given.get(name, False) or not inputs or not inputs[0].is_floating_point() or bool(inputs[0].any())

        return look

    owners = list(dict.fromkeys(_owner(name) for name in dead))
    hooks = [trial.model.get_submodule(owner).register_forward_pre_hook(hook_for(owner)) for owner in owners]
    try:
        trial.alone(trial.rows[-1])
    finally:
        for hook in hooks:
            hook.remove()
    starved = [owner for owner in owners if not given.get(owner, True)]
    if not starved:
        return "what stands between it and the loss passes no gradient on", "look at adapter.target_modules and train.gradient_checkpointing"
    names = {id(module): name for name, module in trial.model.named_modules()}
    layer = next((layer for layer in trial.layers if starved[0].startswith(f"{names[id(layer)]}.")), trial.model)
    zeros = [
        name for name, one in layer.named_parameters()
        if not one.requires_grad and one.is_floating_point() and one.device.type != "meta" and not name.endswith("bias") and not bool(one.any())
    ]  # fmt: skip
    because = f", as {zeros[0]} of its layer is" if zeros else ""
    modules = ", ".join(sorted({owner.rpartition(".")[2] for owner in owners}))
    return (
        f"{starved[0].removeprefix('base_model.model.')} is given zeros alone{because}",
        f"give a base that was trained, or adapter.target_modules without {modules}",
    )


def not_finite(trial: Trial) -> str:
    """A step whose loss is not finite stops before the update."""
    subject = trial.subject
    name, parameter = next(iter(trial.trained.items()))
    optimizer = Watched(trial)
    try:
        with trial.in_training():
            with torch.no_grad():
                parameter.fill_(float("nan"))
            try:
                result = subject.step(trial.model, [trial.batch([trial.rows[0]])], optimizer)
            except HalfbyteError as error:
                if optimizer.seen:
                    raise Refuted("the update was made before the loss was looked at", "the check comes too late", "look at loss and gradient first") from error
                return f"with NaN in {name.removeprefix('base_model.model.').removesuffix('.default.weight')} a step stops before the update"
        seen = f"with NaN in {name} a step went on, with a loss of {result.loss:g}"
        raise Refuted(seen, "loss and gradient are not looked at", "stop where either is not finite")
    finally:
        trial.put_values_back()


OF_STEPS = [
    Claim("accumulation", accumulation, "the step", "divide the sum by the supervised tokens of the step"),
    Claim("recomputation", recomputation, "recomputation", "set train.gradient_checkpointing=false"),
    Claim("first steps", first_steps, "the optimizer or the step", "make the optimizer from the model as it is trained"),
    Claim("no update on NaN", not_finite, "the step", "stop where loss or gradient are not finite"),
]
