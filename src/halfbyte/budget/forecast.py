"""The memory plan of a recipe, from its base's config.json alone: no weights, no data, no GPU, no torch. Read `make_forecast` first."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halfbyte.budget.choose import DRIVER_BYTES, Bounds, Choice, choose_way, smallest, tightest
from halfbyte.budget.fast_choose import FastRun, fast_ways
from halfbyte.budget.fast_fit import FP8_CANNOT, FP8_HINT, why_not_fp8, why_plain
from halfbyte.budget.phases import Phase, evaluation_fits, looking_bytes, phases_of, rows_that_fit
from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import GPUS, Gpu, Rates, known_gpu, origin_of, rates_of, typical_gpu
from halfbyte.budget.shape import Shape, read_shape
from halfbyte.budget.step import Work
from halfbyte.errors import MachineError, ModelError, RecipeError
from halfbyte.recipe.amounts import read_amount
from halfbyte.recipe.plan import Computing
from halfbyte.recipe.schema import Adapter, Recipe
from halfbyte.runs.words import size

SHORTEST = 64
"""Tokens: rows are not proposed to be shorter than this."""


HOST_BYTES = 16_000_000_000
"""Of a computer that is not here, what its GPU may use."""


@dataclass(frozen=True)
class Target:
    """The GPU that is planned for."""

    name: str
    budget_bytes: int
    """What may be used of its memory, driver included."""
    rates: Rates
    rates_from: str
    """Where the rates come from, in words."""
    driver_bytes: int = DRIVER_BYTES
    memory_factor: float = 1.0
    is_old: bool = False
    """Before compute capability 8.0."""
    host_bytes: int = HOST_BYTES
    """Of the computer's memory, that what is parked may take."""
    hopper: bool = True
    """Compute capability 9.0."""
    has_fp8: bool = True
    """Compute capability 8.9 or more."""

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.budget_bytes, self.rates, self.driver_bytes, self.memory_factor)


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for, as far as memory and time depend on it."""

    work: Work
    effective_rows: int
    checkpointing: bool | None
    optimizer_is_free: bool
    evaluate_rows: int | None
    new_tokens: int
    paths: tuple[str, ...] = ("plain",)
    alike: bool = False
    """Whether all rows are of one length, each a document."""
    fp8: bool = False


@dataclass(frozen=True)
class Change:
    """Keys that make a recipe fit, and what it then takes. `keys` is written as on the command line."""

    keys: str
    peak_bytes: int
    step_seconds: float


@dataclass(frozen=True)
class Forecast:
    """`choice` is None where nothing fits; then `change` is the cheapest change that does, if there is one."""

    target: Target
    shape: Shape
    choice: Choice | None
    considered: list[Choice]
    phases: list[Phase]
    evaluate_rows: int
    change: Change | None
    notes: list[str] = field(default_factory=list)
    plain_because: str | None = None
    """Why the fast path is not taken."""

    @property
    def predicted_bytes(self) -> int | None:
        """Of the whole run: the highest of its phases before merging."""
        return max((phase.peak_bytes for phase in self.phases if phase.name != "merge"), default=None)

    def as_json(self) -> dict[str, Any]:
        """What was weighed and chosen, in bytes and seconds."""
        target = self.target
        return {
            "gpu": target.name, "budget_bytes": target.budget_bytes, "driver_bytes": target.driver_bytes, "rates_from": target.rates_from,
            "chosen": self.choice.as_json() if self.choice else None, "considered": [one.as_json() for one in self.considered],
            "phases": [{"name": phase.name, "peak_bytes": phase.peak_bytes, "told": phase.told} for phase in self.phases],
        }  # fmt: skip


def read_bytes(text: str, key: str = "memory_budget") -> int:
    """As read_amount. Raises RecipeError."""
    try:
        return read_amount(text)
    except ValueError as error:
        raise RecipeError(f"{key}: {text!r} is no amount of memory", hint="write it with its unit: 24GB, 7.5GB or 16GiB") from error


def target_of(words: str) -> Target:
    """`24GB`, or the name of a GPU such as `RTX 4090`. Raises RecipeError."""
    gpu = known_gpu(words)
    if gpu is not None:
        return Target(gpu.name, int(gpu.memory_gb * 1e9), rates_of(gpu), origin_of(gpu), is_old=gpu.is_old, has_fp8=gpu.has_fp8)
    if re.match(r"\s*[-\d.,]+\s*([kmgt]i?)?b?\s*$", words, re.IGNORECASE):
        budget = read_bytes(words, "--gpu")
        gpu = typical_gpu(budget / 1e9)
        return Target(words.strip(), budget, rates_of(gpu), origin_of(gpu), has_fp8=gpu.has_fp8)
    known = ", ".join(one.name for one in GPUS)
    raise RecipeError(f"--gpu: no GPU is known as {words!r}", hint=f"give its memory, such as 24GB, or one of {known}")


def rates_for(name: str, memory_bytes: int) -> tuple[Gpu, Rates]:
    """Of a GPU that is in this machine."""
    gpu = known_gpu(name) or typical_gpu(memory_bytes / 1e9)
    return gpu, rates_of(gpu)


def ask(recipe: Recipe, config: dict[str, Any], tokens: int | None = None, packed: bool | None = None) -> Asked:
    """tokens: the longest row, data.max_length when the data are not known. Raises ModelError."""
    shape = read_shape(config, recipe.base)
    saved = config.get("quantization_config")
    four_bit = bool(saved.get("load_in_4bit")) if saved else recipe.quant.kind != "none"
    double = bool(saved.get("bnb_4bit_use_double_quant")) if saved else recipe.quant.kind != "none" and recipe.quant.double_quant
    work = Work(
        shape, 1, tokens or recipe.data.max_length, (), packed=recipe.data.packing != "none" if packed is None else packed, four_bit=four_bit,
        double_quant=double, rank=recipe.adapter.r, targets=_targets(recipe.adapter, shape), dropout=recipe.adapter.dropout > 0,
        optimizer="adamw_torch" if recipe.train.optimizer == "auto" else recipe.train.optimizer,
        whole_weights=shape.vocabulary * shape.width * len(recipe.adapter.modules_to_save),
    )  # fmt: skip
    train = recipe.train
    return Asked(
        work, train.batch_size * train.gradient_accumulation_steps, train.gradient_checkpointing, train.optimizer == "auto", recipe.evaluate.batch_size,
        recipe.evaluate.max_new_tokens,
    )  # fmt: skip


def _going_on(recipe: Recipe) -> Recipe:
    """Of an adapter that the run goes on from, rank and modules are kept, whatever the recipe says. One that cannot be read is refused when it is loaded."""
    start = recipe.adapter.init_from
    files = [folder / "adapter_config.json" for folder in (Path(start) / "adapter", Path(start))] if start is not None else []
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return recipe
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        modules = kept["target_modules"]
        changes = {
            "r": int(kept["r"]), "target_modules": modules if isinstance(modules, list) else "all-linear", "dropout": float(kept["lora_dropout"]),
            "modules_to_save": kept["modules_to_save"] or [],
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return recipe
    return recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update=changes)})


def _targets(adapter: Adapter, shape: Shape) -> tuple[str, ...] | None:
    """By the last word of each name: a path that means one layer counts for all. None (all of them) where no name is known here."""
    if adapter.target_modules == "all-linear":
        return None
    wanted = {_last_word(name) for name in adapter.target_modules}
    return tuple(linear.name for linear in shape.linears if linear.name in wanted) or None


def _last_word(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def make_forecast(
    recipe: Recipe,
    config: dict[str, Any],
    target: Target,
    tokens: int | None = None,
    packed: bool | None = None,
    evaluate_tokens: int = 0,
    alike: bool = False,
) -> Forecast:
    """Chooses, prices every phase, and names the cheapest change where nothing fits. Raises ModelError for a config that says too little.

    evaluate_tokens: of the longest text that is evaluated, where it is longer than what is trained. alike: all rows are of one length.
    """
    recipe = _going_on(recipe)
    reason = why_plain(recipe, config, _precision(recipe, target), is_old=target.is_old)
    fp8 = recipe.train.compute == "fp8"
    if fp8 and (cannot := why_not_fp8(recipe, config, _precision(recipe, target), on_gpu=True, has_fp8=target.has_fp8, plain_because=reason)):
        raise ModelError(FP8_CANNOT.format(cannot), hint=FP8_HINT)
    if reason and recipe.train.fast_path == "on":
        raise ModelError(f"train.fast_path is on, and it cannot be taken: {reason}", hint="train.fast_path=auto takes the plain path then")
    paths = ("plain",) if reason else ("fast",) if fp8 or recipe.train.fast_path == "on" else ("plain", "fast")
    asked = replace(ask(recipe, config, tokens, packed), paths=paths, alike=alike, fp8=fp8)
    notes = _notes(recipe, asked.work)
    if target.is_old:
        notes.append("on GPUs before compute capability 8.0 attention is computed in another way than is simulated here: leave room")
    choice, considered = choose(asked, target)
    if choice is None:
        return Forecast(target, asked.work.shape, None, considered, [], 1, _cheapest_change(recipe, asked, target), notes)
    longest = max(evaluate_tokens, asked.work.tokens)
    if longest > asked.work.tokens and not evaluation_fits(choice, target.bounds, 1, asked.new_tokens, longest):
        # The step would fill memory that evaluation needs: it is planned as if its rows were as long.
        choice, considered = choose(replace(asked, work=replace(asked.work, tokens=longest)), target)
        if choice is None:
            change = _cheapest_change(recipe, replace(asked, work=replace(asked.work, tokens=longest)), target)
            return Forecast(target, asked.work.shape, None, considered, [], 1, change, notes)
    wanted = asked.evaluate_rows or 2 * choice.way.rows
    rows = rows_that_fit(choice, target.bounds, wanted, asked.new_tokens, longest)
    phases = phases_of(choice, target.bounds, rows, asked.new_tokens, longest)
    if rows < wanted and asked.evaluate_rows:
        notes.append(f"evaluate.batch_size {wanted} does not fit: {rows} at a time")
    if choice.path == "plain" and reason is None:
        reason = "the plain path is faster in this memory"
    return Forecast(target, asked.work.shape, choice, considered, phases, rows, None, notes, reason if choice.path == "plain" else None)


def _precision(recipe: Recipe, target: Target) -> str:
    asked = recipe.train.precision
    return asked if asked != "auto" else "float16" if target.is_old else "bfloat16"


PROCESS_BYTES = 900_000_000
"""Of a process on a CPU with its libraries, before any model (measured: 0.75 to 0.95 GB)."""


def predict_on_cpu(recipe: Recipe, config: dict[str, Any], computing: Computing, tokens: int) -> int:
    """Rough: resident memory of the process. Activations are float32, twice what is simulated; evaluation computes more rows, of which nothing is kept."""
    asked = ask(_going_on(recipe), config, tokens)
    work = replace(asked.work, rows=computing.micro_batch_size, accumulation=computing.gradient_accumulation_steps, layers=computing.layers)
    peak = training_peak(work)
    step = peak.base_bytes + 2 * (peak.allocated_bytes - peak.base_bytes)
    looking = peak.base_bytes + 2 * (looking_bytes(work, computing.evaluate_rows, tokens) - peak.base_bytes)
    return PROCESS_BYTES + max(step, looking)


def choose(asked: Asked, target: Target) -> tuple[Choice | None, list[Choice]]:
    """As choose_way. Where nothing fits and the optimizer's state is paged, or may be because the optimizer is free, the state may leave the GPU;
    and where that is not enough either, the step may be one that hands idle memory back."""
    found = _of_paths(asked, target, target.bounds)
    is_paged = asked.work.optimizer.startswith("paged")
    if found[0] is None and (is_paged or asked.optimizer_is_free):
        paged = asked.work if is_paged else replace(asked.work, optimizer="paged_adamw_32bit")
        again = _of_paths(replace(asked, work=paged), target, replace(target.bounds, paged_leaves=True))
        if again[0] is not None:
            return again
    if (
        found[0] is None
        and "plain" in asked.paths
        and asked.checkpointing is not False
        and (tight := tightest(asked.work, asked.effective_rows, target.bounds)) is not None
    ):
        return tight, [*found[1], tight]
    return found


def _of_paths(asked: Asked, target: Target, bounds: Bounds) -> tuple[Choice | None, list[Choice]]:
    """The fastest of what fits on the paths that may be taken, and all that was weighed."""
    best, shown = choose_way(asked.work, asked.effective_rows, bounds, asked.checkpointing) if "plain" in asked.paths else (None, [])
    if "fast" not in asked.paths:
        return best, shown
    run = FastRun(asked.work, asked.effective_rows, asked.checkpointing, asked.alike, target.hopper, target.host_bytes, asked.fp8)
    fast = [choice if evaluation_fits(choice, bounds, 1, asked.new_tokens) else replace(choice, fits=False) for choice in fast_ways(run, bounds)]
    fitting = [choice for choice in (best, *fast) if choice is not None and choice.fits]
    return min(fitting, key=lambda choice: choice.step_seconds, default=None), [*shown, *fast]


def _cheapest_change(recipe: Recipe, asked: Asked, target: Target) -> Change | None:
    """The first of these that fits: 4 bits, recomputing, both; an 8-bit optimizer, a smaller rank; shorter rows, in 4 bits and recomputed."""
    ways: list[tuple[str, Asked]] = []
    lean, beside = asked, ""
    if not asked.work.four_bit:
        lean, beside = replace(asked, work=replace(asked.work, four_bit=True, double_quant=True)), "quant.kind=nf4 "
        ways.append(("quant.kind=nf4", lean))
    if asked.checkpointing is False:
        ways.append(("train.gradient_checkpointing=true", replace(asked, checkpointing=True)))
        lean, beside = replace(lean, checkpointing=True), f"{beside}train.gradient_checkpointing=true "
        ways += [(beside.strip(), lean)] if not asked.work.four_bit else []
    if "8bit" not in asked.work.optimizer:
        ways.append(("train.optimizer=adamw_8bit", replace(asked, work=replace(asked.work, optimizer="adamw_8bit"), optimizer_is_free=False)))
    if asked.work.rank > 8 and recipe.adapter.init_from is None:
        ways.append(("adapter.r=8", replace(asked, work=replace(asked.work, rank=8))))
    for keys, changed in ways:
        if (best := _change(keys, changed, target)) is not None:
            return best

    def shorter(rows_of_64: int) -> Asked:
        return replace(lean, work=replace(lean.work, tokens=rows_of_64 * SHORTEST))

    low, high = 0, asked.work.tokens // SHORTEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if smallest(shorter(middle).work, target.bounds).fits else (low, middle - 1)
    while low:
        if (best := _change(f"{beside}data.max_length={low * SHORTEST}", shorter(low), target)) is not None:
            return best
        low -= 1
    return None


def _change(keys: str, asked: Asked, target: Target) -> Change | None:
    """What it takes with this change, computed in the leanest way; None where that does not fit either."""
    if "plain" in asked.paths and not smallest(asked.work, target.bounds).fits:
        return None
    choice, _ = choose(replace(asked, effective_rows=1), target)
    return Change(keys, choice.peak_bytes, choice.step_seconds * asked.effective_rows) if choice else None


def _notes(recipe: Recipe, work: Work) -> list[str]:
    notes, shape = [], work.shape
    if not shape.exact:
        notes.append(f"memory and time of {shape.family} are estimated as if its blocks were Llama's: leave room")
    if shape.window is not None and work.tokens > shape.window:
        notes.append(f"rows longer than the attention's window of {shape.window:,} tokens have not been measured: leave room")
    if recipe.train.precision == "float32":
        notes.append("memory and time are those of 16-bit arithmetic: float32 takes up to twice the memory and several times the time, so leave room")
    known = {linear.name for linear in shape.linears}
    if recipe.adapter.target_modules != "all-linear" and (other := [name for name in recipe.adapter.target_modules if _last_word(name) not in known]):
        notes.append(f"adapter.target_modules: {', '.join(other)} is not priced: leave room")
    if recipe.adapter.kind == "dora":
        notes.append("DoRA takes more memory and time than the LoRA that is priced here: leave room")
    if recipe.adapter.modules_to_save:
        notes.append("modules trained whole are counted as if each were as large as the embedding, and not operation by operation: leave room")
    return notes


def refuse(forecast: Forecast, recipe: Recipe) -> MachineError:
    """The one line, and the mend."""
    smallest_choice = min(forecast.considered, key=lambda choice: choice.peak_bytes)
    target, least = forecast.target, size(smallest_choice.peak_bytes)
    where = "" if target.name[:1].isdigit() else f" ({target.name})"  # else the name is the amount
    seen = f"{recipe.base} does not fit into {size(target.budget_bytes)}{where}: the smallest way takes {least}"
    if forecast.change is None:
        return MachineError(seen, hint="no shorter row helps: use a smaller base or a larger GPU")
    change = forecast.change
    seconds = f"{change.step_seconds:.2g}" if change.step_seconds < 10 else f"{change.step_seconds:,.0f}"
    return MachineError(seen, hint=f"the cheapest change that fits: {change.keys} ({size(change.peak_bytes)}, {seconds} s a step)")
