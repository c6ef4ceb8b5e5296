"""Learning-rate schedules match those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler, get_wsd_schedule

from bertcli.training.schedule import lr_scale

NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "inverse_sqrt": "inverse_sqrt"}


@pytest.mark.parametrize("schedule", NAMES)
def test_schedule_matches_transformers_at_every_step(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(NAMES[schedule], optimizer, num_warmup_steps=7, num_training_steps=50)
    for step in range(50):
        assert lr_scale(schedule, step, 7, 50) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("schedule", NAMES)
def test_schedule_without_warmup_starts_at_the_peak(schedule: str) -> None:
    assert lr_scale(schedule, 0, 0, 10) == 1.0


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_warmup_stable_decay_matches_transformers_at_every_step(warmup: int, shape: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_wsd_schedule(
        optimizer, num_warmup_steps=warmup, num_decay_steps=10, num_training_steps=50, decay_type=shape
    )
    for step in range(50):
        scale = lr_scale("warmup_stable_decay", step, warmup, 50, decay_ratio=0.2, decay_shape=shape)
        assert scale == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    assert lr_scale("warmup_stable_decay", 50, warmup, 50, decay_ratio=1.0) == 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay"])
def test_decay_of_less_than_a_second_or_step_ends_at_zero(schedule: str) -> None:
    times = [lr_scale(schedule, seconds, 4.5, 5.0) for seconds in (4.4, 4.6, 4.9, 5.0, 5.1)]
    assert times[1:] == sorted(times[1:], reverse=True)
    assert times[-2:] == [0.0, 0.0]
