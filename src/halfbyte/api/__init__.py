"""Where stages meet, and the only place: every verb of the command line is a function here, with the same words.

audit, show: what the data say      prepare: file -> records -> sides -> examples -> tokens -> rows      plan: what will run, and why
check: proofs on what a recipe would train
train:   plan -> base + adapter -> proofs -> loop -> base against tuned -> report      evaluate: the last two again
compare, rate, gate: what finished runs are worth      open_tuned, answer_all, reply, classify: a tuned model in use (use.py)
doctor: what this machine is worth
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from halfbyte import __version__
from halfbyte.api.again import compare_inputs, computed_as_then, recipe_again, refuse_other_inputs
from halfbyte.api.check import prove_planned, refuse_failed
from halfbyte.api.cuts import cut_everywhere, shortened
from halfbyte.api.data import Listener, audit, prepare, prepare_for, show
from halfbyte.api.identity import (
    begin_manifest,
    check_base,
    check_folder,
    check_inputs,
    computed_otherwise,
    kept_recipe,
    note_metrics,
    note_outcome,
    note_start,
    places_apart,
    versions,
)
from halfbyte.api.memory import (
    Memory,
    adapt_new,
    adapt_saved,
    learn,
    learn_on_cpu,
    learn_that_it_ran_out,
    load_for,
    memory_as_json,
    plan_memory,
    tell_peak,
    what_would_fit,
    within_budget,
)
from halfbyte.api.room import check_disk
from halfbyte.api.use import Tuned, answer_all, classify, open_tuned, reply, scorer_of
from halfbyte.api.watch import Watch
from halfbyte.budget.forecast import Forecast
from halfbyte.checks.doctor import doctor
from halfbyte.checks.proof import Proof
from halfbyte.checks.reproduce import Reproduction, compare_courses
from halfbyte.checks.resume import ResumeProof
from halfbyte.checks.versions import outside_matrix
from halfbyte.data.batches import in_order
from halfbyte.data.prepare import Prepared
from halfbyte.data.render import Template
from halfbyte.errors import IntegrityError, Interrupted, MachineError, OutOfMemory, RecipeError
from halfbyte.evaluate.compare import compare_runs as compare
from halfbyte.evaluate.gate import check_promises as gate
from halfbyte.evaluate.loss import measure_loss
from halfbyte.evaluate.measure import Subject, measure, primary
from halfbyte.evaluate.neutral import neutral_rows
from halfbyte.evaluate.rate import rate
from halfbyte.evaluate.save import save_evaluation
from halfbyte.generate.prompts import answer_marks, pad_id, prompt_ids
from halfbyte.model.adapter import check_modules_of, check_start, save_adapter
from halfbyte.model.base import Base, check_rank, check_same_base, find_base
from halfbyte.model.load import check_files, check_kernels, choose_quant, load_tokenizer, tokens_without_row
from halfbyte.model.machine import look_at_machine
from halfbyte.model.precision import DTYPES
from halfbyte.model.room import AtATime, naming_memory
from halfbyte.recipe.load import Loaded
from halfbyte.recipe.plan import Decision, Machine, Plan, make_plan, tell_computing
from halfbyte.recipe.schema import Recipe
from halfbyte.recipe.settings import settings_of
from halfbyte.runs.disk import told, write_whole
from halfbyte.runs.events import Event, EventLog
from halfbyte.runs.folder import RunFolder, new_run, open_run, read_report
from halfbyte.runs.goodbye import tell_ending, tell_unended
from halfbyte.runs.manifest import SETTLED, read_manifest
from halfbyte.runs.report import read_events, write_report
from halfbyte.runs.trackers import check_trackers, open_trackers
from halfbyte.runs.words import rows_of
from halfbyte.train.checkpoint import newest_checkpoint, step_of
from halfbyte.train.loop import Hooks, Outcome, run_training
from halfbyte.train.retry import changed_computing
from halfbyte.train.stop import Signals, heard_signals, stop_on_signal

__all__ = [
    "Planned", "Tuned", "answer_all", "audit", "check", "classify", "compare", "doctor", "evaluate", "gate", "open_tuned", "plan", "prepare", "rate", "reply",
    "reproduce", "resume", "scorer_of", "show", "train", "verify_resume",
]  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """Everything that is known before a weight is loaded."""

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared
    prompts: list[str]
    """Answered by base and tuned in the report."""
    machine: Machine
    plan: Plan
    memory: Memory

    @property
    def forecast(self) -> Forecast | None:
        """What was weighed; None where memory was not planned."""
        return self.memory.forecast


PLAN_AGAIN = "leave more room with memory_budget, or lower data.max_length; halfbyte plan shows what each takes"
OnPlan = Callable[[Planned, RunFolder], None]


def plan(loaded: Loaded, listener: Listener | None = None, training: bool = True) -> Planned:
    """Reads the data and the base's config and tokenizer; loads no weights. `training`: False for what is only measured again."""
    recipe = loaded.recipe
    machine = look_at_machine()
    base = find_base(recipe.base)
    _check_init_from(recipe, base)
    check_files(base)
    check_kernels(recipe.quant, base)
    check_start(recipe.adapter)
    check_rank(recipe.adapter.r, base)
    check_modules_of(base, recipe.adapter)
    tokenizer = load_tokenizer(base)
    prepared = prepare_for(recipe, base, tokenizer, listener)
    where = f"revision {base.revision}" if base.revision else base.place if recipe.base != "embedded" else "ships with halfbyte"
    first = [Decision("base", recipe.base, where), Decision("device", machine.name, f"{machine.memory_bytes / 1e9:.0f} GB of memory")]
    longest = base.context
    notes = [*outside_matrix(), *loaded.notes, *prepared.notes]
    if recipe.data.licence is None and recipe.base != "embedded":
        notes.append("data.licence is not stated: whoever publishes the model must know what it was made of")
    if "auto_map" in base.config:
        notes.append("the base names code of its own (auto_map), which is not run: transformers' own class is used")
    if beyond := tokens_without_row(tokenizer, int((base.config.get("text_config") or base.config).get("vocab_size") or len(tokenizer))):
        notes.append(f"the embedding has no row for {', '.join(beyond)}, which no text becomes")
    prompts = recipe.evaluate.prompts or prepared.held_out_prompts
    if longest:
        fitting = _fitting_prompts(recipe, prompts, prepared.template, tokenizer, longest - recipe.evaluate.max_new_tokens)
        if len(fitting) < len(prompts):
            notes.append(f"{len(prompts) - len(fitting)} held-out prompts are too long to be answered in the report; evaluate.prompts names others")
        prompts = fitting
    # What is wrong with a neutral text is told now, not after training.
    neutral = neutral_rows(tokenizer, recipe.data.max_length, recipe.evaluate.neutral_path)
    asked = [prompt_ids([{"role": "user", "content": prompt}], prepared.template, tokenizer) for prompt in prompts]
    evaluated = max((len(ids) for ids in [*(row.ids for row in neutral), *asked]), default=0)
    memory = plan_memory(recipe, base, machine, prepared, evaluated, training)
    settled = make_plan(
        recipe.train, machine, len(prepared.train), bool(prepared.validation),
        [*first, *prepared.decisions, choose_quant(recipe.quant, base)], [*notes, *memory.notes], memory.computing, memory.pages,
    )  # fmt: skip
    return Planned(recipe, base, tokenizer, prepared, prompts, machine, settled, memory)


