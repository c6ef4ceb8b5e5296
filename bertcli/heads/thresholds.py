"""Decision thresholds of labels, given in the recipe or tuned for the best F1 on the validation split.

Shapes: R rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import DataError, ModelError, did_you_mean, quoted
from bertcli.tasks.task import Problem, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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


def saved_thresholds(config: PretrainedConfig, labels: Sequence[str], problem: Problem) -> Thresholds | None:
    """Return the thresholds in a model configuration; None if there are none.

    Raises:
        ModelError: if they are not numbers for some of the labels, or for one of two labels in a single-label task.
    """
    thresholds: Any = getattr(config, "thresholds", None)
    if thresholds is None:
        return None
    is_valid = isinstance(thresholds, dict) and all(
        label in labels and isinstance(value, int | float) for label, value in thresholds.items()
    )
    if not is_valid or (problem == "single_label" and not (len(thresholds) == 1 and len(labels) == 2)):
        raise ModelError(
            f"config.json of {config.name_or_path or 'the model'} has the thresholds {quoted(thresholds)}, expected "
            f"a number for {'one of' if problem == 'single_label' else 'each of'} {quoted([*labels])}; correct or "
            "restore it"
        )
    return thresholds


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
