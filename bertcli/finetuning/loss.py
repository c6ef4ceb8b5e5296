"""The fine-tuning loss: the head's loss and, with a teacher, distillation losses.

Shapes: B items of a batch, K choices of an item, C classes, L layers, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch

from bertcli.heads.base import Head
from bertcli.models.cls_states import cls_hidden_states
from bertcli.recipe.schema import TrainingSection
from bertcli.training.loop import Loss, Targets


def build_loss(head: Head, training: TrainingSection | None = None) -> Loss:
    """Return the loss function for the training loop, computed in fp32.

    With a teacher's outputs among the targets, it is the weighted sum of the head's loss and the distillation losses.
    """
    training = training or TrainingSection()

    def mean_loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
        logits = head.logits(outputs).float()
        loss = head.loss(logits, targets["labels"], training)
        if "teacher_logits" in targets:
            soft_loss = distillation_loss(logits, targets["teacher_logits"], training.teacher_temperature)
            loss = (1 - training.teacher_weight) * loss + training.teacher_weight * soft_loss
        if "teacher_states" in targets:
            student_states, teacher_states = cls_hidden_states(outputs).float(), targets["teacher_states"].float()
            loss = loss + training.teacher_hidden_weight * hidden_states_loss(student_states, teacher_states)
        return loss / counts["labels"]

    return mean_loss


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the KL divergence between the softened probabilities of teacher and student, summed over the batch.

    It is multiplied by the squared temperature, so its gradients are on the scale of those from the labels (Hinton et
    al. 2015, https://arxiv.org/abs/1503.02531).

    Args:
        logits: the student's, [B, C].
        teacher_logits: [B, C].
    """
    log_probs = torch.log_softmax(logits / temperature, -1)
    teacher_log_probs = torch.log_softmax(teacher_logits / temperature, -1)
    return torch.nn.functional.kl_div(log_probs, teacher_log_probs, reduction="sum", log_target=True) * temperature**2


def hidden_states_loss(states: torch.Tensor, teacher_states: torch.Tensor) -> torch.Tensor:
    """Return the squared distance between L2-normalized hidden states of student and teacher, summed over the batch.

    It is averaged over layers (and K choices), as in patient knowledge distillation (Sun et al. 2019,
    https://arxiv.org/abs/1908.09355).

    Args:
        states: the student's, [B * K, L, H].
        teacher_states: [B, L, H], or [B, K, L, H].
    """
    similarity = torch.nn.functional.cosine_similarity(states.view_as(teacher_states), teacher_states, dim=-1)
    return (2 - 2 * similarity).flatten(1).mean(1).sum()
