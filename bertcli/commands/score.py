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
from bertcli.models.first_states import first_states
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.tasks.task import Task
from bertcli.training.evaluation import compute_logits
from bertcli.training.loop import Loss, Targets

if TYPE_CHECKING:
    from datasets import Dataset

ITEMS_AT_ONCE = 4096  # their logits are what evaluation keeps in memory


def summed_loss(head: Head) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The head's loss of a model's output, in fp32, summed over its targets."""
    return lambda outputs, labels: head.loss(head.logits(outputs).float(), labels)


def loss_of(head: Head, training: TrainingSection | None = None) -> Loss:
    """The head's loss as the loop takes it, in fp32; with a teacher, partly the distance from it."""
    training = training or TrainingSection()

    def mean_loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
        logits = head.logits(outputs).float()
        loss = head.loss(logits, targets["labels"], training.label_smoothing)
        if "teacher_logits" in targets:
            distance = distance_from_teacher(logits, targets["teacher_logits"], training.teacher_temperature)
            loss = (1 - training.teacher_weight) * loss + training.teacher_weight * distance
        if "teacher_states" in targets:
            distance = distance_of_states(first_states(outputs).float(), targets["teacher_states"].float())
            loss = loss + training.teacher_hidden_weight * distance
        return loss / counts["labels"]

    return mean_loss


def distance_from_teacher(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far answers [B, C] are from a teacher's, summed over the batch.

    The divergence of the softened answers, times the square of the temperature, which keeps its gradients as large as
    those of the labels: Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """
    own = torch.log_softmax(logits / temperature, -1)
    others = torch.log_softmax(teacher_logits / temperature, -1)
    return torch.nn.functional.kl_div(own, others, reduction="sum", log_target=True) * temperature**2


def distance_of_states(states: torch.Tensor, teacher_states: torch.Tensor) -> torch.Tensor:
    """How far hidden states [B * K, L, N] of L layers point from a teacher's [B, (K,) L, N], summed over the batch.

    The mean over layers (and K choices) of the squared distance of the states at length one: "patient" distillation,
    Sun et al. 2019, https://arxiv.org/abs/1908.09355.
    """
    closeness = torch.nn.functional.cosine_similarity(states.view_as(teacher_states), teacher_states, dim=-1)
    return (2 - 2 * closeness).flatten(1).mean(1).sum()


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
