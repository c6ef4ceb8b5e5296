"""Whether a run has room, on its disk and in memory, and what to say when it has not."""

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

BYTES_OF_MODEL = 4  # a parameter
BYTES_OF_CHECKPOINT = 12  # a parameter and its two moments


def bytes_of_run(recipe: Recipe | PretrainRecipe, num_parameters: int) -> int:
    """The room a run takes at most: its checkpoints and one that is being written, its model and the one before it."""
    checkpoints = (recipe.evaluation.keep_checkpoints + 1) * BYTES_OF_CHECKPOINT
    return num_parameters * (checkpoints + 2 * BYTES_OF_MODEL)


def check_disk(path: Path, recipe: Recipe | PretrainRecipe, num_parameters: int) -> None:
    """Raise `DiskError` if the disk cannot hold a new run in `path`; one that goes on has its room."""
    if any(path.glob("**/checkpoints")):
        return
    nearest = nearest_folder(path)
    needed = bytes_of_run(recipe, num_parameters) * len(recipe.training.seed)
    disk = shutil.disk_usage(nearest)
    if disk.total and disk.free < needed:  # what is no disk, such as /proc, has no size
        raise DiskError(
            f"the disk under {nearest} has {disk.free / 1e9:.1f} GB free, the run needs up to {needed / 1e9:.1f} GB. "
            "Make room or choose another place with --run."
        )


@contextmanager
def telling_of_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Within the block a failure to write for want of room becomes a `DiskError` with the numbers."""
    try:
        yield
    except Exception as error:
        if not _is_of_full_disk(error):
            raise
        free = shutil.disk_usage(path).free
        raise DiskError(
            f"the disk under {path} is full: the run needs up to {needed / 1e9:.1f} GB in all, {free / 1e9:.1f} GB are "
            "free. What was saved before is whole; make room, and the same command goes on."
        ) from error


@contextmanager
def telling_of_full_memory() -> Iterator[None]:
    """Within the block a device without memory for a step becomes a `TrainingError` with the cure."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the device's memory does not hold a step. Set hardware.micro_batch_size to fewer examples at once (the "
            "global batch stays as it is), lower data.max_length or hardware.eval_batch_tokens, or take a smaller model"
        ) from error


def _is_of_full_disk(error: Exception) -> bool:
    """Whether Python, safetensors or torch (which tells no reason) could not write for want of room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in ("os error 28", "os error 122", "inline_container.cc"))
