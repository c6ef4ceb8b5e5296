"""The folder of a grid or suite: its `results.json`, table, page and charts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from bertcli.console import Console, format_table
from bertcli.errors import RunFolderError, UsageError
from bertcli.files import write_json, write_text
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import run_folder
from bertcli.reports.comparison import Runs, page_links, read_runs, write_run_pages
from bertcli.reports.pages import Table, comparison_page
from bertcli.runs.folder import SUMMARY, RunFolder, check_is_run, claim_run, remove_run
from bertcli.runs.results import CollectionResults

MAX_CURVES = 8  # one per color of the charts


def claim_collection(
    folder: Path,
    runs: Collection[Path],
    *,
    overwrite: bool,
    dry_run: bool = False,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Check that `folder` can hold the runs of a grid or suite without replacing anything else.

    Points or tasks may be added to a finished grid or suite, whose results are then rewritten.

    Args:
        runs: the run folders of the grid or suite, inside `folder`.
        overwrite: remove a single run that is in the folder, or the results of other points or tasks.
        dry_run: remove nothing.
        check: called before anything is removed; raises an error if the new runs could not start.

    Raises:
        RunFolderError: if `folder` holds a run (with `overwrite`, a run in progress), or files that no run wrote and
            that would be replaced, or (without `overwrite`) the results of a grid or suite with other runs.
    """
    run = RunFolder(folder)
    written = (run.results, run.card, run.report, folder / SUMMARY)
    if run.recipe.is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a single run, expected a folder for the runs of a grid or suite. "
                "Choose another folder with --run, or replace that run with --overwrite."
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
                f"{folder} holds a grid or suite with other runs: {', '.join(lost):.80} would be lost. "
                "Include all of its runs, choose another folder with --run, or replace the results with --overwrite."
            )
        if lost and not dry_run:
            check()
            for path in written:
                path.unlink(missing_ok=True)
    else:
        existing = [path.name for path in written if path.exists()]
        if existing:
            raise RunFolderError(
                f"{folder} contains {existing[0]} but is not the folder of a grid or suite; choose another "
                "folder with --run"
            )


def check_member(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Check that `folder` can hold the run of one recipe of a grid or suite, without writing anything.

    Raises:
        RunFolderError: if it holds other files or a run with a different recipe, or cannot be written.
    """
    with suppress(UsageError):  # unreadable results of one run do not stop the others
        claim_run(folder, dump_recipe(recipe), overwrite=overwrite)


def write_collection(folder: Path, results: CollectionResults, console: Console) -> None:
    """Write and print the results of a grid or suite."""
    folder.mkdir(parents=True, exist_ok=True)  # missing if every member failed before it wrote anything
    write_json(RunFolder(folder).results, results.to_json())
    table = collection_table(results)
    write_text(RunFolder(folder).card, f"# {folder.name}\n\n{table}\n")
    console.say(f"\n{table}\n")
    page = RunFolder(folder).report
    write_collection_page(folder, results, page)
    console.say(f"report    {page}")


def read_collection(name: str) -> CollectionResults | None:
    """Return the results of the finished grid or suite in the folder `name`; None if it holds neither.

    Raises:
        UsageError: if the results cannot be read.
    """
    results = RunFolder(Path(name)).read_results()
    return results if isinstance(results, CollectionResults) else None


def collection_table(results: CollectionResults) -> str:
    """Format the table of a grid or suite as text."""
    return format_table(*_table(results))


def write_pages(name: str) -> Path:
    """Rewrite the page of a run, grid or suite, after the pages of the runs in it; return its path."""
    results = read_collection(name)
    if results is None:
        return write_run_pages(name)
    for folder in _member_folders(results, Path(name)).values():
        write_pages(str(folder))
    page = RunFolder(Path(name)).report
    write_collection_page(Path(name), results, page)
    return page


def write_collection_page(folder: Path, results: CollectionResults, page: Path) -> None:
    """Write the page of a grid or suite: its table with links, the curves of a grid's points, and the failures.

    Raises:
        UsageError: if a point of the grid cannot be read.
    """
    members = _member_folders(results, folder)
    runs = best_point_runs(results, folder)
    first = next(iter(runs.values()), None)
    kind = f"points of {first[0].task_or_objective}" if first else "tasks"
    title = f"{folder.resolve().name}: {len(members) + len(results.failed)} {kind}"
    links = page_links(members, page)
    write_text(page, comparison_page(title, _table(results), runs, links=links, failed=results.failed))


def best_point_runs(results: CollectionResults, folder: Path) -> Runs:
    """Return the points of a grid with the best means, by name; empty for a suite, whose tasks share no metric.

    Raises:
        UsageError: if a point cannot be read.
    """
    if results.points is None:
        return {}
    try:
        scores = {name: point.selection_score for name, point in results.points.items()}
    except ValueError as error:
        raise UsageError(f"cannot read the grid in {folder}: a point in results.json has {error}") from error
    best = sorted(scores, key=lambda name: scores[name], reverse=True)[:MAX_CURVES]
    return {name: read_runs([str(folder / name)])[str(folder / name)] for name in scores if name in best}


def _member_folders(results: CollectionResults, folder: Path) -> dict[str, Path]:
    """Return the folders of the finished points or tasks, by name."""
    if results.points is not None:
        return {name: folder / name for name in results.points}
    return {name: run_folder(folder, name) for name in results.tasks or {}}


def _table(results: CollectionResults) -> Table:
    header = list(results.table[0])
    return header, [[str(row[column]) for column in header] for row in results.table]
