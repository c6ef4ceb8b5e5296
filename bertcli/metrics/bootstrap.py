"""Confidence intervals of scores, by the percentile bootstrap over the rows of a split, or over groups of them.

Shapes: N rows, G groups, B samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bertcli.metrics.answers import Answers, group_indices
from bertcli.metrics.scores import num_columns, score_functions

Interval = tuple[float, float]
"""The lower and upper bound of a 95 % confidence interval."""

PERCENTILES = (2.5, 97.5)
NUM_SAMPLES = 1000
MIN_SAMPLES = 200
MAX_DRAWS = 10**8  # values drawn in all samples, which bounds the time for millions of rows
MAX_BLOCK = 2**22  # values drawn in the samples that are scored at once, which bounds the memory


def bootstrap_intervals(answers: Answers, seed: int = 0) -> dict[str, Interval]:
    """Return the percentile interval of each score (Efron and Tibshirani 1993), by the name of the score.

    If rows are grouped, samples draw whole groups (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Scores that cannot be computed for a sample have none, nor have those that are equal in all samples, as when every
    row is right: the bootstrap does not know how a model might fail on other rows.

    Args:
        seed: of the samples.
    """
    functions = score_functions(answers)
    values: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    for counts in bootstrap_samples(group_indices(answers), seed, num_columns(answers)):
        for name, score in functions.items():
            values[name].append(score(answers, counts))
    intervals = {name: percentile_interval(np.concatenate(blocks)) for name, blocks in values.items()}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def percentile_interval(values: np.ndarray, scale: float = 0.0) -> Interval | None:
    """Return the interval that holds 95 % of the values of B samples; None if all defined ones are equal.

    Args:
        scale: of the numbers that the values are differences of, which have rounding errors of that scale.
    """
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or np.ptp(defined) <= np.finfo(np.float32).eps * max(scale, np.abs(defined).max()):
        return None
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)


def bootstrap_samples(groups: np.ndarray, seed: int, num_columns: int = 1) -> Iterator[np.ndarray]:
    """Yield how often each sample draws each row, in blocks of samples. [B, N]

    A sample draws as many groups as there are, each with all its rows.

    Args:
        groups: index of the group of each row, from 0. [N]
        num_columns: number of values of a row that are scored at once.
    """
    generator, num_groups = np.random.default_rng(seed), int(groups.max()) + 1
    for size in block_sizes(len(groups) * num_columns, NUM_SAMPLES):
        drawn = (generator.integers(0, num_groups, num_groups) for _ in range(size))
        yield np.stack([np.bincount(draws, minlength=num_groups)[groups] for draws in drawn]).astype(np.float64)


def block_sizes(num_values: int, num_samples: int) -> Iterator[int]:
    """Yield the sizes of blocks of samples that add up to `num_samples`, or to fewer if there are very many values."""
    num_samples = max(MIN_SAMPLES, min(num_samples, MAX_DRAWS // num_values))
    size = max(1, MAX_BLOCK // num_values)
    for start in range(0, num_samples, size):
        yield min(size, num_samples - start)
