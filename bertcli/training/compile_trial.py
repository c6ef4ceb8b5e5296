"""Whether compiled layers make a run shorter: tried on its own steps, where there is time to earn a trial back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator

from accelerate import Accelerator

from bertcli.training.loop import StepRecord
from bertcli.training.meters import of_first

LEAST_SECONDS = 1800.0  # of a run that remain: compiling takes a minute or two
FIRST_STEPS, TIMED_STEPS = 20, 30  # the first ones warm up, or compile


def tried_compiled(
    steps: Iterator[StepRecord],
    accelerator: Accelerator,
    seconds_left: Callable[[], float],
    compile_layers: Callable[[], int],
    undo: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[StepRecord]:
    """The same steps: some as they are, some with compiled layers, and the rest in the way that was faster.

    Tokens a second are compared, medians of steps that are waited for; the first process decides for all.

    Args:
        seconds_left: of the run, asked before anything is compiled.
        compile_layers: says how many parts it compiled.
    """
    plain = yield from _tokens_a_second(steps, accelerator)
    if plain is None:
        return
    left = of_first(accelerator, seconds_left())
    if left < LEAST_SECONDS:
        say(f"layers are not compiled: {left:.0f} seconds of training do not earn it back")
    elif not compile_layers():
        say("layers are not compiled: none of this model is known")
    else:
        compiled = yield from _tokens_a_second(steps, accelerator)
        if compiled is None:
            return
        if compiled <= plain:
            undo()
        kept = "they stay compiled" if compiled > plain else "they stay as they are"
        say(f"compiled layers compute {compiled / plain:.2f} times as many tokens a second: {kept}")
    yield from steps


def _tokens_a_second(
    steps: Iterator[StepRecord], accelerator: Accelerator
) -> Generator[StepRecord, None, float | None]:
    """The median over the next steps but the first ones, as the first process sees it; None if the steps end before."""
    rates: list[float] = []
    for _ in range(FIRST_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        record = next(steps, None)
        if record is None:
            return None
        float(record.loss)  # waits for the device
        rates.append(record.num_padded_tokens / (time.perf_counter() - start))
        yield record
    return of_first(accelerator, statistics.median(rates[FIRST_STEPS:]))
