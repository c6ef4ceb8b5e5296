"""Scores of a split from its logits: between training steps and for `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertcli.heads.base import Head
from bertcli.inference.forward import Chunk
from bertcli.metrics.answers import Answers, collect_answers
from bertcli.metrics.scores import compute_metrics, needs_probabilities, task_score
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task


@dataclass(frozen=True)
class Decoded:
    """The predictions of a split in the format of the task's metrics, and the mean loss (0 if it was not computed)."""

    head: Head
    task: Task
    predictions: list[Any]
    probabilities: np.ndarray | None
    loss: float

    def score(self, references: Any) -> dict[str, float]:
        """Return the task's metrics, given the gold labels of all rows."""
        return compute_metrics(self.task.metric_names, *self._arguments(references))

    def to_answers(self, references: Any) -> Answers:
        """Return the predictions and the gold labels as arrays, as intervals and comparisons need them."""
        return collect_answers(self.task.metric_names, *self._arguments(references))

    def _arguments(self, references: Any) -> tuple[Any, ...]:
        head, pos_label = self.head, self.head.positive_label_id(self.task)
        return head.answer_kind, self.predictions, references, pos_label, head.labels, self.probabilities


def decode(
    chunks: Iterable[Chunk], head: Head, task: Task, on_chunk: Callable[[Chunk], object] = lambda chunk: None
) -> Decoded:
    """Return the predictions of a split from its logits.

    Args:
        chunks: from `predict_logits`.
        on_chunk: called with each chunk, for what else is made of the logits.

    Raises:
        TrainingError: if some logits are non-finite.
    """
    predictions: list[Any] = []
    probabilities: list[np.ndarray] = []
    total, num_targets = 0.0, 0
    for chunk in chunks:
        on_chunk(chunk)
        rows, encoded, logits, loss = chunk
        predictions.extend(head.to_predictions(task, rows, encoded, logits))
        if needs_probabilities(task.metric_names):
            probabilities.append(head.to_probabilities(encoded, logits))
        total += loss
        num_targets += int(encoded.num_targets.sum())
    joined = np.concatenate(probabilities) if probabilities else None
    return Decoded(head, task, predictions, joined, total / max(1, num_targets))


def multitask_scores(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of a multitask run, each prefixed with its task, and the mean over tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(recipe), each[name], recipe.evaluation.best_by) for name, recipe in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
