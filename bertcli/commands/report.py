"""`bertcli report`: several runs side by side, so that one sees what made the difference."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertcli.errors import UsageError
from bertcli.runs.console import format_seconds, format_table
from bertcli.runs.folder import RunFolder, seed_runs
from bertcli.runs.history import is_better_lower, read_records


@dataclass(frozen=True)
class _Run:
    """One finished run: what it says of itself, and the score of each of its evaluations."""

    results: dict[str, Any]
    scores: list[tuple[int, float]]  # step, score

    @property
    def metric(self) -> str:
        return str(self.results["best_by"])

    @property
    def work(self) -> str:
        """The task, or the objective of pretraining."""
        return str(self.results.get("task") or self.results["objective"])

    @property
    def best(self) -> float:
        return float(self.results["metrics"]["validation"][self.metric])

    def steps_to(self, wanted: float) -> int:
        """The step of the first evaluation as good as `wanted`, which its best one is."""
        sign = -1 if is_better_lower(self.metric) else 1
        return next(step for step, score in self.scores if sign * score >= sign * wanted)


def report(names: Sequence[str]) -> dict[str, Any]:
    """What the runs `names` reached on their validation rows, from how much, and how soon.

    How soon: the steps to what the weakest of them reached at its best. Of several seeds the means are told.

    Raises:
        UsageError: one of them is no finished run, or they are scored by different metrics.
    """
    runs = {name: [_read_run(one) for one in seed_runs(name)] for name in names}
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


def report_table(found: dict[str, Any]) -> str:
    """What `report` found, as a table."""
    metric, weakest = found["metric"], found["weakest"]
    header = ["run", "start", "examples", metric, f"steps to {weakest:.4f}", "time"]
    rows = []
    for line in found["runs"]:
        spread = "" if line["sd"] is None else f" ± {line['sd']:.4f}"
        cells = [line["run"], line["start"], str(line["num_train_examples"]), f"{line['mean']:.4f}{spread}"]
        rows.append([*cells, f"{line['steps_to_weakest']:.0f}", format_seconds(line["train_seconds"])])
    return format_table(header, rows)


def _read_run(name: str) -> _Run:
    folder = RunFolder(Path(name))
    if not folder.results.is_file():
        raise UsageError(f"found no finished run in {name} (no results.json); name run folders")
    results = json.loads(folder.results.read_text("utf-8"))
    if "best_by" not in results:
        raise UsageError(f"{name} is a suite; name the runs in it")
    key = f"eval/validation/{results['best_by']}"
    return _Run(results, [(record["step"], record[key]) for record in read_records(folder.eval_history)])


def _line(name: str, each: list[_Run], weakest: float) -> dict[str, Any]:
    """What is told of one run, the mean of its seeds."""
    values, first = [run.best for run in each], each[0].results
    return {
        "run": name,
        "start": first["model"] or "scratch",
        "num_train_examples": first["num_train_examples"],
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "steps_to_weakest": statistics.fmean(run.steps_to(weakest) for run in each),
        "train_seconds": statistics.fmean(run.results["train_seconds"] for run in each),
    }
