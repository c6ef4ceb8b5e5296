"""Compiled layers are tried on a run's own steps and kept if they are faster."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from bertcli.recipe.schema import HardwareSection
from bertcli.training import compile_trial
from bertcli.training.compile_trial import tried_compiled
from bertcli.training.devices import build_accelerator
from bertcli.training.loop import StepRecord

SECONDS = 0.002


class Layers:
    """Layers whose steps take their time, and what was done to them."""

    def __init__(self, gain: float, number: int = 2):
        self.gain, self.number, self.done, self.seconds = gain, number, [], SECONDS

    def compile(self) -> int:
        self.done.append("compiled")
        self.seconds = SECONDS / self.gain
        return self.number

    def undo(self) -> None:
        self.done.append("undone")

    def steps(self, number: int) -> Iterator[StepRecord]:
        nothing = torch.zeros(())
        for step in range(1, number + 1):
            time.sleep(self.seconds)
            yield StepRecord(step, nothing, nothing, 0.1, nothing, 4, 30, 32)


def tried(layers: Layers, monkeypatch: pytest.MonkeyPatch, left: float = 1e6, number: int = 25) -> list[str]:
    """What was said in a run of so many steps."""
    monkeypatch.setattr(compile_trial, "FIRST_STEPS", 2)
    monkeypatch.setattr(compile_trial, "TIMED_STEPS", 5)
    said: list[str] = []
    accelerator = build_accelerator(HardwareSection(device="cpu"))
    steps = tried_compiled(layers.steps(number), accelerator, lambda: left, layers.compile, layers.undo, said.append)
    assert [record.step for record in steps] == list(range(1, number + 1))  # none is lost or made twice
    return said


def test_faster_layers_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers(gain=2.0)
    (words,) = tried(layers, monkeypatch)
    assert layers.done == ["compiled"]
    assert words.startswith("compiled layers compute ")
    assert words.endswith(" times as many tokens a second: they stay compiled")
    assert 1.3 < float(words.split()[3]) < 3.0


def test_slower_layers_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers(gain=0.5)
    (words,) = tried(layers, monkeypatch)
    assert layers.done == ["compiled", "undone"]
    assert words.endswith("they stay as they are")


@pytest.mark.parametrize(
    ("layers", "left", "said"),
    [
        (Layers(2.0), 60.0, ["layers are not compiled: 60 seconds of training do not earn it back"]),
        (Layers(2.0, number=0), 1e6, ["layers are not compiled: none of this model is known"]),
    ],
)
def test_what_does_not_pay_is_said(
    layers: Layers, left: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried(layers, monkeypatch, left) == said


@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_run_may_end_within_the_trial(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(Layers(2.0), monkeypatch, number=number) == []
