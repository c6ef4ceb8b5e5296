"""Label names: reading them from task definitions, datasets and model configurations, and their weights in the loss.

Shapes: R rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.formats import join_words
from bertcli.errors import DataError, ModelError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

MISSING_LABEL = -1  # in GLUE's test splits, whose labels are hidden
OPTIONAL_CONFIG_FIELDS = ("thresholds", "tag_scheme", "casing_feature")  # config.json fields that not every head sets
MAX_PROBABILITIES = 20  # labels listed with a prediction
MAX_EXCERPT_CHARS = 60  # of a row in an error message
MAX_AUTO_WEIGHT = 100.0


def label_config_fields(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a model configuration that hold label names."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def labels_from_config(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the label names in a model configuration, in the order of their ids."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def check_labels(model_labels: Sequence[str], task_labels: Sequence[str], name: str, cure: str) -> None:
    """Check that a model with a trained classifier has the labels of the task, in any order.

    Args:
        name: the name of the model.
        cure: the last sentences of the error message, which say how to fix it.

    Raises:
        ModelError: the labels differ; the message lists both.
    """
    if task_labels and sorted(model_labels) != sorted(task_labels):
        found, expected = list(model_labels), list(task_labels)
        raise ModelError(f"the labels disagree: model {name} has {found}, the task has {expected}. {cure}")


def declared_labels(feature: Any) -> list[str]:
    """Return the names that a `ClassLabel` feature (or a list of them) declares; empty for other features."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def predefined_labels(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the labels that the task definition lists, else those that the dataset declares; empty if neither does.

    Raises:
        DataError: the label column is missing, or the task definition and the dataset disagree.
    """
    if task.label_column not in train.column_names:
        raise DataError(
            f"{task.name}: found columns {train.column_names}, expected the label column {task.label_column!r}."
            f"{did_you_mean(task.label_column, train.column_names)} Set task.label_column."
        )
    declared = declared_labels(train.features[task.label_column])
    if task.labels and declared and set(task.labels) != set(declared):
        raise DataError(
            f"{task.name}: the task definition lists the labels {list(task.labels)}, the dataset declares {declared}; "
            "make task.labels match"
        )
    return task.labels or tuple(declared)


def resolve_labels(task: Task, train: Dataset) -> tuple[str, ...]:
    """Return the label names in order: from the task definition, else the dataset, else the training rows, sorted.

    Raises:
        DataError: the task definition and the dataset disagree, or there are too few labels.
    """
    if task.problem == "regression":
        return ()
    labels = predefined_labels(task, train)
    if not labels:
        row_labels = label_names(task, train, train[task.label_column][:])
        distinct = {
            label
            for value in row_labels
            if value is not None
            for label in ([value] if isinstance(value, str) else value)
        }
        labels = tuple(sorted(distinct))
    if len(labels) < (2 if task.problem == "single_label" else 1):
        minimum = "two" if task.problem == "single_label" else "one"
        raise DataError(f"{task.name}: found the labels {list(labels)}, expected at least {minimum}")
    return labels


def label_names(task: Task, rows: Dataset, values: list[Any]) -> list[Any]:
    """Return the label of each row as a name (or a list of names); None if it is missing.

    In local files -1 is an ordinary label if the task definition lists it.
    """
    declared = declared_labels(rows.features[task.label_column])
    listed = () if declared else task.labels

    if task.problem == "single_label":
        return [
            None if is_missing_label(value) and str(value) not in listed else label_name(declared, value)
            for value in values
        ]
    lists = (_split_labels(value) if isinstance(value, str) else value for value in values)
    return [None if value is None else [label_name(declared, label) for label in value] for value in lists]


def _split_labels(text: str) -> list[str]:
    return [label.strip() for label in text.split(",") if label.strip()]


def label_name(declared: Sequence[str], value: Any) -> str:
    """Return the name that the dataset declares for a label id; other values are names themselves."""
    return declared[value] if isinstance(value, int) and 0 <= value < len(declared) else str(value)


def is_missing_label(value: Any) -> bool:
    """Whether a cell has no label: it is empty, or -1 as in GLUE's test splits."""
    return value in (None, MISSING_LABEL, str(MISSING_LABEL)) or (isinstance(value, str) and not value.strip())


