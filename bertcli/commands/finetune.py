"""`bertcli finetune`: fine-tune a recipe, its folds, a grid, a search, a suite, or one model on several tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bertcli.cluster.launch import is_worker_process
from bertcli.console import LOADING
from bertcli.data.table_files import check_exists
from bertcli.errors import UsageError
from bertcli.finetuning.finished_run import has_same_files
from bertcli.finetuning.setup import check_recipe
from bertcli.malloc import without_garbage_collection
from bertcli.models.added_tokens import read_tokens
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe, recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.suite import Experiment, Suite, independent_recipes_by_folder
from bertcli.runs.claim import RunClaim, claim_run
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import best_seed
from bertcli.runs.results import RunResults
from bertcli.training.startup import report_finished


def finetune(recipe: Experiment, run: Path, options: RunOptions, *, jobs: int = 1) -> RunResults:
    """Fine-tune as the recipe, grid, search or suite says, or once per fold; return the content of `results.json`.

    Args:
        jobs: number of runs (seeds, folds, grid points, trials, recipes of a suite) to train in parallel, each in its
            own process.

    Raises:
        BertcliError: if anything fails; the message says how to fix the problem.
    """
    is_multitask = isinstance(recipe, Suite) and recipe.multitask is not None
    if jobs > 1 and is_multitask:
        raise UsageError("--jobs trains several runs in parallel, but multitask training is one run; use --processes")
    if isinstance(recipe, Recipe) and recipe.is_cross_validation:
        _check_inputs(recipe, options)
    elif isinstance(recipe, Recipe):
        claim = _check(recipe, run, options)
        finished = None if options.dry_run or is_worker_process() else claim.results
        if finished is not None and has_same_files([recipe], finished, options.mirror, options.console):
            return report_finished(run, finished, options.console)
    with options.console.waiting(LOADING), without_garbage_collection():
        from bertcli.experiments.cross_validation import cross_validate
        from bertcli.experiments.grid import finetune_grid
        from bertcli.experiments.preparation import prepare_members
        from bertcli.experiments.run_many import run_in_parallel
        from bertcli.experiments.search import finetune_search
        from bertcli.experiments.suite import finetune_suite, prepare_suite
        from bertcli.finetuning.multitask import finetune_multitask
        from bertcli.finetuning.run import finetune as finetune_recipe
    if isinstance(recipe, Search):
        return finetune_search(recipe, run, options, jobs=jobs)
    if jobs > 1 and not options.dry_run:
        recipes = independent_recipes_by_folder(recipe, run)
        if isinstance(recipe, Suite):
            prepare_suite(recipe, run, options)
        elif recipe.members:
            prepare_members(run, recipe.members, options)
        failed = run_in_parallel(recipes, jobs, options)
        options = replace(options, overwrite=False, failed=failed)  # the earlier runs have been replaced
    if isinstance(recipe, Suite):
        return (finetune_multitask if is_multitask else finetune_suite)(recipe, run, options)
    if isinstance(recipe, Grid):
        return finetune_grid(recipe, run, options)
    return (cross_validate if recipe.is_cross_validation else finetune_recipe)(recipe, run, options)


def _check(recipe: Recipe, run: Path, options: RunOptions) -> RunClaim:
    """Check the recipe, the run folder, and that its files and models exist; return the claim of the run folder.

    Training repeats these checks, but only after seconds of imports.

    Raises:
        RecipeError: if a key is invalid for the task or strategy.
        RunFolderError: if the run folder cannot be used.
        DataError: if a file with rows does not exist, or a file with tokens to add cannot be used.
        ModelError: if the name of a model is that of a file, or of a folder that has no model or does not exist.
        UsageError: if a model is a run that is not finished.
    """
    check_recipe(recipe, recipe_task(recipe))
    claim = claim_run(run, dump_recipe(recipe), overwrite=options.overwrite)
    if claim.results is None or options.dry_run:
        _check_inputs(recipe, options)
    return claim


def _check_inputs(recipe: Recipe, options: RunOptions) -> None:
    """Check the recipe, and that its files and models exist.

    Raises:
        BertcliError: as `_check`, except for the run folder.
    """
    task, section = recipe_task(recipe), recipe.model
    check_recipe(recipe, task)
    for path in (*task.files.train, *task.files.validation) if task.files else ():
        check_exists(Path(path))
    read_tokens(section.add_tokens, "model.add_tokens")
    for name in filter(None, (section.name, section.tokenizer, recipe.training.teacher)):
        ModelSource(best_seed(name), options.mirror)
