"""Learning-rate schedules: the fraction of the peak learning rate as a pure function of the step."""

from __future__ import annotations

import math


def lr_scale(schedule: str, step: float, warmup_steps: float, total_steps: float) -> float:
    """Return the fraction (0 … 1) of the peak learning rate in optimizer step `step` (from 0).

    The learning rate rises linearly from 0 over `warmup_steps`, then decays to 0 linearly (`linear`) or as half a
    cosine (`cosine`), stays (`constant`), or decays as sqrt(warmup_steps / step) (`inverse_sqrt`, Vaswani et al. 2017).
    For a run with a time budget, the arguments are times instead of steps.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / max(1, step, warmup_steps))
    return 1.0
