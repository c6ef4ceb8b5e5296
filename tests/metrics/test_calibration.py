"""Calibration error and temperature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from bertcli.metrics.calibration import fit_temperature

from ..conftest import score_predictions


def test_calibration_error_of_rows_in_two_bins() -> None:
    probabilities = np.array([[0.85, 0.15], [0.1, 0.9], [0.45, 0.55], [0.58, 0.42]])
    gold = np.array([0, 0, 1, 0])
    expected = (abs(1 - (0.85 + 0.9)) + abs(2 - (0.55 + 0.58))) / 4  # sums of the bins
    scores = score_predictions(["calibration_error"], "single_label", gold, gold, probabilities=probabilities)
    assert scores == {"calibration_error": pytest.approx(expected)}


@pytest.mark.parametrize(("num_rows", "least", "most"), [(1, 0.6, 0.7), (100, 0.95, 0.995)])
def test_rows_that_are_all_right_leave_some_doubt(num_rows: int, least: float, most: float) -> None:
    gold = np.arange(num_rows) % 2
    probabilities = np.abs(gold[:, None] - np.array([0.8, 0.2]))
    temperature = fit_temperature(probabilities, gold)
    calibrated = softmax(np.log(probabilities) / temperature, axis=1)
    assert least < calibrated.max(1).mean() < most


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_labels_and_of_label_sets(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 3))
    gold = (softmax(logits, axis=1).cumsum(1) > random.random((20_000, 1))).argmax(1)
    assert fit_temperature(softmax(logits * temperature, axis=1), gold) == pytest.approx(temperature, rel=0.05)
    has_label = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    probabilities = 1 / (1 + np.exp(-logits * temperature))
    assert fit_temperature(probabilities, has_label.astype(np.float32)) == pytest.approx(temperature, rel=0.05)
