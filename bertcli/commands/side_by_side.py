"""Several fine-tuning runs at once on this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from bertcli.commands.prepare import prepare
from bertcli.errors import Interrupted
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.console import Console
from bertcli.runs.environment import num_cores
from bertcli.runs.folder import RunFolder, open_run_folder, seed_run
from bertcli.training.signals import StopRequest, stop_on_signals

SECONDS_BETWEEN_LOOKS = 0.1


def run_side_by_side(
    wanted: Mapping[Path, Recipe], jobs: int, console: Console, *, mirror: Path | None, overwrite: bool
) -> None:
    """Fine-tune each recipe, once for each of its seeds, in its run folder, `jobs` of them at a time.

    What fails is only told: whoever asks for that run again sees why. Each has its share of the cores, and one of the
    GPUs that this process sees.

    Raises:
        BertcliError: with `overwrite`, what speaks against one of the recipes.
        RunFolderError: a folder holds something else, or cannot be written.
        Interrupted: a signal came; it was handed on, and all runs have saved what they did.
    """
    for recipe in wanted.values() if overwrite else ():
        prepare(recipe, mirror)  # raises what speaks against it before anything is removed for it
    for folder, recipe in wanted.items():
        open_run_folder(folder, dump_recipe(recipe), console.say, overwrite=overwrite)
    singles = [single for folder, recipe in wanted.items() for single in _single_seeds(folder, recipe)]
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
                child = _start(recipe, folder, Path(scratch, f"{number}.yaml"), mirror, os.environ | place)
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
    words = [sys.executable, "-m", "bertcli.cli", "finetune", str(file), "--run", str(folder), "--quiet"]
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
