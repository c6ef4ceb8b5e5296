"""Compare finished runs: a table of scores, learning speed and training time, report pages and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bertcli.console import format_seconds, format_table
from bertcli.errors import UsageError
from bertcli.files import write_text
from bertcli.metrics.scores import is_better_lower, selection_score
from bertcli.recipe.catalogue import compare_recipes
from bertcli.reports.pages import (
    Run,
    comparison_charts,
    comparison_page,
    read_run,
    run_charts,
    run_confusion_matrix,
    run_page,
)
from bertcli.runs.environment import mask_text
from bertcli.runs.folder import RunFolder
from bertcli.runs.history import SCORE_PREFIX
from bertcli.runs.members import chosen_run, fold_runs, seed_runs

Runs = dict[str, list[Run]]
"""The seeds of each run, by the run's name."""


def compare_runs(runs: Runs) -> dict[str, Any]:
    """Compare best validation scores, training set sizes, training times and steps to a common target score.

    The target is the worst of the best scores of all runs and seeds. Values are means over seeds.

    Raises:
        UsageError: if the runs have different tasks, or different metrics for selecting the best model.
    """
    kinds = {name: (seeds[0].task_or_objective, seeds[0].metric) for name, seeds in runs.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name}: {task} by {metric}" for name, (task, metric) in kinds.items())
        raise UsageError(f"the runs cannot be compared ({listed}); choose runs of the same task and metric")
    _, metric = next(iter(kinds.values()))
    best_scores = [run.best_score for seeds in runs.values() for run in seeds]
    target_score = (max if is_better_lower(metric) else min)(best_scores)
    return {
        "metric": metric,
        "weakest": target_score,
        "runs": [_compare_run(name, seeds, target_score) for name, seeds in runs.items()],
    }


def comparison_table(comparison: dict[str, Any]) -> str:
    """Return the result of `compare_runs` as a text table."""
    return format_table(*_comparison_rows(comparison))


def read_runs(names: Sequence[str]) -> Runs:
    """Read finished runs, each with all its seeds, from run folders.

    Raises:
        UsageError: if a folder is not a finished run.
    """
    runs: Runs = {}
    for name in names:
        try:
            runs[name] = [_read_finished(seed) for seed in seed_runs(name)]
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the run in {name}: {error}") from error
    return runs


def write_page(names: Sequence[str], page: Path) -> None:
    """Write the HTML page of one run, or a comparison of several runs or of the seeds of one run.

    Raises:
        UsageError: if a folder is not a finished run, or the runs cannot be compared.
    """
    runs = read_runs(names)
    first = runs[names[0]]
    if _is_single(runs):
        text = run_page(first[0])
    elif len(names) > 1:
        links = page_links({name: Path(name) for name in names}, page)
        differences = [tuple(map(mask_text, row)) for row in compare_recipes(*map(_example_run, names))]
        title = f"Runs of {first[0].task_or_objective}"
        text = comparison_page(title, _comparison_rows(compare_runs(runs)), runs, links=links, differences=differences)
    else:
        table = _comparison_rows(compare_runs(_by_seed(runs)))
        links = page_links({_seed_name(run): run.path for run in first}, page)
        title = f"{Path(names[0]).resolve().name}: {first[0].task_or_objective}, {len(first)} seeds"
        text = comparison_page(title, table, runs, links=links, differences=[])
    write_text(page, text)


def page_links(folders: Mapping[str, Path], page: Path) -> dict[str, str]:
    """Return relative links from `page` to the report pages of runs in or below its folder, if they exist."""
    links = {}
    for name, folder in folders.items():
        target = RunFolder(folder.resolve()).report
        if target.is_file() and target.is_relative_to(page.resolve().parent):
            links[name] = f"./{quote(target.relative_to(page.resolve().parent).as_posix())}"
    return links


