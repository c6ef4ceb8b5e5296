"""What a step costs: against the number of examples, the length of sequences and the size of the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from bertcli.cli.main import ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded
from bertcli.models.from_scratch import SIZES
from tests.benchmarks.finetuning import config, label_loss, our_rate
from tests.benchmarks.measure import apart

EXAMPLES, LENGTHS, MODELS = (8, 32, 128), (16, 64, 128, 256, 512), ("tiny", "mini", "small", "medium")


def bench(rounds: int) -> None:
    """Milliseconds an example, each number the median of some rounds that take turns."""
    points = [(number, 32, "mini") for number in EXAMPLES]
    points += [(8, length, "mini") for length in LENGTHS] + [(8, 64, model) for model in MODELS]
    points = list(dict.fromkeys(points))
    rates: dict[tuple[int, int, str], list[float]] = {point: [] for point in points}
    for _ in range(rounds):
        for point in points:
            rates[point].append(apart(lambda point=point: _rate(*point), ENVIRONMENT))
    table = Table(
        "examples a step", "tokens each", "model", "ms an example", "µs a token", title="cost of a training step"
    )
    for (number, length, model), values in rates.items():
        seconds = 1 / statistics.median(values)
        table.add_row(str(number), str(length), model, f"{seconds * 1e3:.2f}", f"{seconds / length * 1e6:.0f}")
    Console(width=120).print(table)
    encoding = Table("examples", "s", title="batches of an epoch made (order, padding), seconds")
    for number in (10_000, 100_000, 1_000_000):
        encoding.add_row(f"{number:,}", f"{apart(lambda number=number: _loading(number)):.2f}")
    Console(width=120).print(encoding)


def _encoded(number: int, length: int) -> Encoded:
    ids = np.random.default_rng(0).integers(1000, 8000, number * length).astype(np.int32)
    return Encoded(ids, None, np.arange(number + 1) * length, np.arange(number), np.arange(number) % 2, 0)


def _rate(number: int, length: int, size: str) -> float:
    layers, width, heads = SIZES[size]
    torch.manual_seed(0)
    encoded = _encoded(number * 8, length)

    def batches(_: Accelerator) -> Iterator[Any]:
        return training_batches(
            encoded, global_batch_size=number, micro_batch_size=number, seed=0, start_step=0, total_steps=1000
        )

    model = transformers.BertForSequenceClassification(config(layers, width, heads, 8192))
    return our_rate(model, batches, label_loss, 6, warm_steps=4)


def _loading(number: int) -> float:
    encoded = _encoded(number, 13)
    start = time.perf_counter()
    steps = -(-number // 32)
    for _ in training_batches(
        encoded, global_batch_size=32, micro_batch_size=32, seed=0, start_step=0, total_steps=steps
    ):
        pass
    return time.perf_counter() - start
