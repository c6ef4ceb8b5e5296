"""Finished runs: whether data and models are still those of the training, so that results may be shown again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bertcli.console import Console
from bertcli.data.sources import source_fingerprint
from bertcli.errors import UsageError
from bertcli.finetuning.setup import set_up
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.runs.claim import check_same_models, check_same_sources
from bertcli.runs.folder import RunFolder
from bertcli.runs.members import hash_start_models, seed_folders
from bertcli.runs.results import RunResults


def has_same_files(recipes: Iterable[Recipe], results: RunResults, mirror: Path | None, console: Console) -> bool:
    """Return whether the files with the rows are those that a finished run was trained on, without reading the rows.

    Other files may have the same rows, which `check_same_data` decides. A dataset that is not in a folder or a mirror
    counts as the same, as do the data of runs of versions that recorded none, and files that are missing now, of which
    a note is printed.

    Args:
        recipes: of the run; several for a multitask run.

    Raises:
        RunFolderError: if a run that its model came from was trained again.
    """
    recipes = [*recipes]
    check_same_models(Path(results.run), results.start_models, hash_start_models(recipes))
    files = join_fingerprints(source_fingerprint(recipe_task(recipe), mirror) for recipe in recipes)
    recorded = results.source_fingerprint
    if files is None and recorded is not None:
        console.say(f"note      the data of {results.run} are not here, so whether they have changed was not checked")
    return files in (None, recorded) or results.data_fingerprint is None


def join_fingerprints(fingerprints: Iterable[str | None]) -> str | None:
    """Return the fingerprint of the files of several tasks; None if that of one is None."""
    parts = [*fingerprints]
    return None if None in parts else " ".join(filter(None, parts))


def check_finished_run(recipe: Recipe, run: Path, mirror: Path | None, *, compare_rows: bool = False) -> None:
    """Check that `run`, and those of its seeds that are finished, were trained on the data of today.

    Results that cannot be read are skipped.

    Args:
        compare_rows: compare the rows even if their files have not changed, or are not in a local folder.

    Raises:
        RunFolderError: if the data have changed, or a run that its model came from was trained again.
        BertcliError: if the files have changed, and their rows cannot be read.
    """
    console = Console(mute=True)  # `finetune` prints the note for the same run
    for folder in dict.fromkeys((run, *seed_folders(run, recipe.training.seed))):
        try:
            results = RunFolder(folder).read_results()
        except UsageError:
            continue
        if results is not None and (compare_rows or not has_same_files([recipe], results, mirror, console)):
            setup = set_up(recipe, mirror)
            check_same_sources(folder, results, setup.data_fingerprint, setup.start_models)
