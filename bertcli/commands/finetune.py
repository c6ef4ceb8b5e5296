"""`bertcli finetune`: fine-tune one recipe, a grid, a suite, or one model on several tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bertcli.console import LOADING
from bertcli.errors import UsageError
from bertcli.finetuning.setup import check_recipe
from bertcli.malloc import without_garbage_collection
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, independent_recipes_by_folder, recipes_by_folder
from bertcli.runs.folder import RunOptions
from bertcli.runs.results import RunResults


def finetune(recipe: Recipe | Grid | Suite, run: Path, options: RunOptions, *, jobs: int = 1) -> RunResults:
    """Fine-tune as the recipe, grid or suite says; return the content of `results.json`.

    Args:
        jobs: number of runs (seeds, grid points, recipes of a suite) to train in parallel, each in its own process.

    Raises:
        BertcliError: if anything fails; the message says how to fix the problem.
    """
    is_multitask = isinstance(recipe, Suite) and recipe.multitask is not None
    if jobs > 1 and is_multitask:
        raise UsageError("--jobs trains several runs in parallel, but multitask training is one run; use --processes")
    if isinstance(recipe, Recipe):
        check_recipe(recipe, recipe_task(recipe))  # `set_up` repeats this, after seconds of imports
    with options.console.waiting(LOADING), without_garbage_collection():
        from bertcli.experiments.collection import claim_collection
        from bertcli.experiments.grid import finetune_grid
        from bertcli.experiments.run_many import run_in_parallel
        from bertcli.experiments.suite import finetune_suite
        from bertcli.finetuning.multitask import finetune_multitask
        from bertcli.finetuning.run import finetune as finetune_recipe
    if jobs > 1 and not options.dry_run:
        recipes = {run: recipe} if isinstance(recipe, Recipe) else independent_recipes_by_folder(recipe, run)
        if not isinstance(recipe, Recipe):
            claim_collection(run, [*recipes_by_folder(recipe, run)], overwrite=options.overwrite)
        failed = run_in_parallel(recipes, jobs, options)
        options = replace(options, overwrite=False, failed=failed)  # the earlier runs have been replaced
    if isinstance(recipe, Suite):
        return (finetune_multitask if is_multitask else finetune_suite)(recipe, run, options)
    if isinstance(recipe, Grid):
        return finetune_grid(recipe, run, options)
    return finetune_recipe(recipe, run, options)
