"""What a person sees while a run goes on: everything on stderr, so that stdout stays for results.

On a terminal a Rich progress bar; elsewhere (logs, batch jobs) plain lines, of work that takes longer than moments.
"""

from __future__ import annotations

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

SECONDS_BETWEEN_LINES = 10.0
ROWS_SHOWN = 5
LOADING = "loading the libraries"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Item = TypeVar("Item")


class Display:
    """A moving display of one piece of work; `advance` is cheap enough to call at every step.

    Without a `total` only what is done is counted.
    """

    def __init__(self, console: Console, title: str, total: int | None, bar: Progress | None):
        self._console, self._title, self._total, self._bar = console, title, total, bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._done = self._start = 0
        self._note = ""
        self._started_at = self._line_at = time.monotonic()

    def start_at(self, done: int) -> None:
        """Count `done` units as done before this display began."""
        self._done = self._start = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done)

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` replaces the words behind the bar unless it is empty."""
        self._done += units
        if self._bar and self._task is not None:
            self._note = note or self._note
            self._bar.update(self._task, advance=units, note=self._note)
        elif time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            words = [f"{self._title} {self._done}", note]
            if self._total is not None:
                words[0] += f"/{self._total}"
                rate = (self._done - self._start) / (self._line_at - self._started_at)
                words.append(f"{format_seconds((self._total - self._done) / rate if rate else 0.0)} left")
            self._console.say("  ".join(word for word in words if word))

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each counted as it passes."""
        for item in items:
            self.advance()
            yield item

    def count(self, words: str) -> Callable[[int], None]:
        """What counts, behind the bar, the units of something that happens between those of the display."""
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            done += units
            self.advance(0, f"{words} {done}")

        return advance


class Console:
    """Words for people. `quiet` keeps only warnings and errors, `mute` nothing (all processes but the first)."""

    def __init__(self, *, quiet: bool = False, mute: bool = False):
        self.quiet, self._mute = quiet or mute, mute
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line for people; nothing in it is taken as markup."""
        if not self.quiet:
            self._rich.print(harmless(text), markup=False)

    def warn(self, text: str) -> None:
        """A line that even `quiet` shows."""
        if self._mute:
            return
        self._rich.print(f"warning: {harmless(text)}", markup=False, style="yellow")

    def warn_of_rows(self, notes: Iterable[tuple[int, str]], *, first_row: int = 0, where: str = "rows") -> None:
        """One warning for each thing that happened to some rows, which are numbered from 0 in `notes`."""
        by_words: dict[str, list[int]] = {}
        for row, words in notes:
            by_words.setdefault(words, []).append(first_row + row + 1)
        for words, rows in by_words.items():
            some = ", ".join(map(str, rows[:ROWS_SHOWN])) + (", …" if len(rows) > ROWS_SHOWN else "")
            self.warn(f"{where} {some} ({len(rows)}): {words}")

    @contextmanager
    def waiting(self, words: str) -> Iterator[None]:
        """Say what is being waited for while inside, of work that cannot be counted; in a log, once it takes long."""
        if self.quiet:
            yield
        elif self._rich.is_terminal:
            with self._rich.status(words):
                yield
        else:
            timer = Timer(SECONDS_BETWEEN_LINES, self.say, [f"{words} …"])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    @contextmanager
    def display(self, title: str, total: int | None = None) -> Iterator[Display]:
        """Show the progress of `total` units of work, or of as many as come, while inside."""
        if self.quiet or not self._rich.is_terminal:
            yield Display(self, title, total, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._rich, transient=True
        ) as bar:
            yield Display(self, title, total, bar)


def harmless(text: str) -> str:
    """`text`, with what steers a terminal (escapes, marks of direction) or is half a character spelt out.

    JSON still means the same.
    """
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def format_seconds(seconds: float) -> str:
    """`75` → `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_size(num_bytes: float) -> str:
    """`1500000` → `1.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text and as Markdown."""
    rows = [[harmless(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def print_result(text: str) -> None:
    """The result itself, on stdout, by the first process alone."""
    if os.environ.get("RANK", "0") != "0":
        return
    with reader_may_leave():
        sys.stdout.write(harmless(text) + "\n")
        sys.stdout.flush()


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End what is inside quietly when the reader of stdout goes away (`| head`)."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes stdout once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
