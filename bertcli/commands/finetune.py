"""`bertcli finetune`: fine-tune one recipe, the points of a grid, the recipes of a suite, or several tasks together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bertcli.console import LOADING
from bertcli.errors import UsageError
from bertcli.recipe.expansion import Grid
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, ready_runs
from bertcli.runs.folder import RunOptions


def finetune(recipe: Recipe | Grid | Suite, run: Path, options: RunOptions, *, jobs: int = 1) -> dict[str, Any]:
    """Fine-tune as the recipe, grid or suite says; return what `results.json` holds.

    Args:
        jobs: runs of seeds, grid points or suite members to train at the same time, each in its own process.

    Raises:
        BertcliError: one of its kinds, each with its cure.
    """
    is_multitask = isinstance(recipe, Suite) and recipe.together is not None
    if jobs > 1 and is_multitask:
        raise UsageError("--jobs is for several runs at once, and tasks trained together are one; use --processes")
    with options.console.waiting(LOADING):
        from bertcli.experiments.grid import finetune_grid
        from bertcli.experiments.results import open_collection
        from bertcli.experiments.run_many import run_in_parallel
        from bertcli.experiments.suite import finetune_suite
        from bertcli.finetuning.multitask import finetune_together
        from bertcli.finetuning.run import finetune as finetune_recipe
    if jobs > 1 and not options.dry_run:
        ready = {run: recipe} if isinstance(recipe, Recipe) else ready_runs(recipe, run)
        if run not in ready:
            open_collection(run, overwrite=options.overwrite)
        run_in_parallel(ready, jobs, options)
        options = replace(options, overwrite=False)  # what was there has been replaced
    if isinstance(recipe, Suite):
        return (finetune_together if is_multitask else finetune_suite)(recipe, run, options)
    if isinstance(recipe, Grid):
        return finetune_grid(recipe, run, options)
    return finetune_recipe(recipe, run, options)
