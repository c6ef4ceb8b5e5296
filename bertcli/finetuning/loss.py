"""What fine-tuning minimises: the head's loss and, with a teacher, the distance from it.

Shapes: B items of a batch, K choices of an item, C labels, L layers, N width.
"""

from __future__ import annotations

from typing import Any

import torch

from bertcli.heads.base import Head
from bertcli.models.cls_states import first_states
from bertcli.recipe.schema import TrainingSection
from bertcli.training.loop import Loss, Targets


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
