"""Losses of labels and tags: cross-entropy or focal loss, with class weights and label smoothing.

The focal loss multiplies the cross-entropy by (1 - p)^gamma, where p is the probability of the gold label, so that the
many targets that are already predicted well count less (Lin et al. 2017, https://arxiv.org/abs/1708.02002). Class
weights are its alpha.

Shapes: B targets (items, or words), C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.recipe.schema import TrainingSection

if TYPE_CHECKING:
    import torch

MIN_ERROR = 1e-6  # smallest 1 - p of the focal weight, whose gradient is infinite at 0 if gamma is less than 1


def label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: Sequence[float] | None = None,
    training: TrainingSection | None = None,
) -> torch.Tensor:
    """Return the loss of one gold label per target, summed over the targets.

    Args:
        logits: [B, C].
        labels: label ids; those equal to `IGNORED_LABEL` do not count. [B]
        class_weights: weight of the loss of each label. [C]
        training: the options of the training loss; None: plain cross-entropy, without weights.
    """
    from torch.nn import functional

    weight = None if class_weights is None else logits.new_tensor(class_weights)
    cross_entropy = partial(functional.cross_entropy, logits, labels, ignore_index=IGNORED_LABEL)
    smoothing = 0.0 if training is None else training.label_smoothing
    return _summed(cross_entropy, training, weight=weight, label_smoothing=smoothing)


def label_set_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: Sequence[float] | None = None,
    training: TrainingSection | None = None,
) -> torch.Tensor:
    """Return the loss of several independent labels per target, averaged over C and summed over the targets.

    Args:
        logits: [B, C].
        labels: whether the target has each label, 1 or 0. [B, C]
        class_weights: weight of the loss of each label where the target has it. [C]
        training: the options of the training loss; None: plain binary cross-entropy, without weights.
    """
    from torch.nn import functional

    weight = None if class_weights is None else logits.new_tensor(class_weights)
    cross_entropy = partial(functional.binary_cross_entropy_with_logits, logits, labels)
    return _summed(cross_entropy, training, pos_weight=weight) / logits.shape[-1]


def _summed(
    cross_entropy: Callable[..., torch.Tensor], training: TrainingSection | None, **options: Any
) -> torch.Tensor:
    """Return the sum of cross-entropies, with focal weights and these options if they are for training."""
    if training is None:
        return cross_entropy(reduction="sum")
    if training.loss != "focal":
        return cross_entropy(reduction="sum", **options)
    plain = cross_entropy(reduction="none")
    return (cross_entropy(reduction="none", **options) * _focal_weights(plain, training)).sum()


def _focal_weights(cross_entropies: torch.Tensor, training: TrainingSection) -> torch.Tensor:
    """Return (1 - p)^gamma for cross-entropies -ln(p)."""
    return cross_entropies.neg().expm1().neg().clamp(min=MIN_ERROR) ** training.focal_gamma
