"""Whole fine-tuning commands, process start to exit, beside the example scripts' way with the `Trainer`'s best flags.

`python -m tests.benchmarks.commands MIRROR MODEL [NAME …] [--rounds N]`: MIRROR is a mirror with GLUE, CoNLL-2003 and
SQuAD, MODEL the folder of a BERT. bertcli and its peer, `trainer_script.py`, take turns; each starts every other pair.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import ALL


@dataclass(frozen=True)
class Command:
    """A recipe, what the peer calls its kind of task, and the rows of both."""

    recipe: str
    kind: str
    folder: str  # of the dataset in the mirror
    num_rows: int | None = None  # to train on, drawn at random; None: all
    num_validation_rows: int | None = None
    train_split: str = "train"  # SQuAD's is not in every mirror
    epochs: int = 1
    batch_size: int = 32
    max_length: int = 128


COMMANDS = {
    "sst2": Command("glue/sst2", "classification", "nyu-mll/glue/sst2", 2000),
    "sst2-20k": Command("glue/sst2", "classification", "nyu-mll/glue/sst2", 20_000),
    "rte": Command("glue/rte", "classification", "nyu-mll/glue/rte", epochs=3),
    "conll": Command("ner/conll2003", "tags", "eriktks/conll2003/conll2003", 2000, 800),
    "squad": Command(
        "squad/v1", "questions", "rajpurkar/squad/plain_text", 1000, 300, "validation", batch_size=8, max_length=384
    ),
}


def main() -> None:
    """Time the commands with the given names; all by default."""
    parser = argparse.ArgumentParser(prog="commands")
    parser.add_argument("mirror", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("names", nargs="*", choices=[*COMMANDS, ALL], default=ALL)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    table = Table("command", "bertcli, wall s", "peer, wall s", "speedup", "min", "max", "CPU s")
    for name in COMMANDS if ALL in arguments.names else arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            table.add_row(name, *_compare(COMMANDS[name], arguments, Path(folder)))
    Console(width=120).print(table)


def _compare(command: Command, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Time pairs of one command; return the cells of its row."""
    files = _write_rows(command, arguments.mirror, folder)
    commands = (
        [
            sys.executable, "-m", "bertcli", "finetune", command.recipe, f"model.name={arguments.model.resolve()}",
            "--mirror", str(folder), "--run", str(folder / "run"), "--overwrite", "--quiet",
            f"training.epochs={command.epochs}", f"training.global_batch_size={command.batch_size}",
            "training.learning_rate=5e-5", "evaluation.every_epochs=1", f"data.max_length={command.max_length}",
        ],
        [
            sys.executable, "-m", "tests.benchmarks.trainer_script", command.kind, str(arguments.model), *files,
            str(folder / "peer"), str(command.epochs),
        ],
    )  # fmt: skip
    walls: tuple[list[float], list[float]] = ([], [])
    cpus: tuple[list[float], list[float]] = ([], [])
    for index in range(arguments.rounds):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            wall, cpu = _seconds(commands[side])
            walls[side].append(wall)
            cpus[side].append(cpu)
            print(f"{command.recipe}: {('bertcli', 'peer')[side]} {wall:.2f} s", file=sys.stderr, flush=True)
    ratios = [peer / own for own, peer in zip(*walls, strict=True)]
    medians = [f"{statistics.median(values):.1f}" for values in (*walls, *cpus)]
    ratio = f"{statistics.median(ratios):.2f} x"
    return [*medians[:2], ratio, f"{min(ratios):.2f}", f"{max(ratios):.2f}", ", ".join(medians[2:])]


def _write_rows(command: Command, mirror: Path, folder: Path) -> list[str]:
    """Write the rows to train and to evaluate on into a mirror in `folder`, and return both files."""
    sizes = {"train": command.num_rows, "validation": command.num_validation_rows}
    sources = {"train": command.train_split, "validation": "validation"}
    target = folder / "datasets" / command.folder
    repository = Path("datasets", *Path(command.folder).parts[:2])
    shutil.copytree(mirror / repository, folder / repository)
    files = []
    for split, size in sizes.items():
        rows = pq.read_table(mirror / "datasets" / command.folder / f"{sources[split]}-00000-of-00001.parquet")
        if size is not None:
            rows = rows.take(np.random.default_rng(1).permutation(len(rows))[:size])
        files.append(str(target / f"{split}-00000-of-00001.parquet"))
        pq.write_table(rows, files[-1])
    return files


def _seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        sys.exit(process.stderr)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
