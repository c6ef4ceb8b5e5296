"""Calibration of probabilities: the bins of the expected calibration error, and the temperature that corrects it.

Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599. Shapes: N rows, C labels.
"""

from __future__ import annotations

import math

import numpy as np

NUM_BINS = 10


def confidence_bins(confidences: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Return which of equally wide bins (low, high] each confidence is in, from 0. [N]"""
    return np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the temperature by which to divide the logits to minimize the cross-entropy of the gold labels.

    If it is above 1, the model is overconfident. As in Platt (1999), a gold label counts as certain only to
    (N + 1) / (N + 2): if all N rows are right, the minimum would otherwise be at the temperature 0.

    Args:
        probabilities: probabilities of the labels; if a row has one label, they sum to 1. [N, C]
        gold: ids of the gold labels [N], or whether each row has each label [N, C].
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if gold.ndim == 2:  # each label of each row is a decision between two labels
        probabilities, gold = probabilities.ravel(), (gold > 0).astype(int).ravel()
        probabilities = np.stack((1 - probabilities, probabilities), axis=1)
    logits = np.log(np.clip(probabilities, 1e-30, None))
    num_rows, num_labels = logits.shape
    targets = np.full(logits.shape, 1 / (num_rows + 2) / max(1, num_labels - 1))
    targets[np.arange(num_rows), gold] = (num_rows + 1) / (num_rows + 2)

    def cross_entropy(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / math.exp(log_temperature), axis=-1)).sum() / num_rows)

    return math.exp(minimize_scalar(cross_entropy, bounds=(-3.0, 3.0), method="bounded").x)
