"""Train several fine-tuning runs: one after another in this process, or several in parallel in child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from accelerate import PartialState

from bertcli.console import Console
from bertcli.errors import BertcliError, Interrupted, ProcessError, TrainingError, UsageError, describe_exit
from bertcli.finetuning.finished_run import check_finished_run
from bertcli.finetuning.setup import set_up
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.claim import RunClaim, claim_run
from bertcli.runs.environment import num_cores
from bertcli.runs.folder import LOG_HEADER, RunFolder, RunOptions
from bertcli.runs.members import seed_folders
from bertcli.runs.results import RunResults
from bertcli.training.signals import StopRequest, stop_on_signals

POLL_SECONDS = 0.1
LOG_LINES = 5  # number of log lines shown if a run died without a message


def run_each(
    runs: Mapping[str, Callable[[], RunResults]], processes: PartialState, console: Console
) -> tuple[dict[str, RunResults], dict[str, str]]:
    """Call the runs one after another; return the results of those that finished and the errors of the others, by name.

    With several processes, the first failure ends all runs, because a process that continued alone would wait forever.

    Raises:
        Interrupted: if a signal arrived.
        Exception: if a run failed and there are several processes.
    """
    finished: dict[str, RunResults] = {}
    failed: dict[str, str] = {}
    for number, (name, run) in enumerate(runs.items(), start=1):
        console.say(f"\n{name} ({number} of {len(runs)})")
        result = attempt(name, run, processes, console)
        if isinstance(result, str):
            failed[name] = result
        else:
            finished[name] = result
    return finished, failed


def attempt(name: str, run: Callable[[], RunResults], processes: PartialState, console: Console) -> RunResults | str:
    """Call a run; return its results, or its error, which is printed, too.

    Raises:
        Interrupted: if a signal arrived.
        Exception: if the run failed and there are several processes.
    """
    try:
        return run()
    except (Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # one failed run, even a panic of a Rust library, does not stop the others
        if processes.num_processes > 1:
            raise
        kind = "" if isinstance(error, BertcliError) else f"unexpected {type(error).__name__}: "
        console.warn(f"{name} failed: {kind}{error}")
        return f"{kind}{error}"


def raise_if_failed(failed: Mapping[str, str], num_runs: int, kind: str) -> None:
    """Raise `TrainingError` if some runs failed."""
    if failed:
        others = "; the others are finished" if len(failed) < num_runs else ""
        raise TrainingError(
            f"{len(failed)} of {num_runs} {kind} failed: {'; '.join(failed)}. "
            f"Re-run the same command to try them again{others}."
        )


def run_in_parallel(recipes: Mapping[Path, Recipe], jobs: int, options: RunOptions) -> dict[Path, ProcessError]:
    """Fine-tune each recipe, once per seed, in its run folder, `jobs` runs at a time.

    Each run gets its share of the cores and one of the GPUs visible to this process. Its messages, and the traceback of
    its error, are in `log.txt` in its folder.

    Returns:
        The errors of the runs that failed, by run folder.

    Raises:
        BertcliError: if `overwrite` is set and a recipe has an error.
        RunFolderError: if a folder holds other files, a run with a different recipe, or one that was trained before the
            data changed; or cannot be written.
        Interrupted: if a signal arrived and was passed on; all runs are saved.
    """
    console = options.console
    for recipe in recipes.values() if options.overwrite else ():
        set_up(recipe, options.mirror)  # raises errors of the recipe before anything is removed
    for claim in [*_claims(recipes, options)]:  # all are claimed first, so that nothing is written if one is refused
        claim.open(console.say)
    singles = [single for folder, recipe in recipes.items() for single in _single_seeds(folder, recipe)]
    singles = [(folder, recipe) for folder, recipe in singles if not RunFolder(folder).results.is_file()]
    failed: dict[Path, ProcessError] = {}
    with _child_processes(jobs) as (pool, children, stop, scratch):
        slots: SimpleQueue[dict[str, str]] = SimpleQueue()
        for slot in _slots(jobs):
            slots.put(slot)

        def run(number: int) -> None:
            if stop.signal_number is not None:
                return
            folder, recipe = singles[number]
            console.say(f"{folder}: started")
            slot = slots.get()
            try:
                claim_run(folder, dump_recipe(recipe)).open(console.say)
                file = scratch / f"{number}.yaml"
                child = start_run(recipe, folder, file, options.mirror, os.environ | slot)
                children.append(child)
                code = _wait(child, stop)
                if code != 0 and stop.signal_number is None:
                    failed[folder] = _run_error(folder, code, file.with_suffix(".json"))
            except BertcliError as error:  # from claiming the folder
                failed[folder] = ProcessError(str(error), error.exit_code)
            finally:
                slots.put(slot)
            if stop.signal_number is None:
                console.say(f"{folder}: {'failed' if folder in failed else 'done'}")

        list(pool.map(run, range(len(singles))))
    return failed


@contextmanager
def _child_processes(
    jobs: int,
) -> Iterator[tuple[ThreadPoolExecutor, list[subprocess.Popen[bytes]], StopRequest, Path]]:
    """Provide `jobs` threads that wait for child processes, the list of these, a request to stop, and a scratch folder.

    A second Ctrl-C kills the processes in the list.

    Raises:
        Interrupted: if a signal arrived and was passed on; raised when all processes have ended.
    """
    with tempfile.TemporaryDirectory() as scratch, stop_on_signals() as stop, ThreadPoolExecutor(jobs) as pool:
        children: list[subprocess.Popen[bytes]] = []
        try:
            yield pool, children, stop, Path(scratch)
        except KeyboardInterrupt:
            for child in children:
                child.kill()
            raise
    if stop.signal_number is not None:
        raise Interrupted(stop.signal_number, "stopped and saved all runs; re-run the same command to resume")


def _claims(recipes: Mapping[Path, Recipe], options: RunOptions) -> Iterator[RunClaim]:
    for folder, recipe in recipes.items():
        with suppress(UsageError):  # unreadable results of one run do not stop the others
            yield claim_run(folder, dump_recipe(recipe), overwrite=options.overwrite)
        if not options.overwrite:
            check_finished_run(recipe, folder, options.mirror)


def start_run(
    recipe: Recipe, folder: Path, file: Path, mirror: Path | None, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start `bertcli finetune` in a child process; its messages are appended to the log in the run folder.

    Args:
        folder: the run folder, which exists.
        file: where to write the recipe; the results or the error are written next to it as JSON.
    """
    file.write_text(dump_recipe(recipe), "utf-8")
    return _start(file, folder, file.with_suffix(".json"), mirror, environment)


