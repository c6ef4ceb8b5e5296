"""The folder of a collection (a grid, search, cross-validation or suite): `results.json`, table, page and charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from bertcli.console import Console, format_table
from bertcli.errors import RunFolderError, UsageError
from bertcli.experiments.shared_study import remove_search
from bertcli.files import write_json, write_text
from bertcli.finetuning.finished_run import check_finished_run
from bertcli.finetuning.setup import set_up
from bertcli.recipe.expansion import fold_recipes
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import run_folder
from bertcli.reports.charts import Chart, trials_chart
from bertcli.reports.comparison import Runs, page_links, read_runs, write_run_pages
from bertcli.reports.pages import Table, comparison_page
from bertcli.runs.claim import check_is_run, claim_run, remove_run
from bertcli.runs.folder import OUT_OF_FOLD_PREDICTIONS, SEARCH, SUMMARY, RunFolder, RunOptions
from bertcli.runs.members import fold_runs
from bertcli.runs.results import CollectionResults, RunResults

MAX_CURVES = 8  # one per color of the charts


def claim_collection(
    folder: Path,
    runs: Collection[Path],
    *,
    overwrite: bool,
    dry_run: bool = False,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Check that `folder` can hold the runs of a collection without replacing anything else.

    Points or tasks may be added to a finished grid or suite, whose results are then rewritten.

    Args:
        runs: the run folders of the collection, inside `folder`.
        overwrite: remove a single run or a search that is in the folder, or the results of earlier points, folds or
            tasks.
        dry_run: remove nothing.
        check: called before anything is removed; raises an error if the new runs could not start.

    Raises:
        RunFolderError: if `folder` holds a search or a run (with `overwrite`, one in progress), or files that no run
            wrote and that would be replaced, or (without `overwrite`) the results of a collection with other runs.
    """
    run = RunFolder(folder)
    if (folder / SEARCH).is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a search; choose another folder with --run, or replace that search with --overwrite"
            )
        if not dry_run:
            check()
            remove_search(folder)
        return
    written = (run.results, run.card, run.report, folder / SUMMARY, run.predictions / OUT_OF_FOLD_PREDICTIONS)
    if run.recipe.is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a single run, expected a folder for the runs of a grid, search, suite or "
                "cross-validation. Choose another folder with --run, or replace that run with --overwrite."
            )
        check_is_run(folder)
        if not dry_run:
            check()
            remove_run(folder)
    elif (earlier := read_collection(str(folder))) is not None:
        members = {*runs} | {parent for run in runs for parent in run.parents}
        lost = [name for name, member in _member_folders(earlier, folder).items() if member not in members]
        if lost and not overwrite:
            raise RunFolderError(
                f"{folder} holds a grid, suite or cross-validation with other runs: {', '.join(lost):.80} would be "
                "lost. Include all of its runs, choose another folder with --run, or replace the results with "
                "--overwrite."
            )
        if overwrite and not dry_run:  # even if no run is lost: until all are trained again, the results are wrong
            check()
            for path in reversed(written):  # the results last: without them, the other files are not recognized
                path.unlink(missing_ok=True)
    else:
        existing = [str(path.relative_to(folder)) for path in written if path.exists()]
        if existing:
            raise RunFolderError(
                f"{folder} contains {existing[0]} but is not the folder of a grid, search, suite or "
                "cross-validation; choose another folder with --run"
            )


def claim_members(folder: Path, recipes: Mapping[str, Recipe], options: RunOptions) -> None:
    """Check that `folder` can hold recipes that differ in a few keys, each in a run folder of its name.

    What they replace is removed. They are checked first, so that if one would be refused, the folder stays as it was.

    Raises:
        RunFolderError: if the folder holds other files, the run of a different recipe, or one that was trained before
            the data changed.
    """
    for name, recipe in recipes.items():
        if recipe.is_cross_validation:
            claim_members(folder / name, fold_recipes(recipe), replace(options, dry_run=True))
        else:
            check_member(folder / name, recipe, options)
    finished = {run: recipe for name, recipe in recipes.items() if RunFolder(run := folder / name).results.is_file()}
    if len(finished) < len(recipes) and not options.overwrite:
        check_rows_of_finished(finished, options)
    first = next(iter(recipes.values()))
    claim_collection(
        folder,
        [folder / name for name in recipes],
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        check=partial(set_up, first.with_fold(1) if first.is_cross_validation else first, options.mirror),
    )


def check_member(folder: Path, recipe: Recipe, options: RunOptions) -> None:
    """Check that `folder` can hold the run of one recipe of a collection, without writing anything.

    Raises:
        RunFolderError: if it holds other files, a run with a different recipe, or one that was trained before the data
            changed; or cannot be written.
    """
    with suppress(UsageError):  # unreadable results of one run do not stop the others
        claim_run(folder, dump_recipe(recipe), overwrite=options.overwrite)
    if not options.overwrite:
        check_finished_run(recipe, folder, options.mirror, options.console)


def check_rows_of_finished(recipes: Mapping[Path, Recipe], options: RunOptions) -> None:
    """Check, before more runs on the same data are trained, that finished ones were trained on the data of today.

    This reads the rows of one of them, and so also notices when a dataset without local files has changed.

    Args:
        recipes: the recipes of the finished runs, by run folder.

    Raises:
        RunFolderError: if the data have changed.
    """
    for run, recipe in [*recipes.items()][:1]:
        check_finished_run(recipe, run, options.mirror, options.console, compare_rows=True)


