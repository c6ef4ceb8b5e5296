"""The base class of heads: how rows of one kind of task become model inputs, and logits become predictions.

Shapes: R rows of a dataset, N items they are encoded as (N > R if long rows are split into windows), T tokens of all
items, B items of a batch, S tokens of the longest item in a batch, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bertcli.data.encoding import Encoded
from bertcli.recipe.schema import DataSection, Recipe
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Head(ABC):
    """One kind of prediction: encodes rows, computes the loss and decodes logits.

    A new head is a subclass in its own file, a line in `bertcli.tasks.task.HEADS`, and its tests.

    Attributes:
        model_class: name of the transformers class, such as `AutoModelForSequenceClassification`.
        pipeline_tag: pipeline tag of the model on the Hub.
        has_pipeline: whether the transformers pipeline of that tag gives the same predictions.
        default_columns: input columns of rows without a task, and alternatives to the task's columns in input files.
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
            return "the head multiple_choice needs `choice_columns`, and no other head uses them"
        return None

    @classmethod
    def answer_kind_of(cls, task: Task) -> str:
        """Return the kind of predictions that metrics of the task must support; by default the name of the head."""
        return task.head

    @classmethod
    @abstractmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return the metrics of tasks that do not list any."""

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys of `finetuning.setup.HEAD_KEYS` that have an effect on this task."""
        return frozenset()

    @classmethod
    def default_task(cls, name: str) -> Task:
        """Return the task of a model without a run folder; `name` is the name of this head."""
        return Task(head=name, dataset="unknown", text_columns=cls.default_columns)

    @classmethod
    def task_labels(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """Return the labels of a task, collected from all its training rows if they are not declared.

        Raises:
            DataError: there are too few labels, or the task definition and the dataset disagree.
        """
        return ()

    @classmethod
    @abstractmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model for `task`.

        Raises:
            DataError: the training rows are unusable.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model from its configuration and its recipe."""

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return this head with its labels in another order."""
        return self

    @property
    @abstractmethod
    def answer_kind(self) -> str:
        """The kind of predictions, which metrics and tasks must match: `Task.answer_kind`."""

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields of the model's `config.json`, so that plain `transformers` interprets its logits the same way."""
        return {}

    @property
    def config_extras(self) -> dict[str, Any]:
        """Fields that are not standard in transformers; also written to `results.json`."""
        return {}

    def target_scale(self, gold: Any) -> tuple[float, float] | None:
        """Return the mean and standard deviation to standardize targets by while training; None: they stay as they are.

        Args:
            gold: of the training rows, as returned by `references`.
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
    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Return the loss summed over the targets of a batch; heads without labels ignore `label_smoothing`."""

    @abstractmethod
    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> Any:
        """Decode logits [N, C], or [T, C] if `per_token`, to R predictions in the format that metrics take."""

    @abstractmethod
    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Decode logits to R predictions as `bertcli predict` writes them."""

    @abstractmethod
    def with_gold(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return R predictions next to the gold values (`predicted`, `gold`), for reports and error analysis.

        Optional keys: `confidence`, the probability of the prediction; `right`, whether it is correct; `loss`, how
        wrong it is; `probabilities`, those of the most probable labels.
        """
