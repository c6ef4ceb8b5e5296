"""Progress and status lines in logs and on terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from rich.console import Console as RichConsole

from bertcli import console as module
from bertcli.console import Console


@pytest.fixture(autouse=True)
def _log_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0.0)


def seconds_pass() -> Callable[[], float]:
    """A clock that advances by a second whenever it is read."""
    return map(float, count()).__next__


def test_display_in_a_log_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(clock=seconds_pass())
    with console.display("eval test", 10) as display:
        display.advance(4)
        display.advance(0, "waiting")
    with console.display("answers") as display:
        display.advance(3)
    assert capsys.readouterr().err.splitlines() == [
        "eval test 4/10  2s left",
        "eval test 4/10  waiting  3s left",
        "answers 3",
    ]


def test_time_left_does_not_count_the_wait_for_the_first_of_the_tracked_items(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 10.0)
    now = 0.0

    def predictions() -> Iterator[int]:
        """Chunks of a hundred at once: the first after ten minutes of loading, then one every ten seconds."""
        nonlocal now
        for row in range(1000):
            now += (600.0 if row == 0 else 10.0) if row % 100 == 0 else 0.0
            yield row

    with Console(clock=lambda: now).display("predictions", 1000) as display:
        assert list(display.track(predictions())) == list(range(1000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["predictions 1/1000", "predictions 101/1000  1m30s left", "predictions 201/1000  1m20s left"]


class Timer:
    """A `threading.Timer` that fires at once if its time is already up, else never."""

    def __init__(self, seconds: float, call: Callable[..., None], arguments: list[str]):
        self.seconds, self.call, self.arguments = seconds, call, arguments

    def start(self) -> None:
        if self.seconds == 0:
            self.call(*self.arguments)

    def cancel(self) -> None:
        self.seconds = 0.0


def test_waiting_in_a_log_prints_one_line_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Timer] = []
    monkeypatch.setattr(module, "Timer", lambda *arguments: timers.append(Timer(*arguments)) or timers[-1])
    with Console().waiting("reading"):
        pass
    with Console(quiet=True).waiting("reading"):
        pass
    assert capsys.readouterr() == ("", "reading …\n")
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0.1)
    with Console().waiting("reading"):
        assert timers[-1].seconds == 0.1
    assert [timer.seconds for timer in timers] == [0.0, 0.0]  # both are canceled
    assert capsys.readouterr().err == ""


def test_display_tracks_items_and_counts_nested_units(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().display("answers") as display:
        assert list(display.track("ab")) == ["a", "b"]
        count = display.nested_counter("evaluating")
        count(16)
        count(3)
    assert capsys.readouterr().err.splitlines() == [
        "answers 1",
        "answers 2",
        "answers 2  evaluating 16",
        "answers 2  evaluating 19",
    ]


def test_waiting_on_a_terminal_shows_a_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RichConsole", lambda **options: RichConsole(**options, force_terminal=True))
    with Console().waiting("reading"):
        pass
    assert "reading" in capsys.readouterr().err
    with Console(quiet=True).waiting("reading"), Console(quiet=True).display("answers") as display:
        display.advance()
    assert capsys.readouterr().err == ""