def check(loaded: Loaded, listener: Listener | None = None, deep: bool = False) -> list[Proof]:
    """Loads what training would load, within the same budget, and proves that it computes what it says. Raises ProofError when a proof fails.

    `deep`: base and adapter are also built twice more, a fresh process is asked, and every row is looked at.
    """
    planned = plan(loaded, listener)
    with within_budget(planned.machine, planned.plan.computing), naming_memory("in the proofs", PLAN_AGAIN):
        model, _ = adapt_new(load_for(planned.recipe, planned.base, planned.machine, planned.plan), planned.recipe, planned.machine, planned.plan)
        proofs = prove_planned(planned, model, listener or (lambda event: None), deep)
    refuse_failed(proofs)
    return proofs


def train(loaded: Loaded, runs: Path, listener: Listener | None = None, on_plan: OnPlan | None = None, command: str = "") -> RunFolder:
    """A new run, from the recipe to the report. Raises Interrupted when asked to stop; the run can then be resumed."""
    check_trackers(loaded.recipe.track.report_to)
    return _begin(plan(loaded, listener), loaded, runs, listener, on_plan, command)


def _begin(planned: Planned, loaded: Loaded, runs: Path, listener: Listener | None, on_plan: OnPlan | None, command: str) -> RunFolder:
    """In a new folder. Where the disk is too small for it no plan is written, so that the next of its name takes the folder."""
    with new_run(runs, loaded.recipe.name) as run:
        check_disk(run, planned.memory, planned.plan, planned.recipe.train)
        write_whole(run.recipe, loaded.text)
        write_whole(run.path / "recipe.resolved.yaml", _resolved(loaded.recipe))
        settled = _settled(planned)
        begin_manifest(run, planned, settled)
        run.write_plan(settled)
    if on_plan:
        on_plan(planned, run)
    _run(planned, run, listener, resume_from=None, command=command, passed_over=_unended_before(run, loaded.recipe.name))
    return run


