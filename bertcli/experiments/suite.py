"""Fine-tune the recipes of a suite one after another, and tabulate their scores."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from bertcli.console import format_seconds
from bertcli.errors import TrainingError, UsageError
from bertcli.experiments.collection import write_collection
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.preparation import check_member, prepare_folder
from bertcli.experiments.run_many import raise_if_failed, run_each
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.metrics.scores import averaged_scores, best_value, score_names, task_score
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, recipes_by_folder, run_folder
from bertcli.runs.folder import RunFolder, RunOptions
from bertcli.runs.members import best_seed
from bertcli.runs.results import CollectionResults, RunResults
from bertcli.tasks.task import Task
from bertcli.training.startup import join_processes

HEADER = ("task", "split", "metric", "mean ± sd", "95 % interval", "best", "published", "time")


def finetune_suite(suite: Suite, folder: Path, options: RunOptions) -> CollectionResults:
    """Fine-tune each recipe of the suite in its own run folder in `folder`; return the content of `results.json`.

    A recipe that fails is reported and skipped (with several processes, the first failure ends the suite); re-running
    the command trains only what is left.

    Raises:
        RunFolderError: if the folder holds other files, or a run with a different recipe; nothing is trained then.
        Interrupted: if a signal arrived; the run in progress is saved.
        TrainingError: if a recipe failed; the others are finished.
    """
    processes, console = join_processes(suite.representative.hardware, options.console)
    if processes.is_main_process:
        prepare_suite(suite, folder, options)

    def run(name: str) -> RunResults:
        member = suite.recipes[name]
        if name in suite.start_from and not options.dry_run:
            member = _start_from(member, _source_run(suite, name, folder))
        if isinstance(member, Grid):
            return finetune_grid(member, run_folder(folder, name), options)
        return finetune(member, run_folder(folder, name), options)

    finished, failed = run_each({name: partial(run, name) for name in suite.recipes}, processes, console)
    if options.dry_run:
        return CollectionResults(dry_run=True, run=str(folder), failed=failed)
    results = _results(suite, folder, finished, failed)
    if processes.is_main_process:
        write_collection(folder, results, console)
    if results.average is not None:
        console.say(f"average   {results.average:.4f}, over {len(finished)} tasks\nrun       {folder}")
        console.say(f'next      bertcli predict {run_folder(folder, next(iter(finished)))} --text "…"')
    elif finished:
        console.say(f"run       {folder}; no average, since lower is better for the scores of some tasks")
    raise_if_failed(failed, len(suite.recipes), "tasks")
    return results


def prepare_suite(suite: Suite, folder: Path, options: RunOptions) -> None:
    """Check that `folder` can hold the suite and the run of each of its recipes; remove what the suite replaces.

    The recipes are checked first, so that a suite of which one run would be refused leaves the folder as it was.

    Raises:
        RunFolderError: if the folder holds other files, or a run with a different recipe.
    """
    for name, member in suite.recipes.items():
        if name in suite.start_from:
            try:
                member = _start_from(member, _source_run(suite, name, folder))
            except (TrainingError, UsageError):  # the run it starts from, which its recipe names, is not finished
                continue
        check_member(run_folder(folder, name), member, options)
    runs, check = [*recipes_by_folder(suite, folder)], partial(set_up, suite.representative, options.mirror)
    prepare_folder(folder, runs, overwrite=options.overwrite, dry_run=options.dry_run, check=check)


def _source_run(suite: Suite, name: str, folder: Path) -> str:
    """Return the run whose encoder the recipe `name` starts from.

    Raises:
        TrainingError: if this run belongs to the suite and has not finished.
    """
    source = suite.start_from[name]
    run = run_folder(folder, source) if source in suite.recipes or run_folder(folder, source).is_dir() else Path(source)
    if source in suite.recipes and not RunFolder(run).results.is_file():
        raise TrainingError(f"starts from {run}, which has not finished")
    return best_seed(str(run))


def _start_from(recipe: Recipe | Grid, run: str) -> Recipe | Grid:
    if isinstance(recipe, Grid):
        return Grid({name: _with_encoder_of(point, run) for name, point in recipe.points.items()})
    return _with_encoder_of(recipe, run)


def _with_encoder_of(recipe: Recipe, run: str) -> Recipe:
    model = recipe.model.model_copy(update={"name": run, "new_head": True})
    return recipe.model_copy(update={"model": model})


def _results(suite: Suite, folder: Path, finished: dict[str, RunResults], failed: dict[str, str]) -> CollectionResults:
    table: list[dict[str, str]] = []
    tasks: dict[str, Task] = {}
    for name, member in suite.recipes.items():
        if name in failed:
            table.append(dict.fromkeys(HEADER, "") | {"task": name, "metric": "failed"})
            continue
        tasks[name] = recipe_task(member.representative)
        table += _rows(name, tasks[name], finished[name])
    average = {}
    if tasks and all(map(averaged_scores, tasks.values())):
        average["average"] = statistics.fmean(_suite_score(task, finished[name]) for name, task in tasks.items())
    return CollectionResults(run=str(folder), table=table, tasks=finished, failed=failed, **average)


def _suite_score(task: Task, results: RunResults) -> float:
    """Return a task's contribution to the average: its mean score over seeds and over its validation splits."""
    splits = ("validation", *task.splits.extra_validation)
    return statistics.fmean(task_score(task, results.mean_scores(split)) for split in splits)


def _rows(name: str, task: Task, results: RunResults) -> list[dict[str, str]]:
    """Return a table row for each split and metric of a task."""
    published = task.reference
    rows = []
    for split, scores in results.metrics.items():
        for metric in [metric for metric in score_names(task.metric_names) if metric in scores]:
            values = results.values(metric, split)
            mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
            reference = published.scores.get(metric) if published and published.split == split else None
            rows.append(
                {
                    "task": name,
                    "split": split,
                    "metric": metric,
                    "mean ± sd": f"{mean:.4f}" + (f" ± {sd:.4f}" if sd is not None else ""),
                    "95 % interval": results.interval_text(metric, split),
                    "best": f"{best_value(metric, values):.4f}",
                    "published": f"{reference:.4f}" if reference is not None else "",
                    "time": format_seconds(results.train_seconds),
                }
            )
    return rows
