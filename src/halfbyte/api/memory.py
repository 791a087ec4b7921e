"""Where the memory plan meets the run: what there is, how the step is computed in it, the base put into place, and what the run took."""

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halfbyte.budget.choose import DRIVER_BYTES, smallest_way
from halfbyte.budget.fast_choose import usual_seconds
from halfbyte.budget.fast_fit import FP8_CANNOT, FP8_HINT, why_not_fp8, why_plain
from halfbyte.budget.fast_sizes import FP8_CAPABILITY
from halfbyte.budget.forecast import Forecast, Target, ask, make_forecast, predict_on_cpu, rates_for, read_bytes, refuse
from halfbyte.budget.history import Taken, calibrated, measured_on_cpu, name_of, recall, remember, taken_by
from halfbyte.budget.phases import host_bytes, loads_on_gpu
from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import effort_of, origin_of, step_seconds
from halfbyte.budget.shape import LAYER_KEYS, read_shape
from halfbyte.budget.step import Work
from halfbyte.data.batches import row_lengths
from halfbyte.data.prepare import Prepared
from halfbyte.errors import ModelError
from halfbyte.model.adapter import add_adapter, load_adapter
from halfbyte.model.base import Base
from halfbyte.model.load import Loaded, load_base
from halfbyte.model.machine import (
    MOST_DRIVER_BYTES,
    begin_phase,
    driver_bytes,
    free_bytes,
    held_bytes,
    memory_limit_bytes,
    others_bytes,
    peak_bytes,
    torch_device,
)
from halfbyte.model.neighbours import tell_neighbours
from halfbyte.model.placement import keep_in_16bit, limit_memory, place_layers
from halfbyte.model.precision import DTYPES
from halfbyte.recipe.plan import Computing, Decision, Machine, Placement, Plan, as_asked
from halfbyte.recipe.schema import Recipe
from halfbyte.runs.events import Event
from halfbyte.runs.words import size
from halfbyte.train.ways import why_not_fast

if TYPE_CHECKING:
    from peft import PeftModel

SETTLED_AFTER = 3
"""Steps: the first ones make kernels and the optimizer's state."""


@dataclass(frozen=True)
class Memory:
    """How the run is computed. `forecast` is None on a CPU, and for a base whose config says too little."""

    computing: Computing
    forecast: Forecast | None
    notes: list[str]
    pages: bool = False
    held_bytes: int = 0
    """By what this process had on the GPU before, such as a model that a notebook still talks to."""
    on_cpu: tuple[Work, int] | None = None
    """Without a GPU: a usual step, and the bytes that are predicted before anything was learned."""


def plan_memory(recipe: Recipe, base: Base, machine: Machine, prepared: Prepared, evaluate_tokens: int = 0, training: bool = True) -> Memory:
    """evaluate_tokens: of the longest text beside the data that is evaluated. Raises MachineError, with the cheapest change that helps, where nothing fits.

    Without `training`, a base that is too large to be trained has all its layers in the computer's memory.
    """
    if machine.device == "cpu":
        return _on_cpu(recipe, base, machine, prepared)
    longest, mean = _lengths(prepared)
    packed = recipe.data.packing != "none"
    try:
        family = read_shape(base.config, base.name).family
    except ModelError as error:
        return _unplanned(recipe, base, error)
    target, notes = _target_here(recipe, machine, family)
    alike = not packed and bool((row_lengths(prepared.train) == longest).all())
    forecast = make_forecast(recipe, base.config, target, longest, packed, evaluate_tokens, alike)
    choice = forecast.choice
    if choice is None and training:
        refused = refuse(forecast, recipe)
        if others := others_bytes():
            refused.hint = f"{tell_neighbours(others, os.getpid())}: end them; or {refused.hint}"
        raise refused
    if choice is None:
        work = replace(ask(recipe, base.config, longest, packed).work, rows=1)
        layers = smallest_way(work).placements(work.shape.layers)
        told = "too large to be trained here: measured with its layers in the computer's memory"
        return Memory(Computing(1, 1, layers, 1, load_on_cpu=True), None, [*notes, told])
    if choice.path == "fast":
        seconds = usual_seconds(choice, mean, target.bounds, alike)
    else:
        usual = replace(choice.work, tokens=mean)
        peak = training_peak(usual)
        seconds = step_seconds(effort_of(usual, peak.launches, peak.written_bytes), target.rates)
    computing = Computing(
        choice.way.rows, choice.accumulation, choice.work.layers, forecast.evaluate_rows, load_on_cpu=not loads_on_gpu(choice.loaded, target.bounds),
        limit_bytes=target.budget_bytes - target.driver_bytes if recipe.memory_budget else None,
        predicted_bytes=forecast.predicted_bytes, predicted_step_seconds=seconds, chosen=True,
        path=choice.path, plain_because=forecast.plain_because, record=choice.record, tight=choice.one_buffer,
        fp8=choice.fp8,
    )  # fmt: skip
    host, room = sum(host_bytes(choice.work).values()) + choice.host_bytes, memory_limit_bytes()
    if host > room:
        notes = [*notes, f"layers that are away need {size(host)} of the computer's memory, which has {size(room)}: it may run out"]
    pages = recipe.train.optimizer == "auto" and choice.work.optimizer.startswith("paged")
    return Memory(computing, forecast, [*notes, *forecast.notes], pages, held_bytes(machine.device))


