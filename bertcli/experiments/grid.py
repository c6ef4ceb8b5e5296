"""Fine-tune each point of a grid, tabulate the scores, and choose the point with the best validation score."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from bertcli.console import format_seconds
from bertcli.errors import TrainingError
from bertcli.experiments.collection import results_of_chosen, write_collection
from bertcli.experiments.cross_validation import cross_validate
from bertcli.experiments.preparation import prepare_members
from bertcli.experiments.run_many import raise_if_failed, run_each
from bertcli.finetuning.run import finetune
from bertcli.metrics.scores import best_value, selection_score
from bertcli.recipe.expansion import Grid
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import command_without_folds
from bertcli.runs.results import CollectionResults, RunResults
from bertcli.training.startup import join_processes


def finetune_grid(grid: Grid, folder: Path, options: RunOptions) -> CollectionResults:
    """Fine-tune each point of the grid in its own run folder in `folder`; return the content of `results.json`.

    The point with the best validation score, averaged over its seeds or folds, is chosen. A point that fails is
    reported and skipped (with several processes, the first failure ends the grid); re-running the command trains only
    what is left.

    Raises:
        RunFolderError: if the folder holds other files, or a point with a different recipe; nothing is trained then.
        Interrupted: if a signal arrived; the run in progress is saved.
        TrainingError: if a point failed; the others are finished.
    """
    processes, console = join_processes(grid.representative.hardware, options.console)
    if processes.is_main_process:
        prepare_members(folder, grid.members, options)
    has_folds = grid.representative.is_cross_validation
    train = cross_validate if has_folds else finetune
    runs = {name: partial(train, recipe, folder / name, options) for name, recipe in grid.points.items()}
    finished, failed = run_each(runs, processes, console)
    if options.dry_run:
        return CollectionResults(dry_run=True, run=str(folder), failed=failed)
    if not finished:
        name, problem = next(iter(failed.items()))
        raise TrainingError(f"all {len(failed)} points failed; {name}: {problem}")
    results = _results(grid, folder, finished, failed)
    if processes.is_main_process:
        write_collection(folder, results, console)
    split = "folds" if has_folds else "validation split"
    console.say(f"chosen    {results.chosen}, by {results.best_by} on the {split}\nrun       {folder}")
    predict = f'bertcli predict {folder} --text "…"'
    console.say(f"next      {command_without_folds(folder / str(results.chosen)) if has_folds else predict}")
    raise_if_failed(failed, len(grid.points), "points")
    return results


def _results(grid: Grid, folder: Path, finished: dict[str, RunResults], failed: dict[str, str]) -> CollectionResults:
    metric = str(next(iter(finished.values())).best_by)
    values = {name: results.values(metric) for name, results in finished.items()}
    chosen = max(values, key=lambda name: selection_score(metric, statistics.fmean(values[name])))
    table = [
        {
            "run": name,
            "metric": metric,
            "mean": f"{statistics.fmean(values[name]):.4f}",
            "sd": f"{statistics.stdev(values[name]):.4f}" if len(values[name]) > 1 else "",
            **({"95 % interval": results.interval_text(metric)} if len(values[name]) == 1 else {}),  # a mean has none
            "median": f"{statistics.median(values[name]):.4f}",
            "best": f"{best_value(metric, values[name]):.4f}",
            "folds" if grid.representative.is_cross_validation else "seeds": str(len(values[name])),
            "time": format_seconds(results.train_seconds),
            "chosen": "*" if name == chosen else "",
        }
        for name, results in finished.items()
    ]
    return results_of_chosen(chosen, finished, failed, folder, table)
