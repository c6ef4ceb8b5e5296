"""Divide training rows into those to train on and those held out, or into folds: by label, and by group.

The division depends only on the rows: it is the same for every training seed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from bertcli.tasks.task import NUMBER

HELD_OUT_SEED = 13


def stratified_sample(labels: Sequence[str], num_rows: int) -> set[int]:
    """Draw a stratified sample of rows; if possible, leave at least one row of each label undrawn."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_label[label].append(row)
    generator = Random(HELD_OUT_SEED)
    for label in sorted(by_label):
        generator.shuffle(by_label[label])
    fraction = num_rows / len(labels)
    counts = {label: math.floor(fraction * len(rows)) for label, rows in by_label.items()}
    by_remainder = sorted(by_label, key=lambda label: (counts[label] - fraction * len(by_label[label]), label))
    for min_training_rows in (1, 0):  # of each label
        while sum(counts.values()) < num_rows:
            open_labels = [label for label in by_remainder if counts[label] < len(by_label[label]) - min_training_rows]
            if not open_labels:
                break
            for label in open_labels[: num_rows - sum(counts.values())]:
                counts[label] += 1
    return {row for label, count in counts.items() for row in by_label[label][:count]}


def sample_groups(groups: Sequence[Any], fraction: float) -> set[int]:
    """Draw a fraction of the distinct groups, at least one and not all; return the rows in them."""
    names = sorted(set(groups))
    if all(NUMBER.fullmatch(str(name)) for name in names):
        names.sort(key=float)
    Random(HELD_OUT_SEED).shuffle(names)
    drawn = set(names[: min(len(names) - 1, max(1, round(fraction * len(names))))])
    return {row for row, group in enumerate(groups) if group in drawn}


def assign_folds(
    num_rows: int, num_folds: int, labels: Sequence[str] | None = None, groups: Sequence[Any] | None = None
) -> np.ndarray:
    """Return the fold of each row, from 1 to `num_folds`. [R]

    Folds are stratified by label as far as possible, if `labels` are given; rows of a group share a fold.

    Raises:
        ValueError: if there are fewer rows or groups than folds, or every label has fewer rows; the message says
            what was found and expected.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    most = max(Counter(labels).values()) if labels else num_folds
    for count, kind in ((num_rows, "training rows"), (len(set(groups or range(num_rows))), "groups")):
        if count < num_folds:
            raise ValueError(f"found {count} {kind}, expected at least {num_folds}, one for each fold")
    if most < num_folds:
        raise ValueError(f"found at most {most} rows of a label, expected at least {num_folds}, one for each fold")
    shuffled: dict[str, Any] = {"shuffle": True, "random_state": HELD_OUT_SEED}
    if groups is None:
        splitter = KFold(num_folds, **shuffled) if labels is None else StratifiedKFold(num_folds, **shuffled)
    else:  # without labels not shuffled: then folds have equally many rows, not only groups
        splitter = GroupKFold(num_folds) if labels is None else StratifiedGroupKFold(num_folds, **shuffled)
    folds = np.zeros(num_rows, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # labels with few rows, which `rare_labels` lists
        for fold, (_, held_out) in enumerate(splitter.split(np.empty(num_rows), labels, groups), start=1):
            folds[held_out] = fold
    if len(np.unique(folds)) < num_folds:
        raise ValueError(f"found no rows for one of {num_folds} folds, because a few groups hold almost all rows")
    return folds


def rare_labels(labels: Sequence[str], num_folds: int) -> dict[str, int]:
    """Return the labels with fewer rows than folds, each with its number of rows, the rarest first."""
    return {label: count for label, count in reversed(Counter(labels).most_common()) if count < num_folds}
