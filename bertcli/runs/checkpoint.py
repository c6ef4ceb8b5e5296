"""Checkpoints: everything needed to resume a run exactly.

checkpoints/step-00001000/
  progress.json       position and counters, human-readable
  model.safetensors   weights
  optimizer.pt        AdamW moments, gradient scaler
  random.pt           random number generator states of each process
  manifest.json       size and hash of each of the other files; written last
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model

from bertcli.errors import DiskError, RunFolderError
from bertcli.files import fsync, manifest_problem, replace_folder, write_json, write_manifest


@dataclass
class Progress:
    """Position and counters of a run: everything that resuming needs besides tensors."""

    step: int = 0
    best_score: float | None = None  # `Job.selection_score`: the highest is the best
    best_loss: float | None = None  # on the same evaluation; of equal scores, the one with the lowest loss is the best
    best_step: int | None = None
    best_model: str | None = None  # hash of the manifest of the model of that step, as it was saved
    evals_without_improvement: int = 0
    train_seconds: float = 0.0
    elapsed_seconds: float = 0.0  # including evaluation and saving
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_skipped_steps: int = 0
    num_overflowed_steps: int = 0  # skipped by the fp16 gradient scaler
    micro_batch_size: int | None = None  # set if reduced after running out of memory
    num_threads: int | None = None  # on a CPU
    data_fingerprint: str | None = None  # hash of the training and validation data
    start_models: dict[str, str] | None = None  # hashes of the models of runs that it started or learns from, by name
    stream_position: list[int] | None = None  # position in the training data, as the job defines it
    step_meter: dict[str, float] | None = None  # totals of the steps since the last line of the training history


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: dict[str, Any],
    scaler: dict[str, Any] | None,
    rng_states: list[dict[str, Any]],
    *,
    keep: int = 1,
) -> Path:
    """Save `folder/step-…` atomically, then delete all but this and the `keep - 1` checkpoints before it.

    If saving fails, all other checkpoints are kept. Those of later steps are deleted, too: they are corrupt, since the
    run was resumed from an earlier one, and would displace intact ones.

    Args:
        optimizer: state dict of the optimizer.
        scaler: state dict of the gradient scaler; None if there is none.
        rng_states: `get_rng_states` of each process.
    """
    target = checkpoint_of_step(folder, progress.step)
    tmp = folder / f".{target.name}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        save_model(model, str(tmp / "model.safetensors"))
        torch.save({"optimizer": optimizer, "scaler": scaler}, tmp / "optimizer.pt")
        torch.save(rng_states, tmp / "random.pt")
        write_json(tmp / "progress.json", asdict(progress))
        write_manifest(tmp)
        replace_folder(tmp, target)
        fsync(folder)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    earlier = [checkpoint for checkpoint in list_checkpoints(folder) if checkpoint <= target]
    for old in {*list_checkpoints(folder)} - {*earlier[-keep:]}:
        shutil.rmtree(old)
    return target


def checkpoint_of_step(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step`, whether or not it exists."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint, or None if there are no checkpoints.

    Args:
        warn: called with a message for each newer checkpoint that is corrupt.

    Raises:
        DiskError: if all checkpoints are corrupt.
    """
    corrupt: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        problem = manifest_problem(checkpoint)
        if problem is None:
            for message in corrupt:
                warn(f"{message}; resuming from {checkpoint.name}")
            return checkpoint
        corrupt.append(f"the checkpoint {checkpoint} is corrupt ({problem})")
    if corrupt:
        raise DiskError(f"{'; '.join(corrupt)}. To start over, remove the run or use --overwrite.")
    return None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The contents of a checkpoint, without the weights."""

    progress: Progress
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    rng_states: list[dict[str, Any]]  # by process

    def restore_rng_states(self, process: int = 0) -> None:
        """Restore the random number generators of one process."""
        _restore_rng_states(self.rng_states[process])


def read_progress(checkpoint: Path) -> Progress:
    """Return the position and counters saved in `checkpoint`."""
    return Progress(**json.loads((checkpoint / "progress.json").read_text("utf-8")))


def load_checkpoint(checkpoint: Path, model: torch.nn.Module) -> LoadedCheckpoint:
    """Load the weights of `checkpoint` into `model` and return the rest.

    Raises:
        RunFolderError: if the weights do not match the model.
    """
    load_weights(checkpoint, model)
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    rng_states = torch.load(checkpoint / "random.pt", weights_only=True)
    return LoadedCheckpoint(read_progress(checkpoint), state["optimizer"], state["scaler"], rng_states)


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights of `checkpoint` into `model`.

    Raises:
        RunFolderError: if the weights do not match the model, which may depend on the words in the training rows.
    """
    try:
        load_model(model, str(checkpoint / "model.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"{checkpoint} cannot be loaded: the model or the training rows have changed since it was saved. Restore "
            "them, choose another folder with --run, or use --overwrite to start over "
            f"({str(error).splitlines()[-1].strip()})"
        ) from error


def get_rng_states() -> dict[str, Any]:
    """Return the states of all random number generators of this process."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_rng_states(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
