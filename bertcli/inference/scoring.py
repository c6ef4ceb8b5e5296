"""Answers to a split from its logits: between training steps and for `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bertcli.heads.base import Head
from bertcli.inference.forward import Chunk
from bertcli.metrics.answers import Answers, collect_answers
from bertcli.metrics.scores import needs_probabilities, task_score
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task


def decode(
    chunks: Iterable[Chunk],
    head: Head,
    task: Task,
    references: Any,
    on_chunk: Callable[[Chunk], object] = lambda chunk: None,
) -> tuple[Answers, float]:
    """Return the answers of a split from its logits, and the mean loss (0 if it was not computed).

    Args:
        chunks: from `predict_logits`.
        references: the gold values of all rows.
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
    answers = collect_answers(
        task.metric_names,
        head.answer_kind,
        predictions,
        references,
        head.positive_label_id(task),
        head.labels,
        np.concatenate(probabilities) if probabilities else None,
    )
    return answers, total / max(1, num_targets)


def multitask_scores(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of a multitask run, each prefixed with its task, and the mean over tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(recipe), each[name], recipe.evaluation.best_by) for name, recipe in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
