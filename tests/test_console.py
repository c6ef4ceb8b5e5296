"""What is shown while something takes its time."""

from __future__ import annotations

import time

import pytest
from rich.console import Console as RichConsole

from bertcli import console as module
from bertcli.console import Console


@pytest.fixture(autouse=True)
def _a_line_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)


def test_a_log_gets_lines_with_or_without_a_note_or_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.display("eval test", 10) as display:
        display.advance(4)
        display.advance(0, "waiting")
    with console.display("answers") as display:
        display.advance(3)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("eval test 4/10  ")
    assert told[1].startswith("eval test 4/10  waiting  ")
    assert told[0].endswith(" left")
    assert told[2:] == ["answers 3"]


def test_a_log_gets_one_line_of_what_is_waited_for_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console().waiting("reading"):
        time.sleep(0.1)
    with Console(quiet=True).waiting("reading"):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "reading …\n")
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.1)
    with Console().waiting("reading"):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_what_passes_is_counted_and_a_part_in_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().display("answers") as display:
        assert list(display.counted("ab")) == ["a", "b"]
        tell = display.count("evaluating")
        tell(16)
        tell(3)
    told = capsys.readouterr().err.splitlines()
    assert told == ["answers 1", "answers 2", "answers 2  evaluating 16", "answers 2  evaluating 19"]


def test_what_is_waited_for_is_shown_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RichConsole", lambda **options: RichConsole(**options, force_terminal=True))
    with Console().waiting("reading"):
        pass
    assert "reading" in capsys.readouterr().err
    with Console(quiet=True).waiting("reading"), Console(quiet=True).display("answers") as display:
        display.advance()
    assert capsys.readouterr().err == ""
