"""Stop signals, checked between steps so that the current step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from bertcli.errors import signal_exit_code


@dataclass
class StopRequest:
    """The signal that was received, or None."""

    signal_number: int | None = None


def exit_on_requeue(say: Callable[[], None]) -> None:
    """Outside of the training loop, exit on SIGUSR1 with the code that requests a requeue.

    The handler raises `SystemExit` rather than an `Exception`, which libraries might catch and report as something
    else.

    Args:
        say: called before the program exits, to print a message.
    """

    def exit_with_code(signal_number: int, frame: FrameType | None) -> None:
        say()
        raise SystemExit(signal_exit_code(signal_number))

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, exit_with_code)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, the first Ctrl-C, SIGTERM or SIGUSR1 only requests a stop; any later Ctrl-C interrupts at once.

    After a Ctrl-C, a SIGTERM or SIGUSR1 interrupts, too, because torch's launcher turns a second Ctrl-C into a SIGTERM.
    """
    request = StopRequest()

    def record_signal(signal_number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None and signal.SIGINT in (signal_number, request.signal_number):
            raise KeyboardInterrupt
        request.signal_number = signal_number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, record_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
