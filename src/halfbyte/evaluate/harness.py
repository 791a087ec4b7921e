"""Tasks of the field's own harness (lm-eval), base and tuned on the same questions: results as the field prints them, and what the difference is worth.

lm-eval asks in its own format, without the template that the run was trained with, so its figures compare with those that others publish and not
with the test rows of the run. It is an optional extra of the installation and imported here alone.
"""

import importlib.util
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.loss import evaluating
from halfbyte.evaluate.metrics import Metric, value_of
from halfbyte.evaluate.runs import folder_of
from halfbyte.evaluate.uncertainty import Comparison, compare
from halfbyte.model.adapter import without_adapter
from halfbyte.runs.disk import write_whole
from halfbyte.runs.folder import RunFolder

AGREES = 1e-6
"""Relative: a metric is compared only where the rows give lm-eval's own figure."""


@dataclass(frozen=True)
class HarnessResult:
    """What lm-eval said of base and tuned."""

    version: str
    tasks: list[str]
    limit: int | None
    results: dict[str, dict[str, dict[str, Any]]]
    """base and tuned -> task -> metric -> figure."""
    compared: list[tuple[str, Comparison]]
    """Task and comparison, for each metric whose rows say something."""

    def as_json(self) -> dict[str, Any]:
        return {
            "lm_eval": self.version, "tasks": self.tasks, "limit": self.limit, "results": self.results,
            "comparisons": [{"task": task, **one.as_json()} for task, one in self.compared],
        }  # fmt: skip


def check_installed() -> None:
    """Raises DataError with the line that installs it. Asked before a model is loaded."""
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError("--tasks needs lm-eval, which is not installed", hint='pip install "halfbyte[harness]"')


def run_tasks(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: list[str], *, include: Path | None = None, limit: int | None = None, batch_size: int = 8,
    context: int = 2048, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> HarnessResult:  # fmt: skip
    """`model` with its adapter (peft); it is measured with the adapter off and on. `include`: a folder with YAML files of one's own tasks.

    Raises DataError for a task that lm-eval does not know or whose data cannot be had.
    """
    check_installed()
    from importlib.metadata import version

    from lm_eval import evaluate

    with _quiet(), evaluating(model):
        manager = _manager(tasks, include)
        judged = as_lm(model, tokenizer, batch_size, context, dtype)

        def ask() -> dict[str, Any]:
            found = evaluate(judged, task_dict=_loaded(manager, tasks), limit=limit, log_samples=True, bootstrap_iters=0)
            assert found is not None  # as it is on other processes than the first
            return found

        with without_adapter(model):
            base = ask()
        tuned = ask()
    compared = [(task, one) for task in tuned["samples"] for one in compare_task(task, base, tuned, seed)]
    figures = {name: {task: _figures(row) for task, row in found["results"].items()} for name, found in (("base", base), ("tuned", tuned))}
    return HarnessResult(version("lm_eval"), tasks, limit, figures, compared)


def as_lm(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int, context: int, dtype: torch.dtype) -> Any:
    """The model as lm-eval sees it: computed as everywhere here, its log-probabilities summed in float64."""
    from lm_eval.models.huggingface import HFLM

    mixed = None if dtype == torch.float32 else dtype
    return HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=context, mixed_precision_dtype=mixed, softmax_dtype=torch.float64
    )  # fmt: skip


def compare_task(task: str, base: dict[str, Any], tuned: dict[str, Any], seed: int = 0) -> list[Comparison]:
    """Each metric of a task whose figure follows from its rows, on the same questions. Others, such as a corpus BLEU, are left to lm-eval's own figures."""
    compared = []
    before, after = (_rows_by_metric(found["samples"][task]) for found in (base, tuned))
    for (name, chosen), values in before.items():
        key = f"{name},{chosen}"
        label = name if chosen == "none" else f"{name} ({chosen})"
        higher = tuned["higher_is_better"].get(task, {}).get(name)
        others = after.get((name, chosen), {})
        if higher is None or values.keys() != others.keys():
            continue
        unit = f"{len(values):,} questions of {task}"
        found = _as_kind(label, higher, unit, list(values.values()), [others[question] for question in values])
        if found is None:
            continue
        metric, first, second = found
        if _agrees(metric, first, base["results"][task].get(key)) and _agrees(metric, second, tuned["results"][task].get(key)):
            compared.append(compare(metric, first, second, seed=seed))
    return compared


