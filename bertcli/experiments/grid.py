"""`bertcli finetune` for a grid: a run for each of its points, one table of all, the best by validation chosen."""

from __future__ import annotations

import csv
import io
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from bertcli.console import format_seconds
from bertcli.errors import TrainingError
from bertcli.experiments.results import SUMMARY, keep_collection, open_collection
from bertcli.experiments.run_many import run_each, tell_of_failed
from bertcli.files import write_text
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import prepare
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.runs.folder import RunOptions
from bertcli.training.seeds import values_of
from bertcli.training.startup import join


def finetune_grid(
    grid: Grid,
    folder: Path,
    options: RunOptions,
) -> dict[str, Any]:
    """Fine-tune at each point of the grid in a folder of its own in `folder`; return what its `results.json` holds.

    The point with the best mean over its seeds on the validation split is chosen, and no other split is looked at for
    that. A point that fails is told and left behind (with several processes all end there); the same command does
    only what is missing.

    Raises:
        RunFolderError: the folder holds something else.
        Interrupted: a signal came; what is done is saved.
        TrainingError: some point failed; the others are finished.
    """
    processes, console = join(grid.first.hardware, options.console)
    if processes.is_main_process:
        check = partial(prepare, grid.first, options.mirror)
        open_collection(folder, overwrite=options.overwrite, dry_run=options.dry_run, check=check)
    runs = {name: partial(finetune, recipe, folder / name, options) for name, recipe in grid.points.items()}
    finished, failed = run_each(runs, processes, console)
    if options.dry_run:
        return {"dry_run": True, "run": str(folder), "failed": failed}
    if not finished:
        raise TrainingError(f"every point failed, such as {next(iter(failed.items()))}")
    results = _results(grid, folder, finished, failed)
    if processes.is_main_process:
        keep_collection(folder, results, console)
        write_text(folder / SUMMARY, _csv(results["table"]))
    console.say(f"chosen    {results['chosen']}, by {results['best_by']} on the validation split\nrun       {folder}")
    console.say(f'next      bertcli predict {folder} --text "…"')
    tell_of_failed(failed, len(grid.points), "points")
    return results


def _results(grid: Grid, folder: Path, finished: dict[str, dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    metric = grid.first.evaluation.best_by or recipe_task(grid.first).deciding_metric
    values = {name: values_of(results["metrics"]["validation"][metric]) for name, results in finished.items()}
    chosen = max(values, key=lambda name: statistics.fmean(values[name]))
    table = [
        {
            "run": name,
            "metric": metric,
            "mean": f"{statistics.fmean(values[name]):.4f}",
            "sd": f"{statistics.stdev(values[name]):.4f}" if len(values[name]) > 1 else "",
            "median": f"{statistics.median(values[name]):.4f}",
            "best": f"{max(values[name]):.4f}",
            "seeds": str(len(values[name])),
            "time": format_seconds(results["train_seconds"]),
            "chosen": "*" if name == chosen else "",
        }
        for name, results in finished.items()
    ]
    kept = finished[chosen] | {"train_seconds": sum(results["train_seconds"] for results in finished.values())}
    return kept | {
        "run": str(folder),
        "chosen": chosen,
        "best_by": metric,
        "table": table,
        "points": finished,
        "failed": failed,
    }


def _csv(table: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
