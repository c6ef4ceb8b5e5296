"""Bootstrap intervals against SciPy, and how often they hold the true score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bertcli.metrics.answers import Answers, collect_answers, group_indices
from bertcli.metrics.bootstrap import MAX_DRAWS, block_sizes, bootstrap_intervals, bootstrap_samples


def labels(random: np.random.Generator, num_rows: int, accuracy: float, positive: float = 0.5) -> Answers:
    """Answers to rows of which a share is positive, right with the probability `accuracy`."""
    gold = (random.random(num_rows) < positive).astype(int)
    predicted = np.where(random.random(num_rows) < accuracy, gold, 1 - gold)
    return collect_answers(["accuracy", "f1"], "single_label", predicted, gold)


def test_intervals_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    gold = random.normal(size=200)
    predicted = gold + random.normal(size=200)
    answers = collect_answers(["mae", "pearson"], "regression", predicted, gold)
    intervals = bootstrap_intervals(answers)
    functions = {"mae": lambda x, y: np.abs(x - y).mean(), "pearson": lambda x, y: stats.pearsonr(x, y).statistic}
    for name, function in functions.items():
        expected = stats.bootstrap(
            (predicted, gold), function, paired=True, vectorized=False, n_resamples=4000, method="percentile", rng=2
        ).confidence_interval
        width = expected.high - expected.low
        assert intervals[name] == pytest.approx((expected.low, expected.high), abs=0.08 * width)  # of 1,000 samples


@pytest.mark.slow
@pytest.mark.parametrize(("name", "truth"), [("accuracy", 0.8), ("f1", 2 * 0.3 * 0.8 / (0.3 + 0.38))])
def test_intervals_hold_the_true_score_of_95_percent_of_splits(name: str, truth: float) -> None:
    random = np.random.default_rng(3)
    intervals = [bootstrap_intervals(labels(random, 300, 0.8, 0.3), seed)[name] for seed in range(1000)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.97


def test_each_sample_draws_as_many_rows_as_there_are() -> None:
    counts = np.concatenate([*bootstrap_samples(np.arange(50), 0)])
    assert counts.shape == (1000, 50)
    assert (counts.sum(1) == 50).all()
    assert counts.var() == pytest.approx(0.98, abs=0.05)  # of a binomial distribution with 50 draws


def test_blocks_bound_memory_and_time() -> None:
    assert sum(block_sizes(100, 1000)) == 1000
    assert max(block_sizes(10**6, 1000)) * 10**6 < 10**7
    assert sum(block_sizes(MAX_DRAWS // 500, 1000)) == 500
    assert sum(block_sizes(10**8, 1000)) == 200


def test_intervals_do_not_depend_on_the_unit() -> None:
    gold, predicted = np.random.default_rng(0).normal(size=(2, 20))
    for unit in (1e-9, 1e9):
        answers = [collect_answers(["mae"], "regression", scale * predicted, scale * gold) for scale in (1, unit)]
        low, high = bootstrap_intervals(answers[0])["mae"]
        assert bootstrap_intervals(answers[1])["mae"] == pytest.approx((unit * low, unit * high))


def test_no_interval_if_all_rows_are_right() -> None:
    random = np.random.default_rng(0)
    assert bootstrap_intervals(labels(random, 20, 1.0)) == {}
    assert bootstrap_intervals(labels(random, 1, 0.5)) == {}


def labels_of_groups(random: np.random.Generator, num_groups: int, size: int, *, grouped: bool) -> Answers:
    """Answers to rows of which 80 % are right, where the rows of a group are mostly right or wrong together."""
    chance = random.beta(0.8, 0.2, num_groups)  # of a right answer
    right = (random.random((num_groups, size)) < chance[:, None]).ravel()
    groups = np.repeat(np.arange(num_groups), size).tolist() if grouped else None
    gold = np.zeros(len(right), dtype=int)
    return collect_answers(["accuracy"], "single_label", np.where(right, 0, 1), gold, groups=groups)


def coverage(num_splits: int, *, grouped: bool) -> float:
    """How often intervals of splits of 60 groups of 5 rows hold the true accuracy."""
    random = np.random.default_rng(3)
    splits = (labels_of_groups(random, 60, 5, grouped=grouped) for _ in range(num_splits))
    intervals = [bootstrap_intervals(answers, seed)["accuracy"] for seed, answers in enumerate(splits)]
    return float(np.mean([low <= 0.8 <= high for low, high in intervals]))


def test_intervals_of_grouped_rows_hold_the_true_score() -> None:
    assert coverage(60, grouped=True) >= 0.88
    assert coverage(60, grouped=False) <= 0.8


@pytest.mark.slow
def test_intervals_of_grouped_rows_hold_the_true_score_of_95_percent_of_splits() -> None:
    assert 0.92 <= coverage(600, grouped=True) <= 0.97
    assert coverage(600, grouped=False) <= 0.82


def test_samples_draw_whole_groups() -> None:
    groups = np.array([0, 1, 0, 2, 2, 2])
    counts = np.concatenate([*bootstrap_samples(groups, 0)])
    assert (counts[:, [0, 3, 3]] == counts[:, [2, 4, 5]]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()


def test_groups_of_one_row_leave_the_interval_as_it_is() -> None:
    expected = bootstrap_intervals(labels(np.random.default_rng(0), 50, 0.8))
    answers = labels(np.random.default_rng(0), 50, 0.8)
    for groups in ([f"author {row}" for row in range(50)], [None] * 50):
        again = collect_answers(
            ["accuracy", "f1"], "single_label", answers["predicted"], answers["gold"], groups=groups
        )
        assert bootstrap_intervals(again) == expected
    all_in_one = collect_answers(
        ["accuracy"], "single_label", answers["predicted"], answers["gold"], groups=["same"] * 50
    )
    assert bootstrap_intervals(all_in_one) == {}  # one group says nothing about others


def test_rows_without_a_group_belong_to_no_other_and_names_do_not_matter() -> None:
    def indices(*groups: object) -> list[int]:
        gold = np.zeros(len(groups), dtype=int)
        return group_indices(collect_answers(["accuracy"], "single_label", gold, gold, groups=groups)).tolist()

    assert indices("b", "a", None, "b", None, "row 2") == [0, 1, 2, 0, 3, 4]
    assert indices(7, 8, 8, 7) == indices("x", "y", "y", "x") == [0, 1, 1, 0]
