"""Progress and status lines in logs and on terminals."""

from __future__ import annotations

import time

import pytest
from rich.console import Console as RichConsole

from bertcli import console as module
from bertcli.console import Console


@pytest.fixture(autouse=True)
def _log_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0.0)


def test_display_in_a_log_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.display("eval test", 10) as display:
        display.advance(4)
        display.advance(0, "waiting")
    with console.display("answers") as display:
        display.advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("eval test 4/10  ")
    assert lines[1].startswith("eval test 4/10  waiting  ")
    assert lines[0].endswith(" left")
    assert lines[2:] == ["answers 3"]


def test_waiting_in_a_log_prints_one_line_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console().waiting("reading"):
        time.sleep(0.1)
    with Console(quiet=True).waiting("reading"):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "reading …\n")
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0.1)
    with Console().waiting("reading"):
        pass
    time.sleep(0.2)
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