def _unended_before(run: RunFolder, name: str) -> list[str]:
    """A note where the run before this one, of the same name, did not end."""
    number = run.path.name.removeprefix(f"{name}-")
    before = run.path.with_name(name if number == "2" else f"{name}-{int(number) - 1}") if number.isdigit() else None
    if before is None or not (before / "events.jsonl").is_file():
        return []
    told = tell_unended(read_events(before / "events.jsonl")[0], str(before))
    return [told] if told else []


def resume(path: Path, listener: Listener | None = None, on_plan: OnPlan | None = None, command: str = "") -> RunFolder:
    """Goes on from the newest whole checkpoint of a run, with the recipe that it was started with. A finished run is left as it is."""
    run = open_run(path)
    if (run.path / "report.json").is_file() and read_report(run.path)["status"] == "finished":
        if listener:
            listener({"event": "note", "message": f"{run.path} is finished, so there is nothing to resume; halfbyte evaluate measures it again"})
        return run
    manifest, loaded = check_folder(run)
    loaded = _with_optimizer(loaded, run.read_plan()["optimizer"])
    check_trackers(loaded.recipe.track.report_to)
    planned = _computed_as_it_ended(_with_reason(plan(loaded, listener), run), run)
    _check_same(run, planned)
    check_inputs(run, manifest, planned)
    _check_same_plan(run, planned)
    checkpoint, passed_over = newest_checkpoint(run.checkpoints, manifest["id"])
    if checkpoint is None and passed_over:
        seen = f"{run.path}: no checkpoint is left that can be used: {'; '.join(line.removesuffix('; ignored') for line in passed_over)}"
        raise IntegrityError(seen, hint="put one back from a copy of the run, or start the run again with halfbyte train")
    if checkpoint is not None:
        passed_over = [f"{line}: the run goes on from {checkpoint.name}" for line in passed_over]
    if on_plan:
        on_plan(planned, run)
    if elsewhere := places_apart(manifest, planned):
        passed_over.append(f"since the run was begun: {'; '.join(map(str, elsewhere))}; last digits may differ")
    passed_over += computed_otherwise(run, planned)
    _run(planned, run, listener, checkpoint, command, passed_over)
    return run


def reproduce(
    path: Path, changes: list[str] | None = None, runs: Path | None = None, listener: Listener | None = None, on_plan: OnPlan | None = None,
    command: str = "", anyway: bool = False, check: bool = False,
) -> Reproduction:  # fmt: skip
    """A finished run once more, in a new folder, and whether the two are the same to the last digit.

    `changes`: where files are now, such as data.path=FILE. Raises IntegrityError with a line for every input that is another one, unless
    `anyway`; with `check` nothing is trained, and the differences are returned.
    """
    run, loaded = recipe_again(path, changes)
    planned = plan(loaded, listener)
    compared = compare_inputs(run, planned)
    if check:
        return compared
    if not anyway:
        refuse_other_inputs(compared)
    planned = computed_as_then(planned, run, compared)
    told = [*planned.plan.notes, *(f"not as then: {one}" for one in compared.place)]
    planned = replace(planned, plan=replace(planned.plan, notes=told))
    again = _begin(planned, loaded, runs or run.path.parent, listener, on_plan, command)
    return compare_courses(run.path, again.path, compared.inputs, compared.place)