def compute_class_weights(
    weights: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], gold: np.ndarray
) -> list[float] | None:
    """Return the weight of each label in the loss.

    `auto` is R / (C × rows with the label), as scikit-learn's `balanced`: the mean weight of the rows is 1. For
    multi-label tasks it is the ratio of rows without the label to rows with it, at most 100.

    Args:
        weights: `training.class_weights` of the recipe.
        gold: as returned by `TextClassification.references`.

    Raises:
        DataError: the weights are not for these labels, or a label has no rows.
    """
    if weights is None:
        return None
    if isinstance(weights, dict):
        return weights_from_recipe(weights, labels)
    if task.problem == "multi_label":
        counts = gold.sum(0)
        return [float(min(MAX_AUTO_WEIGHT, (len(gold) - count) / max(1.0, count))) for count in counts]
    counts = np.bincount(gold, minlength=len(labels))
    if not counts.all():
        raise DataError(f"{task.name}: no training row has the label {labels[int(counts.argmin())]!r}")
    return [float(len(gold) / (len(labels) * count)) for count in counts]


def weights_from_recipe(weights: dict[str, float], labels: tuple[str, ...]) -> list[float]:
    """Return the weights of a recipe in the order of the labels.

    Raises:
        DataError: the weights are not for these labels.
    """
    if set(weights) != set(labels):
        raise DataError(f"found training.class_weights for {list(weights)}, expected one for each of {list(labels)}")
    return [weights[label] for label in labels]


def lookup_label_id(task: Task, label2id: Mapping[str, int], rows: Dataset, row: int, label: str) -> int:
    """Return the id of `label`, the label of row `row`.

    Raises:
        DataError: the label is unknown.
    """
    if label not in label2id:
        raise DataError(
            f"{task.name}: row {row + 1} has the label {label!r:.80}, expected one of {list(label2id)}."
            f"{did_you_mean(label, label2id)} {row_excerpt(task, rows, row)} Fix the row, or task.labels."
        )
    return label2id[label]


def row_excerpt(task: Task, rows: Dataset, row: int) -> str:
    """Return a sentence that quotes the start of a row: after a split, its index differs from that in the file."""
    return f"It begins {join_words(rows[row][task.columns[0]])[:MAX_EXCERPT_CHARS]!r}."


def labels_with_gold(
    labels: Sequence[str], logits: np.ndarray, predicted: np.ndarray, gold: np.ndarray
) -> list[dict[str, Any]]:
    """Return predictions next to gold labels as `Head.with_gold` does, for one label per row.

    Args:
        logits: [R, C].
        predicted: label ids [R].
        gold: label ids [R].
    """
    from scipy.special import log_softmax

    entries = []
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    for row, predicted_id, gold_id in zip(log_probabilities, predicted.tolist(), gold.tolist(), strict=True):
        entries.append(
            {
                "gold": labels[gold_id],
                "predicted": labels[predicted_id],
                "right": predicted_id == gold_id,
                "confidence": float(np.exp(row[predicted_id])),
                "loss": float(-row[gold_id]),
                "probabilities": {labels[index]: float(np.exp(row[index])) for index in top_label_ids(row)},
            }
        )
    return entries


def top_label_ids(scores: np.ndarray) -> np.ndarray:
    """Return the ids of at most `MAX_PROBABILITIES` labels with the highest scores [C], in descending order."""
    top = np.argpartition(-scores, min(MAX_PROBABILITIES, len(scores)) - 1)[:MAX_PROBABILITIES]
    return top[np.argsort(-scores[top], kind="stable")]
