"""Trackers are told what the histories hold, from where the run goes on, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from safetensors.torch import load_file

from bertcli.console import Console
from bertcli.errors import Interrupted, UsageError
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe, Tracker
from bertcli.runs.folder import RunOptions
from bertcli.runs.history import read_records
from bertcli.training import trackers
from bertcli.training import trainer as train_module

QUIET = Console(quiet=True)


class Notebook:
    """A tracker that writes down what it is told."""

    requires_logging_directory = True
    name = "tensorboard"
    made: list[Notebook]

    def __init__(self, project: str, folder: str, **options: Any):
        self.folder, self.options, self.told, self.is_finished = folder, options, [], False
        self.made.append(self)

    def start(self) -> None:
        assert not self.told

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    """What was made in place of TensorBoard's trackers."""
    Notebook.made = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Notebook)
    for place in (tracking, trackers):
        monkeypatch.setattr(place, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    return Notebook.made


@pytest.fixture
def recipe_of(encoder: Path, reviews: Path) -> Callable[..., Recipe]:
    def build(*words: str) -> Recipe:
        Path("small.yaml").write_text(
            f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
            f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
            "training: {max_steps: 4, seed: 1}\nevaluation: {every_steps: 2}\nhardware: {log_every_steps: 1}\n"
        )
        return load_recipe("small.yaml", words)

    return build


def test_a_tracker_is_told_the_histories_though_the_run_is_stopped_and_nothing_else_changes(
    notebooks: list[Notebook], recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(recipe_of(), Path("alone"), RunOptions(console=QUIET))
    assert not notebooks
    recipe = recipe_of("hardware.trackers=[tensorboard]")
    with monkeypatch.context() as patched:
        patched.setattr(train_module._Run, "_agreed", lambda run, stop, step: 15 if step == 3 else None)
        with pytest.raises(Interrupted):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert [Path(notebook.folder) for notebook in notebooks] == [Path("run/trackers")] * 2
    assert [notebook.options for notebook in notebooks] == [{"purge_step": 1}, {"purge_step": 4}]
    assert all(notebook.is_finished for notebook in notebooks)
    told = [(step, *values.items()) for notebook in notebooks for step, values in notebook.told]
    histories = [read_records(Path("run", name)) for name in ("train.jsonl", "eval.jsonl")]
    wanted = [(record.pop("step"), *record.items()) for history in histories for record in history]
    assert sorted(told) == sorted(wanted)
    one, other = (load_file(f"{run}/model/model.safetensors") for run in ("alone", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tracker_that_is_not_installed_is_refused_with_the_cure(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(UsageError, match="pip install tensorboard mlflow"):
        finetune(recipe_of("hardware.trackers=[tensorboard, wandb, mlflow]"), Path("run"), RunOptions(console=QUIET))
    assert not Path("run").exists()


def test_accelerate_knows_every_tracker() -> None:
    assert set(get_args(Tracker)) <= set(LoggerType.list())


@pytest.mark.slow
def test_tensorboard_reads_each_step_once_though_the_run_was_stopped(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_of("hardware.trackers=[tensorboard]")
    with monkeypatch.context() as patched:
        patched.setattr(train_module._Run, "_save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # after two steps that are told and not saved
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    events = EventAccumulator("run/trackers/bertcli").Reload()
    for name, history in (("train/loss", "train.jsonl"), ("eval/validation/accuracy", "eval.jsonl")):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(record["step"], record[name]) for record in read_records(Path("run", history))]
        assert told == [(step, pytest.approx(value)) for step, value in wanted]
