"""Checkpoints: everything needed to go on as if nothing had happened.

checkpoints/step-00001000/
  progress.json       where the run is, readable
  model.safetensors   weights
  optimizer.pt        moments of AdamW, gradient scaler
  random.pt           states of the random generators, of each process
  manifest.json       size and hash of each of these; written last
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
from bertcli.files import damage_of, flush, replace_folder, write_json, write_manifest


@dataclass
class Progress:
    """Where a run is: all that is needed to go on, beside the tensors."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_better: int = 0
    train_seconds: float = 0.0
    elapsed_seconds: float = 0.0  # evaluation and saving included
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_skipped_steps: int = 0
    num_overflowed_steps: int = 0  # left out by fp16's scaler
    micro_batch_size: int | None = None  # if memory did not hold the planned one
    place: list[int] | None = None  # in the data, as the job tells it
    window: dict[str, float] | None = None  # of steps that no line of the history tells yet


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: dict[str, Any],
    scaler: dict[str, Any] | None,
    states: list[dict[str, Any]],
    *,
    keep: int = 1,
) -> Path:
    """Write `folder/step-…` aside, see it on the disk, name it into place, then drop all but the newest `keep`.

    Whatever goes wrong, the checkpoints that were there before stay.

    Args:
        optimizer: its state.
        scaler: the gradient scaler's state, if there is one.
        states: the `random_states` of each process.
    """
    target = folder / f"step-{progress.step:08d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_model(model, str(aside / "model.safetensors"))
        torch.save({"optimizer": optimizer, "scaler": scaler}, aside / "optimizer.pt")
        torch.save(states, aside / "random.pt")
        write_json(aside / "progress.json", asdict(progress))
        write_manifest(aside)
        flush(*aside.iterdir(), aside)
        replace_folder(aside, target)
        flush(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Args:
        warn: told of each newer one that is damaged.

    Raises:
        DiskError: there are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        problem = damage_of(checkpoint)
        if problem is None:
            for words in damaged:
                warn(f"{words}; going on from {checkpoint.name}")
            return checkpoint
        damaged.append(f"the checkpoint {checkpoint} is damaged ({problem})")
    if damaged:
        raise DiskError(f"{'; '.join(damaged)}. To begin anew, remove it or say --overwrite.")
    return None


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds beside the weights."""

    progress: Progress
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    states: list[dict[str, Any]]  # of the random generators of each process

    def set_random_states(self, process: int = 0) -> None:
        """Bring this process's generators to where they were."""
        _set_random_states(self.states[process])


def load_checkpoint(checkpoint: Path, model: torch.nn.Module) -> Saved:
    """Bring the model to where `checkpoint` was written; the rest, for whoever has it.

    Raises:
        RunFolderError: it is of another model, or of training rows with other words.
    """
    try:
        load_model(model, str(checkpoint / "model.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"{checkpoint} does not fit: the model or the training rows have changed since it was written. Bring them "
            f"back, choose another --run, or say --overwrite to begin anew ({str(error).splitlines()[-1].strip()})"
        ) from error
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    states = torch.load(checkpoint / "random.pt", weights_only=True)
    progress = Progress(**json.loads((checkpoint / "progress.json").read_text("utf-8")))
    return Saved(progress, state["optimizer"], state["scaler"], states)


def random_states() -> dict[str, Any]:
    """Where all random generators of this process stand."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
