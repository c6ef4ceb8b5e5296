"""Text classification and regression: predicts a label, any number of labels, or a number for a text or sentence pair.

Labels are matched by name, never by position. Shapes: R rows, N items (R, or more if long texts are split into
windows), C classes (1 for regression).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.data.sources import locate_rows, origin
from bertcli.errors import DataError, ModelError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    MISSING_LABEL,
    check_all_labels_occur,
    compute_class_weights,
    is_missing_number,
    label_config_fields,
    label_names,
    labels_from_config,
    labels_with_gold,
    match_labels,
    minus_one_hint,
    missing_labels,
    resolve_labels,
    top_label_ids,
)
from bertcli.heads.losses import label_loss, label_set_loss
from bertcli.heads.thresholds import (
    DEFAULT_THRESHOLD,
    Thresholds,
    best_f1_threshold,
    default_thresholds,
    saved_thresholds,
    thresholds_from_recipe,
)
from bertcli.recipe.schema import DataSection, Recipe, TrainingSection
from bertcli.tasks.task import COMMA_NUMBER, NUMBER, Problem, Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Scale = tuple[float, float]
"""Mean and standard deviation of the targets of a regression."""
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
MAX_MODERATE = 10.0  # largest mean and standard deviation of targets that are learned without standardization
MIN_SIX_DECIMALS = 1e-3  # smaller predictions would lose most of their digits
MAX_NUMBER = 1e15  # the summed squares of larger targets would overflow fp32
MAX_MEAN_IN_STDS = 1e5  # fp32 has 7 digits, too few for targets that differ only after the fifth
DEFAULT_METRICS: dict[Problem, tuple[str, ...]] = {
    "single_label": ("accuracy", "f1_macro"),
    "multi_label": ("f1_micro", "f1_macro", "exact_match"),
    "regression": ("pearson", "spearman"),
}


class TextClassification(Head):
    """A head that predicts one label, any number of labels, or a number per row, depending on `problem`."""

    model_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    has_pipeline = True
    default_columns = ("text", "text_pair")

    def __init__(
        self,
        problem: Problem,
        labels: Sequence[str],
        class_weights: Sequence[float] | None = None,
        thresholds: Thresholds | None = None,
        trained_scale: Scale | None = None,
    ):
        self.problem = problem
        self.labels = tuple(labels)
        self.class_weights = class_weights  # [C]; None: all equal
        self.thresholds = thresholds  # None: predict the most probable label or, in multi-label tasks, those above 0.5
        self.trained_scale = trained_scale  # of a regression's targets; None: unknown

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition has labels unlike its problem, or keys of other heads."""
        if task.problem == "regression" and task.labels:
            return "found `labels`, but regression tasks have none; remove them"
        if task.problem != "multi_label" and task.label_columns:
            return f"`label_columns` requires `problem: multi_label`, found {task.problem}"
        return super().find_problem(task.model_copy(update={"problem": "single_label", "label_columns": ()}))

    @classmethod
    def answer_kind_of(cls, task: Task) -> str:
        """Return the problem: `single_label`, `multi_label` or `regression`."""
        return task.problem

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return the default metrics of the problem."""
        return DEFAULT_METRICS[task.problem]

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys that have an effect, given the problem and the number of texts."""
        keys = {"training.token_cutoff"}
        if task.problem != "regression":
            keys |= {"training.class_weights", "training.loss", "answers.thresholds", "answers.calibrated"}
        if task.problem == "single_label":
            keys |= {"training.label_smoothing", "training.balance", "training.teacher"}
        if len(task.text_columns) == 1:
            keys.add("data.long_inputs")
        return frozenset(keys)

    @classmethod
    def default_task(cls, name: str) -> Task:
        """Return a task with single texts."""
        return Task(head=name, dataset="unknown", text_columns=cls.default_columns[:1])

    @classmethod
    def task_labels(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Return the label names; empty for regression."""
        return resolve_labels(task, train)

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model, with the labels of the task or of the training rows.

        Raises:
            DataError: if the training rows have no labels or a single one, or if a cell is not a valid label.
        """
        labels = cls.task_labels(task, train)
        head = cls(task.problem, labels)
        gold = head.references(task, train)
        if gold is None:
            raise DataError(f"{origin(task)}: the training rows have no labels")
        if task.problem == "single_label" and len(np.unique(gold)) < 2:
            raise DataError(f"{origin(task)}: all training rows have the same label, expected at least two labels")
        if task.problem == "regression":
            scale = _scale(gold)
            _check_spread(task, *scale)
            return cls(task.problem, (), trained_scale=scale)
        if recipe.training.balance is not None:
            check_all_labels_occur(
                task, labels, gold, "cannot be over-sampled; add such rows, or remove training.balance"
            )
        weights = compute_class_weights(recipe.training.class_weights, task, labels, gold)
        return cls(task.problem, labels, weights, _thresholds(recipe.answers.thresholds, task, labels))

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model from its configuration.

        Raises:
            ModelError: if the configuration has an unknown `problem_type`, or invalid labels or thresholds.
        """
        problem: Any = str(config.problem_type or "single_label_classification").removesuffix("_classification")
        if problem not in PROBLEMS:
            raise ModelError(f"found problem_type {config.problem_type!r} in the model, expected one of {PROBLEMS}")
        if config.problem_type is None and config.num_labels == 1:
            problem = "regression"
        if problem == "regression":
            return cls(problem, (), trained_scale=_saved_scale(config))
        labels = labels_from_config(config)
        return cls(problem, labels, thresholds=saved_thresholds(config, labels, problem))

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return this head with its labels in another order."""
        order = [self.labels.index(label) for label in labels]
        weights = None if self.class_weights is None else [self.class_weights[index] for index in order]
        return type(self)(self.problem, labels, weights, self.thresholds)

    def tune_thresholds(self, task: Task, logits: np.ndarray, gold: np.ndarray) -> Self:
        """Return this head with the thresholds that have the best F1 on R rows.

        Args:
            logits: logits of the rows. [R, C]
            gold: gold labels, as returned by `references`.
        """
        probabilities, thresholds = self.probabilities(logits), {}
        for label in default_thresholds(task, task.labels or self.labels):
            index = self.labels.index(label)
            is_gold = gold[:, index] > 0 if self.problem == "multi_label" else gold == index
            thresholds[label] = best_f1_threshold(probabilities[:, index], is_gold)
        return type(self)(self.problem, self.labels, self.class_weights, thresholds)

    @property
    def answer_kind(self) -> str:
        """The kind of predictions, which must match `Task.answer_kind` and be supported by the metrics."""
        return self.problem

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields for the model's `config.json`: label names, `problem_type`, thresholds, and the scale of targets."""
        problem_type = f"{self.problem}_classification" if self.problem != "regression" else "regression"
        fields = label_config_fields(self.labels or ("score",)) | {"problem_type": problem_type} | self.config_extras
        if self.trained_scale is not None:
            fields["target_scale"] = dict(zip(("mean", "std"), self.trained_scale, strict=True))
        return fields

    @property
    def config_extras(self) -> dict[str, Any]:
        """The thresholds, if there are any."""
        return {} if self.thresholds is None else {"thresholds": self.thresholds}

    def target_scale(self, gold: np.ndarray) -> tuple[float, float] | None:
        """Return the mean and standard deviation of the gold numbers [R] of a regression task, or None.

        None if the mean is within ±10 and the standard deviation from 0.1 to 10, which a new output layer can learn.
        """
        if self.problem != "regression":
            return None
        scale = _scale(gold)
        return None if _is_moderate(*scale) else scale

    def scale_problem(self, saved: PretrainedConfig) -> str | None:
        """Return how the targets differ in scale from those that a saved regression model was trained on.

        None if its output layer can still learn them, or if its scale is unknown.
        """
        before, now = _saved_scale(saved), self.trained_scale
        if before is None or now is None or _is_moderate((before[0] - now[0]) / now[1], before[1] / now[1]):
            return None
        new, old = (f"mean {mean:,.6g}, standard deviation {std:,.6g}" for mean, std in (now, before))
        return f"their scale ({new}) is very different from that of the targets it was trained on ({old})"

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Encode rows as token IDs, with labels if the rows have them."""
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
        """Return the gold label ids [R], numbers [R] or multi-hot labels [R, C]; None if the rows are unlabeled.

        Raises:
            DataError: if only some rows have a label, or a label is unknown.
        """
        if task.label_column not in rows.column_names:
            return None
        values = rows[task.label_column][:]
        if self.problem == "regression":
            return _parse_numbers(task, rows, values)
        names = label_names(task, rows, values)
        missing = [row for row, name in enumerate(names) if name is None]
        if len(missing) == len(names):
            return None
        if missing:
            raise missing_labels(task, rows, missing, minus_one_hint(task, rows, values))
        ids = match_labels(task, self.labels, rows, names)
        if self.problem == "single_label":
            return np.array([ids[name] for name in names], dtype=np.int64)
        multi_hot = np.zeros((len(names), len(self.labels)), dtype=np.float32)
        for row, row_names in enumerate(names):
            multi_hot[row, [ids[name] for name in row_names]] = 1.0
        return multi_hot

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        """Return the loss summed over the items: cross-entropy, mean binary cross-entropy over C, or squared error."""
        from torch.nn import functional

        if self.problem == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")
        if self.problem == "multi_label":
            return label_set_loss(logits, labels, self.class_weights, training)
        return label_loss(logits, labels, self.class_weights, training)

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Decode logits [N, C] to predictions for R rows, in the format of `references`."""
        return self.apply_thresholds(average_windows(encoded, logits))

    def apply_thresholds(self, logits: np.ndarray) -> np.ndarray:
        """Decode logits [R, C] to predictions for R rows, in the format of `references`."""
        thresholds = self.thresholds or {}
        if self.problem == "multi_label":
            label_thresholds = np.array([thresholds.get(label, DEFAULT_THRESHOLD) for label in self.labels])
            return (self.probabilities(logits) > label_thresholds).astype(np.float32)
        if self.problem == "regression":
            return logits[:, 0]
        if not thresholds:
            return logits.argmax(-1)
        ((label, threshold),) = thresholds.items()
        index = self.labels.index(label)
        return np.where(self.probabilities(logits)[:, index] > threshold, index, 1 - index)

    def to_probabilities(self, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Convert logits [N, C] to the probabilities [R, C] of the rows, whose windows are averaged first."""
        return self.probabilities(average_windows(encoded, logits))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Convert logits [R, C] to probabilities [R, C] with softmax, or with sigmoid for multi-label tasks.

        They are float64: in float32, all logits above 17 would have the same probability, 1.
        """
        from scipy.special import expit, softmax

        logits = logits.astype(np.float64)
        return softmax(logits, axis=-1) if self.problem == "single_label" else expit(logits)

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the predicted label (or labels, or score) of R rows and the probability of each label."""
        logits = average_windows(encoded, logits)
        if self.problem == "regression":
            return [{"score": _round(float(value))} for value in logits[:, 0]]
        entries: list[dict[str, Any]] = []
        for predicted, row in zip(self.apply_thresholds(logits), self.probabilities(logits).tolist(), strict=True):
            probabilities = {label: round(value, 6) for label, value in zip(self.labels, row, strict=True)}
            if self.problem == "single_label":
                entries.append({"label": self.labels[int(predicted)], "probabilities": probabilities})
            else:
                names = [label for label, is_predicted in zip(self.labels, predicted, strict=True) if is_predicted]
                entries.append({"labels": names, "probabilities": probabilities})
        return entries

    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return R predictions next to the gold values."""
        gold, logits = self.references(task, rows), average_windows(encoded, logits)
        assert gold is not None
        if self.problem == "single_label":
            return labels_with_gold(self.labels, logits, np.asarray(predictions), gold)
        if self.problem == "regression":
            pairs = zip(gold.tolist(), np.asarray(predictions).tolist(), strict=True)
            return [{"gold": target, "predicted": score, "loss": (target - score) ** 2} for target, score in pairs]
        entries: list[dict[str, Any]] = []
        # The binary cross-entropy of a logit, ln(1 + exp(x)) - y x, averaged over the labels.
        losses = (np.logaddexp(0.0, logits) - gold * logits).mean(-1).tolist()
        for row_gold, predicted, probabilities, loss in zip(
            gold, predictions, self.probabilities(logits), losses, strict=True
        ):
            gold_names, predicted_names = (
                [self.labels[index] for index in np.flatnonzero(row)] for row in (row_gold, predicted)
            )
            entries.append(
                {
                    "gold": gold_names,
                    "predicted": predicted_names,
                    "right": gold_names == predicted_names,
                    "loss": loss,
                    "probabilities": {
                        self.labels[index]: float(probabilities[index]) for index in top_label_ids(probabilities)
                    },
                }
            )
        return entries


def _round(value: float) -> float:
    """Round a number to 6 decimals, or to 6 significant digits if it is small."""
    return round(value, 6) if abs(value) >= MIN_SIX_DECIMALS else float(f"{value:.6g}")


def _thresholds(thresholds: Any, task: Task, labels: tuple[str, ...]) -> Thresholds | None:
    """Return the thresholds of a recipe; None if there are none, or if they are tuned after training."""
    if thresholds is None:
        return None
    if thresholds == "tuned":
        default_thresholds(task, labels)  # raises an error before training if the task cannot have thresholds
        return None
    return thresholds_from_recipe(thresholds, task, labels)


def average_windows(encoded: Encoded, logits: np.ndarray) -> np.ndarray:
    """Return the mean of logits [N, C] over the windows of each row. [R, C]"""
    if len(logits) == 0 or encoded.rows[-1] + 1 == len(logits):
        return logits
    starts = np.flatnonzero(np.diff(encoded.rows, prepend=-1))
    counts = np.diff(starts, append=len(logits))
    return np.add.reduceat(logits, starts, axis=0) / counts[:, None].astype(logits.dtype)


def gold_numbers(task: Task, values: Sequence[Any]) -> list[float | None]:
    """Return the number in each cell of a regression task; None if it is missing, NaN if it is not a number."""
    decimal = "point" if task.files is None else task.files.decimal
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    return [None if is_missing_number(value) else _parse_number(value, decimal) for value in values]


def _parse_numbers(task: Task, rows: Dataset, values: list[Any]) -> np.ndarray | None:
    """Return the gold numbers [R] of a regression task; None if all are missing or -1.

    Raises:
        DataError: if a row's number is missing or invalid; the message lists such rows.
    """
    parsed = gold_numbers(task, values)
    missing = [row for row, value in enumerate(parsed) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise missing_labels(task, rows, missing)
    numbers = np.asarray(parsed, dtype=np.float64)
    bad_rows = np.flatnonzero(~(np.abs(numbers) <= MAX_NUMBER)).tolist()
    if bad_rows:
        value = rows[bad_rows[0]][task.label_column]
        raise DataError(
            f"{locate_rows(task, rows, bad_rows)} {'has' if len(bad_rows) == 1 else 'have'} no finite number in column "
            f"{task.label_column!r}, found {value!r:.60}; regression needs one number per row, such as 1.5, within "
            f"±{MAX_NUMBER:g}"
        )
    return None if (numbers == MISSING_LABEL).all() else numbers.astype(np.float32)


def _scale(gold: np.ndarray) -> Scale:
    """Return the mean and the standard deviation of numbers [R]."""
    return float(np.mean(gold, dtype=np.float64)), float(np.std(gold, dtype=np.float64))


def _is_moderate(mean: float, std: float) -> bool:
    """Return whether an output layer that predicts numbers near 0 can learn targets of this scale."""
    return abs(mean) <= MAX_MODERATE and 1 / MAX_MODERATE <= std <= MAX_MODERATE


def _saved_scale(config: PretrainedConfig) -> Scale | None:
    """Return the scale of the targets that a saved model was trained on; None if its configuration has none."""
    saved = getattr(config, "target_scale", None)
    values = [saved.get(key) for key in ("mean", "std")] if isinstance(saved, dict) else []
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[1] > 0 else None


def _check_spread(task: Task, mean: float, std: float) -> None:
    """Check that the labels of the training rows, of this scale, vary by more than the rounding error of fp32.

    Raises:
        DataError: if they do not.
    """
    if std == 0:
        raise DataError(
            f"{origin(task)}: all training rows have the same number in column {task.label_column!r} (as a "
            "32-bit float), expected at least two; add rows with other numbers, or set task.label_column"
        )
    if abs(mean) > MAX_MEAN_IN_STDS * std:
        raise DataError(
            f"{origin(task)}: the labels of the training rows (mean {mean:,.7g}, standard deviation {std:,.4g}) vary "
            f"too little to be represented in 32-bit floats; subtract a constant from column {task.label_column!r}"
        )


def _parse_number(value: Any, decimal: str) -> float:
    """Return the value as a number; NaN if it is not one. `1_5` and `١` are not, although `float` accepts them."""
    if decimal == "comma" and isinstance(value, str) and COMMA_NUMBER.fullmatch(value.strip()):
        value = value.replace(".", "").replace(",", ".")
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        return math.nan
    try:
        return math.nan if isinstance(value, list | dict) else float(value)
    except (ValueError, TypeError):
        return math.nan
