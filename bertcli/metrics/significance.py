"""Significance of a difference between two models: paired bootstrap, McNemar's test, approximate randomization.

Shapes: N rows, G groups, B samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertcli.errors import DataError
from bertcli.metrics.answers import (
    GOLD_HASH,
    GROUP,
    METRIC_NAMES,
    Answers,
    concatenate_answers,
    group_indices,
    num_rows,
)
from bertcli.metrics.bootstrap import Interval, block_sizes, bootstrap_samples, percentile_interval
from bertcli.metrics.scores import num_columns, score_functions
from bertcli.metrics.weighted_scores import WeightedScore, is_right

NUM_SWAPS = 9999
RIGHT_OR_WRONG = ("accuracy", "exact_match")  # scores that count right rows, if the answers are labels


@dataclass(frozen=True)
class Difference:
    """By how much a score of model B exceeds that of model A on the same rows, and how sure that is.

    Attributes:
        score: name of the score.
        interval: 95 % confidence interval of the difference, by the paired bootstrap; None if all samples agree.
        p_value: probability of a difference at least as large, in either direction, if the models were equally good.
        test: name of the test that gave the p-value.
        is_by_group: whether whole groups of rows were drawn and swapped.
    """

    score: str
    first: float
    second: float
    interval: Interval | None
    p_value: float
    test: str
    is_by_group: bool = False

    @property
    def value(self) -> float:
        """The difference: B minus A."""
        return self.second - self.first


def compare_answers(first: Sequence[Answers], second: Sequence[Answers], seed: int = 0) -> list[Difference]:
    """Compare the scores of two models on the same rows; with several seeds, their means over the seeds.

    The interval is that of the paired bootstrap (Koehn 2004). The p-value of label accuracy is that of McNemar's exact
    test on the rows that only one model has right; that of every other score, or of several seeds, is by approximate
    randomization (Noreen 1989): the answers of the models to a row are swapped at random. If rows are grouped, whole
    groups are drawn and swapped; then McNemar's test, whose rows are independent, is not used.

    Args:
        first: the answers of model A with each seed.
        second: the answers of model B with each seed, as many as of A.
        seed: of the samples.

    Raises:
        DataError: if the models answered different rows, have no metric in common, or their numbers of seeds or groups
            of rows differ.
    """
    if len(first) != len(second):
        raise DataError(
            f"found {len(first)} and {len(second)} seeds, expected equal numbers; name the run of one seed of each"
        )
    if len({str(answers[GOLD_HASH]) for answers in (*first, *second)}) > 1:
        raise DataError("the models were scored on different rows, or with their labels in another order")
    names = score_functions(second[0]).keys()
    functions = {name: score for name, score in score_functions(first[0]).items() if name in names}
    if not functions:
        raise DataError(f"the metrics are {first[0][METRIC_NAMES]} and {second[0][METRIC_NAMES]}, none of them in both")
    groups, num_values = _common_groups([*first, *second]), num_columns(first[0])
    is_grouped = bool(groups.max() + 1 < len(groups))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    for counts in bootstrap_samples(groups, seed, num_values):
        for name, score in functions.items():
            samples[name].append(_mean_score(score, second, counts) - _mean_score(score, first, counts))
    differences = []
    ones = np.ones((1, num_rows(first[0])))
    for name, score in functions.items():
        first_score, second_score = (_mean_score(score, answers, ones).item() for answers in (first, second))
        scale = max(abs(first_score), abs(second_score))
        if len(first) == 1 and name in RIGHT_OR_WRONG and "predicted" in first[0] and not is_grouped:
            p_value, test = mcnemar_p_value(is_right(first[0]), is_right(second[0])), "McNemar's exact test"
        else:
            swaps = _random_swaps(groups, seed, num_values)
            p_value = _randomization_p_value(score, first, second, swaps, scale)
            test = "approximate randomization" + (" by group" if is_grouped else "")
        interval = percentile_interval(np.concatenate(samples[name]), scale)
        differences.append(Difference(name, first_score, second_score, interval, p_value, test, is_grouped))
    return differences


def _common_groups(answers: Sequence[Answers]) -> np.ndarray:
    """Return the index of the group of each row, of the answers that have groups. [N]"""
    groups = [group_indices(each) for each in answers if GROUP in each] or [group_indices(answers[0])]
    if any((other != groups[0]).any() for other in groups):
        raise DataError("the rows are grouped differently; train both runs with the same task.group_by")
    return groups[0]


def _mean_score(score: WeightedScore, seeds: Sequence[Answers], weights: np.ndarray) -> np.ndarray:
    return np.mean([score(answers, weights) for answers in seeds], axis=0)


def mcnemar_p_value(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test, given whether each model has each row right [N]."""
    from scipy.stats import binomtest

    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def _randomization_p_value(
    score: WeightedScore, first: Sequence[Answers], second: Sequence[Answers], swaps: Iterable[np.ndarray], scale: float
) -> float:
    """Return the share of random swaps whose difference is at least as large as the observed one.

    Args:
        swaps: from `_random_swaps`.
        scale: of the scores, relative to which equal differences may differ in their rounding.
    """
    both = [concatenate_answers(*pair) for pair in zip(first, second, strict=True)]
    unswapped = np.zeros((1, num_rows(first[0])))
    observed = abs(_swapped_difference(score, both, unswapped).item())
    differences = np.concatenate([np.abs(_swapped_difference(score, both, block)) for block in swaps])
    return float(((differences >= observed - 1e-9 * scale).sum() + 1) / (len(differences) + 1))


def _random_swaps(groups: np.ndarray, seed: int, num_columns: int) -> Iterator[np.ndarray]:
    """Yield whether the answers to each row are swapped (1 or 0), alike for all rows of a group. [B, N]"""
    generator, num_groups = np.random.default_rng(seed), int(groups.max()) + 1
    for size in block_sizes(len(groups) * num_columns, NUM_SWAPS):
        yield generator.integers(0, 2, (size, num_groups))[:, groups].astype(np.float64)


def _swapped_difference(score: WeightedScore, both: Sequence[Answers], swaps: np.ndarray) -> np.ndarray:
    """Return B minus A after the answers to some rows were swapped; a weight of 0 or 1 says whose answer counts. [B]"""
    first, second = np.hstack((1 - swaps, swaps)), np.hstack((swaps, 1 - swaps))
    return _mean_score(score, both, second) - _mean_score(score, both, first)
