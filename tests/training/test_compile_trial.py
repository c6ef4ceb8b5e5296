"""The trial of compiled layers: timed on the run's own steps, kept if they are faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bertcli.recipe.schema import HardwareSection
from bertcli.training import compile_trial
from bertcli.training.compile_trial import compile_if_faster, reason_not_to_compile
from bertcli.training.devices import build_accelerator
from bertcli.training.loop import StepRecord


class FakeLayers:
    """Layers whose steps take a fixed time on a fake clock, `speedup` times less once compiled."""

    def __init__(self, speedup: float, num_parts: int = 2):
        self.speedup, self.num_parts = speedup, num_parts
        self.calls: list[str] = []
        self.step_seconds, self.now = 2.0, 0.0

    def compile(self) -> int:
        self.calls.append("compile")
        self.step_seconds = 2.0 / self.speedup
        return self.num_parts

    def undo(self) -> None:
        self.calls.append("undo")

    def clock(self) -> float:
        return self.now

    def steps(self, num_steps: int) -> Iterator[StepRecord]:
        zero = torch.zeros(())
        for step in range(1, num_steps + 1):
            self.now += self.step_seconds
            yield StepRecord(step, zero, zero, 0.1, zero, 4, 30, 32)


def messages_of_trial(
    layers: FakeLayers, monkeypatch: pytest.MonkeyPatch, seconds_left: float = 1e6, num_steps: int = 25
) -> list[str]:
    """Run the trial over `num_steps` steps; return its messages."""
    monkeypatch.setattr(compile_trial, "WARMUP_STEPS", 2)
    monkeypatch.setattr(compile_trial, "TIMED_STEPS", 5)
    messages: list[str] = []
    steps = compile_if_faster(
        layers.steps(num_steps),
        build_accelerator(HardwareSection(device="cpu")),
        lambda: seconds_left,
        layers.compile,
        layers.undo,
        messages.append,
        layers.clock,
    )
    assert [record.step for record in steps] == list(range(1, num_steps + 1))  # each step exactly once
    return messages


def test_compile_trial_keeps_faster_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = FakeLayers(speedup=2.0)
    assert messages_of_trial(layers, monkeypatch) == [
        "compiled layers process 2.00 times as many tokens per second: kept"
    ]
    assert layers.calls == ["compile"]


def test_compile_trial_undoes_slower_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = FakeLayers(speedup=0.5)
    assert messages_of_trial(layers, monkeypatch) == [
        "compiled layers process 0.50 times as many tokens per second: not kept"
    ]
    assert layers.calls == ["compile", "undo"]


@pytest.mark.parametrize(
    ("layers", "seconds_left", "message"),
    [
        (FakeLayers(2.0), 60.0, "60 seconds of training left are too few for that to pay off"),
        (FakeLayers(2.0, num_parts=0), 1e6, "the layers of this model are not supported"),
    ],
)
def test_compile_trial_reports_why_it_does_not_compile(
    layers: FakeLayers, seconds_left: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert messages_of_trial(layers, monkeypatch, seconds_left) == [f"layers are not compiled: {message}"]


@pytest.mark.parametrize("num_steps", [0, 3, 9])
def test_compile_trial_may_outlast_the_run(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages_of_trial(FakeLayers(2.0), monkeypatch, num_steps=num_steps) == []


def test_compile_trial_needs_a_gpu_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_trial, "has_compiler", lambda: True)
    assert reason_not_to_compile(torch.device("cuda")) == ""
    assert "only on CUDA GPUs" in reason_not_to_compile(torch.device("cpu"))
    monkeypatch.setattr(compile_trial, "has_compiler", lambda: False)
    assert reason_not_to_compile(torch.device("cuda")) == "found no C++ compiler"