def _unplanned(recipe: Recipe, base: Base, error: ModelError) -> Memory:
    """For a config that says too little: rows as the recipe has them, every layer recomputed unless it says otherwise."""
    train = recipe.train
    if train.gradient_checkpointing is None:
        train = train.model_copy(update={"gradient_checkpointing": True})
    layers = next((int(base.config[key]) for key in LAYER_KEYS if isinstance(base.config.get(key), int)), 0)
    computing = as_asked(train, recipe.evaluate.batch_size or 2 * train.batch_size, layers)
    limit = read_bytes(recipe.memory_budget) - DRIVER_BYTES if recipe.memory_budget else None
    return Memory(replace(computing, limit_bytes=limit), None, [f"memory is not planned: {error.message}"])


def _lengths(prepared: Prepared) -> tuple[int, int]:
    """Tokens of the longest row of all, and of a usual training row."""
    lengths = [row_lengths(rows) for rows in (prepared.train, prepared.validation, prepared.test) if len(rows)]
    return int(max(part.max() for part in lengths)), max(2, round(float(row_lengths(prepared.train).mean())))


def _on_cpu(recipe: Recipe, base: Base, machine: Machine, prepared: Prepared) -> Memory:
    """Nothing is chosen. What it will take is a rough figure, which earlier runs of the same shape put right; time is told by them alone."""
    notes = [f"memory_budget {recipe.memory_budget} is for a GPU's memory: nothing is limited here"] if recipe.memory_budget else []
    try:
        shape = read_shape(base.config, base.name)
    except ModelError as error:
        return Memory(as_asked(recipe.train, recipe.evaluate.batch_size, 0), None, [*notes, f"memory is not predicted: {error.message}"])
    longest, mean = _lengths(prepared)
    computing = _path_on_cpu(as_asked(recipe.train, recipe.evaluate.batch_size, shape.layers), recipe, base)
    raw = predict_on_cpu(recipe, base.config, computing, longest)
    rows, times = computing.micro_batch_size, computing.gradient_accumulation_steps
    usual = replace(ask(recipe, base.config, mean).work, rows=rows, accumulation=times, layers=computing.layers)
    known = measured_on_cpu(recall(machine.name), shape)
    seconds = effort_of(usual, 0, 0).product_flops / known.product_flops if known.product_flops else None
    computing = replace(computing, predicted_bytes=int(raw * known.memory_ratio), predicted_step_seconds=seconds)
    return Memory(computing, None, notes, on_cpu=(usual, raw))


