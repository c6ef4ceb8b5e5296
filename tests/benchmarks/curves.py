"""Cost of a training step by batch size, sequence length and model size."""

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

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded
from bertcli.models.from_scratch import SIZES
from tests.benchmarks.finetuning import bert_config, bertcli_rate, label_loss
from tests.benchmarks.measure import run_in_process

BATCH_SIZES, LENGTHS, MODELS = (8, 32, 128), (16, 64, 128, 256, 512), ("tiny", "mini", "small", "medium")


def bench(rounds: int) -> None:
    """Print milliseconds per example; each number is the median of `rounds` rounds in turns."""
    points = [(batch_size, 32, "mini") for batch_size in BATCH_SIZES]
    points += [(8, length, "mini") for length in LENGTHS] + [(8, 64, model) for model in MODELS]
    points = list(dict.fromkeys(points))
    rates: dict[tuple[int, int, str], list[float]] = {point: [] for point in points}
    for _ in range(rounds):
        for point in points:
            rates[point].append(run_in_process(lambda point=point: _training_rate(*point), DEFAULT_ENVIRONMENT))
    table = Table(
        "examples per step", "tokens each", "model", "ms per example", "µs per token", title="cost of a training step"
    )
    for (batch_size, length, model), values in rates.items():
        seconds = 1 / statistics.median(values)
        table.add_row(str(batch_size), str(length), model, f"{seconds * 1e3:.2f}", f"{seconds / length * 1e6:.0f}")
    Console(width=120).print(table)
    batching = Table("examples", "s", title="building the batches of an epoch (order, padding), seconds")
    for num_examples in (10_000, 100_000, 1_000_000):
        seconds = run_in_process(lambda num_examples=num_examples: _batching_seconds(num_examples))
        batching.add_row(f"{num_examples:,}", f"{seconds:.2f}")
    Console(width=120).print(batching)


def _random_examples(num_examples: int, length: int) -> Encoded:
    ids = np.random.default_rng(0).integers(1000, 8000, num_examples * length).astype(np.int32)
    rows = np.arange(num_examples)
    return Encoded(ids, None, np.arange(num_examples + 1) * length, rows, rows % 2, 0)


def _training_rate(batch_size: int, length: int, size: str) -> float:
    num_layers, hidden_size, num_heads = SIZES[size]
    torch.manual_seed(0)
    encoded = _random_examples(batch_size * 8, length)

    def batches(_: Accelerator) -> Iterator[Any]:
        return training_batches(
            encoded, global_batch_size=batch_size, micro_batch_size=batch_size, seed=0, start_step=0, total_steps=1000
        )

    model = transformers.BertForSequenceClassification(bert_config(num_layers, hidden_size, num_heads, 8192))
    return bertcli_rate(model, batches, label_loss, 6, warmup_steps=4)


def _batching_seconds(num_examples: int) -> float:
    encoded = _random_examples(num_examples, 13)
    start = time.perf_counter()
    num_steps = -(-num_examples // 32)
    for _ in training_batches(
        encoded, global_batch_size=32, micro_batch_size=32, seed=0, start_step=0, total_steps=num_steps
    ):
        pass
    return time.perf_counter() - start
