"""The five real tasks on the embedded base, trained by their recipes and measured by `halfbyte train` itself: base against tuned, with intervals.

    python benchmarks/real_tasks.py [TASK ...] [--data FOLDER] [--results FOLDER] [--side-by-side N]

Reports are kept in results/reports/TASK/, the figures in results/real_tasks.json and claims.json. Of the 59 comments each is tested once, in five
folds (youtube-replies), because nine test rows show nothing; the others have the split of their recipe. wikitext-chat goes on from the adapter of wikitext.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from claims import RESULTS, record, save_raw, versions, where
from halfbyte.evaluate.runs import read_measured
from halfbyte.evaluate.uncertainty import compare
from halfbyte.runs.folder import open_run

ROOT = Path(__file__).resolve().parent.parent
FOLDS = 5
# Task -> group and metric of its claim, and what stands in its unit.
CLAIMS = {
    "frankenstein": ("text", "perplexity"),
    "youtube-replies": ("text", "perplexity"),
    "game-meaning": ("structure", "slot F1"),
    "game-act": ("labels", "macro F1"),
    "mental-health": ("text", "perplexity"),
    "wikitext-chat": ("text", "perplexity"),
}
KEPT = ("report.html", "report.md", "report.json")


def train(recipe: str, place: Path, changes: list[str] | None = None, name: str | None = None) -> dict[str, Any]:
    """`halfbyte train` in a folder where data/ and recipes/ are as the recipes expect them. Returns the report and the seconds."""
    words = [sys.executable, "-m", "halfbyte", "train", f"recipes/{recipe}.yaml", f"name={name or recipe}", *(changes or [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "120"}
    start = time.monotonic()
    done = subprocess.run(words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout[-2500:], flush=True)
    if done.returncode:
        sys.exit(f"{recipe} ended with {done.returncode}")
    report = json.loads((place / "runs" / (name or recipe) / "report.json").read_text(encoding="utf-8"))
    return {"seconds": round(time.monotonic() - start, 1), "report": report}


def youtube(place: Path) -> dict[str, Any]:
    """Every row is tested once: five runs, each without the fifth of the rows that it is tested on."""
    with open(place / "data" / "youtube_comments" / "YT-comments.csv", encoding="utf-8", newline="") as stream:
        header, *rows = list(csv.reader(stream))
    measured: dict[tuple[str, str], list[Any]] = {}
    seconds = 0.0
    for fold in range(FOLDS):
        files = {}
        for part, chosen in (("train", [row for number, row in enumerate(rows) if number % FOLDS != fold]), ("test", rows[fold::FOLDS])):
            files[part] = place / f"fold-{fold}-{part}.csv"
            with open(files[part], "w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([header, *chosen])
        name = f"youtube-replies-{fold}"
        run = train("youtube-replies", place, [f"data.path={files['train'].name}", f"data.test_path={files['test'].name}"], name)
        seconds += run["seconds"]
        for one in read_measured(open_run(place / "runs" / name)):
            measured.setdefault((one.group, one.metric.name), []).append(one)
    comparisons = []
    for (group, _), parts in measured.items():
        if group == "neutral text":
            continue  # the same rows in every fold
        base, tuned = (np.concatenate([getattr(one, side) for one in parts]) for side in ("base", "tuned"))
        unit = f"{len(rows)} replies, each tested once in {FOLDS} folds"
        comparisons.append({"group": group, **compare(replace(parts[0].metric, unit=unit), base, tuned, joined_units(parts)).as_json()})
    return {"seconds": round(seconds, 1), "folds": FOLDS, "rows": len(rows), "comparisons": comparisons}


def joined_units(parts: list[Any]) -> np.ndarray | None:
    """Units of all folds, numbered on from fold to fold; None where every row is one."""
    if all(one.units is None for one in parts):
        return None
    numbered, first = [], 0
    for one in parts:
        units = np.arange(len(one.base)) if one.units is None else np.unique(one.units, return_inverse=True)[1]
        numbered.append(units + first)
        first += int(units.max()) + 1
    return np.concatenate(numbered)


def of_task(task: str, place: Path) -> dict[str, Any]:
    if task == "youtube-replies":
        return youtube(place)
    seconds = train("wikitext", place)["seconds"] if task == "wikitext-chat" else 0.0
    run = train(task, place)
    report = run["report"]
    keys = ("verdict", "comparisons", "classes", "answered_classes", "structure", "replies", "choice", "training", "data", "device")
    return {"seconds": round(run["seconds"] + seconds, 1), **{key: report.get(key) for key in keys}}


def keep_reports(task: str, place: Path, results: Path) -> None:
    run = place / "runs" / (f"{task}-0" if task == "youtube-replies" else task)
    folder = results / "reports" / task
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, folder / name)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("tasks", nargs="*", default=list(CLAIMS), metavar="TASK")
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--side-by-side", type=int, default=1, metavar="N", help="tasks that run at a time")
    asked = words.parse_args()
    unknown = set(asked.tasks) - set(CLAIMS)
    if unknown:
        sys.exit(f"no such task: {', '.join(unknown)}; there are {', '.join(CLAIMS)}")
    with tempfile.TemporaryDirectory(prefix="halfbyte-tasks-") as folder:
        place = Path(folder)
        (place / "data").symlink_to(asked.data.resolve())
        (place / "recipes").symlink_to(ROOT / "recipes")
        with ThreadPoolExecutor(asked.side_by_side) as pool:
            running = {pool.submit(of_task, task, place): task for task in asked.tasks}
            for done in as_completed(running):
                keep_reports(running[done], place, asked.results)
                keep_figures(running[done], done.result(), asked.results)


def keep_figures(task: str, result: dict[str, Any], results: Path) -> None:
    file = results / "real_tasks.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    save_raw("real_tasks.json", {**before, task: {"where": where(), "versions": versions(), **result}}, results)
    group, metric = CLAIMS[task]
    one = next(one for one in result["comparisons"] if (one["group"], one["metric"]) == (group, metric))
    for side in ("base", "tuned"):
        low, high = one[f"{side}_interval"]
        record(f"{task}-{side}", round(one[side], 4), f"{metric}, {one['unit']}; 95 % interval {low:.4g} to {high:.4g}", results)
    print(f"{task}: {one['sentence']}  ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
