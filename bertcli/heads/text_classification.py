"""One text or a pair of texts in; one label, any number of labels, or a number out.

Labels are matched by name, never by position. Shapes: R rows, N items (R, or more if long texts are read in windows),
C classes (1 for regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.errors import DataError, ModelError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    HIDDEN_LABEL,
    beginning_of,
    class_weights,
    compare_labels,
    label_fields,
    label_names,
    likeliest_first,
    place_of,
    resolve_labels,
    saved_labels,
)
from bertcli.heads.thresholds import USUAL, Thresholds, best_threshold, given_thresholds, usual_thresholds
from bertcli.recipe.schema import DataSection, Recipe
from bertcli.tasks.task import Problem, Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROBLEMS: tuple[Problem, ...] = get_args(Problem)


class TextClassification(Head):
    """How an encoder is asked for a label, and how its answer is read."""

    model_class = "AutoModelForSequenceClassification"
    usual_columns = ("text", "text_pair")

    def __init__(
        self,
        problem: Problem,
        labels: Sequence[str],
        class_weights: Sequence[float] | None = None,
        thresholds: Thresholds | None = None,
    ):
        self.problem = problem
        self.labels = tuple(labels)
        self.class_weights = class_weights  # [C]; None: all alike
        self.thresholds = thresholds  # None: the likeliest label, or those likelier than not

    @classmethod
    def labels_of(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Label names; none of a regression."""
        return resolve_labels(task, train)

    @classmethod
    def learned_from(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """The head for a task, its labels as the training rows have them."""
        labels = cls.labels_of(task, train)
        head = cls(task.problem, labels)
        answers = head.references(task, train)
        if answers is None:
            raise DataError(f"{task.name}: the training rows have no labels")
        if task.problem == "single_label" and len(np.unique(answers)) < 2:
            raise DataError(f"{task.name}: all training rows have the same label, there is nothing to learn")
        weights = class_weights(recipe.training.class_weights, task, labels, answers)
        return cls(task.problem, labels, weights, _thresholds(recipe.answers.thresholds, task, labels))

    @classmethod
    def saved_with(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """The head of a trained model, as its configuration tells.

        Raises:
            ModelError: the configuration speaks of another kind of problem.
        """
        saved: Any = (config.problem_type or "single_label_classification").removesuffix("_classification")
        if saved not in PROBLEMS:
            raise ModelError(f"found problem_type {config.problem_type!r} in the model, expected one of {PROBLEMS}")
        if config.problem_type is None and config.num_labels == 1:
            saved = "regression"
        labels = () if saved == "regression" else saved_labels(config)
        return cls(saved, labels, thresholds=getattr(config, "thresholds", None))

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """The same head, its labels in another order."""
        order = [self.labels.index(label) for label in labels]
        weights = None if self.class_weights is None else [self.class_weights[at] for at in order]
        return type(self)(self.problem, labels, weights, self.thresholds)

    def tuned(self, task: Task, logits: np.ndarray, right: np.ndarray) -> Self:
        """The same head with the thresholds that score the best F1 on R rows.

        Args:
            logits: of the rows, [R, C].
            right: the right answers, in the form of `references`.
        """
        shares, thresholds = self.probabilities(logits), {}
        for label in usual_thresholds(task, task.labels or self.labels):
            at = self.labels.index(label)
            is_right = right[:, at] > 0 if self.problem == "multi_label" else right == at
            thresholds[label] = best_threshold(shares[:, at], is_right)
        return type(self)(self.problem, self.labels, self.class_weights, thresholds)

    @property
    def answer_kind(self) -> str:
        """What metrics and tasks have to fit."""
        return self.problem

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say, so that plain `transformers` reads the answer alike."""
        kind = f"{self.problem}_classification" if self.problem != "regression" else "regression"
        return label_fields(self.labels or ("score",)) | {"problem_type": kind} | self.facts

    @property
    def facts(self) -> dict[str, Any]:
        """The thresholds, if it has any."""
        return {} if self.thresholds is None else {"thresholds": self.thresholds}

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Rows of a split as token ids, with their labels if they have them."""
        texts = [rows[column][:] for column in task.text_columns]
        return encode_texts(
            tokenizer,
            texts[0],
            texts[1] if len(texts) > 1 else None,
            data.max_length,
            self.references(task, rows),
            long_inputs=data.long_inputs,
            doc_stride=data.doc_stride,
        )

    def references(self, task: Task, rows: Dataset) -> np.ndarray | None:
        """The right answers as [N] class numbers, [N] numbers or [N, C] zeros and ones; None if they are not given.

        Raises:
            DataError: some rows have an answer and others none, or an answer is not one of the labels.
        """
        if task.label_column not in rows.column_names:
            return None
        values = rows[task.label_column][:]
        if self.problem == "regression":
            return _read_numbers(task, values)
        names = label_names(task, rows, values)
        hidden = [name is None for name in names]
        if all(hidden):
            return None
        if any(hidden):
            row = hidden.index(True)
            begins = beginning_of(task, rows, row)
            cure = "Label or remove it." + (" If -1 is a label, list it in task.labels." if values[row] == "-1" else "")
            raise DataError(f"{task.name}: row {row + 1} has no label, but other rows do. {begins} {cure}")
        place = {label: index for index, label in enumerate(self.labels)}
        if self.problem == "single_label":
            return np.array([place_of(task, place, rows, row, name) for row, name in enumerate(names)], dtype=np.int64)
        table = np.zeros((len(names), len(self.labels)), dtype=np.float32)
        for row, chosen in enumerate(names):
            table[row, [place_of(task, place, rows, row, name) for name in chosen or ()]] = 1.0
        return table

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The loss summed over the items: cross-entropy, mean binary cross-entropy over C, or squared error."""
        from torch.nn import functional

        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if self.problem == "single_label":
            return functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=label_smoothing)
        if self.problem == "multi_label":
            # A label that is set weighs as its class; one that is not, as ever.
            losses = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum")
            return losses / logits.shape[-1]
        return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    def decide(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Answers for R rows from logits [N, C], in the form of `references`."""
        return self.choose(average_windows(encoded, logits))

    def choose(self, logits: np.ndarray) -> np.ndarray:
        """Answers for R rows from their logits [R, C], in the form of `references`."""
        thresholds = self.thresholds or {}
        if self.problem == "multi_label":
            least = np.array([thresholds.get(label, USUAL) for label in self.labels])
            return (self.probabilities(logits) > least).astype(np.float32)
        if self.problem == "regression":
            return logits[:, 0]
        if not thresholds:
            return logits.argmax(-1)
        ((label, threshold),) = thresholds.items()
        at = self.labels.index(label)
        return np.where(self.probabilities(logits)[:, at] > threshold, at, 1 - at)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax over C, or a sigmoid for each of C. [N, C]"""
        from scipy.special import expit, softmax

        return softmax(logits, axis=-1) if self.problem == "single_label" else expit(logits)

    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Answers for R rows for people: label (or labels, or score) and the probability of each label."""
        logits = average_windows(encoded, logits)
        if self.problem == "regression":
            return [{"score": round(float(value), 6)} for value in logits[:, 0]]
        answers: list[dict[str, Any]] = []
        for chosen, row in zip(self.choose(logits), self.probabilities(logits).tolist(), strict=True):
            probabilities = {label: round(value, 6) for label, value in zip(self.labels, row, strict=True)}
            if self.problem == "single_label":
                answers.append({"label": self.labels[int(chosen)], "probabilities": probabilities})
            else:
                names = [label for label, is_set in zip(self.labels, chosen, strict=True) if is_set]
                answers.append({"labels": names, "probabilities": probabilities})
        return answers

    def compare(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R answers beside the right ones."""
        right, logits = self.references(task, rows), average_windows(encoded, logits)
        assert right is not None
        if self.problem == "single_label":
            return compare_labels(self.labels, logits, self.choose(logits), right)
        if self.problem == "regression":
            pairs = zip(right.tolist(), logits[:, 0].tolist(), strict=True)
            return [{"gold": gold, "predicted": found, "loss": (gold - found) ** 2} for gold, found in pairs]
        answers: list[dict[str, Any]] = []
        # The binary cross-entropy of a logit, ln(1 + exp(x)) - y x, averaged over the labels.
        losses = (np.logaddexp(0.0, logits) - right * logits).mean(-1).tolist()
        for gold, chosen, shares, loss in zip(
            right, self.choose(logits), self.probabilities(logits), losses, strict=True
        ):
            names = [[self.labels[at] for at in np.flatnonzero(one)] for one in (gold, chosen)]
            probabilities = {self.labels[at]: float(shares[at]) for at in likeliest_first(shares)}
            answer = {"gold": names[0], "predicted": names[1], "right": names[0] == names[1], "loss": loss}
            answers.append(answer | {"probabilities": probabilities})
        return answers


def _thresholds(wanted: Any, task: Task, labels: tuple[str, ...]) -> Thresholds | None:
    if wanted is None:
        return None
    if wanted == "tuned":  # once the model has learned; only checked here
        usual_thresholds(task, labels)
        return None
    return given_thresholds(wanted, task, labels)


def average_windows(encoded: Encoded, logits: np.ndarray) -> np.ndarray:
    """The mean of the logits [N, C] over the windows of each row. [R, C]"""
    if len(logits) == 0 or encoded.rows[-1] + 1 == len(logits):
        return logits
    starts = np.flatnonzero(np.diff(encoded.rows, prepend=-1))
    counts = np.diff(starts, append=len(logits))
    return np.add.reduceat(logits, starts, axis=0) / counts[:, None].astype(logits.dtype)


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
