"""Learning-rate schedules: the fraction of the peak learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAYS: dict[str, Callable[[float], float]] = {  # from 1 to 0 as the argument, the progress, goes from 0 to 1
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


def lr_scale(
    schedule: str,
    step: float,
    warmup_steps: float,
    total_steps: float,
    *,
    decay_ratio: float = 0.1,
    decay_shape: str = "1-sqrt",
) -> float:
    """Return the fraction (0 … 1) of the peak learning rate in optimizer step `step` (from 0).

    The learning rate rises linearly from 0 over `warmup_steps`, then decays to 0 linearly (`linear`) or as half a
    cosine (`cosine`), stays (`constant`), or decays as sqrt(warmup_steps / step) (`inverse_sqrt`, Vaswani et al. 2017).
    `warmup_stable_decay` stays until the last part of the steps (Hu et al. 2024, https://arxiv.org/abs/2404.06395).
    For a run with a time budget, the arguments are times instead of steps.

    Args:
        decay_ratio: the share of `total_steps` in which `warmup_stable_decay` decays to 0.
        decay_shape: how it decays: `linear`, `cosine` or `1-sqrt` (Hägele et al. 2024,
            https://arxiv.org/abs/2405.18392).
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "warmup_stable_decay":
        start = max(warmup_steps, total_steps * (1 - decay_ratio))
        return DECAYS[decay_shape](_progress(step, start, total_steps))
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / max(1, step, warmup_steps))
    return 1.0 if schedule == "constant" else DECAYS[schedule](_progress(step, warmup_steps, total_steps))


def _progress(step: float, start: float, end: float) -> float:
    """Return the share (0 … 1) of the steps, or of the time, from `start` to `end` that has passed."""
    return min(1.0, max(0.0, step - start) / (end - start)) if end > start else float(step >= end)
