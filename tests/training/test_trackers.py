"""Trackers receive what the histories hold, also over a resume, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from safetensors.torch import load_file

from bertcli.errors import Interrupted, UsageError
from bertcli.finetuning.run import finetune
from bertcli.recipe.schema import Recipe, Tracker
from bertcli.runs.folder import RunOptions
from bertcli.runs.history import read_records
from bertcli.training import trackers

from ..conftest import QUIET

STEPS = ("training.max_steps=4", "evaluation.every_steps=2")


class FakeTracker:
    """A tracker that records what is logged to it."""

    requires_logging_directory = True
    name = "tensorboard"
    instances: list[FakeTracker]

    def __init__(self, project: str, folder: str, **options: Any):
        self.folder, self.options, self.logged, self.is_finished = folder, options, [], False
        self.instances.append(self)

    def start(self) -> None:
        assert not self.logged

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def fake_trackers(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    """The trackers created in place of TensorBoard's."""
    FakeTracker.instances = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", FakeTracker)
    for module in (tracking, trackers):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    return FakeTracker.instances


def test_tracker_receives_the_histories_of_a_resumed_run_and_changes_nothing(
    fake_trackers: list[FakeTracker], recipe_of: Callable[..., Recipe], stop_after: Callable[..., None]
) -> None:
    finetune(recipe_of(*STEPS), Path("untracked"), RunOptions(console=QUIET))
    assert not fake_trackers
    recipe = recipe_of(*STEPS, "hardware.trackers=[tensorboard]")
    stop_after(3)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert [Path(tracker.folder) for tracker in fake_trackers] == [Path("run/trackers")] * 2
    assert [tracker.options for tracker in fake_trackers] == [{"purge_step": 1}, {"purge_step": 4}]
    assert all(tracker.is_finished for tracker in fake_trackers)
    logged = [(step, *values.items()) for tracker in fake_trackers for step, values in tracker.logged]
    histories = [read_records(Path("run", name)) for name in ("train.jsonl", "eval.jsonl")]
    expected = [(record.pop("step"), *record.items()) for history in histories for record in history]
    assert sorted(logged) == sorted(expected)
    untracked, tracked = (load_file(f"{run}/model/model.safetensors") for run in ("untracked", "run"))
    assert all(torch.equal(untracked[name], tracked[name]) for name in untracked)


def test_tracker_that_is_not_installed_is_refused_with_the_cure(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(UsageError, match="pip install tensorboard mlflow"):
        finetune(recipe_of("hardware.trackers=[tensorboard, wandb, mlflow]"), Path("run"), RunOptions(console=QUIET))
    assert not Path("run").exists()


def test_trackers_of_the_schema_are_known_to_accelerate() -> None:
    assert set(get_args(Tracker)) <= set(LoggerType.list())


@pytest.mark.slow
def test_tensorboard_has_each_step_once_after_a_resume(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    recipe = recipe_of(*STEPS, "hardware.trackers=[tensorboard]")
    with monkeypatch.context() as patched:
        patched.setattr("bertcli.training.train_state.save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):  # two steps are logged, but not saved
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    events = EventAccumulator("run/trackers/bertcli").Reload()
    for name, history in (("train/loss", "train.jsonl"), ("eval/validation/accuracy", "eval.jsonl")):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(record["step"], record[name]) for record in read_records(Path("run", history))]
        assert logged == [(step, pytest.approx(value)) for step, value in expected]
