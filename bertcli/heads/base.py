"""The base class of heads, which turn the rows of one kind of task into model inputs, and logits into predictions.

Shapes: R rows of a dataset, N encoded items (N > R if long rows are split into windows), T tokens in all items, B items
in a batch, S tokens in the longest item of a batch, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bertcli.data.encoding import Encoded
from bertcli.errors import DataError
from bertcli.recipe.schema import DataSection, Recipe, TrainingSection
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Head(ABC):
    """The base class of heads, each of which encodes rows, computes the loss and decodes logits.

    To add a head, write a subclass in its own file, add a line to `bertcli.tasks.task.HEADS`, and write tests.

    Attributes:
        model_class: name of the transformers class, such as `AutoModelForSequenceClassification`.
        pipeline_tag: pipeline tag of the model on the Hub.
        has_pipeline: whether the transformers pipeline for that tag makes the same predictions as bertcli.
        default_columns: input columns if there is no task; input files may use them in place of the task's columns.
        per_token: whether every token has logits.
        reads_words: whether inputs are lists of words, which the tokenizer must accept.
        prediction_kind: how reports show predictions: `label`, `tags` or `span`.
        labels: label names in the order of their ids; empty if predictions are not labels.
    """

    model_class: ClassVar[str]
    pipeline_tag: ClassVar[str]
    has_pipeline: ClassVar[bool] = False
    default_columns: ClassVar[tuple[str, ...]]
    per_token: ClassVar[bool] = False
    reads_words: ClassVar[bool] = False
    prediction_kind: ClassVar[str] = "label"
    labels: tuple[str, ...] = ()

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition is invalid for this head, else None."""
        if task.problem != "single_label":
            return f"`problem` requires the head text_classification, found {task.head}"
        if task.unanswerable:
            return f"`unanswerable` requires the head question_answering, found {task.head}"
        if task.choice_columns:
            return f"`choice_columns` requires the head multiple_choice, found {task.head}"
        if task.label_columns:
            return f"`label_columns` requires the head text_classification, found {task.head}"
        if task.answer_start_column is not None:
            return f"`answer_start_column` requires the head question_answering, found {task.head}"
        for key in ("span_column", "sentence_column"):
            if getattr(task, key) is not None and not cls.reads_words:
                return f"`{key}` requires the head token_classification, found {task.head}"
        return None

    @classmethod
    def answer_kind_of(cls, task: Task) -> str:
        """Return the kind of predictions that the task's metrics must support; by default, the name of the head."""
        return task.head

    @classmethod
    @abstractmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return the metrics for a task that does not list any."""

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys of `finetuning.setup.HEAD_KEYS` that have an effect on this task."""
        return frozenset()

    @classmethod
    def default_task(cls, name: str) -> Task:
        """Return the task to assume for a model without a run folder; `name` is the name of this head."""
        return Task(head=name, dataset="unknown", text_columns=cls.default_columns)

    @classmethod
    def task_labels(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Return the labels of a task, collected from all its training rows if they are not declared.

        Raises:
            DataError: if there are too few labels, or the task definition and the dataset disagree.
        """
        return ()

    @classmethod
    @abstractmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model for `task`.

        Raises:
            DataError: if the training rows are unusable.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model from its configuration and its recipe."""

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return this head with its labels in another order."""
        return self

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return this head for inputs that the tokenizer will read; it has the tokens that were added in training."""
        return self

    def positive_label_id(self, task: Task) -> int:
        """Return the model's id for the second of the task's two labels, which F1 and other binary metrics score."""
        return self.labels.index(task.labels[1]) if len(task.labels) == len(self.labels) == 2 else 1

    @property
    @abstractmethod
    def answer_kind(self) -> str:
        """The kind of predictions, which must match `Task.answer_kind` and be supported by the metrics."""

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields for the model's `config.json` that make plain `transformers` interpret its logits in the same way."""
        return {}

    @property
    def config_extras(self) -> dict[str, Any]:
        """Fields that are not part of transformers; they are also written to `results.json`."""
        return {}

    def target_scale(self, gold: Any) -> tuple[float, float] | None:
        """Return the mean and standard deviation for standardizing targets during training; None leaves them unchanged.

        Args:
            gold: gold values of the training rows, as returned by `references`.
        """
        return None

    def scale_problem(self, saved: PretrainedConfig) -> str | None:
        """Return how the targets differ in scale from those that a saved model was trained on; None if they do not.

        Args:
            saved: the configuration of a model with this head.
        """
        return None

    def echo_columns(self, task: Task) -> tuple[str, ...]:
        """Return the input columns to repeat next to each prediction."""
        return task.columns

    @abstractmethod
    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Encode rows as token IDs, with labels if the rows have them."""

    @abstractmethod
    def references(self, task: Task, rows: Dataset) -> Any:
        """Return the R gold values in the format of `to_predictions`; None if the rows are unlabeled."""

    def logits(self, outputs: Any) -> torch.Tensor:
        """Return the logits of a model output: [B, C], or [B, S, C] if `per_token`."""
        return outputs.logits

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        """Return the loss summed over the targets of a batch.

        Args:
            training: how to compute the training loss, as far as the head supports it: label smoothing, class weights,
                focal loss; None: the plain loss, which scores a model and does not depend on how it was trained.
        """

    @abstractmethod
    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> Any:
        """Decode logits [N, C], or [T, C] if `per_token`, to R predictions in the format that metrics expect."""

    def to_probabilities(self, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Convert logits [N, C] to the probabilities [R, C] of the rows, float64, that metrics such as ROC-AUC need.

        Raises:
            DataError: if the head has none; then its tasks cannot use such metrics.
        """
        raise DataError(f"found a metric that needs probabilities, but {self.answer_kind} has none; choose another")

    @abstractmethod
    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Decode logits to R predictions as `bertcli predict` writes them."""

    @abstractmethod
    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return R predictions next to the gold values (`predicted`, `gold`), for reports and error analysis.

        Optional keys: `confidence`, the probability of the prediction; `right`, whether it is correct; `loss`, a
        measure of how wrong it is; `probabilities`, the most probable labels with their probabilities.

        Args:
            predictions: of these rows, from `to_predictions`.
        """