def keep_result(run: RunFolder, result: HarnessResult) -> Path:
    """Adds to evaluation/harness.json, a list: what was measured before stays."""
    file = folder_of(run) / "harness.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    except ValueError as error:
        raise IntegrityError(f"{file} is damaged: {error}", hint="move it away, then measure again") from error
    file.parent.mkdir(exist_ok=True)
    stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "adapter": run.adapter_hash.read_text(encoding="utf-8").strip(), **result.as_json()}
    write_whole(file, json.dumps([*kept, stamped], indent=1, ensure_ascii=False) + "\n")
    return file


def _manager(tasks: list[str], include: Path | None) -> Any:
    """lm-eval's list of tasks, when all of `tasks` are on it and can be loaded."""
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise DataError(f"--include-path: there is no folder {include}", hint="give the folder with the YAML files of your tasks")
    own = TaskManager(include_path=str(include), include_defaults=False) if include else None
    # Going through the fourteen thousand tasks that lm-eval brings takes half a minute, so only where one of them is asked for.
    manager = own if own and all(task in own.task_index for task in tasks) else TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if task not in manager.task_index]
    if unknown or not tasks:
        from difflib import get_close_matches

        near = [name for task in unknown for name in get_close_matches(task, manager.all_tasks, n=3)]
        seen = f"--tasks: lm-eval knows no task {', '.join(map(repr, unknown))}" if unknown else "--tasks: no task is named"
        raise DataError(
            seen, hint=f"did you mean {', '.join(near)}?" if near else "--include-path FOLDER adds tasks of your own; lm-eval ls tasks lists the rest"
        )
    for task in tasks:
        try:
            manager.load([task])
        except Exception as error:
            # Whatever a task file runs (datasets, jinja, Python of its own) may fail in its own way: told with the task's name, the cause beneath.
            what = str(error).strip().split("\n")[0]
            raise DataError(
                f"task {task!r} cannot be loaded: {type(error).__name__}: {what}", hint="its data may need the network, or its YAML a mend"
            ) from error
    return manager


def _loaded(manager: Any, tasks: list[str]) -> Any:
    """The tasks with lm-eval's own defaults: those that its simple_evaluate gives them, without the global seeds that it sets and the commands that it runs."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    loaded = manager.load(tasks)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return loaded


def _rows_by_metric(samples: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, Any]]:
    """(metric, filter) -> question -> value."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for sample in samples:
        for name in sample["metrics"]:
            found.setdefault((name, sample["filter"]), {})[sample["doc_id"]] = sample[name]
    return found


def _as_kind(name: str, higher: bool, unit: str, base: list[Any], tuned: list[Any]) -> tuple[Metric, np.ndarray, np.ndarray] | None:
    """Rows as one of our kinds: a number a question is a mean, a pair (log-likelihood, words or bytes) a perplexity or a rate. None for anything else."""
    try:
        first, second = np.array(base, np.float64), np.array(tuned, np.float64)
    except (TypeError, ValueError):  # texts, lists of unequal length
        return None
    if first.shape != second.shape:
        return None
    if first.ndim == 1:
        return Metric(name, "mean", higher, unit), np.stack([first, np.ones_like(first)], axis=1), np.stack([second, np.ones_like(second)], axis=1)
    if first.ndim == 2 and first.shape[1] == 2:
        in_bits = "bits" in name
        losses = np.array([-1 / math.log(2) if in_bits else -1.0, 1.0])
        return Metric(name, "ratio" if in_bits else "exp_ratio", higher, unit), first * losses, second * losses
    return None


def _agrees(metric: Metric, rows: np.ndarray, figure: Any) -> bool:
    return isinstance(figure, int | float) and math.isclose(value_of(metric, rows), figure, rel_tol=AGREES, abs_tol=AGREES)


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's figures of a task, without its name; what is no finite number or text is written as text."""
    plain = {key: value for key, value in row.items() if key != "alias"}
    return {key: value if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else str(value) for key, value in plain.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval warns that a model was handed to it ready made, which is what is meant."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
