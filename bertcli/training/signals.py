"""Signals as a question the loop asks between steps, so that the current step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from bertcli.errors import exit_code_of


@dataclass
class StopRequest:
    """The signal that asked to stop, or None."""

    signal_number: int | None = None


def leave_on_requeue(say: Callable[[], None]) -> None:
    """Where nothing waits for signals, let SIGUSR1 `say` so and end the program with the code that asks for the queue.

    What it raises is no `Exception`: those are caught, and told as something else, where libraries are called.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        say()
        raise SystemExit(exit_code_of(number))

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, leave)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block Ctrl-C, SIGTERM and SIGUSR1 only set the request; a second Ctrl-C leaves at once.

    So does whatever follows a Ctrl-C: of a second one torch's launcher makes a SIGTERM.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None and signal.SIGINT in (number, request.signal_number):
            raise KeyboardInterrupt
        request.signal_number = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
