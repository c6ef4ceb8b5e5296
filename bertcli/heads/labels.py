"""Label names: where data sets and models keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.formats import as_text
from bertcli.errors import DataError, ModelError, did_you_mean
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

HIDDEN_LABEL = -1  # what GLUE's test splits hold instead of an answer
OPTIONAL_FIELDS = ("thresholds", "tag_scheme", "marks_capitals")  # of a configuration: how a head asks and answers
MOST_PROBABILITIES = 20  # listed beside an answer
MOST_CHARACTERS = 60  # of a row that is told


def label_fields(labels: tuple[str, ...]) -> dict[str, Any]:
    """How a model's configuration holds label names."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def saved_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """The label names a configuration holds, in order of their numbers."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def check_labels(saved: Sequence[str], wanted: Sequence[str], name: str, cure: str) -> None:
    """Refuse a model with a trained head whose labels are not the task's (their order may differ).

    Raises:
        ModelError: with both lists and the cure.
    """
    if wanted and sorted(saved) != sorted(wanted):
        raise ModelError(f"the labels disagree: model {name} has {list(saved)}, the task has {list(wanted)}. {cure}")


def declared_names(feature: Any) -> list[str]:
    """Names a `ClassLabel` feature (or a list of them) declares; none for other features."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def listed_labels(task: Task, train: Dataset) -> tuple[str, ...]:
    """The labels as the task row lists them, else as the data set declares them; none if neither does.

    Raises:
        DataError: there is no such column, or the two disagree.
    """
    if task.label_column not in train.column_names:
        raise DataError(
            f"{task.name}: found columns {train.column_names}, expected the label column {task.label_column!r}."
            f"{did_you_mean(task.label_column, train.column_names)} Set task.label_column."
        )
    declared = declared_names(train.features[task.label_column])
    if task.labels and declared and set(task.labels) != set(declared):
        raise DataError(
            f"{task.name}: the task row lists the labels {list(task.labels)}, the data set declares {declared}; "
            "make task.labels agree"
        )
    return task.labels or tuple(declared)


def resolve_labels(task: Task, train_rows: Dataset) -> tuple[str, ...]:
    """The label names, in order: the row's own, else the data set's, else those of the training rows, sorted.

    Raises:
        DataError: the row and the data set disagree, or there is nothing to learn.
    """
    if task.problem == "regression":
        return ()
    labels = listed_labels(task, train_rows)
    if not labels:
        found = label_names(task, train_rows, train_rows[task.label_column][:])
        seen = {one for name in found if name is not None for one in ([name] if isinstance(name, str) else name)}
        labels = tuple(sorted(seen))
    if len(labels) < (2 if task.problem == "single_label" else 1):
        raise DataError(f"{task.name}: found the labels {list(labels)}, expected at least two to tell apart")
    return labels


def label_names(task: Task, rows: Dataset, values: list[Any]) -> list[Any]:
    """Each row's label as a name (or list of names); None where it is hidden or missing.

    Of own files -1 is a label like any other if the task row lists it.
    """
    declared = declared_names(rows.features[task.label_column])
    listed = () if declared else task.labels

    if task.problem == "single_label":
        return [None if is_hidden(value) and str(value) not in listed else name_of(declared, value) for value in values]
    lists = ([part.strip() for part in v.split(",") if part.strip()] if isinstance(v, str) else v for v in values)
    return [None if value is None else [name_of(declared, one) for one in value] for value in lists]


def name_of(declared: Sequence[str], value: Any) -> str:
    """The name that a data set declares for a label's number; what is no number of those is its own name."""
    return declared[value] if isinstance(value, int) and 0 <= value < len(declared) else str(value)


def is_hidden(value: Any) -> bool:
    """Whether a cell holds no label: it is empty, or as GLUE's test splits have it."""
    return value in (None, HIDDEN_LABEL, str(HIDDEN_LABEL)) or (isinstance(value, str) and not value.strip())


def class_weights(
    wanted: str | dict[str, float] | None, task: Task, labels: tuple[str, ...], answers: np.ndarray
) -> list[float] | None:
    """The weight of each label in the loss.

    `auto` weighs a label by R / (C × its rows), as scikit-learn's `balanced` does, so that the mean over the rows is
    1; with several labels a row, by the rows without it for each row with it (at most 100).

    Raises:
        DataError: names that are no labels, or a label without rows.
    """
    if wanted is None:
        return None
    if isinstance(wanted, dict):
        return given_weights(wanted, labels)
    if task.problem == "multi_label":
        counts = answers.sum(0)
        return [float(min(100.0, (len(answers) - count) / max(1.0, count))) for count in counts]
    counts = np.bincount(answers, minlength=len(labels))
    if not counts.all():
        raise DataError(f"{task.name}: no training row has the label {labels[int(counts.argmin())]!r}")
    return [float(len(answers) / (len(labels) * count)) for count in counts]


def given_weights(wanted: dict[str, float], labels: tuple[str, ...]) -> list[float]:
    """The weights a recipe gives, in the order of the labels.

    Raises:
        DataError: they are not for these labels.
    """
    if set(wanted) != set(labels):
        raise DataError(f"found training.class_weights for {list(wanted)}, expected one for each of {list(labels)}")
    return [wanted[label] for label in labels]


def place_of(task: Task, place: dict[str, int], rows: Dataset, row: int, name: str) -> int:
    """The number of the label `name`, which `row` of the rows has.

    Raises:
        DataError: it is none of the labels.
    """
    if name not in place:
        raise DataError(
            f"{task.name}: row {row + 1} has the label {name!r}, expected one of {list(place)}."
            f"{did_you_mean(name, place)} {beginning_of(task, rows, row)} Mend it, or task.labels."
        )
    return place[name]


def beginning_of(task: Task, rows: Dataset, row: int) -> str:
    """How a row begins: where some rows are held out, its number is not the one in its file."""
    return f"It begins {as_text(rows[row][task.columns[0]])[:MOST_CHARACTERS]!r}."


def compare_labels(
    labels: Sequence[str], logits: np.ndarray, chosen: np.ndarray, right: np.ndarray
) -> list[dict[str, Any]]:
    """`Head.compare` where one of C labels is right: the chosen [R], by logits [R, C], beside the right [R]."""
    from scipy.special import log_softmax

    lines = []
    shares = log_softmax(logits.astype(np.float64), axis=-1)
    for row, best, gold in zip(shares, chosen.tolist(), right.tolist(), strict=True):
        likeliest = likeliest_first(row)
        lines.append(
            {
                "gold": labels[gold],
                "predicted": labels[best],
                "right": best == gold,
                "confidence": float(np.exp(row[best])),
                "loss": float(-row[gold]),
                "probabilities": {labels[at]: float(np.exp(row[at])) for at in likeliest},
            }
        )
    return lines


def likeliest_first(scores: np.ndarray) -> np.ndarray:
    """The numbers of the labels with the highest scores [C], highest first, at most `MOST_PROBABILITIES`."""
    some = np.argpartition(-scores, min(MOST_PROBABILITIES, len(scores)) - 1)[:MOST_PROBABILITIES]
    return some[np.argsort(-scores[some], kind="stable")]
