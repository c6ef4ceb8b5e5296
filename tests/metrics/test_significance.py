"""Comparisons of two models against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bertcli.errors import DataError
from bertcli.metrics.answers import Answers, collect_answers
from bertcli.metrics.significance import compare_answers, mcnemar_p_value


def noisy(gold: np.ndarray, random: np.random.Generator, noise: float) -> Answers:
    return collect_answers(["mae"], "regression", gold + noise * random.normal(size=len(gold)), gold)


def classify(gold: np.ndarray, random: np.random.Generator, accuracy: float) -> Answers:
    predicted = np.where(random.random(len(gold)) < accuracy, gold, 1 - gold)
    return collect_answers(["accuracy", "f1"], "single_label", predicted, gold)


def test_differences_and_intervals_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    gold = random.normal(size=120)
    first, second = noisy(gold, random, 1.0), noisy(gold, random, 0.9)
    (found,) = compare_answers([first], [second])
    errors = [np.abs(answers["predicted"] - gold) for answers in (first, second)]
    assert (found.score, found.test) == ("mae", "approximate randomization")
    assert found.value == pytest.approx(errors[1].mean() - errors[0].mean())

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return y.mean(axis) - x.mean(axis)

    test = stats.permutation_test(errors, difference, permutation_type="samples", n_resamples=9999, rng=1)
    assert found.p_value == pytest.approx(test.pvalue, abs=0.02)
    interval = stats.bootstrap(errors, difference, paired=True, n_resamples=4000, method="percentile", rng=1)
    low, high = interval.confidence_interval
    assert found.interval == pytest.approx((low, high), abs=0.08 * (high - low))


def test_accuracy_is_compared_by_mcnemars_test() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 2, 300)
    first, second = classify(gold, random, 0.7), classify(gold, random, 0.8)
    accuracy, f1 = compare_answers([first], [second])
    right = [answers["predicted"] == gold for answers in (first, second)]
    only_first, only_second = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    expected = min(1.0, 2 * stats.binom.cdf(min(only_first, only_second), only_first + only_second, 0.5))
    assert (accuracy.test, f1.test) == ("McNemar's exact test", "approximate randomization")
    assert accuracy.p_value == pytest.approx(expected)
    assert accuracy.p_value < 0.05
    assert mcnemar_p_value(right[0], right[0]) == 1.0


@pytest.mark.slow
def test_equal_models_are_rarely_called_different() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 2, 100)
    p_values = [
        compare_answers([classify(gold, random, 0.7)], [classify(gold, random, 0.7)], seed)[1].p_value
        for seed in range(100)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.12
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.12)


def test_seeds_are_compared_by_their_means() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 2, 200)
    first, second = ([classify(gold, random, accuracy) for _ in range(3)] for accuracy in (0.7, 0.8))
    found, _ = compare_answers(first, second)
    assert found.test == "approximate randomization"
    accuracies = [np.mean([answers["predicted"] == gold for answers in seeds]) for seeds in (first, second)]
    assert found.value == pytest.approx(accuracies[1] - accuracies[0])
    assert found.p_value < 0.01
    same, _ = compare_answers(first, first)
    assert (same.value, same.p_value, same.interval) == (0, 1, None)


def test_p_values_do_not_depend_on_the_unit() -> None:
    gold, *noise = np.random.default_rng(0).normal(size=(3, 50))
    found = []
    for unit in (1, 1e-9):
        answers = [
            collect_answers(["mse"], "regression", unit * (gold + error), unit * gold)
            for error in (noise[0], 0.5 * noise[1])
        ]
        found += compare_answers(answers[:1], answers[1:])
    assert found[0].p_value == found[1].p_value < 0.01
    assert found[1].interval == pytest.approx([1e-18 * bound for bound in found[0].interval or ()])


def test_models_that_answered_other_rows_are_refused() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 2, 50)
    first, second = classify(gold, random, 0.7), classify(1 - gold, random, 0.7)
    with pytest.raises(DataError, match="different rows"):
        compare_answers([first], [second])
    with pytest.raises(DataError, match="found 1 and 2 seeds"):
        compare_answers([first], [first, first])


def test_grouped_rows_are_compared_by_whole_groups() -> None:
    """Groups of five rows that are right or wrong together say as much as one row each."""
    random = np.random.default_rng(5)
    gold = random.integers(0, 2, 60)
    one_each = [classify(gold, random, accuracy) for accuracy in (0.65, 0.8)]
    repeated = [
        collect_answers(
            ["accuracy"],
            "single_label",
            np.repeat(answers["predicted"], 5),
            np.repeat(gold, 5),
            groups=np.repeat(np.arange(60), 5).tolist(),
        )
        for answers in one_each
    ]
    (found,) = compare_answers(repeated[:1], repeated[1:])
    assert (found.test, found.is_by_group) == ("approximate randomization by group", True)
    expected, _ = compare_answers(one_each[:1], one_each[1:])
    assert found.interval == expected.interval
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)
    ungrouped = [{name: values for name, values in answers.items() if name != "group"} for answers in repeated]
    (as_rows,) = compare_answers(ungrouped[:1], ungrouped[1:])
    assert as_rows.p_value < found.p_value / 10
    (of_one_run,) = compare_answers(ungrouped[:1], repeated[1:])
    assert of_one_run == found


def test_runs_whose_rows_are_grouped_differently_are_refused() -> None:
    gold = np.zeros(4, dtype=int)
    first, second = (
        collect_answers(["accuracy"], "single_label", gold, gold, groups=groups) for groups in ("aabb", "abab")
    )
    with pytest.raises(DataError, match=r"grouped differently.*same task\.group_by"):
        compare_answers([first], [second])


@pytest.mark.slow
def test_equal_models_are_rarely_called_different_on_grouped_rows() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    gold = np.zeros(300, dtype=int)

    def answers() -> Answers:
        right = random.random(300) < random.beta(0.6, 0.3, 60)[groups]
        return collect_answers(["accuracy"], "single_label", np.where(right, 0, 1), gold, groups=groups.tolist())

    pairs = [(answers(), answers()) for _ in range(200)]
    p_values = [compare_answers([first], [second], seed)[0].p_value for seed, (first, second) in enumerate(pairs)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.09
    for pair in pairs:
        for each in pair:
            del each["group"]
    p_values = [compare_answers([first], [second], seed)[0].p_value for seed, (first, second) in enumerate(pairs)]
    assert np.mean(np.array(p_values) < 0.05) >= 0.15  # McNemar's test takes the rows for independent
