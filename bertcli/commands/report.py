"""`bertcli report`: compare runs in a table, and write HTML pages and charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertcli.console import Console
from bertcli.errors import UsageError
from bertcli.experiments.collection import (
    charted_runs,
    collection_table,
    read_collection,
    write_collection_page,
    write_pages,
)
from bertcli.reports.comparison import compare_runs, comparison_table, read_runs, write_page, write_plots
from bertcli.reports.significance import compare_two_runs


def report(
    runs: Sequence[str],
    *,
    html: Path | None = None,
    plots: Path | None = None,
    significance: bool = False,
    console: Console | None = None,
) -> tuple[dict[str, Any], str]:
    """Compare finished runs, or summarize a run or a collection of runs; return results and table.

    The page of what is summarized (`report.html` in its folder) is rewritten unless `html` is given.

    Args:
        html: file to write the page to; it must not exist.
        plots: folder to write the charts to as PNG files; it must be empty or not exist.
        significance: test whether one of two runs is better, on their answers to the validation rows.

    Raises:
        UsageError: if a folder is not a finished run, the runs cannot be compared, or an output file exists.
    """
    console = console or Console()
    if html is not None and html.exists():
        raise UsageError(f"{html} already exists; choose another file")
    if html is not None and not html.absolute().parent.is_dir():
        raise UsageError(f"found no folder {html.parent}; create it, or choose another file")
    collection = read_collection(runs[0]) if len(runs) == 1 else None
    if collection is None:
        members = read_runs(runs)
        results = compare_runs(members)
        table = comparison_table(results)
        if significance:
            results["significance"], sentences = compare_two_runs(members)
            table = f"{table}\n\n{sentences}"
    elif significance:
        raise UsageError(f"{runs[0]} holds several runs; --significance compares two: name two of them")
    else:
        members, results = charted_runs(collection, Path(runs[0])), collection.to_json()
        table = collection_table(collection)
    if plots is not None:
        write_plots(members, plots)
        console.say(f"plots     {plots}")
    if html is not None:
        if collection is None:
            write_page(runs, html)
        else:
            write_collection_page(Path(runs[0]), collection, html)
        console.say(f"report    {html}")
    elif len(runs) == 1:
        try:
            console.say(f"report    {write_pages(runs[0])}")
        except OSError as error:  # another user's run
            console.warn(f"cannot write the page of {runs[0]}: {error.strerror}; choose another file with --html")
    return results, table
