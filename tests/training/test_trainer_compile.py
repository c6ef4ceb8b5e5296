"""`hardware.compile`: the same run, its layers compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from bertcli.console import Console
from bertcli.finetuning.run import finetune
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions


def test_a_model_of_unknown_layers_is_told(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[torch.nn.Module] = []
    monkeypatch.setattr("bertcli.training.train_state.compile_layers", lambda model: asked.append(model) or 0)
    for name, more in (("plain", []), ("compiled", ["hardware.compile=true"])):
        finetune(recipe_of("training.max_steps=1", *more), Path(name), RunOptions(console=Console()))
    assert [type(model).__name__ for model in asked] == ["BertForSequenceClassification"]
    assert "hardware.compile knows no layers of this model: nothing is compiled" in capsys.readouterr().err


def test_it_is_said_why_nothing_is_compiled(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("auto"), RunOptions(console=Console()))
    assert "device    cpu in fp32; layers are not compiled, which was no faster on a CPU" in capsys.readouterr().err


def test_a_long_run_tries_compiled_layers(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, with compiling replaced by tracing."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    monkeypatch.setattr("bertcli.training.trainer._Run._why_not_compiled", lambda run: "")
    for name, value in (("LEAST_SECONDS", 0.0), ("FIRST_STEPS", 1), ("TIMED_STEPS", 2)):
        monkeypatch.setattr(f"bertcli.training.compile_trial.{name}", value)
    counters.clear()
    plain, tried = (
        finetune(
            recipe_of("model.dropout=0", "training.max_steps=8", *more),
            Path(f"run-{len(more)}"),
            RunOptions(console=Console()),
        )
        for more in (["hardware.compile=false"], [])
    )
    assert counters["stats"]["unique_graphs"] > 0
    assert "compiled layers compute" in capsys.readouterr().err
    assert tried["metrics"]["validation"]["loss"] == pytest.approx(plain["metrics"]["validation"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_compiled_run_learns_and_saves_the_same(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    counters.clear()
    plain, compiled = (
        finetune(
            recipe_of("model.dropout=0", f"hardware.compile={asked}"),
            Path(asked),
            RunOptions(console=Console(quiet=True)),
        )
        for asked in ("false", "true")
    )
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled["metrics"]["validation"]["loss"] == pytest.approx(plain["metrics"]["validation"]["loss"], abs=1e-5)
