"""Decision thresholds of labels, given in the recipe or tuned for the best F1 on the validation split.

Shapes: R rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Task

DEFAULT_THRESHOLD = 0.5
Thresholds = dict[str, float]
"""Label → the probability it must exceed to be predicted; only the second label has one in binary classification."""


def thresholds_from_recipe(thresholds: Mapping[str, float], task: Task, labels: Sequence[str]) -> Thresholds:
    """Return the thresholds of a recipe, completed with the default.

    Raises:
        DataError: if a threshold is for an unknown label, or the task is single-label with more than two labels.
    """
    defaults = default_thresholds(task, labels)
    for label in thresholds:
        if label not in defaults:
            cure = did_you_mean(label, defaults)
            raise DataError(f"found {label!r} in answers.thresholds, expected {' or '.join(defaults)}.{cure}")
    return defaults | dict(thresholds)


def default_thresholds(task: Task, labels: Sequence[str]) -> Thresholds:
    """Return `DEFAULT_THRESHOLD` for each label that can have a threshold.

    Raises:
        DataError: if the task is single-label with more than two labels.
    """
    if task.problem == "multi_label":
        return dict.fromkeys(labels, DEFAULT_THRESHOLD)
    if len(labels) != 2:
        raise DataError(
            f"{task.name}: answers.thresholds requires a multi-label task or two labels, found {len(labels)} labels; "
            "remove it"
        )
    return {labels[1]: DEFAULT_THRESHOLD}


def best_f1_threshold(probabilities: np.ndarray, is_gold: np.ndarray) -> float:
    """Return the threshold with the best F1, midway between two probabilities; 0.5 if no row has the label.

    Args:
        probabilities: probabilities of one label. [R]
        is_gold: whether each row has that label. [R]
    """
    from sklearn.metrics import precision_recall_curve

    if not is_gold.any():
        return DEFAULT_THRESHOLD
    precision, recall, thresholds = precision_recall_curve(is_gold, probabilities)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    best = int(f1.argmax())
    lower = probabilities[probabilities < thresholds[best]]
    return float((thresholds[best] + lower.max(initial=0.0)) / 2)
