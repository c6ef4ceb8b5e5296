"""Checkpoints: everything needed to go on as if nothing had happened.

checkpoints/step-00001000/
  progress.json       where the run is, readable
  model.safetensors   weights
  optimizer.pt        moments of AdamW, gradient scaler
  random.pt           states of the random generators
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model

from bertcli.runs.folder import replace_folder, write_json


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


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    *,
    keep: int = 1,
) -> Path:
    """Write `folder/step-…` aside, name it into place, then drop all but the newest `keep`."""
    target = folder / f"step-{progress.step:08d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_model(model, str(aside / "model.safetensors"))
    torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler and scaler.state_dict()}, aside / "optimizer.pt")
    torch.save(_random_states(), aside / "random.pt")
    write_json(aside / "progress.json", asdict(progress))
    replace_folder(aside, target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_checkpoint(
    checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None
) -> Progress:
    """Bring model, optimiser, scaler and random generators to where `checkpoint` was written."""
    load_model(model, str(checkpoint / "model.safetensors"))
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    _set_random_states(torch.load(checkpoint / "random.pt", weights_only=True))
    return Progress(**json.loads((checkpoint / "progress.json").read_text("utf-8")))


def _random_states() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