def write_run_pages(name: str) -> Path:
    """Write the report pages of a run and of each of its seeds; return the path of the run's page."""
    for run in dict.fromkeys([*seed_runs(name), name]):  # the seeds first: the last page links to theirs
        write_page([run], RunFolder(Path(run)).report)
    return RunFolder(Path(name)).report


def write_missing_pages(run: Path) -> None:
    """Write the report pages of a finished run if it was stopped before writing them."""
    if not RunFolder(run).report.is_file():
        write_run_pages(str(run))


def write_plots(runs: Runs, folder: Path) -> None:
    """Save the charts of one run, or of a comparison of several, as PNG files in the new folder `folder`.

    Raises:
        UsageError: if the folder is not empty, or there are no runs.
    """
    from bertcli.reports.png import save_charts

    if not runs:
        raise UsageError("a suite has no charts; pass the run folder of one of its tasks")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; choose another for the plots")
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(runs.values()))[0]
    if _is_single(runs):
        save_charts(folder, run_charts(first), run_confusion_matrix(first))
    else:
        save_charts(folder, comparison_charts(runs))


def _example_run(name: str) -> str:
    """Return the run whose recipe stands for those of a run, a grid's chosen point or a cross-validation."""
    name = chosen_run(name)
    return next(map(str, fold_runs(Path(name))), name)


def _by_seed(runs: Runs) -> Runs:
    """Return the seeds of one run as separate runs, followed by all of them as one run."""
    (seeds,) = runs.values()
    return {_seed_name(run): [run] for run in seeds} | {"all": seeds}


def _seed_name(run: Run) -> str:
    return f"seed {run.results.seed}"


def _is_single(runs: Runs) -> bool:
    return sum(len(seeds) for seeds in runs.values()) == 1


def _read_finished(name: str) -> Run:
    if not RunFolder(Path(name)).results.is_file():
        raise UsageError(f"found no finished run in {name} (no results.json); pass folders of finished runs")
    if not RunFolder(Path(name)).recipe.is_file():
        raise UsageError(f"{name} holds several runs; pass it on its own, or pass its individual runs")
    return read_run(Path(name))


def _steps_to(run: Run, target_score: float) -> int:
    """Return the step of the first evaluation that reached `target_score`.

    Raises:
        UsageError: if none did, which means that the history does not match the results.
    """
    key = f"{SCORE_PREFIX}{run.metric}"
    for record in run.eval_records:
        if key in record and selection_score(run.metric, record[key]) >= selection_score(run.metric, target_score):
            return int(record["step"])
    raise UsageError(
        f"{RunFolder(run.path).eval_history} has no evaluation with {run.metric} {target_score:.4f}, expected the one "
        "in results.json; restore the file"
    )


def _compare_run(name: str, seeds: list[Run], target_score: float) -> dict[str, Any]:
    """Return the entry of one run in a comparison."""
    values, first = [run.best_score for run in seeds], seeds[0].results
    return {
        "run": name,
        "start": first.model or "scratch",
        "num_train_examples": first.num_train_examples,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "interval": first.interval_text(str(first.best_by)) if len(seeds) == 1 else "",
        "values": values,
        "steps_to_weakest": statistics.fmean(_steps_to(run, target_score) for run in seeds),
        "train_seconds": statistics.fmean(run.results.train_seconds for run in seeds),
    }


def _cell(count: int | None) -> str:
    return "" if count is None else str(count)


def _comparison_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the comparison table."""
    header = ["run", "model", "examples", comparison["metric"], f"steps to {comparison['weakest']:.4f}", "time"]
    rows = []
    for run in comparison["runs"]:
        interval = f" ({run['interval']})" if run["interval"] else ""
        deviation = interval if run["sd"] is None else f" ± {run['sd']:.4f}"
        cells = [run["run"], run["start"], _cell(run["num_train_examples"]), f"{run['mean']:.4f}{deviation}"]
        rows.append([*cells, f"{run['steps_to_weakest']:.0f}", format_seconds(run["train_seconds"])])
    return header, rows
