"""Cross-entropy and focal loss of labels and label sets, with class weights, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.heads.losses import label_loss, label_set_loss
from bertcli.recipe.schema import TrainingSection

WEIGHTS = [0.5, 2.0, 1.0]


def logits_of(num_targets: int) -> torch.Tensor:
    return torch.randn(num_targets, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_matches_its_definition(weights: list[float] | None, gamma: float) -> None:
    logits, labels = logits_of(13), torch.arange(13) % 3
    probability = logits.softmax(-1)[torch.arange(13), labels]
    alpha = torch.tensor(weights or [1.0] * 3)[labels]
    expected = (-alpha * (1 - probability) ** gamma * probability.log()).sum()
    section = TrainingSection(loss="focal", focal_gamma=gamma)
    assert label_loss(logits, labels, weights, section).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_of_label_sets_matches_its_definition(weights: list[float] | None) -> None:
    logits, labels = logits_of(11), (logits_of(11).flip(0) > 0).float()
    probability = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(labels > 0, torch.tensor(weights or [1.0] * 3), torch.ones(3))
    expected = (-alpha * (1 - probability) ** 2 * probability.log()).sum() / 3
    section = TrainingSection(loss="focal")
    assert label_set_loss(logits, labels, weights, section).item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_loss_with_gamma_zero_is_the_cross_entropy() -> None:
    logits, labels = logits_of(13), torch.arange(13) % 3
    section = TrainingSection(loss="focal", focal_gamma=0.0)
    expected = functional.cross_entropy(logits, labels, reduction="sum")
    assert label_loss(logits, labels, None, section).item() == pytest.approx(expected.item())
    sets = functional.one_hot(labels, 3).float()
    expected = functional.binary_cross_entropy_with_logits(logits, sets, reduction="sum") / 3
    assert label_set_loss(logits, sets, None, section).item() == pytest.approx(expected.item())


def test_ignored_targets_have_no_focal_loss() -> None:
    logits, labels = logits_of(5), torch.tensor([0, IGNORED_LABEL, 2, IGNORED_LABEL, 1])
    section, kept = TrainingSection(loss="focal"), labels != IGNORED_LABEL
    expected = label_loss(logits[kept], labels[kept], WEIGHTS, section)
    assert label_loss(logits, labels, WEIGHTS, section).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("gamma", [0.1, 2.0])
def test_gradient_of_focal_loss_is_finite_where_the_model_is_certain(gamma: float) -> None:
    section = TrainingSection(loss="focal", focal_gamma=gamma)
    for sign in (1.0, -1.0):
        logits = (sign * torch.tensor([[100.0, -100.0, -100.0]])).requires_grad_()
        label_loss(logits, torch.tensor([0]), None, section).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        logits.grad = None
        label_set_loss(logits, torch.tensor([[1.0, 0.0, 0.0]]), None, section).backward()
        assert logits.grad.isfinite().all()


def test_loss_that_scores_a_model_is_plain_cross_entropy() -> None:
    logits, labels = logits_of(13), torch.arange(13) % 3
    assert label_loss(logits, labels, WEIGHTS) == functional.cross_entropy(logits, labels, reduction="sum")
    sets = functional.one_hot(labels, 3).float()
    expected = functional.binary_cross_entropy_with_logits(logits, sets, reduction="sum") / 3
    assert label_set_loss(logits, sets, WEIGHTS) == expected
    smoothed = label_loss(logits, labels, None, TrainingSection(label_smoothing=0.1))
    assert smoothed == functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
