"""How likely a label must be to be the answer: as a recipe says, or as scores best on validation rows.

Shapes: R rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Task

USUAL = 0.5
Thresholds = dict[str, float]
"""By label, the probability it has to exceed. Of two labels of which one is right only the second has one."""


def given_thresholds(wanted: Mapping[str, float], task: Task, labels: Sequence[str]) -> Thresholds:
    """The thresholds that a recipe gives.

    Raises:
        DataError: they are for other labels, or there are more than two of which one is right.
    """
    usual = usual_thresholds(task, labels)
    for label in wanted:
        if label not in usual:
            cure = did_you_mean(label, usual)
            raise DataError(f"found answers.thresholds for {label!r}, expected it for {' or '.join(usual)}.{cure}")
    return usual | dict(wanted)


def usual_thresholds(task: Task, labels: Sequence[str]) -> Thresholds:
    """One half for each label that can have a threshold.

    Raises:
        DataError: there are more than two labels of which one is right.
    """
    if task.problem == "multi_label":
        return dict.fromkeys(labels, USUAL)
    if len(labels) != 2:
        raise DataError(
            f"{task.name}: answers.thresholds are for two labels, or for several at once; found one of {len(labels)}"
        )
    return {labels[1]: USUAL}


def best_threshold(probabilities: np.ndarray, right: np.ndarray) -> float:
    """The threshold with the best F1, half-way between two probabilities; one half where no row is right.

    Args:
        probabilities: of one label, [R].
        right: whether that label is right, [R].
    """
    from sklearn.metrics import precision_recall_curve

    if not right.any():
        return USUAL
    precision, recall, least = precision_recall_curve(right, probabilities)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    best = int(f1.argmax())
    below = probabilities[probabilities < least[best]]
    return float((least[best] + below.max(initial=0.0)) / 2)
