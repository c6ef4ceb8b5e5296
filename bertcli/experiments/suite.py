"""`bertcli finetune` for a suite: its recipes one after the other, then one table of all of them."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from bertcli.console import format_seconds
from bertcli.errors import TrainingError
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.results import keep_collection, open_collection
from bertcli.experiments.run_many import run_each, tell_of_failed
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import prepare
from bertcli.metrics import score_names, task_score
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, run_folder, singles
from bertcli.runs.folder import RunFolder, RunOptions, best_seed
from bertcli.tasks.task import Task
from bertcli.training.seeds import values_of
from bertcli.training.startup import join

HEADER = ("task", "split", "metric", "mean ± sd", "best", "published", "time")


def finetune_suite(
    suite: Suite,
    folder: Path,
    options: RunOptions,
) -> dict[str, Any]:
    """Run each recipe of the suite in a run folder of its own in `folder`; return what its `results.json` holds.

    A recipe that fails is told and left behind (with several processes all end there); the same command tries it again
    and goes on where it stopped.

    Raises:
        RunFolderError: the folder holds something else.
        Interrupted: a signal came; what is done is saved.
        TrainingError: some recipe failed; the others are finished.
    """
    processes, console = join(next(iter(singles(suite).values())).hardware, options.console)
    if processes.is_main_process:
        check = partial(prepare, next(iter(singles(suite).values())), options.mirror)
        open_collection(folder, overwrite=options.overwrite, dry_run=options.dry_run, check=check)

    def run(name: str) -> dict[str, Any]:
        member = suite.recipes[name]
        if name in suite.start_from and not options.dry_run:
            member = _started_from(member, _source(suite, name, folder))
        if isinstance(member, Grid):
            return finetune_grid(member, run_folder(folder, name), options)
        return finetune(member, run_folder(folder, name), options)

    finished, failed = run_each({name: partial(run, name) for name in suite.recipes}, processes, console)
    if options.dry_run:
        return {"dry_run": True, "run": str(folder), "failed": failed}
    results = _results(suite, folder, finished, failed)
    if processes.is_main_process:
        keep_collection(folder, results, console)
    if "average" in results:
        console.say(f"average   {results['average']:.4f}, of {len(finished)} tasks\nrun       {folder}")
        console.say(f'next      bertcli predict {run_folder(folder, next(iter(finished)))} --text "…"')
    tell_of_failed(failed, len(suite.recipes), "tasks")
    return results


def _source(suite: Suite, name: str, folder: Path) -> str:
    """The run whose encoder `name` starts from."""
    source = suite.start_from[name]
    run = run_folder(folder, source) if source in suite.recipes or run_folder(folder, source).is_dir() else Path(source)
    chosen = best_seed(str(run))
    if source in suite.recipes and RunFolder(Path(chosen)).read_results() is None:
        raise TrainingError(f"it starts from {run}, which is not finished")
    return chosen


def _started_from(recipe: Recipe | Grid, run: str) -> Recipe | Grid:
    if isinstance(recipe, Grid):
        return Grid({name: _from_run(point, run) for name, point in recipe.points.items()})
    return _from_run(recipe, run)


def _from_run(recipe: Recipe, run: str) -> Recipe:
    model = recipe.model.model_copy(update={"name": run, "new_head": True})
    return recipe.model_copy(update={"model": model})


def _results(suite: Suite, folder: Path, finished: dict[str, dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    table: list[dict[str, str]] = []
    means: list[float] = []
    for name, member in suite.recipes.items():
        if name in failed:
            table.append(dict.fromkeys(HEADER, "") | {"task": name, "metric": "failed"})
            continue
        task = recipe_task(member.first if isinstance(member, Grid) else member)
        table += _rows(name, task, finished[name])
        means.append(_mean(task, finished[name]["metrics"]))
    results: dict[str, Any] = {"run": str(folder), "table": table, "tasks": finished, "failed": failed}
    return results | ({"average": statistics.fmean(means)} if means else {})


def _mean(task: Task, metrics: dict[str, dict[str, Any]]) -> float:
    """What a task counts in the average: its mean over seeds and over the splits that its row names."""
    splits = ("validation", *task.splits.more_validation)
    each = [{name: statistics.fmean(values_of(score)) for name, score in metrics[split].items()} for split in splits]
    return statistics.fmean(task_score(task, scores) for scores in each)


def _rows(name: str, task: Task, results: dict[str, Any]) -> list[dict[str, str]]:
    """A line of the table for each split and score of a task."""
    published = task.reference
    rows = []
    for split, scores in results["metrics"].items():
        for score in [score for score in score_names(task.metric_names) if score in scores]:
            values = values_of(scores[score])
            mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
            known = published.scores.get(score) if published and published.split == split else None
            rows.append(
                {
                    "task": name,
                    "split": split,
                    "metric": score,
                    "mean ± sd": f"{mean:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""),
                    "best": f"{max(values):.4f}",
                    "published": f"{known:.4f}" if known is not None else "",
                    "time": format_seconds(results["train_seconds"]),
                }
            )
    return rows
