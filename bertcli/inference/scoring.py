"""A model's scores on an encoded split: used alike between training steps and by `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from bertcli.data.encoding import Encoded
from bertcli.heads.base import Head
from bertcli.inference.forward import answer
from bertcli.metrics import compute_metrics, task_score
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset


def score(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: Dataset,
    encoded: Encoded,
    head: Head,
    task: Task,
    references: Any,
    *,
    max_tokens: int,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> dict[str, float]:
    """The task's metrics and the mean loss (`loss`) of `model` on rows whose right answers are the `references`.

    Raises:
        TrainingError: the model answers with numbers that are not finite.
    """
    answers: list[Any] = []
    total = 0.0
    parts = answer(accelerator, model, rows, encoded, head, max_tokens=max_tokens, with_loss=True, on_batch=on_batch)
    for some, part, logits, loss in parts:
        answers.extend(head.decide(task, some, part, logits))
        total += loss
    scores = compute_metrics(task.metric_names, head.answer_kind, answers, references, positive_number(task, head))
    return scores | {"loss": total / max(1, int(encoded.num_targets.sum()))}


def positive_number(task: Task, head: Head) -> int:
    """The number that the model gives the second of two labels of the task, whose F1 is meant."""
    return head.labels.index(task.labels[1]) if len(task.labels) == len(head.labels) == 2 else 1


def scores_together(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores of tasks learned together, named after them, and the mean of the tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(one), each[name], one.evaluation.best_by) for name, one in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
