"""Schedules against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from bertcli.training.schedule import rate_factor

NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "inverse_sqrt": "inverse_sqrt"}


@pytest.mark.parametrize("kind", NAMES)
def test_the_rate_is_transformers_rate_at_every_step(kind: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(NAMES[kind], optimizer, num_warmup_steps=7, num_training_steps=50)
    for step in range(50):
        assert rate_factor(kind, step, 7, 50) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("kind", NAMES)
def test_no_warm_up_starts_at_the_peak(kind: str) -> None:
    assert rate_factor(kind, 0, 0, 10) == 1.0
