"""Experiment trackers such as TensorBoard, through Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from bertcli.errors import UsageError
from bertcli.recipe.schema import HardwareSection

PROJECT = "bertcli"


def check_trackers(hardware: HardwareSection) -> None:
    """Check that the recipe's trackers are installed; Accelerate ignores missing ones silently.

    Raises:
        UsageError: if a tracker is not installed.
    """
    available = set(map(str, get_available_trackers()))
    missing = [name for name in hardware.trackers if name not in available]
    if missing:
        raise UsageError(
            f"hardware.trackers lists {', '.join(missing)}, which cannot be imported: "
            f"run `pip install {' '.join(missing)}`, or remove {'them' if len(missing) > 1 else 'it'} from the recipe"
        )


@contextmanager
def track_run(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Within the block, send everything the accelerator logs to its trackers, starting after `step`.

    TensorBoard discards what an interrupted run logged after `step`.
    """
    accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": {"purge_step": step + 1}})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
