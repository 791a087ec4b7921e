"""From scores of classes to probabilities that can be believed; everything is fitted on validation rows and only read on test rows.

    probabilities = softmax((scores - log_prior) / temperature)

`log_prior` takes out what the model says whatever it is asked (batch calibration, arXiv 2309.17249, section 3); `temperature` makes the
confidence as high as the accuracy (arXiv 1706.04599, section 4.2); below `threshold` it is better to say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BINS = 10
# Below this a temperature says more about the draw of the rows than about the model.
FEWEST_ROWS = 20
# A temperature at the edge was not found: no row contradicts more certainty (low), or no certainty is warranted at all (high).
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
# Halvings of log temperature: 2 * log(20) / 2**50 is less than the spacing of float64.
HALVINGS = 50


@dataclass(frozen=True)
class Calibration:
    log_prior: tuple[float, ...] | None
    """Log of the mean probability of each class over the validation rows; None where taking it out did not help."""
    temperature: float
    threshold: float | None
    """Answer from this confidence on; 0 answers always. None: no confidence was enough on validation, so never answer."""
    notes: tuple[str, ...] = ()
    """What was decided, and why, for people."""

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """scores (..., C) -> (..., C), each row summing to 1."""
        corrected = scores if self.log_prior is None else scores - np.array(self.log_prior)
        return np.exp(log_softmax(corrected / self.temperature))


class Answered(NamedTuple):
    """coverage: share of rows whose confidence is enough. accuracy: of these; None where there are none."""

    coverage: float
    accuracy: float | None


def calibrate(scores: np.ndarray, gold: Sequence[int], wanted_accuracy: float = 0.9) -> Calibration:
    """scores (N, C) of validation rows, gold (N,) the place of their class, -1 for one that is not scored (those count as wrong)."""
    true = np.asarray(gold, np.int64)
    told = true >= 0
    classes = len(np.unique(true[told]))
    if told.sum() < FEWEST_ROWS or classes < 2:
        few = f"{told.sum()} validation rows of {classes} class{'es' * (classes != 1)}"
        return Calibration(None, 1.0, 0.0, (f"not calibrated: {few} say too little (at least {FEWEST_ROWS} rows of 2 classes are needed)",))
    plain, plain_note = _with_temperature(scores[told], true[told], None)
    corrected, corrected_note = _with_temperature(scores[told], true[told], mean_log_prior(scores))
    losses = [negative_log_likelihood(one.probabilities(scores[told]), true[told]) for one in (plain, corrected)]
    better = losses[1] < losses[0]
    chosen, temperature_note = (corrected, corrected_note) if better else (plain, plain_note)
    prior_note = f"prior correction {'used' if better else 'not used'}: validation loss {losses[1]:.4f} with it, {losses[0]:.4f} without"
    confidence, right = judged(chosen.probabilities(scores), true)
    threshold = abstention_threshold(confidence, right, wanted_accuracy)
    threshold_note = f"no confidence reaches an accuracy of {wanted_accuracy:g} on validation, so every answer is withheld" if threshold is None else ""
    notes = tuple(note for note in (prior_note, temperature_note, threshold_note) if note)
    return Calibration(chosen.log_prior, chosen.temperature, threshold, notes)


def _with_temperature(scores: np.ndarray, gold: np.ndarray, log_prior: np.ndarray | None) -> tuple[Calibration, str]:
    temperature, note = fit_temperature(scores if log_prior is None else scores - log_prior, gold)
    return Calibration(None if log_prior is None else tuple(log_prior.tolist()), temperature, 0.0), note


def mean_log_prior(scores: np.ndarray) -> np.ndarray:
    """(N, C) -> (C,): log of the mean over the rows of softmax(scores). No label is looked at."""
    return np.logaddexp.reduce(log_softmax(scores), axis=0) - np.log(len(scores))


def fit_temperature(scores: np.ndarray, gold: np.ndarray) -> tuple[float, str]:
    """The temperature with the lowest mean -log p(gold), and a note where there is none within bounds.

    That loss is convex in b = 1 / temperature and its slope is mean(sum_c p_c score_c - score_gold), so the root of the slope is halved in on.
    """

    def slope(temperature: float) -> float:
        expected = (np.exp(log_softmax(scores / temperature)) * scores).sum(axis=1)  # (N,)
        return float((expected - scores[np.arange(len(gold)), gold]).mean())

    if slope(LOWEST_TEMPERATURE) <= 0:
        return 1.0, "temperature left at 1: the validation rows contradict no certainty, however high"
    if slope(HIGHEST_TEMPERATURE) >= 0:
        return HIGHEST_TEMPERATURE, f"temperature {HIGHEST_TEMPERATURE:g}, the highest tried: on validation the scores tell next to nothing of the class"
    low, high = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2)), ""


def negative_log_likelihood(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Mean of -log p(gold), in nats; a probability too small for a float64 counts as the smallest there is."""
    chosen = probabilities[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis. The largest is taken off first: sums of log-probabilities are large beside their differences."""
    above = scores - scores.max(axis=-1, keepdims=True)
    return above - np.log(np.exp(above).sum(axis=-1, keepdims=True))


# How far the confidence can be believed


def judged(probabilities: np.ndarray, gold: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """probabilities (N, C), gold (N,) -> (N,) confidence in the most likely class, (N,) whether it is the right one."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == np.asarray(gold)


def calibration_rows(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
    """confidence (N,), right (N,) -> (N, 1+2B): 1, then of each bin the confidence and whether it was right, 0 in the bins that it is not in.

    Bins have equal widths; bin m holds (m-1)/B < confidence <= m/B (arXiv 1706.04599, section 2).
    """
    rows = np.zeros((len(confidence), 1 + 2 * bins))
    number = np.arange(len(confidence))
    place = np.digitize(confidence, np.arange(1, bins) / bins, right=True)  # (N,) 0 .. B-1
    rows[:, 0] = 1
    rows[number, 1 + 2 * place] = confidence
    rows[number, 2 + 2 * place] = right
    return rows


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean over the rows of |confidence - accuracy| of their bins. NaN without rows."""
    sums = calibration_rows(confidence, right, bins).sum(axis=0)
    return float(np.abs(sums[1::2] - sums[2::2]).sum() / sums[0]) if sums[0] else float("nan")


# When to say nothing


def abstention_threshold(confidence: np.ndarray, right: np.ndarray, wanted_accuracy: float) -> float | None:
    """The lowest confidence from which on the rows are right as often as wanted; None where there is none."""
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)  # (N,) of the rows up to here
    last_of_equals = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)[: len(order)]
    enough = np.flatnonzero(last_of_equals & (accuracy >= wanted_accuracy))
    return float(sorted_confidence[enough[-1]]) if len(enough) else None


def answered(confidence: np.ndarray, right: np.ndarray, threshold: float | None) -> Answered:
    """What is left of the rows at a threshold."""
    kept = np.zeros(len(confidence), bool) if threshold is None else confidence >= threshold
    return Answered(float(kept.mean()) if len(kept) else 0.0, float(right[kept].mean()) if kept.any() else None)
