"""Programs that follow a run, such as TensorBoard, as Accelerate drives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from bertcli.errors import UsageError
from bertcli.recipe.schema import HardwareSection

PROJECT = "bertcli"


def check_trackers(hardware: HardwareSection) -> None:
    """Refuse trackers that are not installed: Accelerate leaves them out without a word.

    Raises:
        UsageError: with the cure.
    """
    there = set(map(str, get_available_trackers()))
    missing = [name for name in hardware.trackers if name not in there]
    if missing:
        raise UsageError(
            f"hardware.trackers names {', '.join(missing)}, which this Python cannot import: "
            f"`pip install {' '.join(missing)}`, or leave it out"
        )


@contextmanager
def following(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Let the accelerator's trackers follow what it logs inside, from behind `step` on.

    TensorBoard forgets what a stopped run told it of later steps.
    """
    accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": {"purge_step": step + 1}})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
