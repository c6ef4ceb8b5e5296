"""Score a model on an encoded split: between training steps and for `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from bertcli.data.encoding import Encoded
from bertcli.heads.base import Head
from bertcli.inference.forward import predict_logits
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
    """Return the task's metrics and the mean loss (`loss`) of `model` on rows with the gold answers `references`.

    Raises:
        TrainingError: if some logits are non-finite.
    """
    predictions: list[Any] = []
    total = 0.0
    parts = predict_logits(
        accelerator, model, rows, encoded, head, max_tokens=max_tokens, with_loss=True, on_batch=on_batch
    )
    for part_rows, part, logits, loss in parts:
        predictions.extend(head.to_predictions(task, part_rows, part, logits))
        total += loss
    scores = compute_metrics(
        task.metric_names, head.answer_kind, predictions, references, positive_label_id(task, head), head.labels
    )
    return scores | {"loss": total / max(1, int(encoded.num_targets.sum()))}


def positive_label_id(task: Task, head: Head) -> int:
    """Return the model's id for the second of the task's two labels, for which binary F1 is computed."""
    return head.labels.index(task.labels[1]) if len(task.labels) == len(head.labels) == 2 else 1


def multitask_scores(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of a multitask run, each prefixed with its task, and the mean over tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(recipe), each[name], recipe.evaluation.best_by) for name, recipe in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
