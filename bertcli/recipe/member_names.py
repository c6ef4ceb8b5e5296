"""Names of the run folders of seeds, folds and trials, inside the folder that holds them all."""

from __future__ import annotations

import re

SEED_NAME = re.compile(r"seed-\d+")
TRIAL_NAME = re.compile(r"trial-\d+")


def seed_name(seed: int) -> str:
    """Return the name of the run folder of one of several seeds."""
    return f"seed-{seed}"


def fold_name(fold: int) -> str:
    """Return the name of the run folder of a fold of a cross-validation; folds are numbered from 1."""
    return f"fold-{fold}"


def trial_name(number: int) -> str:
    """Return the name of the run folder of a trial of a search; trials are numbered from 0."""
    return f"trial-{number}"