def _path_on_cpu(computing: Computing, recipe: Recipe, base: Base) -> Computing:
    """The fast path in plain PyTorch, where it is asked for. Raises ModelError where it cannot be taken."""
    precision = "float32" if recipe.train.precision == "auto" else recipe.train.precision
    reason = why_plain(recipe, base.config, precision, on_gpu=False)
    fp8 = recipe.train.compute == "fp8"
    if fp8 and (cannot := why_not_fp8(recipe, base.config, precision, on_gpu=False, has_fp8=False, plain_because=reason)):
        raise ModelError(FP8_CANNOT.format(cannot), hint=FP8_HINT)
    if recipe.train.fast_path != "on":
        return computing
    if reason:
        raise ModelError(f"train.fast_path is on, and it cannot be taken: {reason}", hint="train.fast_path=auto takes the plain path then")
    return replace(computing, path="fast", fp8=fp8)


def _target_here(recipe: Recipe, machine: Machine, family: str) -> tuple[Target, list[str]]:
    """This GPU, as far as it is free and the recipe lets it be used, with what earlier runs on it took."""
    free = free_bytes()
    asked = read_bytes(recipe.memory_budget) if recipe.memory_budget else free
    gpu, rates = rates_for(machine.name, machine.memory_bytes)
    history = recall(machine.name)
    is_old = machine.capability is not None and machine.capability < (8, 0)
    here = Target(
        machine.name, min(free, asked), rates, origin_of(gpu), is_old=is_old, host_bytes=memory_limit_bytes() // 2, hopper=machine.capability == (9, 0),
        has_fp8=machine.capability is not None and machine.capability >= FP8_CAPABILITY,
    )  # fmt: skip
    target = calibrated(here, history, family)
    less = [f"memory_budget {recipe.memory_budget}: only {free / 1e9:.1f} GB are free now"] if asked > free else []
    others = others_bytes()
    beside = [tell_neighbours(others, os.getpid())] if others else []
    return target, [*history.notes, *less, *beside]


@contextmanager
def within_budget(machine: Machine, computing: Computing) -> Iterator[None]:
    """Inside, PyTorch takes no more than the recipe's budget leaves it, beside what it held before."""
    if computing.limit_bytes is None:
        yield
        return
    with limit_memory(torch_device(machine), computing.limit_bytes + held_bytes(machine.device)):
        yield


def load_for(recipe: Recipe, base: Base, machine: Machine, plan: Plan) -> Loaded:
    """The base, where it can be loaded, with the layers that the plan keeps in 16 bits."""
    device = torch.device("cpu") if plan.computing.load_on_cpu else torch_device(machine)
    begin_phase(machine.device)
    loaded = load_base(base, recipe.quant, plan.precision, device)
    if plan.computing.layers and plan.computing.path == "plain":  # the fast path keeps 16-bit weights in buffers of its own
        keep_in_16bit(loaded.model, plan.computing.layers, DTYPES[plan.precision])
    return loaded


def adapt_new(loaded: Loaded, recipe: Recipe, machine: Machine, plan: Plan) -> tuple["PeftModel", Decision]:
    """With a new adapter, every layer in its place."""
    model, decision = add_adapter(loaded.model, recipe.adapter, recipe.seed)
    _place(model, machine, plan)
    if plan.computing.fp8 and (reason := why_not_fast(model, DTYPES[plan.precision], fp8=True)):
        raise ModelError(FP8_CANNOT.format(reason), hint=FP8_HINT)
    if recipe.train.fast_path == "on" and (reason := why_not_fast(model, DTYPES[plan.precision])):
        raise ModelError(f"train.fast_path is on, and it cannot be taken: {reason}", hint="train.fast_path=auto takes the plain path then")
    return model, decision


def adapt_saved(loaded: Loaded, path: str, machine: Machine, plan: Plan) -> "PeftModel":
    """With the adapter of a run, every layer in its place."""
    model = load_adapter(loaded.model, path)
    _place(model, machine, plan)
    return model.eval()


def _place(model: nn.Module, machine: Machine, plan: Plan) -> None:
    layers = plan.computing.layers
    if plan.computing.path == "fast":  # what is evaluated and proven goes through the model as it was loaded, in as little memory as it can
        layers = (Placement(activations="recomputed"),) * len(layers)
    if layers:
        place_layers(model, layers, torch_device(machine))


