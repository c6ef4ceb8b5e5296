"""Latency and throughput of a model on a CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile of the time per batch, and throughput over all batches."""

    median_ms: float
    p95_ms: float
    rows_per_second: float


def measure_latency(model: torch.nn.Module, batches: Sequence[Mapping[str, torch.Tensor]], seconds: float) -> Latency:
    """Time the forward passes of batches: one pass over all of them to warm up, then passes until the time is over.

    Every pass is complete, so that models of different speed are measured on the same batches.

    Args:
        batches: inputs by name; all have the same number of rows.
        seconds: time after which no further pass starts.
    """
    times: list[float] = []
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
        while sum(times) < seconds:
            for batch in batches:
                started_at = time.perf_counter()
                model(**batch)
                times.append(time.perf_counter() - started_at)
    num_rows = len(next(iter(batches[0].values())))
    median, p95 = np.percentile(times, (50, 95)) * 1000
    return Latency(float(median), float(p95), num_rows * len(times) / sum(times))
