"""Disk space and device memory of a run: checked before a run starts; running out raises an error with advice."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertcli.errors import DiskError, TrainingError
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import nearest_folder

MODEL_BYTES = 4  # per parameter
CHECKPOINT_BYTES = 12  # per parameter: the weight and its two moments


def max_run_bytes(recipe: Recipe | PretrainRecipe, num_parameters: int) -> int:
    """Upper bound on the size of a run: its checkpoints plus one being written, its model plus the previous one."""
    checkpoints = (recipe.evaluation.keep_checkpoints + 1) * CHECKPOINT_BYTES
    return num_parameters * (checkpoints + 2 * MODEL_BYTES)


def check_disk(path: Path, recipe: Recipe | PretrainRecipe, num_parameters: int) -> None:
    """Raise `DiskError` if the disk cannot hold a new run in `path`; a resumed run already has its space."""
    if any(path.glob("**/checkpoints")):
        return
    nearest = nearest_folder(path)
    needed = max_run_bytes(recipe, num_parameters) * len(recipe.training.seed)
    disk = shutil.disk_usage(nearest)
    if disk.total and disk.free < needed:  # file systems that are not on a disk, such as /proc, have no size
        raise DiskError(
            f"the disk of {nearest} has {disk.free / 1e9:.1f} GB free, the run needs up to {needed / 1e9:.1f} GB. "
            "Free some space or choose another folder with --run."
        )


@contextmanager
def report_full_disk(path: Path, max_bytes: int) -> Iterator[None]:
    """Turn a failure to write to a full disk into a `DiskError` that says how much space is needed."""
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        free = shutil.disk_usage(path).free
        raise DiskError(
            f"the disk of {path} is full: the run needs up to {max_bytes / 1e9:.1f} GB in total, {free / 1e9:.1f} GB "
            "are free. Everything saved so far is intact; free some space and re-run the same command to resume."
        ) from error


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Turn a device's out-of-memory error into a `TrainingError` with the cure."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "out of memory: one step does not fit on the device. Lower hardware.micro_batch_size (the global batch "
            "stays the same), lower data.max_length or hardware.eval_batch_tokens, or use a smaller model"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    """Whether Python, safetensors or torch (which names no reason) failed to write because the disk is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in ("os error 28", "os error 122", "inline_container.cc"))
