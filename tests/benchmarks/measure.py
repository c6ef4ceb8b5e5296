"""Contenders take turns, so that a busy minute of the machine falls on all of them; what counts are medians.

Each works in a process of its own, forked from one that never computed: what one of them sets (memory kept, threads
started) is nothing to the next.
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


@dataclass(frozen=True)
class Contender:
    """Somebody who does a piece of work: `work` does it and says how many units a second that were."""

    name: str
    work: Callable[[], float]
    environment: dict[str, str] = field(default_factory=dict)


def apart(work: Callable[[], Any], environment: dict[str, str] | None = None) -> Any:
    """What `work` returns, done in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        os.environ.update(environment or {})
        sender.send(work())

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("a contender failed; its message stands above") from None
    finally:
        process.join()


def race(title: str, unit: str, contenders: list[Contender], rounds: int, flops: float | None = None) -> None:
    """Let the contenders work in turn and print the median of each, beside the last one, who is ours.

    Args:
        flops: useful floating-point operations of a unit; None: not a matter of those.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    matrix: list[float] = []
    for _ in range(rounds):
        if flops is not None:
            matrix.append(apart(matrix_rate))
        for contender in contenders:
            rates[contender.name].append(apart(contender.work, contender.environment))
    ours = statistics.median(rates[contenders[-1].name])
    table = Table("who", unit, "least", "most", "ours is", title=title)
    if flops is not None:
        table.add_column("share of the matrix rate")
    for name, values in rates.items():
        median = statistics.median(values)
        cells = [name, f"{median:,.1f}", f"{min(values):,.1f}", f"{max(values):,.1f}", f"{ours / median:.2f} x"]
        if flops is not None:
            cells.append(f"{median * flops / statistics.median(matrix):.0%}")
        table.add_row(*cells)
    if flops is not None:
        kind = "bf16" if cpu_computes_bf16() else "fp32"
        table.caption = f"matrix rate {statistics.median(matrix) / 1e9:.0f} GFLOP/s ({kind}), median of {rounds}"
    Console(width=120).print(table)


def matrix_rate(rows: int = 1024, width: int = 384, seconds: float = 0.5) -> float:
    """Floating-point operations a second of the matrix products of such a model: a layer's feed-forward part."""
    kind = torch.bfloat16 if cpu_computes_bf16() else torch.float32
    values, up, down = (torch.randn(*size).to(kind) for size in ((rows, width), (4 * width, width), (width, 4 * width)))
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        values @ up.T
        (values @ up.T) @ down.T
        count += 3
    return count * 2 * rows * width * 4 * width / (time.perf_counter() - start)


def training_flops(layers: int, width: int, tokens: float, length: float) -> float:
    """Of the encoder of a plain model, forward and backward, for `tokens` in sequences of `length`; no padding."""
    return 3 * tokens * layers * (24 * width**2 + 4 * length * width)
