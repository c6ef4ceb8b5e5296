"""Checkpoints and histories restore a run exactly."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bertcli.errors import DiskError, RunFolderError
from bertcli.runs.checkpoint import (
    Progress,
    get_rng_states,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from bertcli.runs.history import append_record, read_records, truncate_after


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_checkpoint_restores_training_exactly(tmp_path: Path) -> None:
    model, optimizer = make_model()
    step(model, optimizer)
    path = save_checkpoint(
        tmp_path, Progress(step=1, best_score=0.5, best_step=1), model, optimizer.state_dict(), None, [get_rng_states()]
    )
    step(model, optimizer)
    expected = (random.random(), np.random.rand(), torch.rand(1).item(), model.weight.detach().clone())

    other, other_optimizer = make_model()
    checkpoint = load_checkpoint(path, other)
    other_optimizer.load_state_dict(checkpoint.optimizer)
    checkpoint.restore_rng_states()
    progress = checkpoint.progress
    step(other, other_optimizer)
    assert progress == Progress(step=1, best_score=0.5, best_step=1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected[:3]
    assert torch.equal(other.weight, expected[3])


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    model, optimizer = make_model()
    path = save_checkpoint(tmp_path, Progress(step=1), model, optimizer.state_dict(), None, [get_rng_states()])
    with pytest.raises(RunFolderError, match=r"training rows have changed.*--overwrite"):
        load_checkpoint(path, torch.nn.Linear(4, 2))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model, optimizer = make_model()
    for number in (9, 10, 100):
        save_checkpoint(
            tmp_path, Progress(step=number), model, optimizer.state_dict(), None, [get_rng_states()], keep=2
        )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing", "manifest", "empty manifest"])
def test_corrupt_checkpoint_is_skipped(tmp_path: Path, harm: str) -> None:
    model, optimizer = make_model()
    for number in (1, 2):
        save_checkpoint(
            tmp_path, Progress(step=number), model, optimizer.state_dict(), None, [get_rng_states()], keep=2
        )
    older, newest = list_checkpoints(tmp_path)
    assert newest_checkpoint(tmp_path, pytest.fail) == newest
    corrupt(newest, harm)
    warnings: list[str] = []
    assert newest_checkpoint(tmp_path, warnings.append) == older
    assert str(newest) in warnings[0]
    assert "resuming from step-00000001" in warnings[0]
    corrupt(older, harm)
    with pytest.raises(DiskError, match=r"step-00000002 is corrupt .*step-00000001 is corrupt .*--overwrite"):
        newest_checkpoint(tmp_path, warnings.append)


@pytest.mark.parametrize(("keep", "kept"), [(1, [3]), (2, [2, 3])])
def test_corrupt_checkpoints_of_later_steps_do_not_displace_intact_ones(
    tmp_path: Path, keep: int, kept: list[int]
) -> None:
    model, optimizer = make_model()
    state, rng_states = optimizer.state_dict(), [get_rng_states()]
    for number in (1, 2, 4, 6):
        save_checkpoint(tmp_path, Progress(step=number), model, state, None, rng_states, keep=9)
    for number in (4, 6):
        corrupt(tmp_path / f"step-{number:08d}", "truncated")
    save_checkpoint(tmp_path, Progress(step=3), model, state, None, rng_states, keep=keep)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{number:08d}" for number in kept]


def corrupt(checkpoint: Path, harm: str) -> None:
    weights, manifest = checkpoint / "model.safetensors", checkpoint / "manifest.json"
    content = weights.read_bytes()
    if harm == "truncated":
        weights.write_bytes(content[:-1])
    elif harm == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "missing":
        weights.unlink()
    else:
        manifest.write_text("{}" if harm == "empty manifest" else manifest.read_text()[:20])


def test_failed_save_keeps_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make_model()
    save_checkpoint(tmp_path, Progress(step=1), model, optimizer.state_dict(), None, [get_rng_states()])
    monkeypatch.setattr("bertcli.runs.checkpoint.asdict", lambda progress: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path, Progress(step=2), model, optimizer.state_dict(), None, [get_rng_states()])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "step-00000001"


def test_history_ignores_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_records(path) == [{"step": 1}, {"step": 2}]
    truncate_after(path, 1)
    append_record(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_history_is_truncated_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    truncate_after(path, 3)
    assert read_records(path) == []
    for number in (2, 4, 6):
        append_record(path, {"step": number})
    truncate_after(path, 4)
    assert read_records(path) == [{"step": 2}, {"step": 4}]
