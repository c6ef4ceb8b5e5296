"""Start a run: join its processes, and handle a run folder that is finished or to be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.console import Console
from bertcli.recipe.schema import HardwareSection
from bertcli.reports.comparison import write_missing_pages
from bertcli.runs.claim import RunClaim
from bertcli.runs.folder import RunFolder
from bertcli.runs.results import RunResults
from bertcli.training.signals import exit_on_requeue

if TYPE_CHECKING:
    from accelerate import PartialState


def join_processes(hardware: HardwareSection, console: Console) -> tuple[PartialState, Console]:
    """Join the processes of this run; return their state and a console that only the main process writes to.

    Raises:
        UsageError: if a tracker is not installed.
    """
    from bertcli.training.devices import init_processes
    from bertcli.training.trackers import check_trackers

    check_trackers(hardware)
    processes = init_processes(hardware)
    console = console if processes.is_main_process else Console(mute=True)
    exit_on_requeue(lambda: console.warn("stopped outside the training loop; re-run the same command to resume"))
    return processes, console


def report_finished(path: Path, results: RunResults, console: Console, *, is_main_process: bool = True) -> RunResults:
    """Say that the run in `path` is finished; the main process writes its page if that is missing. Return `results`."""
    console.say(f"{path} is already finished; showing its results (--overwrite trains again)")
    if is_main_process:
        write_missing_pages(path)
    return results


def open_run(processes: PartialState, claim: RunClaim, console: Console) -> RunFolder:
    """Open the folder on the main process, after every process has claimed it and before the others use it."""
    processes.wait_for_everyone()
    if processes.is_main_process:
        claim.open(console.say)
    processes.wait_for_everyone()
    return claim.folder
