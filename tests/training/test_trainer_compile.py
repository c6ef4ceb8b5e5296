"""`hardware.compile` in a run: compiled layers give the same results."""

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

from ..conftest import QUIET


def test_compile_warns_about_unsupported_layers(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models: list[torch.nn.Module] = []
    monkeypatch.setattr("bertcli.training.train_state.compile_layers", lambda model: models.append(model) or 0)
    for run, overrides in (("uncompiled", []), ("compiled", ["hardware.compile=true"])):
        finetune(recipe_of("training.max_steps=1", *overrides), Path(run), RunOptions(console=Console()))
    assert [type(model).__name__ for model in models] == ["BertForSequenceClassification"]
    assert "hardware.compile does not support the layers of this model; nothing is compiled" in capsys.readouterr().err


def test_compile_auto_reports_why_it_does_not_compile(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("auto"), RunOptions(console=Console()))
    printed = capsys.readouterr().err
    assert "device    cpu in fp32, threads: 1; layers are not compiled: compiling is tried only on CUDA GPUs" in printed


@pytest.mark.slow
def test_compile_auto_tries_compiled_layers_in_a_long_run(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, with tracing instead of compilation."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    monkeypatch.setattr("bertcli.training.trainer.reason_not_to_compile", lambda device: "")
    for name, value in (("MIN_SECONDS_LEFT", 0.0), ("WARMUP_STEPS", 1), ("TIMED_STEPS", 2)):
        monkeypatch.setattr(f"bertcli.training.compile_trial.{name}", value)
    counters.clear()
    uncompiled, tried = (
        finetune(
            recipe_of("model.dropout=0", "training.max_steps=8", *overrides),
            Path(f"run-{len(overrides)}"),
            RunOptions(console=Console()),
        )
        for overrides in (["hardware.compile=false"], [])
    )
    assert counters["stats"]["unique_graphs"] > 0
    assert "compiled layers process" in capsys.readouterr().err
    assert tried.metrics["validation"]["loss"] == pytest.approx(uncompiled.metrics["validation"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_compile_does_not_change_the_results(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    torch._dynamo.reset()  # forget the graphs of other tests
    counters.clear()
    uncompiled, compiled = (
        finetune(recipe_of("model.dropout=0", f"hardware.compile={setting}"), Path(setting), RunOptions(console=QUIET))
        for setting in ("false", "true")
    )
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled.metrics["validation"]["loss"] == pytest.approx(uncompiled.metrics["validation"]["loss"], abs=1e-5)