def verify_resume(loaded: Loaded, steps: int = 6, listener: Listener | None = None) -> ResumeProof:
    """Trains the first steps of a recipe twice, left alone and cut behind every step, and compares them to the last digit. Leaves nothing."""
    return cut_everywhere(plan(shortened(loaded, steps), None), listener)


def evaluate(path: Path, listener: Listener | None = None, changes: list[str] | None = None) -> RunFolder:
    """Measures a finished run again, with base and adapter loaded anew from disk, and rewrites its report.

    `changes`: other values of evaluate.*, such as evaluate.batch_size=1. Raises RecipeError for other keys: the run is what it is.
    """
    run = open_run(path)
    others = [word for word in changes or [] if not word.startswith("evaluate.")]
    if others:
        raise RecipeError(f"{others[0]}: only keys of evaluate can be changed for a run that is trained", hint="train again with halfbyte train")
    planned = plan(kept_recipe(run, changes), training=False)
    _check_same(run, planned)
    check_base(run, planned.base)
    run.check_adapter()
    with run.locked():
        log = EventLog(run.events, listener)
        if changes:
            log.append({"event": "note", "message": f"measured with {' '.join(changes)}"})
        with within_budget(planned.machine, planned.plan.computing), naming_memory("while measuring", "close what else needs memory; evaluate.batch_size=1"):
            loaded = load_for(planned.recipe, planned.base, planned.machine, planned.plan)
            _measure(adapt_saved(loaded, str(run.path), planned.machine, planned.plan), run, planned, log)
            tell_peak(log.append, "evaluate", planned.machine)
        log.append({"event": "measured"})
        write_report(run.path)
    return run


def _computed_as_it_ended(planned: Planned, run: RunFolder) -> Planned:
    """What gave way when memory ran out stays so."""
    computing = changed_computing(planned.plan.computing, read_events(run.events)[0])
    if computing == planned.plan.computing:
        return planned
    notes = [*planned.plan.notes, f"memory ran out in this run, so it goes on as it ended: {tell_computing(computing).value}"]
    return replace(planned, plan=replace(planned.plan, computing=computing, notes=notes))


def _with_optimizer(loaded: Loaded, kept: str) -> Loaded:
    """A resumed run keeps its optimizer, whose state is saved, whatever would be chosen today."""
    train = loaded.recipe.train.model_copy(update={"optimizer": kept})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"train": train}))


def _with_reason(planned: Planned, run: RunFolder) -> Planned:
    """And the reason for it, which is that of the beginning: the recipe asks for it only because the run has it."""
    reasons = {(one.get("name"), one.get("value")): str(one.get("reason")) for one in rows_of(run.read_plan().get("decisions"))}
    of_optimizer = ("optimizer", planned.plan.optimizer)
    decisions = [replace(one, reason=reasons.get(of_optimizer, one.reason)) if one.name == "optimizer" else one for one in planned.plan.decisions]
    return replace(planned, plan=replace(planned.plan, decisions=decisions))


def _run(planned: Planned, run: RunFolder, listener: Listener | None, resume_from: Path | None, command: str, passed_over: list[str] | None = None) -> None:
    with run.locked():
        check_disk(run, planned.memory, planned.plan, planned.recipe.train)
        with _tracked(planned, run, listener) as log, within_budget(planned.machine, planned.plan.computing):
            watch = Watch(run, log, resume_from)
            with heard_signals(watch.last_words, watch.hang_up) as signals:
                _run_alone(planned, run, log, resume_from, command, passed_over or [], watch, signals)


