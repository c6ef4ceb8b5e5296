"""Which of several tasks each step learns from: T5's ways of mixing (Raffel et al. 2020, arxiv.org/abs/1910.10683)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertcli.recipe.suite import Mixing

MIXING_SALT = 5  # so that this choice draws other numbers than the order of the rows does


def mixing_shares(sizes: Sequence[int], mixing: Mixing) -> np.ndarray:
    """The share of the steps that each task gets, from its number of training rows. [K]"""
    counts = np.minimum(np.asarray(sizes, dtype=np.float64), mixing.cap or np.inf)
    if mixing.kind == "equal":
        counts = np.ones_like(counts)
    elif mixing.kind == "temperature":
        counts **= 1 / mixing.temperature
    return counts / counts.sum()


def tasks_of_steps(shares: np.ndarray, total_steps: int, seed: int) -> np.ndarray:
    """The number of the task of each step, a function of the seed alone. [total_steps]"""
    return np.random.default_rng((seed, MIXING_SALT)).choice(len(shares), size=total_steps, p=shares)
