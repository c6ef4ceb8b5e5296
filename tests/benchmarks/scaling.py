"""Scaling efficiency of fine-tuning on two processes: the same global batch, one core per process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

WORKLOADS = {
    "short texts (11 tokens), global batch 64": ["sample/sentiment", "training.global_batch_size=64"],
    "passages (60 tokens), global batch 16": ["sample/questions", "training.global_batch_size=16"],
}
OVERRIDES = ["model.size=mini", "training.max_steps=30", "data.max_eval_examples=8", "hardware.device=cpu"]


def bench(rounds: int) -> None:
    """Print examples per second and efficiency with one and two processes, medians of the rounds."""
    table = Table("work", "processes", "examples per second", "efficiency", title="scaling, BERT mini")
    for name, recipe in WORKLOADS.items():
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for num_processes, values in rates.items():
                values.append(_examples_per_second(recipe, num_processes))
        single, double = (statistics.median(values) for values in rates.values())
        table.add_row(name, "1", f"{single:.1f}", "")
        table.add_row("", "2", f"{double:.1f}", f"{double / single / 2:.0%}")
    Console().print(table)


def _examples_per_second(recipe: list[str], num_processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "bertcli", "finetune", *recipe, *OVERRIDES, "--run", str(run), "--quiet"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--processes", str(num_processes)], env=environment, check=True)
        return json.loads((run / "results.json").read_text())["examples_per_second"]
