"""What a run promised, held against its report: for scripts and CI, which need yes or no, and why."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfbyte.errors import DataError, IntegrityError
from halfbyte.recipe.load import parse_resolved
from halfbyte.runs.folder import open_run
from halfbyte.runs.words import counted

NEUTRAL = "neutral text"
FEWEST_ROWS = 2
"""One test row has no spread: whatever it says may be chance."""
RANKS = {"worse": 0, "no evidence": 1, "better": 2}
Verdict = Literal["better", "no evidence"]


@dataclass(frozen=True)
class Promise:
    kept: bool
    sentence: str
    """What was promised and what came out, with figures."""

    @property
    def line(self) -> str:
        return f"{'kept' if self.kept else 'not kept'}: {self.sentence}"


def promised(run: Path) -> tuple[float | None, float | None]:
    """evaluate.min_gain and evaluate.max_forgetting of the run's own recipe."""
    file = run / "recipe.resolved.yaml"
    if not file.is_file():
        return None, None
    said = parse_resolved(file.read_text(encoding="utf-8"), str(file), []).recipe.evaluate
    return said.min_gain, said.max_forgetting


def check_promises(
    path: Path, min_gain: float | None = None, metric: str | None = None, max_forgetting: float | None = None, verdict: Verdict | None = None
) -> list[Promise]:
    """One for each thing that is asked, shares as 0.05; that the tuned model is better, where nothing is.

    `metric`: the primary one of the report when not given. A gain is promised as one that is more than chance, so it counts only with the verdict 'better'.
    Raises DataError where the run has nothing to hold a promise against, IntegrityError where its report or adapter is damaged.
    """
    comparisons = _read_comparisons(path)
    main = _chosen(path, comparisons, metric)
    promises = []
    if verdict is not None or (min_gain is None and max_forgetting is None):
        promises.append(_of_verdict(main, verdict or "better"))
    if min_gain is not None:
        promises.append(_of_gain(main, min_gain))
    if max_forgetting is not None:
        neutral = [one for one in comparisons if one["group"] == NEUTRAL and one.get("kind") == "exp_ratio"]
        if not neutral:
            raise DataError(f"{path}: perplexity on neutral text was not measured", hint=f"halfbyte evaluate {path}")
        promises.append(_of_forgetting(neutral[0], max_forgetting))
    return promises


def gain_of(comparison: dict[str, Any]) -> float | None:
    """The share of the base's value by which the tuned model is better: perplexity 40 -> 30 and accuracy 0.4 -> 0.5 are 0.25. None where the base has 0."""
    base, tuned = comparison["base"], comparison["tuned"]
    change = (tuned - base) if comparison["higher_is_better"] else (base - tuned)
    return change / abs(base) if base else None


def _of_verdict(main: dict[str, Any], wanted: Verdict) -> Promise:
    asked = "better" if wanted == "better" else "not worse"
    return Promise(RANKS[main["verdict"]] >= RANKS[wanted], f"the tuned model is {asked} ({_figures(main)}; verdict: {main['verdict']})")


def _of_gain(main: dict[str, Any], wanted: float) -> Promise:
    gain = gain_of(main)
    enough = gain >= wanted if gain is not None else main["tuned"] != 0  # from nothing to something is more than any share
    told = f"{gain:+.1%}" if gain is not None else "from nothing" if enough else "none"
    sentence = f"a gain of at least {wanted:.1%} that is more than chance ({_figures(main)}, gain {told}; verdict: {main['verdict']})"
    return Promise(enough and main["verdict"] == "better", sentence)


def _of_forgetting(neutral: dict[str, Any], most: float) -> Promise:
    rise = neutral["tuned"] / neutral["base"] - 1
    return Promise(rise <= most, f"perplexity on neutral text rises by at most {most:.1%} ({_figures(neutral)}, {rise:+.1%})")


def _figures(comparison: dict[str, Any]) -> str:
    return f"{comparison['metric']} {comparison['base']:.4g} -> {comparison['tuned']:.4g} on {comparison['rows']:,} rows"


def _chosen(path: Path, comparisons: list[dict[str, Any]], metric: str | None) -> dict[str, Any]:
    measured = [one for one in comparisons if one["group"] != NEUTRAL]
    if metric is None:
        found = [one for one in measured if one.get("primary")] or measured
    else:
        found = [one for one in measured if metric in (one["metric"], f"{one['group']}/{one['metric']}")]
        if len(found) > 1:
            names = ", ".join(f"{one['group']}/{one['metric']}" for one in found)
            raise DataError(f"{path}: {metric!r} was measured {len(found)} times", hint=f"name one of {names}")
    if not found and metric is None:
        raise DataError(f"{path}: nothing was measured on test rows", hint="raise data.test_share and train again")
    if not found:
        raise DataError(f"{path}: no metric {metric!r} was measured", hint=f"there are: {', '.join(dict.fromkeys(one['metric'] for one in measured))}")
    if found[0]["rows"] < FEWEST_ROWS:
        rows = counted(found[0]["rows"], "test row")
        raise DataError(f"{path}: {found[0]['metric']} was measured on {rows}: that cannot tell a change from chance", hint="raise data.test_share")
    return found[0]


def _read_comparisons(path: Path) -> list[dict[str, Any]]:
    """The comparisons of report.json, each with what a promise is held against."""
    open_run(path).check_adapter()
    file = path / "report.json"
    again = f"halfbyte evaluate {path}"
    if not file.is_file():
        raise DataError(f"{path} has no report yet (expected {file})", hint=again)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{file} is damaged: {error}", hint=again) from error
    comparisons = report.get("comparisons") if isinstance(report, dict) else None
    if not comparisons:
        raise DataError(f"{path} has no comparison of base and tuned in its report", hint=f"{again}; where there are no test rows, raise data.test_share")
    for one in comparisons if isinstance(comparisons, list) else [comparisons]:
        if not _is_whole(one):
            raise IntegrityError(f"{file}: a comparison lacks its figures: {json.dumps(one)[:200]}", hint=again)
    return comparisons


def _is_whole(one: Any) -> bool:
    if not isinstance(one, dict) or one.get("verdict") not in RANKS or not isinstance(one.get("higher_is_better"), bool):
        return False
    figures = [one.get(name) for name in ("base", "tuned", "rows")]
    return all(isinstance(one.get(name), str) for name in ("metric", "group")) and all(type(value) in (int, float) for value in figures)
