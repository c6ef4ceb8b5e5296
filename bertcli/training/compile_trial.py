"""Trial of compiled layers: timed on the run's own steps, and kept if they are faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator

import torch
from accelerate import Accelerator

from bertcli.models.compile import has_compiler
from bertcli.training.loop import StepRecord
from bertcli.training.meters import broadcast_from_main

MIN_SECONDS_LEFT = 1800.0  # compiling takes a minute or two, which does not pay off in a short run
WARMUP_STEPS, TIMED_STEPS = 20, 30  # the layers are compiled during warmup


def reason_not_to_compile(device: torch.device) -> str:
    """Return why a run on `device` does not try compiled layers; empty if it does."""
    if device.type != "cuda":
        return "compiling is tried only on CUDA GPUs"  # no speedup on a CPU: tests/benchmarks/RESULTS.md
    return "" if has_compiler() else "found no C++ compiler"


def compile_if_faster(
    steps: Iterator[StepRecord],
    accelerator: Accelerator,
    seconds_left: Callable[[], float],
    compile_layers: Callable[[], int],
    undo: Callable[[], None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[StepRecord]:
    """Yield the same steps: first some uncompiled, then some with compiled layers, the rest whichever way is faster.

    Compares median tokens per second of steps that synchronize with the device; the main process decides for all.

    Args:
        seconds_left: estimated time to the end of the run; called before anything is compiled.
        compile_layers: compiles the layers and returns the number of compiled parts.
        clock: returns the time in seconds, from any starting point.
    """
    uncompiled = yield from _tokens_per_second(steps, accelerator, clock)
    if uncompiled is None:
        return
    left = broadcast_from_main(accelerator, seconds_left())
    if left < MIN_SECONDS_LEFT:
        say(f"layers are not compiled: {left:.0f} seconds of training left are too few for that to pay off")
    elif not compile_layers():
        say("layers are not compiled: the layers of this model are not supported")
    else:
        compiled = yield from _tokens_per_second(steps, accelerator, clock)
        if compiled is None:
            return
        if compiled <= uncompiled:
            undo()
        decision = "kept" if compiled > uncompiled else "not kept"
        say(f"compiled layers process {compiled / uncompiled:.2f} times as many tokens per second: {decision}")
    yield from steps


def _tokens_per_second(
    steps: Iterator[StepRecord], accelerator: Accelerator, clock: Callable[[], float]
) -> Generator[StepRecord, None, float | None]:
    """Return the main process's median tokens per second in the next steps after warmup; None if the run ends first."""
    rates: list[float] = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        start = clock()
        record = next(steps, None)
        if record is None:
            return None
        float(record.loss)  # synchronizes with the device
        rates.append(record.num_padded_tokens / (clock() - start))
        yield record
    return broadcast_from_main(accelerator, statistics.median(rates[WARMUP_STEPS:]))
