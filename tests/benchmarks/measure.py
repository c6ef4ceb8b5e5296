"""Benchmark contenders in turns, so that a busy minute of the machine affects all of them; report medians.

Each measurement runs in a separate process, forked from one that never computed, so that its settings (retained
memory, started threads) do not affect the next one.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bertcli.training.devices import cpu_computes_bf16

ALL = "all"  # default of a program's arguments: a string, since argparse checks a list against the choices as a whole


@dataclass(frozen=True)
class Contender:
    """One implementation in a comparison; `measure` runs it and returns its units per second."""

    name: str
    measure: Callable[[], float]
    environment: dict[str, str] = field(default_factory=dict)


def run_in_process(function: Callable[[], Any], environment: dict[str, str] | None = None) -> Any:
    """Call `function` in a separate process and return its result."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        os.environ.update(environment or {})
        sender.send(function())

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("a benchmark failed; see its message above") from None
    finally:
        process.join()


def compare(title: str, unit: str, contenders: list[Contender], rounds: int, flops: float | None = None) -> None:
    """Measure the contenders in turns and print each one's median, and the speedup of the last one, bertcli, over it.

    Args:
        flops: useful floating-point operations per unit; None: not applicable.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    matrix_rates: list[float] = []
    for _ in range(rounds):
        if flops is not None:
            matrix_rates.append(run_in_process(matrix_flops_per_second))
        for contender in contenders:
            rates[contender.name].append(run_in_process(contender.measure, contender.environment))
    bertcli_rate = statistics.median(rates[contenders[-1].name])
    table = Table("contender", unit, "min", "max", "speedup", title=title)
    if flops is not None:
        table.add_column("share of the matrix rate")
    for name, values in rates.items():
        median = statistics.median(values)
        cells = [name, f"{median:,.1f}", f"{min(values):,.1f}", f"{max(values):,.1f}", f"{bertcli_rate / median:.2f} x"]
        if flops is not None:
            cells.append(f"{median * flops / statistics.median(matrix_rates):.0%}")
        table.add_row(*cells)
    if flops is not None:
        dtype = "bf16" if cpu_computes_bf16() else "fp32"
        rate = statistics.median(matrix_rates) / 1e9
        table.caption = f"matrix rate {rate:.0f} GFLOP/s ({dtype}), median of {rounds}"
    Console(width=120).print(table)


def matrix_flops_per_second(rows: int = 1024, hidden_size: int = 384, seconds: float = 0.5) -> float:
    """Measure the matrix products of the feed-forward part of such a model's layer."""
    dtype = torch.bfloat16 if cpu_computes_bf16() else torch.float32
    shapes = ((rows, hidden_size), (4 * hidden_size, hidden_size), (hidden_size, 4 * hidden_size))
    values, up, down = (torch.randn(*shape).to(dtype) for shape in shapes)
    num_products, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        values @ up.T
        (values @ up.T) @ down.T
        num_products += 3
    return num_products * 2 * rows * hidden_size * 4 * hidden_size / (time.perf_counter() - start)


def training_flops(num_layers: int, hidden_size: int, num_tokens: float, length: float) -> float:
    """Forward and backward operations of a plain encoder for `num_tokens` in sequences of `length`, without padding."""
    return 3 * num_tokens * num_layers * (24 * hidden_size**2 + 4 * length * hidden_size)
