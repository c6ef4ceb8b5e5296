"""Runs that are killed, stopped, corrupted or out of disk space end exactly like an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertcli.runs.history import read_records

from .launcher import FILLER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_KILLS = 50
MAX_FILE_EVENTS = 150  # roughly the number of file operations of an uninterrupted run
TIMING_FIELDS = ("examples_per_second", "tokens_per_second")


class Launcher:
    """Runs `bertcli finetune` on a small recipe in a process with injected faults."""

    def __init__(self, recipe: Path):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.recipe = recipe

    def run(self, run: Path, **fault: Any) -> int:
        """Start or resume the run with a fault, wait for its end and return the exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"signal": signal.SIGKILL, "at": None, "after": None, "fill_at": None} | fault
        paths = {"folder": str(run), "log": str(run.with_suffix(".log"))}
        arguments = ["finetune", str(self.recipe), "--run", str(run)]
        self._process.stdin.write(json.dumps({"arguments": arguments} | paths | request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Wait for the launcher process to exit."""
        self._process.communicate()


@pytest.fixture
def launcher(encoder: Path, reviews: Path) -> Iterator[Launcher]:
    recipe = Path("small.yaml").resolve()
    recipe.write_text(
        f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
        f"model: {{name: {encoder}, dropout: 0.1}}\ndata: {{max_length: 16}}\n"
        "training: {max_steps: 40, global_batch_size: 7, learning_rate: 1e-3, seed: 1}\n"
        "evaluation: {every_steps: 4}\nhardware: {log_every_steps: 3}\n",
        "utf-8",
    )
    launcher = Launcher(recipe)
    yield launcher
    launcher.close()


@pytest.fixture
def reference(launcher: Launcher) -> Path:
    """An uninterrupted run."""
    run = Path("reference").resolve()
    assert launcher.run(run) == 0, run.with_suffix(".log").read_text()
    return run


def read_untimed(history: Path) -> list[dict[str, Any]]:
    """The records of a history without the fields that depend on the machine's speed."""
    return [
        {name: value for name, value in record.items() if name not in TIMING_FIELDS} for record in read_records(history)
    ]


def assert_same_run(run: Path, reference: Path) -> None:
    """Weights are equal bit for bit, histories except for speeds, and so are the final scores."""
    for file in ("model/model.safetensors", "checkpoints/step-00000040/model.safetensors"):
        actual, expected = load_file(run / file), load_file(reference / file)
        assert all(torch.equal(actual[name], expected[name]) for name in expected), file
    for history in ("train.jsonl", "eval.jsonl"):
        assert read_untimed(run / history) == read_untimed(reference / history), history
    actual, expected = (json.loads((folder / "results.json").read_text()) for folder in (run, reference))
    assert actual["metrics"] == expected["metrics"]
    assert actual["best_step"] == expected["best_step"]


def repeat_until_finished(run: Path, reference: Path, run_with_fault: Callable[[], int]) -> int:
    """Resume the run with faults until it finishes; check it and return the number of interruptions."""
    for num_interruptions in range(200):
        code = run_with_fault()
        log = run.with_suffix(".log").read_text()
        assert "Traceback" not in log, log
        if code == 0:
            assert_same_run(run, reference)
            return num_interruptions
    raise AssertionError("the run did not finish")


def test_run_killed_at_any_moment_resumes_exactly(launcher: Launcher, reference: Path) -> None:
    random, num_kills, num_runs = Random(1), 0, 0

    def kill() -> int:
        if random.random() < 0.7:
            code = launcher.run(run, at=random.randint(1, MAX_FILE_EVENTS))
        else:
            code = launcher.run(run, after=random.uniform(0.2, 3.0))
        assert code in (0, -signal.SIGKILL)
        return code

    while num_kills < NUM_KILLS:
        run = Path(f"killed-{num_runs}").resolve()
        num_kills += repeat_until_finished(run, reference, kill)
        num_runs += 1
    print(f"{num_kills} kills over {num_runs} runs")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 85)])
def test_run_stopped_by_a_signal_resumes_exactly(
    launcher: Launcher, reference: Path, number: int, exit_code: int
) -> None:
    random, run, codes = Random(2), Path("stopped").resolve(), list[int]()

    def stop() -> int:
        codes.append(launcher.run(run, signal=number, at=random.randint(1, MAX_FILE_EVENTS)))
        assert codes[-1] in (0, exit_code, -number)  # the last one: before training started
        return codes[-1]

    repeat_until_finished(run, reference, stop)
    log = run.with_suffix(".log").read_text()
    assert log.count("re-run the same command") == codes.count(exit_code) > 0


def test_run_with_a_truncated_checkpoint_resumes_from_the_previous_one(launcher: Launcher, reference: Path) -> None:
    random, run = Random(3), Path("truncated").resolve()

    def kill_and_truncate() -> int:
        code = launcher.run(run, at=random.randint(60, MAX_FILE_EVENTS))
        checkpoints = sorted(run.glob("checkpoints/step-*"))
        if code != 0 and len(checkpoints) > 1:
            file = random.choice([path for path in checkpoints[-1].iterdir() if path.stat().st_size])
            os.truncate(file, random.randrange(file.stat().st_size))
        return code

    repeat_until_finished(run, reference, kill_and_truncate)
    assert "is corrupt" in run.with_suffix(".log").read_text()


def test_run_on_a_full_disk_resumes_when_space_is_free(launcher: Launcher, reference: Path) -> None:
    disk = Path("disk").resolve()
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here")
    random, run, codes = Random(4), disk / "run", list[int]()

    def fill() -> int:
        codes.append(launcher.run(run, fill_at=random.randint(20, MAX_FILE_EVENTS)))
        (disk / FILLER).unlink(missing_ok=True)
        assert codes[-1] in (0, 1)
        return codes[-1]

    try:
        repeat_until_finished(run, reference, fill)
        log = run.with_suffix(".log").read_text()
        assert log.count("is full") == codes.count(1) > 0
    finally:
        subprocess.run(["umount", str(disk)], check=False)