def run_workers(
    recipe: Path, folder: Path, jobs: int, options: RunOptions, on_poll: Callable[[], None]
) -> list[ProcessError]:
    """Run `jobs` processes of `bertcli finetune`, all with the same recipe and folder; return errors of failed ones.

    Each process gets its share of the cores and one of the GPUs visible to this process. The messages of all are in
    `log.txt` in the folder.

    Args:
        on_poll: called about once a second until all have ended.

    Raises:
        Interrupted: if a signal arrived and was passed on; all runs are saved.
    """
    with _child_processes(jobs) as (pool, children, stop, scratch):
        outputs = [scratch / f"{number}.json" for number in range(jobs)]
        for output, slot in zip(outputs, _slots(jobs), strict=True):
            children.append(_start(recipe, folder, output, options.mirror, os.environ | slot))
        codes = [pool.submit(_wait, child, stop) for child in children]
        while wait(codes, timeout=1.0).not_done:
            on_poll()
        return [
            _run_error(folder, code.result(), output)
            for code, output in zip(codes, outputs, strict=True)
            if code.result() != 0
        ]


def _start(
    recipe: Path, folder: Path, results: Path, mirror: Path | None, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start `bertcli finetune`, which writes its results or error to a file, and its messages to the folder's log."""
    command = [sys.executable, "-m", "bertcli", "finetune", str(recipe), "--run", str(folder)]
    command += ["--quiet", "--json", "--debug", *(["--mirror", str(mirror)] if mirror else [])]
    with RunFolder(folder).log.open("ab") as log, results.open("wb") as output:
        if log.tell() == 0:
            log.write(LOG_HEADER.encode())
            log.flush()
        # In a new session, Ctrl-C does not reach it directly: this process passes the signal on.
        return subprocess.Popen(command, env=environment, stdout=output, stderr=log, start_new_session=True)


def _run_error(folder: Path, code: int, output: Path) -> ProcessError:
    """Return the error of a failed run: its own message, or the last lines of its log if it died without one."""
    log = RunFolder(folder).log
    try:
        error = json.loads(output.read_text("utf-8"))
        return ProcessError(f"{error['error']} (log: {log})", error["exit_code"])
    except (OSError, ValueError, KeyError):
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        lines = text.removeprefix(LOG_HEADER).splitlines()[-LOG_LINES:]
        message = f"the run in {folder} died ({describe_exit(code)}); re-run the same command to resume (log: {log})"
        return ProcessError("\n".join([message, *(f"  {line}" for line in lines)]), code if code > 0 else 128 - code)


def _wait(child: subprocess.Popen[bytes], stop: StopRequest) -> int:
    """Wait for a run, passing on a signal as soon as one arrives; return its exit code."""
    passed_on = False
    while True:
        try:
            return child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.signal_number is not None and not passed_on:
                child.send_signal(stop.signal_number)
                passed_on = True


def _single_seeds(folder: Path, recipe: Recipe) -> Iterator[tuple[Path, Recipe]]:
    """Yield the run folder and the recipe of each seed."""
    seeds = recipe.training.seed
    for seed, single in zip(seeds, seed_folders(folder, seeds), strict=True):
        yield single, recipe.with_seed(seed)


def _slots(jobs: int) -> list[dict[str, str]]:
    """Return the environment variables for each concurrent run, which assign it a share of the cores and a GPU."""
    import torch

    cores = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // jobs))
    num_gpus = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    gpus = [{"CUDA_VISIBLE_DEVICES": name} for name in names[:num_gpus]] or [{}]
    return [{"OMP_NUM_THREADS": cores} | gpus[slot % len(gpus)] for slot in range(jobs)]
