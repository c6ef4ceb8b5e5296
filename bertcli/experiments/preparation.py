"""Prepare the folder of several runs: check that each can start or be resumed there, and remove what they replace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from bertcli.errors import RunFolderError, UsageError
from bertcli.experiments.collection import member_folders, read_collection
from bertcli.experiments.shared_study import remove_search
from bertcli.finetuning.finished_run import check_finished_run
from bertcli.finetuning.setup import set_up
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import recipes_by_folder
from bertcli.runs.claim import check_is_run, claim_run, remove_run
from bertcli.runs.folder import OUT_OF_FOLD_PREDICTIONS, SEARCH, SUMMARY, RunFolder, RunOptions


def prepare_folder(
    folder: Path,
    runs: Collection[Path],
    *,
    overwrite: bool,
    dry_run: bool = False,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Check that `folder` can hold several runs without replacing anything else; remove what they replace.

    Points or tasks may be added to a finished grid or suite, whose results are then rewritten.

    Args:
        runs: their run folders, inside `folder`.
        overwrite: remove a single run or a search that is in the folder, or the results of earlier points, folds or
            tasks.
        dry_run: remove nothing.
        check: called before anything is removed; raises an error if the new runs could not start.

    Raises:
        RunFolderError: if `folder` holds a search or a run (with `overwrite`, one in progress), or files that no run
            wrote and that would be replaced, or (without `overwrite`) the results of a collection with other runs.
    """
    remove = _replaced(folder, runs, overwrite=overwrite)
    if overwrite and not dry_run and remove is not None:
        check()
        remove(folder)


def _replaced(folder: Path, runs: Collection[Path], *, overwrite: bool) -> Callable[[Path], None] | None:
    """Return the function that removes what runs in `folder` would replace; None if there is nothing.

    Raises:
        RunFolderError: as `prepare_folder`.
    """
    if (folder / SEARCH).is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a search; choose another folder with --run, or replace that search with --overwrite"
            )
        return remove_search
    if RunFolder(folder).recipe.is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a single run, expected a folder for the runs of a grid, search, suite or "
                "cross-validation. Choose another folder with --run, or replace that run with --overwrite."
            )
        check_is_run(folder)
        return remove_run
    if (earlier := read_collection(str(folder))) is not None:
        members = {*runs} | {parent for run in runs for parent in run.parents}
        lost = [name for name, member in member_folders(earlier, folder).items() if member not in members]
        if lost and not overwrite:
            raise RunFolderError(
                f"{folder} holds a grid, suite or cross-validation with other runs: {', '.join(lost):.80} would be "
                "lost. Include all of its runs, choose another folder with --run, or replace the results with "
                "--overwrite."
            )
        return _remove_results  # even if no run is lost: until all are trained again, the results are wrong
    if existing := [path.relative_to(folder) for path in _results_files(folder) if path.exists()]:
        raise RunFolderError(
            f"{folder} contains {existing[0]} but is not the folder of a grid, search, suite or cross-validation; "
            "choose another folder with --run"
        )
    return None


def _results_files(folder: Path) -> list[Path]:
    """Return the paths of the files that a collection writes beside the folders of its runs."""
    run = RunFolder(folder)
    return [run.results, run.card, run.report, folder / SUMMARY, run.predictions / OUT_OF_FOLD_PREDICTIONS]


def _remove_results(folder: Path) -> None:
    for path in reversed(_results_files(folder)):  # the results last: without them, the others are not recognized
        path.unlink(missing_ok=True)


def prepare_members(folder: Path, members: Mapping[str, Recipe | Grid], options: RunOptions) -> None:
    """Check that `folder` can hold the points of a grid or folds, each in a run folder of its name.

    What they replace is removed. They are checked first, so that if one would be refused, the folder stays as it was.

    Raises:
        RunFolderError: if the folder holds other files, the run of a different recipe, or one that was trained before
            the data changed.
    """
    for name, member in members.items():
        check_member(folder / name, member, options)
    recipes = {
        run: recipe
        for name, member in members.items()
        for run, recipe in recipes_by_folder(member, folder / name).items()
    }
    _check_rows(recipes, options)
    first = next(iter(recipes.values()))
    check = partial(set_up, first, options.mirror)
    prepare_folder(folder, [*recipes], overwrite=options.overwrite, dry_run=options.dry_run, check=check)


def check_member(folder: Path, member: Recipe | Grid, options: RunOptions) -> None:
    """Check that `folder` can hold the run, or the runs, of one member of a collection, without writing anything.

    Raises:
        RunFolderError: if it holds other files, a run with a different recipe, or one that was trained before the data
            changed; or cannot be written.
    """
    if isinstance(member, Grid) or member.is_cross_validation:
        prepare_members(folder, member.members, replace(options, dry_run=True))
        return
    with suppress(UsageError):  # unreadable results of one run do not stop the others
        claim_run(folder, dump_recipe(member), overwrite=options.overwrite)
    if not options.overwrite:
        check_finished_run(member, folder, options.mirror)


def _check_rows(recipes: Mapping[Path, Recipe], options: RunOptions) -> None:
    """Check, before more runs on the same data are trained, that finished ones were trained on the data of today.

    This reads the rows of one of them, and so also notices when a dataset without local files has changed.

    Args:
        recipes: the recipes of all of these runs, by run folder.

    Raises:
        RunFolderError: if the data have changed.
    """
    finished = [run for run in recipes if RunFolder(run).results.is_file()]
    if finished and len(finished) < len(recipes) and not options.overwrite:
        run = finished[0]
        check_finished_run(recipes[run], run, options.mirror, compare_rows=True)
