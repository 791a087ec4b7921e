"""What was measured of a run, on disk beside its report: the statistics of every row, so that runs can be compared without a model.

runs/NAME/evaluation/  metrics.json     each metric with its group
                       statistics.npz   NUMBER/base and NUMBER/tuned (N, K) of each metric, units/GROUP (N,)
                       answers.jsonl    what base and tuned said to each test row that was answered
                       scorer.json      of classes: the calibrated scorer, which production uses too

`runs.py` reads them.
"""

import io
import json
from dataclasses import asdict, dataclass, field

import numpy as np

from halfbyte.evaluate.classify import Scorer
from halfbyte.evaluate.metrics import metric_as_json
from halfbyte.evaluate.runs import Answer, Measured, folder_of
from halfbyte.evaluate.uncertainty import Comparison, compare
from halfbyte.runs.disk import told, write_whole
from halfbyte.runs.folder import RunFolder


@dataclass
class Evaluation:
    """`answers` and `scorer` only where rows have answers, and classes."""

    measured: list[Measured] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    scorer: Scorer | None = None

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(self.measured + other.measured, self.answers + other.answers, self.scorer or other.scorer)

    def comparisons(self, seed: int) -> list[Comparison]:
        """One of each metric, in order."""
        return [compare(one.metric, one.base, one.tuned, one.units, seed) for one in self.measured]


def save_evaluation(run: RunFolder, found: Evaluation) -> None:
    """Each file whole or not at all; what an earlier measurement left and this one does not have is taken away."""
    folder = folder_of(run)
    with told(folder):
        folder.mkdir(exist_ok=True)
    metrics = [{**metric_as_json(one.metric), "group": one.group} for one in found.measured]
    arrays = {f"{number}/{side}": getattr(one, side) for number, one in enumerate(found.measured) for side in ("base", "tuned")}
    arrays |= {f"units/{one.group}": one.units for one in found.measured if one.units is not None}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_whole(folder / "statistics.npz", packed.getvalue())
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    lines = [json.dumps(asdict(answer)) + "\n" for answer in found.answers]
    if lines:
        write_whole(folder / "answers.jsonl", "".join(lines))
    else:
        (folder / "answers.jsonl").unlink(missing_ok=True)
    if found.scorer:
        found.scorer.save(folder / "scorer.json")
    else:
        (folder / "scorer.json").unlink(missing_ok=True)
