"""Learning-rate schedules: the factor on the peak rate as a pure function of the step."""

from __future__ import annotations

import math


def rate_factor(kind: str, step: float, warmup_steps: float, total_steps: float) -> float:
    """Factor in 0 … 1 for the optimiser step number `step` (from 0); a run by the clock counts time instead of steps.

    The rate rises linearly from 0 over `warmup_steps`, then falls linearly to 0, falls as half a cosine to 0, stays
    (`constant`), or falls as sqrt(warmup_steps / step) (`inverse_sqrt`, Vaswani et al. 2017).
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if kind == "linear":
        return max(0.0, 1.0 - progress)
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if kind == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / max(1, step, warmup_steps))
    return 1.0
