"""Run folders as training and evaluation leave them, without a model: an adapter of a few bytes, statistics and answers as given."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.evaluate.metrics import Metric, metric_as_json
from halfbyte.runs.folder import RunFolder

ACCURACY = Metric("accuracy", "mean", True, "test rows")
PERPLEXITY = Metric("perplexity", "exp_ratio", False, "test text")
BITS = Metric("bits per byte", "ratio", False, "test text")


def shares(right: Iterable[int]) -> np.ndarray:
    """(N, 2) statistics of rows that are right (1) or wrong (0)."""
    return np.array([[one, 1] for one in right], float)


def losses(means: Iterable[float], tokens: int = 10) -> np.ndarray:
    """(N, 2) statistics of rows with these mean losses."""
    return np.array([[mean * tokens, tokens] for mean in means], float)


def answer(number: int, base: str = "no", tuned: str = "yes", **changes: Any) -> dict[str, Any]:
    return {
        "row": f"talk.csv:{number + 2}", "prompt": f"question {number}", "reference": f"answer {number}", "base": base, "tuned": tuned,
        "base_ended": True, "tuned_ended": True, **changes,
    }  # fmt: skip


def make_run(
    path: Path, measured: list[tuple[str, Metric, np.ndarray, np.ndarray]] | None = None, answers: list[dict[str, Any]] | None = None,
    units: dict[str, np.ndarray] | None = None, rows_sha256: str = "train-validation-test", tokenizer: str = "{}",
) -> Path:  # fmt: skip
    """A finished run; without `measured` it has no evaluation."""
    run = RunFolder(path)
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(path.name.encode())
    (run.adapter / "tokenizer.json").write_text(tokenizer)
    run.seal_adapter()
    run.write_plan({"rows_sha256": rows_sha256, "base_fingerprint": "base"})
    run.events.write_text(json.dumps({"event": "run", "name": path.name}) + "\n" + json.dumps({"event": "end", "steps": 1}) + "\n")
    if measured is not None:
        folder = path / "evaluation"
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps([{**metric_as_json(metric), "group": group} for group, metric, _, _ in measured]))
        arrays = {f"{number}/{side}": rows for number, (_, _, *sides) in enumerate(measured) for side, rows in zip(("base", "tuned"), sides, strict=True)}
        np.savez(folder / "statistics.npz", **arrays, **{f"units/{group}": numbers for group, numbers in (units or {}).items()})
        if answers is not None:
            (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    return path
