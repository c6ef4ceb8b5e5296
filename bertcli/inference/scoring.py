"""Answers to a split from its logits: between training steps and for `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertcli.data.sources import row_groups
from bertcli.heads.base import Head
from bertcli.inference.forward import Chunk
from bertcli.metrics.answers import Answers, collect_answers
from bertcli.metrics.scores import needs_probabilities, task_score
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task


@dataclass(frozen=True)
class Decoded:
    """What the logits of a split were decoded to.

    Attributes:
        predictions: of all rows, as `Head.to_predictions` returns them.
        answers: what scores, intervals and comparisons are computed from.
        loss: the mean loss; 0 if it was not computed.
    """

    predictions: list[Any]
    answers: Answers
    loss: float


def decode(
    chunks: Iterable[Chunk],
    head: Head,
    task: Task,
    references: Any,
    on_chunk: Callable[[Chunk, Sequence[Any]], object] = lambda chunk, predictions: None,
) -> Decoded:
    """Decode the logits of a split.

    Args:
        chunks: from `predict_logits`.
        references: the gold values of all rows.
        on_chunk: called with each chunk and its predictions, for what else is made of the logits.

    Raises:
        TrainingError: if some logits are non-finite.
    """
    predictions: list[Any] = []
    probabilities: list[np.ndarray] = []
    groups: list[Any] = []
    total, num_targets = 0.0, 0
    for chunk in chunks:
        rows, encoded, logits, loss = chunk
        of_chunk = head.to_predictions(task, rows, encoded, logits)
        on_chunk(chunk, of_chunk)
        predictions.extend(of_chunk)
        groups.extend(row_groups(task, rows) or ())
        if needs_probabilities(task.metric_names):
            probabilities.append(head.to_probabilities(encoded, logits))
        total += loss
        num_targets += int(encoded.num_targets.sum())
    answers = collect_answers(
        task.metric_names,
        head.answer_kind,
        predictions,
        references,
        head.positive_label_id(task),
        head.labels,
        np.concatenate(probabilities) if probabilities else None,
        groups or None,
    )
    return Decoded(predictions, answers, total / max(1, num_targets))


def multitask_scores(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of a multitask run, each prefixed with its task, and the mean over tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(recipe), each[name], recipe.evaluation.best_by) for name, recipe in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
