"""Latency is measured over complete passes, after one to warm up."""

from __future__ import annotations

import pytest
import torch

from bertcli.inference import latency as latency_module
from bertcli.inference.latency import measure_latency


def test_latency_covers_complete_passes_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lengths = 0.0, []

    class Clocked(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> None:
            nonlocal now
            lengths.append(input_ids.shape[1])
            now += input_ids.shape[1]

    monkeypatch.setattr(latency_module.time, "perf_counter", lambda: now)
    latency = measure_latency(Clocked(), [{"input_ids": torch.zeros(4, length)} for length in (1, 9, 3)], seconds=14)
    assert lengths == [1, 9, 3] * 3
    assert latency.median_ms == 3000
    assert latency.p95_ms == 9000
    assert latency.rows_per_second == pytest.approx(4 * 6 / 26)
