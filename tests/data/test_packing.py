"""Packing: every sequence once, rows within capacity and almost full."""

from __future__ import annotations

import numpy as np
import pytest

from bertcli.data.packing import pack_sequences


@pytest.mark.parametrize("capacity", [128, 512])
def test_packing_uses_every_sequence_once_and_fills_the_rows(capacity: int) -> None:
    lengths = np.random.default_rng(0).geometric(0.02, size=5000).clip(3, capacity)
    rows = pack_sequences(lengths, capacity)
    assert sorted(np.concatenate(rows)) == list(range(5000))
    assert all(lengths[row].sum() <= capacity for row in rows)
    assert lengths.sum() / (len(rows) * capacity) > 0.98


def test_packing_picks_the_fullest_row_that_fits() -> None:
    assert [row.tolist() for row in pack_sequences(np.array([6, 5, 4, 3, 2]), 10)] == [[0, 2], [1, 3, 4]]
    assert pack_sequences(np.array([], dtype=int), 10) == []