@contextmanager
def _tracked(planned: Planned, run: RunFolder, listener: Listener | None) -> Iterator[EventLog]:
    """The run's log, which the listener and the trackers of the recipe hear."""
    log = EventLog(run.events, listener)
    if not planned.recipe.track.report_to:
        yield log
        return
    config = {"recipe": planned.recipe.model_dump(mode="json"), "plan": planned.plan.as_json()}
    trackers = open_trackers(planned.recipe.track.report_to, run.path.name, run.path, config, log.append)

    def hear(event: Event) -> None:
        if listener:
            listener(event)
        trackers.send(event)

    log.listener = hear
    try:
        yield log
    finally:
        trackers.close()


def _run_alone(
    planned: Planned, run: RunFolder, log: EventLog, resume_from: Path | None, command: str, passed_over: list[str], watch: Watch, signals: Signals
) -> None:
    recipe, machine, prepared = planned.recipe, planned.machine, planned.prepared
    for line in [*passed_over, *_how_it_ended(run, planned, resume_from, log)]:
        log.append({"event": "note", "message": line})
    watch.look_back()
    log.append({"event": "run", "name": run.path.name, "base": recipe.base, "versions": versions(), "device": machine.name, "command": command})
    log.append({"event": "data", "ledger": prepared.ledger})
    measuring = ran_out = False
    steps: list[Event] = []

    def hear(event: Event) -> None:
        nonlocal ran_out
        if event["event"] == "step":
            steps.append(event)
        elif event["event"] == "memory_change" and not ran_out:
            ran_out = True
            learn_that_it_ran_out(planned.memory, machine)
        log.append(event)
        watch.hear(event)

    try:
        with naming_memory("while loading"):
            loaded = load_for(recipe, planned.base, machine, planned.plan)
            model, adapted = adapt_new(loaded, recipe, machine, planned.plan)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        log.append({
            "event": "model", "parameters": loaded.parameters, "trainable": trainable, "share_4bit": loaded.share_4bit,
            "weight_bytes": loaded.weight_bytes, "adapter": adapted.value, "reason": adapted.reason,
        })  # fmt: skip
        note_start(run, model)
        tell_peak(log.append, "load", machine)
        with naming_memory("in the proofs"):
            proofs = prove_planned(planned, model, log.append)
        refuse_failed(proofs)
        tell_peak(log.append, "proofs", machine)
        dtype, pad = DTYPES[planned.plan.precision], pad_id(planned.tokenizer)
        validation = in_order(prepared.validation, planned.plan.computing.micro_batch_size, pad)

        at_a_time = AtATime(planned.plan.computing.micro_batch_size, lambda less: log.append({"event": "memory_change", "phase": "validate", "message": less}))

        def validate() -> tuple[float, int]:
            with naming_memory("while validating"):
                measured = measure_loss(model, validation, dtype, at_a_time)
            return measured.mean, measured.tokens

        with stop_on_signal(signals) as stop_asked, naming_memory("in training"):
            hooks = Hooks(validate if validation else None, hear, stop_asked)
            outcome = run_training(
                model, prepared.train, planned.plan, recipe.train, recipe.seed, pad, run.checkpoints, hooks, resume_from, prepared.labels,
                read_manifest(run.path)["id"],
            )  # fmt: skip
        with told(run.adapter, needs=4 * trainable, hint=f"make room on the disk; halfbyte train --resume {run.path} writes it from the last checkpoint"):
            save_adapter(model, run.adapter, planned.base.place, planned.base.revision)
            planned.tokenizer.save_pretrained(str(run.adapter))
            run.seal_adapter()
        note_outcome(run, outcome)
        log.append(_choice(outcome, bool(validation)))
        for note in [] if ran_out else learn(planned.memory, machine, steps):
            log.append({"event": "note", "message": note})
        tell_peak(log.append, "train", machine)
        log.append({"event": "measuring"})
        measuring = True
        with naming_memory("while measuring"):
            _measure(model, run, planned, log)
        note_metrics(run)
        for note in [] if ran_out else learn_on_cpu(planned.memory, machine, steps):
            log.append({"event": "note", "message": note})
        tell_peak(log.append, "evaluate", machine)
        log.append({
            "event": "end", "steps": outcome.steps, "seconds": round(outcome.seconds, 2), "best_step": outcome.best_step,
            "stopped": outcome.stopped,
        })  # fmt: skip
    except Interrupted:
        write_report(run.path)
        raise
    except KeyboardInterrupt as error:  # while loading or measuring, where there is no step to wait for
        log.append({"event": "interrupted"})
        write_report(run.path)
        raise Interrupted("stopped before the run was finished") from error
    except OutOfMemory as error:
        log.append({"event": "failed", "message": error.message})
        write_report(run.path)
        if measuring:
            error.hint = f"training is done and kept; halfbyte evaluate {run.path} measures it in a process of its own, which has more room"
            raise
        learn_that_it_ran_out(planned.memory, machine)
        fits = what_would_fit(recipe, planned.base, machine, prepared, planned.memory)
        error.hint = f"{fits}; then halfbyte train again, or --resume where a checkpoint was saved"
        raise
    except Exception as error:
        with suppress(MachineError):  # on a full disk the first error says more than that it cannot be written down
            log.append({"event": "failed", "message": str(error)})
            write_report(run.path)
        raise
    write_report(run.path)


