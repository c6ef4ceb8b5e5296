"""Batch sampling: every row once, little padding, an order that resuming reproduces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bertcli.data.batching import (
    GlobalBatch,
    apply_token_cutoff,
    balanced_items,
    length_grouped_batches,
    num_balanced_items,
    token_budget_batches,
    training_batches,
)
from bertcli.data.encoding import Encoded


def encoded_rows(lengths: np.ndarray) -> Encoded:
    """Encode rows whose tokens are their row index."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.arange(len(lengths))
    return Encoded(ids.astype(np.int32), None, offsets, rows, labels=rows, pad_token_id=-1)


@pytest.fixture
def lengths() -> np.ndarray:
    """Long-tailed lengths, like those of sentences."""
    return np.random.default_rng(0).geometric(0.08, size=4013).clip(3, 60) + 2


def test_length_grouped_batches_contain_every_row_once(lengths: np.ndarray) -> None:
    batches = length_grouped_batches(lengths, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [32] * (len(batches) - 1)
    assert min(map(len, batches)) == 4013 % 32


def test_length_grouped_batches_have_under_five_percent_padding(lengths: np.ndarray) -> None:
    batches = length_grouped_batches(lengths, 32, seed=1, epoch=0)
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert 1 - lengths.sum() / padded < 0.05


def test_length_grouped_order_depends_on_seed_and_epoch_alone(lengths: np.ndarray) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(length_grouped_batches(lengths, 32, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_length_grouped_batches_are_not_ordered_by_length(lengths: np.ndarray) -> None:
    means = [lengths[rows].mean() for rows in length_grouped_batches(lengths, 32, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_token_budget_batches_stay_within_the_budget(lengths: np.ndarray) -> None:
    batches = list(token_budget_batches(lengths, 500))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(len(rows) * lengths[rows].max() for rows in batches) <= 500
    assert [len(rows) for rows in token_budget_batches(np.array([900, 3]), 500)] == [1, 1]


def test_training_batches_resume_at_any_step(lengths: np.ndarray) -> None:
    def rows(start: int) -> list[list[int]]:
        steps = training_batches(
            encoded_rows(lengths[:101]),
            global_batch_size=13,
            micro_batch_size=5,
            seed=1,
            start_step=start,
            total_steps=20,
        )
        return [[*map(int, step.micro_batches[0]["labels"])] for step in steps]

    assert len(rows(0)) == 20
    for start in (1, 7, 8, 9, 19):
        assert rows(start) == rows(0)[start:]


def test_training_batches_partition_the_global_batch_over_processes_and_micro_batches(lengths: np.ndarray) -> None:
    encoded = encoded_rows(lengths[:101])
    seen: list[int] = []
    for process in range(2):
        (step,) = training_batches(
            encoded,
            global_batch_size=13,
            micro_batch_size=3,
            seed=1,
            start_step=0,
            total_steps=1,
            process=process,
            num_processes=2,
        )
        assert step.num_examples in (13, 101 % 13)
        seen += [int(label) for micro in step.micro_batches for label in micro["labels"]]
    assert len(seen) == len(set(seen)) == step.num_examples


def test_balanced_items_have_each_label_equally_often_and_every_item() -> None:
    labels = np.random.default_rng(0).choice(4, size=500, p=[0.7, 0.2, 0.09, 0.01])
    items = balanced_items(labels, seed=1, epoch=0)
    assert len(items) == num_balanced_items(labels) == 4 * (labels == 0).sum()
    assert len(set(np.bincount(labels[items]))) == 1
    repeats = np.bincount(items, minlength=500)
    assert repeats.min() >= 1
    for label in range(4):  # no item of a label is drawn much more often than another
        assert np.ptp(repeats[labels == label]) <= 1


def test_balanced_items_depend_on_seed_and_epoch_alone() -> None:
    labels = np.random.default_rng(0).choice(2, size=500, p=[0.7, 0.3])
    drawn = {pair: sorted(balanced_items(labels, *pair).tolist()) for pair in ((1, 0), (1, 1), (2, 0))}
    assert sorted(balanced_items(labels, 1, 0).tolist()) == drawn[1, 0]
    assert drawn[1, 0] != drawn[1, 1]
    assert drawn[1, 0] != drawn[2, 0]


def test_balanced_training_batches_resume_at_any_step_and_are_shared_by_processes(lengths: np.ndarray) -> None:
    labels = (np.random.default_rng(0).random(len(lengths)) < 0.1).astype(np.int64)
    encoded = replace(encoded_rows(lengths), labels=labels)

    def batches(start: int, process: int = 0, num_processes: int = 1) -> list[list[int]]:
        options = {"global_batch_size": 64, "micro_batch_size": 64, "seed": 1, "total_steps": 300, "balance": True}
        steps = training_batches(encoded, start_step=start, process=process, num_processes=num_processes, **options)
        return [[int(row) for micro in step.micro_batches for row in micro["input_ids"][:, 0]] for step in steps]

    full = batches(0)
    per_epoch = -(-num_balanced_items(labels) // 64)
    epoch = labels[np.concatenate(full[:per_epoch])]
    assert (epoch == 0).sum() == (epoch == 1).sum() == (labels == 0).sum()
    assert batches(per_epoch + 13) == full[per_epoch + 13 :]
    halves = zip(batches(0, 0, 2), batches(0, 1, 2), strict=True)
    assert [first + second for first, second in halves] == full


def test_encoded_batch_is_padded() -> None:
    batch = encoded_rows(np.array([2, 3, 1])).batch(np.array([2, 1]), multiple_of=4)
    assert batch["input_ids"].tolist() == [[2, -1, -1, -1], [1, 1, 1, -1]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [2, 1]


def test_token_cutoff_hides_the_given_fraction_and_depends_on_the_step_alone(lengths: np.ndarray) -> None:
    def batches(start: int) -> list[GlobalBatch]:
        options = {"global_batch_size": 64, "micro_batch_size": 64, "seed": 1, "total_steps": 40}
        plain = training_batches(encoded_rows(lengths), start_step=start, **options)
        return list(apply_token_cutoff(plain, 0.15, 1, start))

    full = [batch.micro_batches[0] for batch in batches(0)]
    resumed = [batch.micro_batches[0] for batch in batches(30)]
    for expected, actual in zip(full[30:], resumed, strict=True):
        assert expected["attention_mask"].equal(actual["attention_mask"])
    real = np.concatenate([(micro["input_ids"][:, 1:] != -1).numpy().ravel() for micro in full])
    seen = np.concatenate([micro["attention_mask"][:, 1:].numpy().ravel() for micro in full])
    assert all((micro["attention_mask"][:, 0] == 1).all() for micro in full)
    assert not seen[~real].any()
    assert 1 - seen[real].mean() == pytest.approx(0.15, abs=0.01)


def test_encoded_batch_is_padded_on_the_left() -> None:
    encoded = replace(encoded_rows(np.array([2, 3, 1])), padding_side="left")
    batch = encoded.batch(np.array([2, 1]), multiple_of=4)
    assert batch["input_ids"].tolist() == [[-1, -1, -1, 2], [-1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_batches_of_the_same_length_have_no_padding(lengths: np.ndarray) -> None:
    batches = list(token_budget_batches(lengths, 512, same_length=True))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len({*lengths[batch]}) == 1 for batch in batches)
    assert len(batches) < len(lengths)