def check_same_rows(runs: Mapping[str, RunResults], folder: Path) -> None:
    """Check that runs whose scores are compared were trained and scored on the same rows.

    Raises:
        RunFolderError: if the data changed between them.
    """
    fingerprints = {name: run.data_fingerprint for name, run in runs.items() if run.data_fingerprint is not None}
    first = next(iter(fingerprints.values()), None)
    if changed := [name for name, fingerprint in fingerprints.items() if fingerprint != first]:
        raise RunFolderError(
            f"{folder / next(iter(fingerprints))} and {folder / changed[0]} were trained or scored on different rows, "
            "since the data have changed between them, so their scores are not compared. Choose another folder with "
            "--run, or start over with --overwrite"
        )


def results_of_chosen(
    chosen: str,
    points: dict[str, RunResults],
    failed: dict[str, str],
    folder: Path,
    table: list[dict[str, str]],
    importances: dict[str, float] | None = None,
) -> CollectionResults:
    """Return the results of a grid or search in `folder`: those of its `chosen` point, with all points and the table.

    Args:
        points: the results of the finished points or trials.
        failed: the errors of the others.
        importances: only for a search: the share of each key in the variance of the scores.

    Raises:
        RunFolderError: if the data have changed between two points.
    """
    check_same_rows(points, folder)
    return CollectionResults(
        **points[chosen].model_dump(exclude_unset=True, exclude={"folds"})
        | {
            "run": str(folder),
            "train_seconds": sum(results.train_seconds for results in points.values()),
            "chosen": chosen,
            "table": table,
            "points": points,
            "failed": failed,
        }
        | ({} if importances is None else {"importances": importances})
    )


def write_collection(folder: Path, results: CollectionResults, console: Console) -> None:
    """Write and print the results of a collection; of a grid or search, the table also as CSV."""
    folder.mkdir(parents=True, exist_ok=True)  # missing if every member failed before it wrote anything
    write_json(RunFolder(folder).results, results.to_json())
    table = collection_table(results)
    write_text(RunFolder(folder).card, f"# {folder.name}\n\n{table}\n")
    if results.points is not None:
        write_text(folder / SUMMARY, _to_csv(results.table))
    console.say(f"\n{table}\n")
    page = RunFolder(folder).report
    write_collection_page(folder, results, page)
    console.say(f"report    {page}")


def read_collection(name: str) -> CollectionResults | None:
    """Return the results of the finished collection in the folder `name`; None if it holds none.

    Raises:
        UsageError: if the results cannot be read.
    """
    results = RunFolder(Path(name)).read_results()
    return results if isinstance(results, CollectionResults) else None


def collection_table(results: CollectionResults) -> str:
    """Format the table of a collection as text."""
    return format_table(*_table(results))


def write_pages(name: str) -> Path:
    """Rewrite the page of a run or collection, after the pages of the runs in it; return its path."""
    results = read_collection(name)
    if results is None:
        return write_run_pages(name)
    for folder in _member_folders(results, Path(name)).values():
        write_pages(str(folder))
    page = RunFolder(Path(name)).report
    write_collection_page(Path(name), results, page)
    return page


def write_collection_page(folder: Path, results: CollectionResults, page: Path) -> None:
    """Write the page of a collection: its table with links, learning curves unless it is a suite, what a search found.

    Raises:
        UsageError: if a point or fold cannot be read.
    """
    members = _member_folders(results, folder)
    runs = charted_runs(results, folder)
    first = next(iter(runs.values()), None)
    names = "folds" if results.folds else "points" if results.importances is None else "trials"
    kind = f"{names} of {first[0].task_or_objective}" if first else "tasks"
    title = f"{folder.resolve().name}: {len(members) + len(results.failed)} {kind}"
    write_text(
        page,
        comparison_page(
            title,
            _table(results),
            runs,
            links=page_links(members, page),
            failed=results.failed,
            charts=[_trials_chart(results)] if results.importances is not None else [],
            importances=results.importances,
        ),
    )


def _trials_chart(results: CollectionResults) -> Chart:
    trials = {
        int(name.rpartition("-")[2]): (trial.best_score, trial.pruned) for name, trial in (results.points or {}).items()
    }
    return trials_chart(trials, str(results.best_by))


def charted_runs(results: CollectionResults, folder: Path) -> Runs:
    """Return the points of a grid with the best means, or the first folds, by name.

    There are none for a suite, whose tasks share no metric.

    Raises:
        UsageError: if a point or fold cannot be read.
    """
    if results.folds is not None:
        return {run.name: read_runs([str(run)])[str(run)] for run in fold_runs(folder)[:MAX_CURVES]}
    if results.points is None:
        return {}
    try:
        scores = {name: point.selection_score for name, point in results.points.items()}
    except ValueError as error:
        raise UsageError(f"cannot read the grid in {folder}: a point in results.json has {error}") from error
    best = sorted(scores, key=lambda name: scores[name], reverse=True)[:MAX_CURVES]
    return {name: read_runs([str(folder / name)])[str(folder / name)] for name in scores if name in best}


def _member_folders(results: CollectionResults, folder: Path) -> dict[str, Path]:
    """Return the folders of the finished points, folds or tasks, by name."""
    if results.tasks is not None:
        return {name: run_folder(folder, name) for name in results.tasks}
    return {name: folder / name for name in results.members}


def _to_csv(table: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _table(results: CollectionResults) -> Table:
    header = list(results.table[0])
    return header, [[str(row[column]) for column in header] for row in results.table]