def _how_it_ended(run: RunFolder, planned: Planned, resume_from: Path | None, log: EventLog) -> list[str]:
    """What is told of the process that had this run before, if there was one. A torn line is in the report already: here it is only told."""
    events, torn = read_events(run.events) if run.events.is_file() else ([], [])
    for line in torn:
        log.tell({"event": "note", "message": line})
    memory_bytes = planned.machine.memory_bytes if planned.machine.device == "cpu" else None
    ending = tell_ending(events, None if resume_from is None else step_of(resume_from), memory_bytes) if events else None
    return [ending] if ending else []


def _choice(outcome: Outcome, validated: bool) -> Event:
    """Which state of the adapter is kept and measured, and why."""
    if validated:
        why = "the lowest loss on the validation part, which chose among the checkpoints; the test part was not looked at"
        return {"event": "choice", "step": outcome.best_step, "of": outcome.steps, "why": why}
    return {"event": "choice", "step": outcome.steps, "of": outcome.steps, "why": "the last state: no rows validate, so nothing could choose"}


def _measure(model: nn.Module, run: RunFolder, planned: Planned, log: EventLog) -> None:
    """Base (adapter off) against tuned on the held-out rows: opens the test part, once a measurement, and keeps what every row said."""
    recipe, prepared, tokenizer = planned.recipe, planned.prepared, planned.tokenizer
    if len(prepared.test):
        opened = sum(event["event"] == "test_opened" for event in read_events(run.events)[0])
        log.append({"event": "test_opened", "times": opened + 1})
    subject = Subject(
        model, tokenizer, answer_marks(tokenizer, prepared.template, planned.base), DTYPES[planned.plan.precision], prepared, recipe.evaluate,
        planned.plan.computing.evaluate_rows, planned.base.context, planned.prompts,
        lambda stage, rows: log.tell({"event": "progress", "stage": stage, "rows": rows}),
        AtATime(planned.plan.computing.evaluate_rows, lambda less: log.append({"event": "memory_change", "phase": "evaluate", "message": less})),
    )  # fmt: skip
    events: list[Event] = []
    found = measure(subject, events.append)
    save_evaluation(run, found)
    log.append({"event": "measurement"})
    for event in events:  # all together: a measurement that breaks off leaves the earlier one as it was
        log.append(event)
    main = primary(prepared.section, found)
    for measured, comparison in zip(found.measured, found.comparisons(recipe.seed), strict=True):
        log.append({"event": "comparison", "group": measured.group, **comparison.as_json(), "primary": measured is main})


