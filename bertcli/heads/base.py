"""What every head can do: ask an encoder a task's question and read its answer.

Shapes: R rows of a data set, N items they are encoded to (N > R if long rows are read in windows), T tokens of all
items, B items of a batch, S tokens of the longest of them, C classes.
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
    """One kind of answer."""

    model_class: ClassVar[str]  # of transformers
    per_token: ClassVar[bool] = False  # whether each token has logits of its own
    usual_columns: ClassVar[tuple[str, ...]]  # of inputs that no task row speaks of
    labels: tuple[str, ...] = ()  # empty if answers are no labels

    @classmethod
    def labels_of(cls, task: Task, train: Dataset) -> tuple[str, ...]:
        """The labels of a task, for which all its training rows may have to be looked at.

        Raises:
            DataError: there are too few of them, or the row and the data set disagree.
        """
        return ()

    @classmethod
    @abstractmethod
    def learned_from(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """The head for a new model of `task`.

        Raises:
            DataError: the training rows cannot be learned from.
        """

    @classmethod
    @abstractmethod
    def saved_with(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """The head of a trained model, as its configuration and its recipe tell."""

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """The same head, its labels in another order."""
        return self

    @property
    @abstractmethod
    def answer_kind(self) -> str:
        """What metrics and tasks have to fit: `Task.answer_kind`."""

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say, so that plain `transformers` reads the answer alike."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """What `results.json` says of it."""
        return {}

    def echoed(self, task: Task) -> tuple[str, ...]:
        """The columns of an input that are worth repeating beside its answer."""
        return task.columns

    @abstractmethod
    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Rows as token ids, with labels if they have them."""

    @abstractmethod
    def references(self, task: Task, rows: Dataset) -> Any:
        """The R right answers in the form of `decide`; None if they are hidden."""

    def logits(self, outputs: Any) -> torch.Tensor:
        """The scores in a model's output: [B, C], or [B, S, C] if `per_token`."""
        return outputs.logits

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The loss summed over the targets of a batch; answers that are no labels know no smoothing."""

    @abstractmethod
    def decide(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> Any:
        """R answers as metrics take them, from logits [N, C], or [T, C] if `per_token`."""

    @abstractmethod
    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R answers for people."""

    @abstractmethod
    def compare(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R answers beside the right ones (`gold`, `predicted`), with what their kind knows of how sure and how wrong.

        `confidence` is the probability of what was predicted, `right` whether it is right, `loss` how wrong it is,
        `probabilities` those of the likeliest labels.
        """
