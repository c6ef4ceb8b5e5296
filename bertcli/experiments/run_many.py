"""Several fine-tuning runs at once on this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from accelerate import PartialState

from bertcli.console import Console
from bertcli.errors import BertcliError, Interrupted, TrainingError
from bertcli.finetuning.setup import prepare
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.environment import num_cores
from bertcli.runs.folder import RunFolder, RunOptions, open_run_folder, seed_run
from bertcli.training.signals import StopRequest, stop_on_signals

SECONDS_BETWEEN_LOOKS = 0.1


def run_in_parallel(recipes: Mapping[Path, Recipe], jobs: int, options: RunOptions) -> None:
    """Fine-tune each recipe, once for each of its seeds, in its run folder, `jobs` of them at a time.

    What fails is only told: whoever asks for that run again sees why. Each has its share of the cores, and one of the
    GPUs that this process sees.

    Raises:
        BertcliError: with `overwrite`, what speaks against one of the recipes.
        RunFolderError: a folder holds something else, or cannot be written.
        Interrupted: a signal came; it was handed on, and all runs have saved what they did.
    """
    console = options.console
    for recipe in recipes.values() if options.overwrite else ():
        prepare(recipe, options.mirror)  # raises what speaks against it before anything is removed for it
    for folder, recipe in recipes.items():
        open_run_folder(folder, dump_recipe(recipe), console.say, overwrite=options.overwrite)
    singles = [single for folder, recipe in recipes.items() for single in _single_seeds(folder, recipe)]
    singles = [(folder, recipe) for folder, recipe in singles if not RunFolder(folder).results.is_file()]
    with tempfile.TemporaryDirectory() as scratch, stop_on_signals() as stop, ThreadPoolExecutor(jobs) as pool:
        children: list[subprocess.Popen[bytes]] = []
        places: SimpleQueue[dict[str, str]] = SimpleQueue()
        for place in _places(jobs):
            places.put(place)

        def run(number: int) -> None:
            if stop.signal_number is not None:
                return
            folder, recipe = singles[number]
            console.say(f"{folder}: started")
            place = places.get()
            try:
                child = _start(recipe, folder, Path(scratch, f"{number}.yaml"), options.mirror, os.environ | place)
                children.append(child)
                code = _wait(child, stop)
            finally:
                places.put(place)
            if stop.signal_number is None:
                console.say(f"{folder}: " + ("done" if code == 0 else f"failed (exit code {code})"))

        try:
            list(pool.map(run, range(len(singles))))
        except KeyboardInterrupt:
            for child in children:
                child.kill()
            raise
    if stop.signal_number is not None:
        raise Interrupted(stop.signal_number, "stopped, all runs saved; the same command goes on")


def _start(
    recipe: Recipe, folder: Path, file: Path, mirror: Path | None, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    file.write_text(dump_recipe(recipe), "utf-8")
    words = [sys.executable, "-m", "bertcli", "finetune", str(file), "--run", str(folder), "--quiet"]
    words += ["--mirror", str(mirror)] if mirror else []
    # A session of its own: Ctrl-C reaches it through this process alone.
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return subprocess.Popen(words, env=environment, **quiet)


def _wait(child: subprocess.Popen[bytes], stop: StopRequest) -> int:
    """The exit code of a run, which is told of a signal as soon as one comes."""
    told = False
    while True:
        try:
            return child.wait(SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            if stop.signal_number is not None and not told:
                child.send_signal(stop.signal_number)
                told = True


def _single_seeds(folder: Path, recipe: Recipe) -> Iterator[tuple[Path, Recipe]]:
    """A run for each seed, where `bertcli finetune` makes it."""
    seeds = recipe.training.seed
    for seed in seeds:
        yield seed_run(folder, seed) if len(seeds) > 1 else folder, recipe.with_seed(seed)


def _places(jobs: int) -> list[dict[str, str]]:
    """Where so many runs at once compute, as variables of their environments: a share of the cores and a GPU."""
    import torch

    cores = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // jobs))
    num_gpus = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    gpus = [{"CUDA_VISIBLE_DEVICES": name} for name in names[:num_gpus]] or [{}]
    return [{"OMP_NUM_THREADS": cores} | gpus[slot % len(gpus)] for slot in range(jobs)]


Results = dict[str, Any]


def run_each(
    wanted: Mapping[str, Callable[[], Results]], processes: PartialState, console: Console
) -> tuple[dict[str, Results], dict[str, str]]:
    """Run all by name: the results of those that finished, and what the others died of.

    Several processes end with the first that fails: one that went on alone would wait for the others forever.

    Raises:
        Interrupted: a signal came.
        Exception: whatever one of them died of, with several processes.
    """
    finished: dict[str, Results] = {}
    failed: dict[str, str] = {}
    for number, (name, run) in enumerate(wanted.items(), start=1):
        console.say(f"\n{name} ({number} of {len(wanted)})")
        try:
            finished[name] = run()
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever one dies of, the others can go on
            kind = "" if isinstance(error, BertcliError) else f"unexpected {type(error).__name__}: "
            failed[name] = f"{kind}{error}"
            console.warn(f"{name} failed: {failed[name]}")
            if processes.num_processes > 1:
                raise
    return finished, failed


def tell_of_failed(failed: dict[str, str], number: int, what: str) -> None:
    """Raise `TrainingError` if some failed."""
    if failed:
        raise TrainingError(
            f"{len(failed)} of {number} {what} failed: {'; '.join(failed)}. "
            "The same command tries them again; the others are finished."
        )