def tell_peak(log: Callable[[Event], None], phase: str, machine: Machine) -> None:
    """Logs what the phase took, and begins the next."""
    log({"event": "memory", "phase": phase, "peak_bytes": peak_bytes(machine.device)})
    begin_phase(machine.device)


def learn(memory: Memory, machine: Machine, steps: list[Event]) -> list[str]:
    """Keeps what the steps took beside what was predicted, for the next plan on this machine; the notes of whatever could not be kept."""
    forecast, settled = memory.forecast, steps[SETTLED_AFTER:]
    if forecast is None or forecast.choice is None or not settled:
        return []
    choice, driver = forecast.choice, driver_bytes()
    seconds = statistics.median(event["tokens"] / event["tokens_per_second"] for event in settled)
    tokens = statistics.median(event["tokens"] for event in settled) / (choice.way.rows * choice.accumulation)
    measured = peak_bytes(machine.device) - driver - memory.held_bytes
    known = 0 if choice.work.optimizer.startswith("paged") or driver >= MOST_DRIVER_BYTES else driver  # paged state lies there too, and other programs
    return remember(machine.name, taken_by(choice, forecast.target, measured, known, seconds, tokens)).notes


def learn_on_cpu(memory: Memory, machine: Machine, steps: list[Event]) -> list[str]:
    """The same without a GPU, at the end of a run: resident memory knows no phases."""
    settled = steps[SETTLED_AFTER:]
    if memory.on_cpu is None or not settled:
        return []
    usual, raw = memory.on_cpu
    tokens = statistics.median(event["tokens"] for event in settled) / (usual.rows * usual.accumulation)
    seconds = statistics.median(event["tokens"] / event["tokens_per_second"] for event in settled)
    effort = effort_of(replace(usual, tokens=max(1, round(tokens))), 0, 0)
    told = memory.computing.predicted_step_seconds or seconds
    taken = Taken(
        name_of(usual.shape), usual.rows, usual.accumulation, usual.tokens, "as the recipe has it", raw, peak_bytes(machine.device), 0, told, seconds, effort
    )  # fmt: skip
    return remember(machine.name, taken).notes


def learn_that_it_ran_out(memory: Memory, machine: Machine) -> None:
    """Training needed more than what PyTorch held when it was refused more: the next plan asks for that and a little."""
    forecast = memory.forecast
    if forecast is not None and forecast.choice is not None:
        driver = driver_bytes()
        held = peak_bytes(machine.device) - driver - memory.held_bytes
        remember(machine.name, taken_by(forecast.choice, forecast.target, held, driver, 0.0, ran_out=True))


def what_would_fit(recipe: Recipe, base: Base, machine: Machine, prepared: Prepared, memory: Memory) -> str:
    """After a run for which nothing was left that could give way. On a GPU the next plan has learned from it, and says whether it fits, or what would."""
    longest, _ = _lengths(prepared)
    shorter = f"data.max_length={max(64, longest // 2)}"
    if machine.device == "cpu":
        same = "train.batch_size=1 train.gradient_accumulation_steps=... and train.gradient_checkpointing=true give the same step in less"
        return f"{same}; {shorter} or a smaller base take less still"
    before = memory.forecast
    if before is None:
        return f"{shorter}, or leave room: memory_budget={0.9 * machine.memory_bytes / 1e9:.0f}GB"
    learned = calibrated(before.target, recall(machine.name), before.shape.family)
    target = replace(before.target, memory_factor=learned.memory_factor, driver_bytes=learned.driver_bytes)
    again = make_forecast(recipe, base.config, target, longest, recipe.data.packing != "none")
    if again.choice is not None:
        return f"the next plan has learned from this: {again.choice.way.rows} at a time, {again.choice.told()} ({size(again.choice.peak_bytes)})"
    return refuse(again, recipe).hint


def memory_as_json(memory: Memory) -> dict[str, Any]:
    """What plan.json keeps: what was predicted, what was weighed."""
    computing, forecast = memory.computing, memory.forecast
    found: dict[str, Any] = {"predicted_bytes": computing.predicted_bytes, "predicted_step_seconds": computing.predicted_step_seconds}
    return found if forecast is None or forecast.choice is None else found | {"memory": forecast.as_json()}
