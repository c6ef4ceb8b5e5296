"""Disk space and device memory of a run: checked before a run starts; running out raises an error with advice."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertcli.console import format_size
from bertcli.errors import DiskError, TrainingError
from bertcli.files import FULL_ERRORS, nearest_folder
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe

MODEL_BYTES = 4  # per parameter
CHECKPOINT_BYTES = 12  # per parameter: the weight and its two moments
MIN_INODES = 50  # that a run needs for its checkpoints, model and report
DENIED_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
OS_ERROR = re.compile(r"os error (\d+)")


def max_run_bytes(recipe: Recipe | PretrainRecipe, num_parameters: int) -> int:
    """Return the maximum size of a run: its checkpoints plus one being written, its model plus the previous one."""
    checkpoints = (recipe.evaluation.keep_checkpoints + 1) * CHECKPOINT_BYTES
    return num_parameters * (checkpoints + 2 * MODEL_BYTES)


def check_disk(path: Path, recipe: Recipe | PretrainRecipe, num_parameters: int) -> None:
    """Raise `DiskError` if the disk cannot hold a new run in `path`; a resumed run already has its space."""
    if any(path.glob("**/checkpoints")):
        return
    nearest = nearest_folder(path)
    needed = max_run_bytes(recipe, num_parameters) * len(recipe.training.seed)
    disk = shutil.disk_usage(nearest)
    if disk.total and disk.free < needed:  # file systems without a disk, such as /proc, have no size
        raise DiskError(
            f"the disk of {nearest} has {format_size(disk.free)} free, but the run needs up to {format_size(needed)}. "
            "Free some space or choose another folder with --run."
        )
    num_inodes = free_inodes(nearest)
    if num_inodes is not None and num_inodes < MIN_INODES:
        raise DiskError(
            f"the disk of {nearest} has {num_inodes} free inodes (see `df -i`), but the run needs about {MIN_INODES}. "
            "Delete some files or choose another folder with --run."
        )


@contextmanager
def report_full_disk(path: Path, max_bytes: int) -> Iterator[None]:
    """Turn a failure to write to the run folder `path` into a `DiskError` that says what ran out and what to do."""
    try:
        yield
    except Exception as error:
        number = _write_errno(error, path)
        if number is None:
            raise
        needed, free = format_size(max_bytes), format_size(shutil.disk_usage(path).free)
        if number == errno.ENOSPC and free_inodes(path) == 0:
            problem = f"the disk of {path} has no free inodes (see `df -i`), though {free} are free"
            cure = "delete some files"
        elif number == errno.ENOSPC:
            problem = f"the disk of {path} is full: the run needs up to {needed} in total, but only {free} are free"
            cure = "free some space"
        elif number == errno.EDQUOT:
            problem = f"your disk quota for {path} is used up (see `quota`): the run needs up to {needed} in total"
            cure = "free some space or ask for a larger quota"
        elif number == errno.EFBIG:
            problem = f"a file in {path} would be larger than the limit of {format_size(_max_file_bytes() or 0)}"
            cure = "raise the limit (`ulimit -f unlimited`)"
        else:
            problem = f"{path} cannot be written any longer ({os.strerror(number)})"
            cure = "make it writable"
        raise DiskError(
            f"{problem}. Everything saved so far is intact; {cure} and re-run the same command to resume."
        ) from error


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Turn a device's out-of-memory error into a `TrainingError` that suggests a fix."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "out of memory: one step or evaluation batch does not fit on the device. Set "
            "hardware.gradient_checkpointing=true, lower hardware.micro_batch_size (the global batch stays the same), "
            "hardware.eval_batch_tokens or data.max_length (in pretraining, max_length in phases), or use a smaller "
            "model"
        ) from error


def free_inodes(path: Path) -> int | None:
    """Return the number of files that can still be created on the disk of `path`; None if there is no limit."""
    disk = os.statvfs(path)
    return disk.f_favail if disk.f_files else None


def _max_file_bytes() -> int | None:
    """Return the maximum size of a file that this process may write; None if there is no limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _write_errno(error: BaseException | None, path: Path) -> int | None:
    """Return the system's error number if Python, safetensors or torch failed to write to `path`; else None."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            return error.errno if error.errno in FULL_ERRORS else None
        is_in_run = path.resolve() in Path(os.fsdecode(error.filename)).resolve().parents  # not in a cache, say
        return error.errno if error.errno in FULL_ERRORS | DENIED_ERRORS and is_in_run else None
    if "inline_container.cc" in str(error):  # torch does not report the cause
        return errno.ENOSPC if _max_file_bytes() is None or shutil.disk_usage(path).free == 0 else errno.EFBIG
    if (numbers := OS_ERROR.search(str(error))) is not None:  # safetensors
        number = int(numbers[1])
        return number if number in FULL_ERRORS | DENIED_ERRORS else None
    return _write_errno(error.__cause__, path)
