"""What is told of a finished grid or suite, from its `results.json`: its table, its page, its charts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertcli.console import Console, format_table
from bertcli.errors import RunFolderError
from bertcli.files import write_json, write_text
from bertcli.recipe.suite import run_folder
from bertcli.reports.comparison import Runs, links_to, read_runs, write_own_pages
from bertcli.reports.pages import Table, comparison_page
from bertcli.runs.folder import SUMMARY, RunFolder, remove_run

MOST_CURVES = 8  # as many as there are colours


def open_collection(
    folder: Path, *, overwrite: bool, dry_run: bool = False, check: Callable[[], object] = lambda: None
) -> None:
    """See that `folder` can hold the runs of a grid or suite, and nothing that what they reach would replace.

    Args:
        overwrite: remove a run that is there instead.
        dry_run: only look.
        check: raises what speaks against those runs, before anything is removed for them.

    Raises:
        RunFolderError: it holds a run (with `overwrite`: one that is going on), or files that would be replaced.
    """
    own = RunFolder(folder)
    if own.recipe.is_file():
        if not overwrite:
            raise RunFolderError(
                f"{folder} holds a run, where runs of a grid or suite are to go. "
                "Choose another folder with --run, or replace that run with --overwrite."
            )
        if not dry_run:
            check()
            remove_run(folder)
    elif read_collection(str(folder)) is None:
        there = [path.name for path in (own.results, own.card, own.report, folder / SUMMARY) if path.exists()]
        if there:
            raise RunFolderError(f"{folder} holds {there[0]} and no grid or suite; choose another folder with --run")


def keep_collection(folder: Path, results: dict[str, Any], console: Console) -> None:
    """Write what a grid or suite reached into its folder, and tell it."""
    folder.mkdir(parents=True, exist_ok=True)  # if everything failed before it wrote something
    write_json(RunFolder(folder).results, results)
    table = collection_table(results)
    write_text(RunFolder(folder).card, f"# {folder.name}\n\n{table}\n")
    console.say(f"\n{table}\n")
    page = RunFolder(folder).report
    write_collection_page(folder, results, page)
    console.say(f"report    {page}")


def read_collection(name: str) -> dict[str, Any] | None:
    """What `results.json` in the folder `name` says of a finished grid or suite; None if it is of neither.

    Raises:
        UsageError: it cannot be read.
    """
    results = RunFolder(Path(name)).read_results() or {}
    return results if "table" in results else None


def collection_table(results: dict[str, Any]) -> str:
    """Its table, for a console or a file."""
    return format_table(*_table(results))


def write_pages(name: str) -> Path:
    """Write the page of a run, grid or suite, and of every run in it, anew; the path of the first."""
    results = read_collection(name)
    if results is None:
        return write_own_pages(name)
    for folder in _members(results, Path(name)).values():
        write_pages(str(folder))
    page = RunFolder(Path(name)).report
    write_collection_page(Path(name), results, page)
    return page


def write_collection_page(folder: Path, results: dict[str, Any], page: Path) -> None:
    """Write the page of a grid or suite: its table with links, the curves of a grid's points, and what failed.

    Raises:
        UsageError: a point of the grid cannot be read.
    """
    members = _members(results, folder)
    runs = best_points(results, folder)
    first = next(iter(runs.values()), None)
    of = f"points of {first[0].work}" if first else "tasks"
    title = f"{folder.resolve().name}: {len(members) + len(results['failed'])} {of}"
    links = links_to(members, page)
    write_text(page, comparison_page(title, _table(results), runs, links=links, failed=results["failed"]))


def best_points(results: dict[str, Any], folder: Path) -> Runs:
    """The points of a grid with the best means, by name; none of a suite, whose tasks have no common score."""
    if "points" not in results:
        return {}
    means = {row["run"]: float(row["mean"]) for row in results["table"]}
    best = sorted(means, key=lambda name: means[name], reverse=True)[:MOST_CURVES]
    return {name: read_runs([str(folder / name)])[str(folder / name)] for name in means if name in best}


def _members(results: dict[str, Any], folder: Path) -> dict[str, Path]:
    """The folders of what finished, by name."""
    if "points" in results:
        return {name: folder / name for name in results["points"]}
    return {name: run_folder(folder, name) for name in results["tasks"]}


def _table(results: dict[str, Any]) -> Table:
    header = list(results["table"][0])
    return header, [[str(row[column]) for column in header] for row in results["table"]]
