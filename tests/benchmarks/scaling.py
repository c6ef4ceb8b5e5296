"""How much of a second process is left when two share a fine-tuning run: the same global batch, a core for each."""

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

WORK = {
    "short texts (11 tokens), global batch 64": ["sample/sentiment", "training.global_batch_size=64"],
    "passages (60 tokens), global batch 16": ["sample/questions", "training.global_batch_size=16"],
}
KEYS = ["model.size=mini", "training.max_steps=30", "data.max_eval_examples=8", "hardware.device=cpu"]


def bench(rounds: int) -> None:
    """Print examples a second and efficiency of one process and of two, medians of the rounds."""
    table = Table("work", "processes", "examples a second", "efficiency", title="scaling, BERT mini")
    for name, words in WORK.items():
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for processes, found in rates.items():
                found.append(_rate(words, processes))
        one, two = (statistics.median(found) for found in rates.values())
        table.add_row(name, "1", f"{one:.1f}", "")
        table.add_row("", "2", f"{two:.1f}", f"{two / one / 2:.0%}")
    Console().print(table)


def _rate(words: list[str], processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "bertcli", "finetune", *words, *KEYS, "--run", str(run), "--quiet"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--processes", str(processes)], env=environment, check=True)
        return json.loads((run / "results.json").read_text())["examples_per_second"]
