"""Print messages and progress to stderr; stdout is reserved for results.

A terminal shows a Rich progress bar. Elsewhere (logs, batch jobs), long-running work prints a line every ten
seconds or so.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_INTERVAL_SECONDS = 10.0
MAX_ROWS_SHOWN = 5
LOADING = "loading the libraries"
STDOUT = "standard output"  # the name of stdout in errors
UNSAFE_CHARS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Item = TypeVar("Item")


class Display:
    """The progress of one piece of work; `advance` is cheap enough to call at every step.

    Without a `total`, only the number of completed units is shown.
    """

    def __init__(self, console: Console, title: str, total: int | None, bar: Progress | None):
        self._console, self._title, self._total, self._bar = console, title, total, bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._done = self._start = 0
        self._note = ""
        self._started_at = self._line_at = console.clock()

    def start_at(self, done: int) -> None:
        """Start at `done` units completed earlier (in a resumed run); the estimate of the time left ignores them."""
        self._done = self._start = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Advance the bar by `units`; a non-empty `note` replaces the text next to the bar."""
        self._done += units
        if self._bar and self._task is not None:
            self._note = note or self._note
            self._bar.update(self._task, advance=units, note=self._note)
        elif (now := self._console.clock()) - self._line_at >= LOG_INTERVAL_SECONDS:
            self._line_at = now
            total = "" if self._total is None else f"/{self._total}"
            self._console.say("  ".join(filter(None, (f"{self._title} {self._done}{total}", note, self._left(now)))))

    def _left(self, now: float) -> str:
        """Return the estimated time left; empty while the total or the speed is unknown."""
        done, seconds = self._done - self._start, now - self._started_at
        if self._total is None or not done or not seconds:
            return ""
        return f"{format_seconds((self._total - self._done) * seconds / done)} left"

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, advancing by one for each; the estimate of the time left ignores the wait for the first item.

        The first item may arrive only after much of the work is done, for example if a model predicts in chunks.
        """
        is_first = True
        for item in items:
            if is_first:
                self._start, self._started_at, is_first = self._done + 1, self._console.clock(), False
            self.advance()
            yield item

    def nested_counter(self, title: str) -> Callable[[int], None]:
        """Return a callback that counts units of a nested task, such as an evaluation during training, in the note."""
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            done += units
            self.advance(0, f"{title} {done}")

        return advance


class Console:
    """A printer of messages and progress.

    Args:
        quiet: print only warnings and errors.
        mute: print nothing, as in every process but the first.
        clock: returns the time in seconds, from any starting point.
    """

    def __init__(self, *, quiet: bool = False, mute: bool = False, clock: Callable[[], float] = time.monotonic):
        self.quiet, self._mute, self.clock = quiet or mute, mute, clock
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line; Rich markup in it is not interpreted."""
        if not self.quiet:
            self._rich.print(escape_control(text), markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, even if `quiet`."""
        if self._mute:
            return
        self._rich.print(f"warning: {escape_control(text)}", markup=False, style="yellow")

    def warn_about_rows(self, notes: Iterable[tuple[int, str]], *, first_row: int = 0, where: str = "rows") -> None:
        """Print one warning per distinct message, with the numbers of the rows that it concerns.

        Args:
            notes: (row, message); rows are counted from 0, printed row numbers from 1.
            first_row: number of rows that precede row 0.
            where: the word for the rows in the warning.
        """
        by_message: dict[str, list[int]] = {}
        for row, message in notes:
            by_message.setdefault(message, []).append(first_row + row + 1)
        for message, rows in by_message.items():
            listed = ", ".join(map(str, rows[:MAX_ROWS_SHOWN])) + (", …" if len(rows) > MAX_ROWS_SHOWN else "")
            self.warn(f"{where} {listed} ({len(rows)}): {message}")

    @contextmanager
    def waiting(self, message: str) -> Iterator[None]:
        """Show `message` during work without countable units; print it to a log only if the work takes a while."""
        if self.quiet:
            yield
        elif self._rich.is_terminal:
            with self._rich.status(message):
                yield
        else:
            timer = Timer(LOG_INTERVAL_SECONDS, self.say, [f"{message} …"])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    @contextmanager
    def display(self, title: str, total: int | None = None) -> Iterator[Display]:
        """Show the progress of `total` units of work (None if unknown)."""
        if self.quiet or not self._rich.is_terminal:
            yield Display(self, title, total, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._rich, transient=True
        ) as bar:
            yield Display(self, title, total, bar)


def escape_control(text: str) -> str:
    """Replace control characters, bidirectional marks and lone surrogates with `\\uXXXX` escapes.

    This prevents the content of a file from controlling the terminal; JSON text keeps its value.
    """
    return UNSAFE_CHARS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def format_count(number: int | None) -> str:
    """Format a count: `1500` → `1,500`; `unknown` for None."""
    return "unknown" if number is None else f"{number:,}"


def format_seconds(seconds: float) -> str:
    """Format a duration: `75` → `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_size(num_bytes: float) -> str:
    """Format a number of bytes: `1500000` → `1.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as aligned Markdown that is also readable as plain text."""
    rows = [[escape_control(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def is_first_process() -> bool:
    """Return whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def print_result(text: str) -> None:
    """Print a result to stdout, from the first process only.

    Raises:
        OSError: if stdout is closed, or is a file on a full disk.
    """
    if not is_first_process():
        return
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", STDOUT)
    try:
        with ignore_broken_pipe():
            sys.stdout.write(escape_control(text) + "\n")
            sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        raise OSError(error.errno, error.strerror, STDOUT) from error


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """End the block silently if the reader of stdout closes the pipe (`| head`)."""
    try:
        yield
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, so Python does not retry writing its buffered output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
