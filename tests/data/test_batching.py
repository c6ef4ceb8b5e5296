"""Batches: every row once, little padding, an order that is found again."""

from __future__ import annotations

import numpy as np
import pytest

from bertcli.data.batching import (
    GlobalBatch,
    cut_off_tokens,
    length_grouped_batches,
    token_budget_batches,
    training_batches,
)
from bertcli.data.encoding import Encoded


def encoded_of(lengths: np.ndarray) -> Encoded:
    """Rows whose tokens are their own row number."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.arange(len(lengths))
    return Encoded(ids.astype(np.int32), None, offsets, rows, labels=rows, pad_token_id=-1)


@pytest.fixture
def lengths() -> np.ndarray:
    """Long-tailed, as sentences are."""
    return np.random.default_rng(0).geometric(0.08, size=4013).clip(3, 60) + 2


def test_an_epoch_has_every_row_once(lengths: np.ndarray) -> None:
    batches = length_grouped_batches(lengths, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [32] * (len(batches) - 1)
    assert min(map(len, batches)) == 4013 % 32


def test_padding_is_under_five_percent(lengths: np.ndarray) -> None:
    batches = length_grouped_batches(lengths, 32, seed=1, epoch=0)
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert 1 - lengths.sum() / padded < 0.05


def test_order_differs_by_epoch_and_seed_and_repeats_with_them(lengths: np.ndarray) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(length_grouped_batches(lengths, 32, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_lengths_do_not_come_in_order(lengths: np.ndarray) -> None:
    means = [lengths[rows].mean() for rows in length_grouped_batches(lengths, 32, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_evaluation_batches_keep_the_token_budget(lengths: np.ndarray) -> None:
    batches = list(token_budget_batches(lengths, 500))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(len(rows) * lengths[rows].max() for rows in batches) <= 500
    assert [len(rows) for rows in token_budget_batches(np.array([900, 3]), 500)] == [1, 1]


def test_a_resumed_order_is_the_tail_of_the_whole(lengths: np.ndarray) -> None:
    def rows(start: int) -> list[list[int]]:
        steps = training_batches(
            encoded_of(lengths[:101]),
            global_batch_size=13,
            micro_batch_size=5,
            seed=1,
            start_step=start,
            total_steps=20,
        )
        return [torch_rows for step in steps for torch_rows in [[*map(int, step.micro_batches[0]["labels"])]]]

    assert len(rows(0)) == 20
    for start in (1, 7, 8, 9, 19):
        assert rows(start) == rows(0)[start:]


def test_micro_batches_and_processes_share_the_global_batch_out(lengths: np.ndarray) -> None:
    encoded = encoded_of(lengths[:101])
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


def test_a_batch_holds_its_rows_and_padding_elsewhere() -> None:
    batch = encoded_of(np.array([2, 3, 1])).batch(np.array([2, 1]), multiple_of=4)
    assert batch["input_ids"].tolist() == [[2, -1, -1, -1], [1, 1, 1, -1]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [2, 1]


def test_cut_off_tokens_are_the_asked_share_never_the_first_and_repeat_with_the_step(lengths: np.ndarray) -> None:
    def batches(start: int) -> list[GlobalBatch]:
        options = {"global_batch_size": 64, "micro_batch_size": 64, "seed": 1, "total_steps": 40}
        made = training_batches(encoded_of(lengths), start_step=start, **options)
        return list(cut_off_tokens(made, 0.15, 1, start))

    whole = [batch.micro_batches[0] for batch in batches(0)]
    later = [batch.micro_batches[0] for batch in batches(30)]
    for one, two in zip(whole[30:], later, strict=True):
        assert one["attention_mask"].equal(two["attention_mask"])
    real = np.concatenate([(micro["input_ids"][:, 1:] != -1).numpy().ravel() for micro in whole])
    seen = np.concatenate([micro["attention_mask"][:, 1:].numpy().ravel() for micro in whole])
    assert all((micro["attention_mask"][:, 0] == 1).all() for micro in whole)
    assert not seen[~real].any()
    assert 1 - seen[real].mean() == pytest.approx(0.15, abs=0.01)
