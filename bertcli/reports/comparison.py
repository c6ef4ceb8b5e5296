"""…"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bertcli.console import format_seconds, format_table
from bertcli.errors import UsageError
from bertcli.files import write_text
from bertcli.recipe.catalogue import compare_recipes
from bertcli.reports.charts import SCORE
from bertcli.reports.pages import Run, comparison_charts, comparison_page, read_run, run_charts, run_confusion, run_page
from bertcli.runs.folder import RunFolder, chosen_run, seed_runs
from bertcli.runs.history import is_better_lower

Runs = dict[str, list[Run]]
"""Runs by the names they are called by, each as the runs of its seeds."""


def compare_runs(runs: Runs) -> dict[str, Any]:
    """What runs reached on their validation rows, from how much, and how soon.

    How soon: the steps to what the weakest of them reached at its best. Of several seeds the means are told.

    Raises:
        UsageError: they are runs of different tasks, or scored by different metrics.
    """
    kinds = {name: (each[0].work, each[0].metric) for name, each in runs.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name}: {work} by {metric}" for name, (work, metric) in kinds.items())
        raise UsageError(f"the runs cannot be compared ({told}); name runs of one task")
    _, metric = next(iter(kinds.values()))
    bests = [run.best for each in runs.values() for run in each]
    weakest = (max if is_better_lower(metric) else min)(bests)
    return {
        "metric": metric,
        "weakest": weakest,
        "runs": [_line(name, each, weakest) for name, each in runs.items()],
    }


def comparison_table(found: dict[str, Any]) -> str:
    """What `report` found, as a table."""
    return format_table(*_table(found))


def read_runs(names: Sequence[str]) -> Runs:
    """The finished runs in the folders `names`.

    Raises:
        UsageError: one of them is no finished run.
    """
    runs: Runs = {}
    for name in names:
        try:
            runs[name] = [_read_finished(one) for one in seed_runs(name)]
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the run in {name}: {error}") from error
    return runs


def write_page(names: Sequence[str], page: Path) -> None:
    """Write the page of a run, or one that compares several runs, or the seeds of one.

    Raises:
        UsageError: one of them is no finished run, or they cannot be compared.
    """
    runs = read_runs(names)
    first = runs[names[0]]
    if _is_single(runs):
        text = run_page(first[0])
    elif len(names) > 1:
        links = links_to({name: Path(name) for name in names}, page)
        differences = compare_recipes(*map(chosen_run, names))
        title = f"Runs of {first[0].work}"
        text = comparison_page(title, _table(compare_runs(runs)), runs, links=links, differences=differences)
    else:
        table = _table(compare_runs(_by_seed(runs)))
        links = links_to({_seed_name(run): run.path for run in first}, page)
        title = f"{Path(names[0]).resolve().name}: {first[0].work}, {len(first)} seeds"
        text = comparison_page(title, table, runs, links=links, differences=[])
    write_text(page, text)


def links_to(folders: Mapping[str, Path], page: Path) -> dict[str, str]:
    """Where, seen from `page`, the pages of runs are: of those that have one and lie below the folder of `page`."""
    links = {}
    for name, folder in folders.items():
        target = RunFolder(folder.resolve()).report
        if target.is_file() and target.is_relative_to(page.resolve().parent):
            links[name] = f"./{quote(target.relative_to(page.resolve().parent).as_posix())}"
    return links


def write_own_pages(name: str) -> Path:
    """Write the pages of a run folder, and of each of its seeds, anew; the path of the first."""
    for run in dict.fromkeys([*seed_runs(name), name]):  # the last links to the others
        write_page([run], RunFolder(Path(run)).report)
    return RunFolder(Path(name)).report


def write_missing_page(run: Path) -> None:
    """Write the pages of a finished run that was ended just before them, or is of an earlier version."""
    if not RunFolder(run).report.is_file():
        write_own_pages(str(run))


def write_plots(runs: Runs, folder: Path) -> None:
    """Write the charts of a run, or of several side by side, as PNG files into the new folder `folder`.

    Raises:
        UsageError: it is there and not empty, or there are no runs.
    """
    from bertcli.reports.png import save_charts

    if not runs:
        raise UsageError("a suite has no charts of its own; name the run folder of a task in it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; name another for the plots")
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(runs.values()))[0]
    if _is_single(runs):
        save_charts(folder, run_charts(first), run_confusion(first))
    else:
        save_charts(folder, comparison_charts(runs))


def _by_seed(runs: Runs) -> Runs:
    """Each seed of one run by itself, then all of them."""
    (each,) = runs.values()
    return {_seed_name(run): [run] for run in each} | {"all": each}


def _seed_name(run: Run) -> str:
    return f"seed {run.results['seed']}"


def _is_single(runs: Runs) -> bool:
    return sum(len(each) for each in runs.values()) == 1


def _read_finished(name: str) -> Run:
    if not RunFolder(Path(name)).results.is_file():
        raise UsageError(f"found no finished run in {name} (no results.json); name run folders")
    if not RunFolder(Path(name)).recipe.is_file():
        raise UsageError(f"{name} is a grid or a suite; name it alone, or the runs in it")
    return read_run(Path(name))


def _steps_to(run: Run, wanted: float) -> int:
    """The step of the first evaluation as good as `wanted`, which its best one is."""
    sign, key = -1 if is_better_lower(run.metric) else 1, f"{SCORE}{run.metric}"
    return next(record["step"] for record in run.evaluations if sign * record[key] >= sign * wanted)


def _line(name: str, each: list[Run], weakest: float) -> dict[str, Any]:
    """What is told of one run, the mean of its seeds."""
    values, first = [run.best for run in each], each[0].results
    return {
        "run": name,
        "start": first["model"] or "scratch",
        "num_train_examples": first["num_train_examples"],
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "steps_to_weakest": statistics.fmean(_steps_to(run, weakest) for run in each),
        "train_seconds": statistics.fmean(run.results["train_seconds"] for run in each),
    }


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what `report` found."""
    metric, weakest = found["metric"], found["weakest"]
    header = ["run", "start", "examples", metric, f"steps to {weakest:.4f}", "time"]
    rows = []
    for line in found["runs"]:
        spread = "" if line["sd"] is None else f" ± {line['sd']:.4f}"
        cells = [line["run"], line["start"], str(line["num_train_examples"]), f"{line['mean']:.4f}{spread}"]
        rows.append([*cells, f"{line['steps_to_weakest']:.0f}", format_seconds(line["train_seconds"])])
    return header, rows
