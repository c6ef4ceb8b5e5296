"""The folder of a collection (a grid, search, cross-validation or suite): `results.json`, table, page and charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from bertcli.console import Console, format_table
from bertcli.errors import RunFolderError, UsageError
from bertcli.files import write_json, write_text
from bertcli.recipe.suite import run_folder
from bertcli.reports.charts import Chart, trials_chart
from bertcli.reports.comparison import Runs, page_links, read_runs, write_run_pages
from bertcli.reports.pages import Table, comparison_page
from bertcli.runs.folder import SUMMARY, RunFolder
from bertcli.runs.members import fold_runs
from bertcli.runs.results import CollectionResults, RunResults

MAX_CURVES = 8  # one per color of the charts


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
    for folder in member_folders(results, Path(name)).values():
        write_pages(str(folder))
    page = RunFolder(Path(name)).report
    write_collection_page(Path(name), results, page)
    return page


def write_collection_page(folder: Path, results: CollectionResults, page: Path) -> None:
    """Write the page of a collection: its table with links, learning curves unless it is a suite, what a search found.

    Raises:
        UsageError: if a point or fold cannot be read.
    """
    members = member_folders(results, folder)
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


def member_folders(results: CollectionResults, folder: Path) -> dict[str, Path]:
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
