"""The runs of a job's seeds, one after the other, and what they reached together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState

from bertcli.console import Console, format_seconds
from bertcli.files import write_json
from bertcli.reports.comparison import write_page
from bertcli.runs.folder import RunFolder, seed_run
from bertcli.training.job import Job
from bertcli.training.startup import open_together
from bertcli.training.trainer import train


def train_seeds(
    seeds: Sequence[int],
    job_of: Callable[[int], Job],
    text_of: Callable[[Job], str],
    parent: RunFolder,
    processes: PartialState,
    console: Console,
) -> dict[str, Any]:
    """Train the job of each seed: one in the folder `parent`, several in folders of their own in it, summed up there.

    Args:
        text_of: what stands as the recipe of a job in its run folder.
    """
    if len(seeds) == 1:
        return train(job_of(seeds[0]), parent, console)
    each = []
    for seed in seeds:
        job = job_of(seed)
        folder = open_together(processes, seed_run(parent.path, seed), text_of(job), console, overwrite=False)
        each.append(train(job, folder, console))
    results = summarise(each) | {"run": str(parent.path)}
    if processes.is_main_process:
        write_json(parent.results, results)
        write_page([str(parent.path)], parent.report)
    return results


def summarise(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs' results as one: each metric's mean, standard deviation and values."""
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for split, scores in each[0]["metrics"].items():
        metrics[split] = {}
        for name in scores:
            values = [results["metrics"][split][name] for results in each]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[split][name] = {"mean": statistics.fmean(values), "sd": spread, "values": values}
    shared = (
        "task",
        "head",
        "model",
        "size",
        "best_by",
        "total_steps",
        "num_train_examples",
        "num_parameters",
        "precision",
    )
    return {
        **{name: each[0][name] for name in shared if name in each[0]},
        "metrics": metrics,
        "train_seconds": sum(results.get("train_seconds", 0.0) for results in each),
        "runs": [results["run"] for results in each],
    }


def values_of(score: Any) -> list[float]:
    """The values of a score in results of one seed or of several."""
    return score["values"] if isinstance(score, dict) else [score]


def say_results(console: Console, results: dict[str, Any], folder: RunFolder, model: str | None = None) -> None:
    """Tell the scores, where they lie, and what to type next for `model`, if that is not the run itself."""
    scores = results["metrics"]["validation"]
    width = max(20, *(len(name) + 2 for name in scores))
    for name, value in scores.items():
        if isinstance(value, dict):
            values = ", ".join(f"{one:.4f}" for one in value["values"])
            console.say(f"{name:<{width}}{value['mean']:.4f} ± {value['sd']:.4f}  {values}")
        else:
            console.say(f"{name:<{width}}{value:.4f}")
    console.say(f"run       {folder.path}, {format_seconds(results['train_seconds'])} of training")
    console.say(f"report    {folder.report}")
    console.say(f'next      bertcli predict {model or folder.path} --text "…"')
