"""…"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from bertcli.console import Console
from bertcli.recipe.schema import HardwareSection
from bertcli.reports.comparison import write_missing_page
from bertcli.runs.folder import RunFolder, finished_results, open_run_folder
from bertcli.training.devices import processes_of
from bertcli.training.signals import leave_on_requeue
from bertcli.training.trackers import check_trackers

if TYPE_CHECKING:
    pass


def join(hardware: HardwareSection, console: Console | None) -> tuple[PartialState, Console]:
    """Which of how many processes this is, and its console: only the first speaks.

    Raises:
        UsageError: a tracker is not installed.
    """
    check_trackers(hardware)
    processes = processes_of(hardware)
    console = (console or Console()) if processes.is_main_process else Console(mute=True)
    leave_on_requeue(lambda: console.warn("stopped outside of the training steps; the same command goes on"))
    return processes, console


def read_finished(processes: PartialState, path: Path, recipe_text: str, console: Console) -> dict[str, Any] | None:
    """The results of a finished run of this recipe, told to stand; None if there is none.

    Raises:
        RunFolderError: the folder holds something else.
    """
    results = finished_results(path, recipe_text)
    if results is not None:
        tell_finished(processes, path, console)
    return results


def tell_finished(processes: PartialState, path: Path, console: Console) -> None:
    """Say that a finished run stands, and write its page if an earlier version, or a cut-off end, left none."""
    console.say(f"{path} is finished; its results stand (--overwrite trains anew)")
    if processes.is_main_process:
        write_missing_page(path)


def open_together(
    processes: PartialState, path: Path, recipe_text: str, console: Console, *, overwrite: bool
) -> RunFolder:
    """The run folder, opened by the first process before any other sees it."""
    if processes.is_main_process:
        open_run_folder(path, recipe_text, console.say, overwrite=overwrite)
    processes.wait_for_everyone()
    return RunFolder(path)
