"""One text or a pair of texts in; one label, any number of labels, or a number out.

Labels are matched by name, never by position. Shapes: N examples, C classes (1 for regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.task import Problem, Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MODEL_CLASS = "AutoModelForSequenceClassification"
HIDDEN_LABEL = -1  # what GLUE's test splits hold instead of an answer
MULTI_LABEL_THRESHOLD = 0.5


class TextClassification:
    """How an encoder is asked for a label, and how its answer is read."""

    def __init__(self, problem: Problem, labels: Sequence[str]):
        self.problem = problem
        self.labels = tuple(labels)

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say, so that plain `transformers` reads the answer alike."""
        names = self.labels or ("score",)
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": f"{self.problem}_classification" if self.problem != "regression" else "regression",
        }

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Rows of a split as token ids, with their labels if they have them."""
        texts = [rows[column][:] for column in task.text_columns]
        labels = self.read_labels(task, rows)
        return encode_texts(tokenizer, texts[0], texts[1] if len(texts) > 1 else None, max_length, labels)

    def read_labels(self, task: Task, rows: Dataset) -> np.ndarray | None:
        """The answers as [N] class numbers, [N] numbers or [N, C] zeros and ones; None if they are not given.

        Raises:
            DataError: some rows have an answer and others none, or an answer is not one of the labels.
        """
        if task.label_column not in rows.column_names:
            return None
        values = rows[task.label_column][:]
        if self.problem == "regression":
            return _read_numbers(task, values)
        names = _label_names(task, rows, values)
        hidden = [name is None for name in names]
        if all(hidden):
            return None
        if any(hidden):
            raise DataError(f"{task.name}: row {hidden.index(True) + 1} has no label, but other rows do")
        place = {label: index for index, label in enumerate(self.labels)}
        if self.problem == "single_label":
            return np.array([_place_of(task, place, row, name) for row, name in enumerate(names)], dtype=np.int64)
        table = np.zeros((len(names), len(self.labels)), dtype=np.float32)
        for row, chosen in enumerate(names):
            table[row, [_place_of(task, place, row, name) for name in chosen or ()]] = 1.0
        return table

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss summed over the examples: cross-entropy, mean binary cross-entropy over C, or squared error."""
        from torch.nn import functional

        if self.problem == "single_label":
            return functional.cross_entropy(logits, labels, reduction="sum")
        if self.problem == "multi_label":
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[-1]
        return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Answers from logits [N, C], in the form of `read_labels`."""
        if self.problem == "single_label":
            return logits.argmax(-1)
        if self.problem == "multi_label":
            return (self.probabilities(logits) > MULTI_LABEL_THRESHOLD).astype(np.float32)
        return logits[:, 0]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax over C, or a sigmoid for each of C. [N, C]"""
        from scipy.special import expit, softmax

        return softmax(logits, axis=-1) if self.problem == "single_label" else expit(logits)

    def decode(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """Answers from logits [N, C] for people: label (or labels, or score) and the probability of each label."""
        if self.problem == "regression":
            return [{"score": round(float(value), 6)} for value in logits[:, 0]]
        answers: list[dict[str, Any]] = []
        for chosen, row in zip(self.decide(logits), self.probabilities(logits).tolist(), strict=True):
            probabilities = {label: round(value, 6) for label, value in zip(self.labels, row, strict=True)}
            if self.problem == "single_label":
                answers.append({"label": self.labels[int(chosen)], "probabilities": probabilities})
            else:
                names = [label for label, is_set in zip(self.labels, chosen, strict=True) if is_set]
                answers.append({"labels": names, "probabilities": probabilities})
        return answers


def resolve_labels(task: Task, train_rows: Dataset) -> tuple[str, ...]:
    """The label names, in order: the row's own, else the data set's, else those of the training rows, sorted.

    Raises:
        DataError: the row and the data set disagree, or there is nothing to learn.
    """
    if task.problem == "regression":
        return ()
    if task.label_column not in train_rows.column_names:
        raise DataError(
            f"{task.name}: found columns {train_rows.column_names}, expected the label column {task.label_column!r}."
            f"{did_you_mean(task.label_column, train_rows.column_names)} Set task.label_column."
        )
    declared = _declared_names(train_rows.features[task.label_column])
    if task.labels and declared and set(task.labels) != set(declared):
        raise DataError(
            f"{task.name}: the task row lists the labels {list(task.labels)}, the data set declares {declared}; "
            "make task.labels agree"
        )
    found = _label_names(task, train_rows, train_rows[task.label_column][:])
    seen = {one for name in found if name is not None for one in ([name] if isinstance(name, str) else name)}
    labels = task.labels or tuple(declared) or tuple(sorted(seen))
    if len(labels) < (2 if task.problem == "single_label" else 1):
        raise DataError(f"{task.name}: found the labels {list(labels)}, expected at least two to tell apart")
    return labels


def _declared_names(feature: Any) -> list[str]:
    """Names a `ClassLabel` feature (or a list of them) declares; none for other features."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def _label_names(task: Task, rows: Dataset, values: list[Any]) -> list[Any]:
    """Each row's label as a name (or list of names); None where it is hidden or missing."""
    declared = _declared_names(rows.features[task.label_column])

    def name_of(value: Any) -> str:
        return declared[value] if declared and isinstance(value, int) else str(value)

    if task.problem == "single_label":
        return [None if value is None or value == HIDDEN_LABEL else name_of(value) for value in values]
    lists = ([part.strip() for part in v.split(",") if part.strip()] if isinstance(v, str) else v for v in values)
    return [None if value is None else [name_of(one) for one in value] for value in lists]


def _place_of(task: Task, place: dict[str, int], row: int, name: str) -> int:
    if name not in place:
        raise DataError(
            f"{task.name}: row {row + 1} has the label {name!r}, expected one of {list(place)}."
            f"{did_you_mean(name, place)}"
        )
    return place[name]


def _read_numbers(task: Task, values: list[Any]) -> np.ndarray | None:
    hidden = [value is None for value in values]
    if all(hidden):
        return None
    if any(hidden):
        raise DataError(f"{task.name}: row {hidden.index(True) + 1} has no value in column {task.label_column!r}")
    try:
        numbers = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{task.name}: column {task.label_column!r} is not numeric ({error})") from error
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{task.name}: row {row + 1} has {numbers[row]} in column {task.label_column!r}")
    return None if (numbers == HIDDEN_LABEL).all() else numbers
