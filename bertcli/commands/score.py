"""A model's scores on an encoded split: used alike between training steps and by `bertcli eval`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import ArrayLike

from bertcli.data.encoding import Encoded
from bertcli.errors import TrainingError
from bertcli.heads.head import Head
from bertcli.metrics.bundled import compute_metrics, task_score
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task
from bertcli.training.evaluation import compute_logits

if TYPE_CHECKING:
    from datasets import Dataset

ITEMS_AT_ONCE = 4096  # their logits are what evaluation keeps in memory


def summed_loss(head: Head) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The head's loss of a model's output, in fp32, summed over its targets."""
    return lambda outputs, labels: head.loss(head.logits(outputs).float(), labels)


def answer(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: Dataset,
    encoded: Encoded,
    head: Head,
    *,
    max_tokens: int,
    with_loss: bool = False,
    on_batch: Callable[[int], None] = lambda num_items: None,
) -> Iterator[tuple[Dataset, Encoded, np.ndarray, float]]:
    """The model's logits for a part of the rows at a time: those rows, their items, the logits, the summed loss.

    Raises:
        TrainingError: the model answers with numbers that are not finite.
    """
    for some, part in encoded.parts(ITEMS_AT_ONCE):
        logits, loss = compute_logits(
            accelerator,
            model,
            part,
            head.logits,
            per_token=head.per_token,
            loss_of=summed_loss(head) if with_loss else None,
            max_tokens=max_tokens,
            on_batch=on_batch,
        )
        check_finite(logits)
        yield rows.select(range(some.start, some.stop)), part, logits, loss


def check_finite(numbers: ArrayLike) -> None:
    """Refuse what a model has answered, or how good that was, if some of it is no finite number.

    Raises:
        TrainingError: some is not.
    """
    if not np.isfinite(numbers).all():
        raise TrainingError("the model answers with numbers that are not finite; its weights are spoilt")


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
    scores = compute_metrics(task.metric_names, head.answer_kind, answers, references)
    return scores | {"loss": total / max(1, int(encoded.num_targets.sum()))}


def scores_together(recipes: Mapping[str, Recipe], each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores of tasks learned together, named after them, and the mean of the tasks (`average`)."""
    average = statistics.fmean(
        task_score(recipe_task(one), each[name], one.evaluation.best_by) for name, one in recipes.items()
    )
    named = {f"{name}/{metric}": value for name, scores in each.items() for metric, value in scores.items()}
    return {"average": average} | named
