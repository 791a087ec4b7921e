"""Every score is a function of summed statistics: each test row leaves K numbers, the numbers are added up, and `VALUES[kind]` makes the score of the sums.

So the score of any choice of rows (a bootstrap draw, a document, half of the rows swapped) costs one sum, whatever the metric, and no score is ever a mean of
scores where the field's definition is one of totals (perplexity, BLEU, F1). All functions take (..., K) and give (...), NaN where nothing was counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LARGEST_LOSS = 300.0
"""Nats a token. exp(300) is 2e130: beyond it a perplexity says no more, and its square would leave what a float64 holds."""

BLEU_ORDERS = 4
CHRF_BETA = 2
"""chrF2: recall weighs twice as much as precision."""


def mean(sums: np.ndarray) -> np.ndarray:
    """[sum, count]: accuracy, exact match, ROUGE-L, the share of answers that end by themselves."""
    total, count = np.moveaxis(sums, -1, 0)
    return _divide(total, count, empty=np.nan)


def ratio(sums: np.ndarray) -> np.ndarray:
    """[numerator, denominator]: bits per byte, precision, recall. 0 of 0 is 0, as scikit-learn's zero_division=0."""
    numerator, denominator = np.moveaxis(sums, -1, 0)
    return np.where((denominator == 0) & (numerator != 0), np.nan, _divide(numerator, denominator))


def exp_ratio(sums: np.ndarray) -> np.ndarray:
    """[summed loss in nats, tokens]: perplexity, the exponential of the mean loss of a token (Jelinek et al. 1977). Not the mean of exponentials."""
    loss, tokens = np.moveaxis(sums, -1, 0)
    return np.exp(np.minimum(_divide(loss, tokens, empty=np.nan), LARGEST_LOSS))


def f1(sums: np.ndarray) -> np.ndarray:
    """[true positives, predicted, gold]: 2 tp / (predicted + gold), the harmonic mean of precision and recall (van Rijsbergen 1979); 0 where all is empty."""
    true_positives, predicted, gold = np.moveaxis(sums, -1, 0)
    return _divide(2 * true_positives, predicted + gold)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """[true positives, predicted, gold] of the first class, of the second, ...: the plain mean of the classes' F1.

    A class that is neither gold nor predicted is left out: scikit-learn's f1_score(average="macro") with its own labels. An answer that names no class
    counts under gold alone.
    """
    classes = sums.reshape(*sums.shape[:-1], -1, 3)  # (..., C, 3)
    present = classes[..., 1:].any(-1)
    return _divide((f1(classes) * present).sum(-1), present.sum(-1), empty=np.nan)


def bleu(sums: np.ndarray) -> np.ndarray:
    """[answers' words, references' words, matching n-grams of order 1..4, the answers' n-grams of order 1..4]: corpus BLEU, 0..100.

    Geometric mean of the four precisions times the brevity penalty exp(1 - reference / answer) of answers that are too short (Papineni et al. 2002). The k-th
    precision without a match is taken as 1 / (2^k n-grams), method 3 of Chen and Cherry 2014; nothing at all in common is 0. sacrebleu's corpus_bleu.
    """
    length, reference = sums[..., 0], sums[..., 1]
    correct, total = np.split(sums[..., 2:], 2, axis=-1)  # (..., 4) each
    missed = correct == 0
    precisions = _divide(np.where(missed, 0.5 ** missed.cumsum(-1), correct), total)
    scored = ~missed.all(-1) & (total > 0).all(-1) & (length > 0)
    brevity = np.minimum(0.0, 1 - _divide(reference, length))
    logs = np.log(np.where(scored[..., None], precisions, 1.0)).mean(-1)
    return np.where(scored, 100 * np.exp(logs + brevity), 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """[the answers' n-grams, the references', matching] of 1 to 6 characters: chrF2, 0..100.

    Precision and recall are averaged over the orders that both sides have, then F = 5 P R / (4 P + R) (Popovic 2015, 2016). sacrebleu's corpus_chrf.
    """
    orders = sums.reshape(*sums.shape[:-1], -1, 3)  # (..., 6, 3)
    answer, reference, matching = np.moveaxis(orders, -1, 0)
    shared = (answer > 0) & (reference > 0)
    precision = _divide((_divide(matching, answer) * shared).sum(-1), shared.sum(-1))
    recall = _divide((_divide(matching, reference) * shared).sum(-1), shared.sum(-1))
    return 100 * _divide((1 + CHRF_BETA**2) * precision * recall, CHRF_BETA**2 * precision + recall)


def calibration(sums: np.ndarray) -> np.ndarray:
    """[count, summed confidence and number correct of the first bin, of the second, ...]: expected calibration error (Naeini et al. 2015, Guo et al. 2017).

    The bins' |accuracy - mean confidence|, weighted by their rows, is the sum of |correct - confidence| over all rows.
    """
    bins = sums[..., 1:].reshape(*sums.shape[:-1], -1, 2)  # (..., B, 2)
    return _divide(np.abs(bins[..., 1] - bins[..., 0]).sum(-1), sums[..., 0], empty=np.nan)


def _divide(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """above / below; `empty` where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, empty), where=below != 0)


VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean, "ratio": ratio, "exp_ratio": exp_ratio, "f1": f1, "macro_f1": macro_f1, "bleu": bleu, "chrf": chrf, "calibration": calibration,
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    name: str
    """What is printed: perplexity, macro F1."""
    kind: str
    """The function in VALUES."""
    higher_is_better: bool
    unit: str = ""
    """On what it was measured: test text, 1083 test rows."""
    labels: tuple[str, ...] = ()
    """Of macro_f1: the classes, in the order of their statistics."""

    def __post_init__(self) -> None:
        if self.kind not in VALUES:
            raise ValueError(f"metric {self.name!r}: no kind {self.kind!r}; there are {', '.join(VALUES)}")


@dataclass(frozen=True)
class Scores:
    metric: Metric
    rows: np.ndarray
    """(N, K) float64, one row a test row or document."""

    @property
    def value(self) -> float:
        return value_of(self.metric, self.rows)


def value_of(metric: Metric, rows: np.ndarray) -> float:
    """The metric of all rows (N, K) together."""
    return float(VALUES[metric.kind](rows.sum(axis=0, dtype=np.float64)))


def metric_as_json(metric: Metric) -> dict[str, Any]:
    return {**asdict(metric), "labels": list(metric.labels)}


def metric_from_json(saved: Mapping[str, Any]) -> Metric:
    """Other keys, such as the group under which a metric was saved, are left to the reader of the file."""
    return Metric(saved["name"], saved["kind"], saved["higher_is_better"], saved["unit"], tuple(saved["labels"]))