def _fitting_prompts(recipe: Recipe, prompts: list[str], template: Template, tokenizer: PreTrainedTokenizerBase, room: int) -> list[str]:
    """Prompts with room for their answer. One that the recipe asks for and that has none is refused now, not after training."""
    lengths = [len(prompt_ids([{"role": "user", "content": prompt}], template, tokenizer)) for prompt in prompts]
    for prompt, length in zip(prompts, lengths, strict=True):
        if recipe.evaluate.prompts and length > room:
            seen = f"evaluate.prompts: {prompt[:40]!r} has {length} tokens, room is {room}"
            raise RecipeError(seen, hint="shorten it, or lower evaluate.max_new_tokens")
    return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= room]


def _resolved(recipe: Recipe) -> str:
    from halfbyte.recipe.load import dump_recipe

    paths = [_absolute(path) for path in recipe.data.paths]
    given = {key: _absolute(path) for key in ("validation_path", "test_path") if (path := getattr(recipe.data, key)) is not None}
    data = recipe.data.model_copy(update={"path": paths[0] if isinstance(recipe.data.path, str) else paths, **given})
    start = recipe.adapter.init_from
    adapter = recipe.adapter if start is None else recipe.adapter.model_copy(update={"init_from": _absolute(start)})
    base = _absolute(recipe.base) if recipe.base != "embedded" and Path(recipe.base).expanduser().is_dir() else recipe.base
    neutral = recipe.evaluate.neutral_path
    evaluate = recipe.evaluate if neutral is None else recipe.evaluate.model_copy(update={"neutral_path": _absolute(neutral)})
    return dump_recipe(recipe.model_copy(update={"data": data, "adapter": adapter, "base": base, "evaluate": evaluate}))


def _absolute(path: str) -> str:
    return path if path.startswith("hub:") else str(Path(path).expanduser().resolve())


def _settled(planned: Planned) -> dict[str, Any]:
    """What plan.json keeps."""
    return {
        "halfbyte": __version__, **planned.plan.as_json(), **memory_as_json(planned.memory),
        "base": planned.recipe.base if planned.recipe.base == "embedded" else _base_name(planned.base),
        "quant": planned.recipe.quant.model_dump(), "template": planned.prepared.template.as_json(),
        "base_fingerprint": planned.base.fingerprint, "ledger": planned.prepared.ledger, "rows_sha256": planned.prepared.fingerprint,
        "licence": planned.recipe.data.licence, "settings": settings_of(planned.recipe, planned.prepared.section, planned.plan),
        "machine": asdict(planned.machine),
    }  # fmt: skip


def _base_name(base: Base) -> str:
    return str(Path(base.place).resolve()) if Path(base.place).is_dir() else base.name


def _check_same(run: RunFolder, planned: Planned) -> None:
    """Base and data of a resumed run must be what they were when the run began."""
    kept = run.read_plan("base_fingerprint", "ledger", "rows_sha256")
    check_same_base(kept["base_fingerprint"], planned.base)
    before, now = kept["ledger"], planned.prepared.ledger
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if name.endswith(("_read", "_rows")) and before.get(name) != now[name]]
    if not changed and kept["rows_sha256"] != planned.prepared.fingerprint:
        changed = ["as many rows, but other tokens in them"]
    if changed:
        seen = f"{planned.recipe.data.path} is not what the run was started with: {', '.join(changed)}"
        raise IntegrityError(seen, hint="put the old file back, or start a new run")


def _check_init_from(recipe: Recipe, base: Base) -> None:
    """The adapter of a run fits any base of its shapes, and means something on its own alone."""
    start = recipe.adapter.init_from
    if start is not None and (Path(start) / "plan.json").is_file():
        check_same_base(open_run(Path(start)).read_plan("base_fingerprint")["base_fingerprint"], base)


def _check_same_plan(run: RunFolder, planned: Planned) -> None:
    """A run goes on as it was begun: on another machine the plan may fall out differently."""
    kept, now = run.read_plan(), planned.plan.as_json()
    changed = [f"{key.replace('_', ' ')} {kept[key]} -> {now[key]}" for key in SETTLED if kept[key] != now[key]]
    if changed:
        seen = f"{run.path} was begun with another plan than this machine gives: {', '.join(changed)}"
        raise MachineError(seen, hint="resume it where it was begun, or start a new run with adapter.init_from=RUN")
