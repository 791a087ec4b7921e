"""What was planted is found: a temperature, a bias, a confidence from which on the answers are right."""

import numpy as np
import pytest

from halfbyte.evaluate.calibration import (
    BINS,
    FEWEST_ROWS,
    Calibration,
    abstention_threshold,
    answered,
    calibrate,
    calibration_rows,
    expected_calibration_error,
    fit_temperature,
    judged,
    log_softmax,
    mean_log_prior,
    negative_log_likelihood,
)  # fmt: skip


def drawn(rows, classes=4, seed=0, sharpness=2.0):
    """scores (N, C) that are true log-probabilities, and classes drawn from them."""
    draw = np.random.default_rng(seed)
    scores = log_softmax(sharpness * draw.standard_normal((rows, classes)))
    gold = (draw.random((rows, 1)) > np.exp(scores).cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return scores, gold


def test_probabilities_are_a_softmax():
    scores = np.array([[0.0, np.log(3.0)], [-1000.0, -1000.0]])
    np.testing.assert_allclose(Calibration(None, 1.0, 0.0).probabilities(scores), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(Calibration(None, 0.5, 0.0).probabilities(scores)[0], [0.1, 0.9], rtol=1e-14)
    np.testing.assert_allclose(Calibration((0.0, float(np.log(3.0))), 1.0, 0.0).probabilities(scores)[0], [0.5, 0.5], rtol=1e-15)


# Temperature


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted):
    """Scores are too sure by a factor; 20,000 rows tell it to about 2 %."""
    scores, gold = drawn(20_000)
    found, note = fit_temperature(scores * planted, gold)
    assert found == pytest.approx(planted, rel=0.03)
    assert note == ""


@pytest.mark.parametrize("rows", [20, 200])
def test_the_temperature_is_the_one_with_the_lowest_loss(rows):
    """Beside scipy's minimum of the same loss."""
    from scipy.optimize import minimize_scalar

    scores, gold = drawn(rows, seed=rows)
    found, _ = fit_temperature(3 * scores, gold)
    theirs = minimize_scalar(lambda log: negative_log_likelihood(Calibration(None, np.exp(log), 0.0).probabilities(3 * scores), gold), bracket=(-1, 2))
    assert found == pytest.approx(np.exp(theirs.x), rel=1e-5)


def test_rows_that_contradict_no_certainty_do_not_make_it_boundless():
    scores = np.log([[0.6, 0.4], [0.3, 0.7]] * 20)
    found, note = fit_temperature(scores, np.array([0, 1] * 20))
    assert found == 1.0
    assert "contradict no certainty" in note


def test_scores_that_mislead_are_not_believed():
    scores = np.log([[0.9, 0.1], [0.1, 0.9]] * 20)
    found, note = fit_temperature(scores, np.array([1, 0] * 20))
    assert found == 20.0
    assert "next to nothing" in note


# Prior


def test_a_planted_bias_is_taken_out():
    """The model leans to class 0 whatever it is asked; the rows do not. Most of the accuracy that this costs comes back."""
    scores, gold = drawn(4000)
    leaning = scores + np.array([1.5, 0.0, 0.0, -1.0])
    plain = Calibration(None, 1.0, 0.0)
    assert mean_log_prior(leaning) == pytest.approx(np.log(plain.probabilities(leaning).mean(axis=0)), rel=1e-12)
    fitted = calibrate(leaning, gold)
    assert fitted.log_prior == pytest.approx(mean_log_prior(leaning))
    assert fitted.notes[0].startswith("prior correction used: validation loss ")
    lost, without, corrected = (np.mean(judged(p, gold)[1]) for p in (plain.probabilities(leaning), plain.probabilities(scores), fitted.probabilities(leaning)))
    assert without - lost > 0.1
    assert corrected - lost > 0.75 * (without - lost)


def test_what_is_said_whatever_is_asked_tells_nothing():
    """The same scores in every row: nothing but prior, and nothing is left of it."""
    scores = np.tile(np.log([0.7, 0.2, 0.1]) - 40, (30, 1))
    prior = mean_log_prior(scores)
    np.testing.assert_allclose(prior, np.log([0.7, 0.2, 0.1]), rtol=1e-12)
    np.testing.assert_allclose(Calibration(tuple(prior), 0.3, 0.0).probabilities(scores), np.full((30, 3), 1 / 3), rtol=1e-12)


def test_a_true_imbalance_is_not_taken_out():
    """Nine rows of ten are of class 0 and the scores know it: correcting would make them worse, so it is not done."""
    draw = np.random.default_rng(1)
    scores = log_softmax(draw.standard_normal((4000, 3)) + np.log([0.9, 0.05, 0.05]))
    gold = (draw.random((4000, 1)) > np.exp(scores).cumsum(axis=1)).sum(axis=1).clip(max=2)
    fitted = calibrate(scores, gold)
    assert fitted.log_prior is None
    assert fitted.notes[0].startswith("prior correction not used: validation loss ")
    assert fitted.temperature == pytest.approx(1, rel=0.1)


def test_a_class_that_is_never_likely_has_a_finite_prior():
    assert np.isfinite(mean_log_prior(np.array([[0.0, -2000.0], [0.0, -3000.0]]))).all()


# Too little to go by


@pytest.mark.parametrize(("rows", "classes"), [(0, 3), (FEWEST_ROWS - 1, 3), (200, 1)])
def test_too_few_rows_or_one_class_are_not_fitted(rows, classes):
    scores, gold = drawn(rows)
    fitted = calibrate(5 * scores, gold % classes)
    assert (fitted.log_prior, fitted.temperature, fitted.threshold) == (None, 1.0, 0.0)
    assert fitted.notes[0].startswith(f"not calibrated: {rows} validation rows of ")


def test_enough_rows_are_fitted_and_unknown_classes_only_count_as_wrong():
    scores, gold = drawn(FEWEST_ROWS, seed=3)
    assert "not calibrated" not in " ".join(calibrate(scores, gold).notes)
    scores, gold = drawn(2000)
    unknown = np.where(np.arange(2000) < 1000, gold, -1)
    known, mixed = calibrate(scores[:1000], gold[:1000]), calibrate(scores, unknown)
    assert mixed.temperature == pytest.approx(known.temperature, rel=0.05)
    assert known.threshold is not None
    assert mixed.threshold is None, "half of the rows are wrong at any confidence"
    assert "every answer is withheld" in mixed.notes[-1]


# Expected calibration error


def test_the_error_equals_a_count_by_hand():
    """Bins: 0.62 and 0.68 (one of two right, 0.65 sure), 0.95 (right), 0.30 exactly belongs to (0.2, 0.3]."""
    confidence, right = np.array([0.62, 0.68, 0.95, 0.30]), np.array([True, False, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx((2 * 0.15 + 0.05 + 0.30) / 4, abs=1e-12)
    sums = calibration_rows(confidence, right).sum(axis=0)
    assert sums[0] == 4
    assert sums[1 + 2 * 2 : 3 + 2 * 2] == pytest.approx([0.30, 0])
    assert sums[1 + 2 * 6 : 3 + 2 * 6] == pytest.approx([1.30, 1])
    assert sums[1 + 2 * 9 : 3 + 2 * 9] == pytest.approx([0.95, 1])
    assert calibration_rows(np.array([0.0, 1.0, 0.1, 0.7]), np.zeros(4)).shape == (4, 1 + 2 * BINS)
    assert np.argmax(calibration_rows(np.array([1.0, 0.1, 0.7, 0.7 + 1e-9]), np.zeros(4))[:, 1::2], axis=1).tolist() == [9, 0, 6, 7]


def test_a_calibrated_stream_has_next_to_no_error_and_a_boastful_one_has():
    """20,000 rows: each bin's accuracy is within 0.01 of its confidence; what is three times too sure is off by over 0.1."""
    scores, gold = drawn(20_000)
    assert expected_calibration_error(*judged(np.exp(scores), gold)) < 0.015
    assert expected_calibration_error(*judged(Calibration(None, 1 / 3, 0.0).probabilities(scores), gold)) > 0.1
    fitted = calibrate(3 * scores[:10_000], gold[:10_000])
    assert expected_calibration_error(*judged(fitted.probabilities(3 * scores[10_000:]), gold[10_000:])) < 0.02
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))


# Saying nothing


def test_the_threshold_is_the_lowest_that_is_right_often_enough():
    confidence = np.array([0.5, 0.9, 0.6, 0.8, 0.7])
    right = np.array([False, True, False, False, True])  # by confidence: right, wrong, right, wrong, wrong
    assert abstention_threshold(confidence, right, 1.0) == 0.9
    assert abstention_threshold(confidence, right, 0.6) == 0.7
    assert abstention_threshold(confidence, right, 0.5) == 0.6
    assert abstention_threshold(confidence, right, 0.4) == 0.5
    assert abstention_threshold(confidence, ~right, 1.0) is None
    assert abstention_threshold(np.zeros(0), np.zeros(0, bool), 0.9) is None


def test_rows_that_are_equally_sure_are_answered_together():
    """At 0.8 one is right and one is wrong: whichever comes first, both are answered or neither."""
    for right in ([True, True, False], [True, False, True]):
        assert abstention_threshold(np.array([0.9, 0.8, 0.8]), np.array(right), 0.9) == 0.9


def test_what_is_answered_at_a_threshold():
    confidence, right = np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, True, False, False])
    assert answered(confidence, right, 0.7) == (0.75, pytest.approx(2 / 3))
    assert answered(confidence, right, 0.0) == (1.0, 0.5)
    assert answered(confidence, right, 0.95) == answered(confidence, right, None) == (0.0, None)
    assert answered(np.zeros(0), np.zeros(0, bool), 0.0) == (0.0, None)


def test_what_is_fitted_holds_on_other_rows():
    scores, gold = drawn(8000, sharpness=4.0)
    fitted = calibrate(2 * scores[:4000], gold[:4000], wanted_accuracy=0.95)
    coverage, accuracy = answered(*judged(fitted.probabilities(2 * scores[4000:]), gold[4000:]), fitted.threshold)
    assert 0.2 < coverage < 0.9
    assert accuracy == pytest.approx(0.95, abs=0.015)
