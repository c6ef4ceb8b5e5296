"""Train one run for each seed of a recipe, and summarize them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState

from bertcli.console import Console, format_seconds
from bertcli.files import write_json
from bertcli.reports.comparison import write_page
from bertcli.runs.claim import check_same_sources, claim_run
from bertcli.runs.folder import RunFolder
from bertcli.runs.members import seed_folders, seed_run
from bertcli.runs.results import RunResults, SeedScore, summarize_seeds
from bertcli.training.job import Job
from bertcli.training.startup import open_run, report_finished
from bertcli.training.train_state import find_progress
from bertcli.training.trainer import train


def train_seeds(
    seeds: Sequence[int],
    build_job: Callable[[int], Job],
    recipe_text: Callable[[Job], str],
    parent: RunFolder,
    processes: PartialState,
    console: Console,
) -> RunResults:
    """Train a single seed in `parent`, or each of several in its own folder (`seed-1` …) with a summary in `parent`.

    Args:
        recipe_text: the content of a seed's `recipe.yaml`.

    Raises:
        RunFolderError: if a seed's folder holds other files or a run with a different recipe, or the data, or the
            model that it started from, have changed since it was trained; nothing is trained then.
    """
    if len(seeds) == 1:
        return train(build_job(seeds[0]), parent, console)
    for job in map(build_job, seeds):
        claim = claim_run(seed_run(parent.path, job.seed), recipe_text(job))
        if claim.results is not None:
            check_same_sources(claim.folder.path, claim.results, job.data_fingerprint, job.start_models)
    each = []
    for seed in seeds:
        job = build_job(seed)
        claim = claim_run(seed_run(parent.path, seed), recipe_text(job))
        if claim.results is not None:
            is_main_process = processes.is_main_process
            each.append(report_finished(claim.folder.path, claim.results, console, is_main_process=is_main_process))
        else:
            each.append(train(job, open_run(processes, claim, console), console))
    results = summarize_seeds(each, str(parent.path))
    if processes.is_main_process:
        write_json(parent.results, results.to_json())
        write_page([str(parent.path)], parent.report)
    return results


def check_resumable(seeds: Sequence[int], build_job: Callable[[int], Job], parent: Path, console: Console) -> None:
    """Check that `train_seeds` could use the finished and interrupted runs in `parent`, if any; write nothing.

    Raises:
        RunFolderError: if the data, or the model of a run that it started from, have changed since a run finished, or
            since its newest checkpoint.
        DiskError: if all checkpoints of a run are corrupt.
        UsageError: if the results of a finished run cannot be read.
    """
    for seed, path in zip(seeds, seed_folders(parent, seeds), strict=True):
        folder = RunFolder(path)
        results = folder.read_results()
        if results is not None:
            job = build_job(seed)
            check_same_sources(path, results, job.data_fingerprint, job.start_models)
        elif folder.checkpoints.is_dir():
            find_progress(build_job(seed), folder, console.warn)


def log_scores(console: Console, results: RunResults, folder: RunFolder, model: str | None = None) -> None:
    """Print the validation scores, the paths of the run and its report, and the command to predict with `model`."""
    scores = results.metrics["validation"]
    width = max(20, *(len(name) + 2 for name in scores))
    for name, score in scores.items():
        if isinstance(score, SeedScore):
            values = ", ".join(f"{value:.4f}" for value in score.values)
            console.say(f"{name:<{width}}{score.mean:.4f} ± {score.sd:.4f}  {values}")
        else:
            console.say(f"{name:<{width}}{score:.4f}")
    console.say(f"run       {folder.path}, trained in {format_seconds(results.train_seconds)}")
    console.say(f"report    {folder.report}")
    console.say(f'next      bertcli predict {model or folder.path} --text "…"')
