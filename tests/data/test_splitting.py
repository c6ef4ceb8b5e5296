"""Folds: every row is in one, stratified by label and grouped; what cannot be divided is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bertcli.data.splitting import assign_folds, rare_labels

LABELS = ["a"] * 60 + ["b"] * 30 + ["c"] * 13
GROUPS = [f"title {row // 3}" for row in range(103)]


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_folds_have_equally_many_rows_of_each_label_and_whole_groups(
    labels: list[str] | None, groups: list[str] | None
) -> None:
    folds = assign_folds(103, 5, labels, groups)
    assert sorted(set(folds)) == [1, 2, 3, 4, 5]
    assert np.array_equal(folds, assign_folds(103, 5, labels, groups))
    assert max(Counter(folds).values()) - min(Counter(folds).values()) <= (1 if groups is None else 3)
    if labels is not None:
        for label in "abc":
            counts = [int(((folds == fold) & (np.array(labels) == label)).sum()) for fold in range(1, 6)]
            assert max(counts) - min(counts) <= (1 if groups is None else 3)
    if groups is not None:
        assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


@pytest.mark.parametrize(
    ("rows", "labels", "groups", "message"),
    [
        (3, None, None, "found 3 training rows, expected at least 5, one for each fold"),
        (9, None, ["x", "y", "z"] * 3, "found 3 groups, expected at least 5"),
        (9, ["x", "y", "z"] * 3, None, "found at most 3 rows of a label, expected at least 5"),
    ],
)
def test_fewer_rows_groups_or_rows_of_each_label_than_folds_are_refused(
    rows: int, labels: list[str] | None, groups: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assign_folds(rows, 5, labels, groups)


def test_labels_with_fewer_rows_than_folds_are_listed_and_divided() -> None:
    labels = ["a"] * 20 + ["b"] * 4 + ["c"] * 5 + ["d"]
    assert rare_labels(labels, 5) == {"d": 1, "b": 4}
    folds = assign_folds(30, 5, labels)
    assert len(set(folds[20:24])) == 4
