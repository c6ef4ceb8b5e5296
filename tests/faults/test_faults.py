"""Runs that are killed, stopped, damaged or out of room, and end where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import re
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
KILLS = 50
MOST_TOUCHES = 150  # about what an undisturbed run does to files
OF_THE_CLOCK = ("examples_per_second", "tokens_per_second")


class Launcher:
    """`bertcli finetune` on a small recipe, in a process that can be struck."""

    def __init__(self, recipe: Path):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.recipe = recipe

    def run(self, run: Path, **strike: Any) -> int:
        """Begin, be struck, wait; the exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"signal": signal.SIGKILL, "at": None, "after": None, "fill_at": None} | strike
        files = {"folder": str(run), "log": str(run.with_suffix(".log"))}
        arguments = ["finetune", str(self.recipe), "--run", str(run)]
        self._process.stdin.write(json.dumps({"arguments": arguments} | files | asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Let it end."""
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
def whole(launcher: Launcher) -> Path:
    """An undisturbed run."""
    run = Path("whole").resolve()
    assert launcher.run(run) == 0, run.with_suffix(".log").read_text()
    return run


def assert_same(run: Path, whole: Path) -> None:
    """Weights to the last bit, histories but for the speed, and what is left lying about."""
    for part in ("model/model.safetensors", "checkpoints/step-00000040/model.safetensors"):
        one, two = load_file(run / part), load_file(whole / part)
        assert all(torch.equal(one[name], two[name]) for name in two), part
    for history in ("train.jsonl", "eval.jsonl"):
        one_records, two_records = (
            [
                {name: value for name, value in record.items() if name not in OF_THE_CLOCK}
                for record in read_records(folder / history)
            ]
            for folder in (run, whole)
        )
        assert one_records == two_records, history
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_step"] == results[1]["best_step"]


def until_done(launcher: Launcher, run: Path, whole: Path, strike: Callable[[], int]) -> int:
    """Strike the run again and again until it ends by itself; the number of strikes."""
    for strikes in range(200):
        code = strike()
        log = run.with_suffix(".log").read_text()
        assert "Traceback" not in log, log
        if code == 0:
            assert_same(run, whole)
            return strikes
    raise AssertionError("it never came to an end")


def test_killed_at_any_moment_a_run_ends_where_an_undisturbed_one_ends(launcher: Launcher, whole: Path) -> None:
    random, kills, number = Random(1), 0, 0

    def kill() -> int:
        if random.random() < 0.7:
            code = launcher.run(run, at=random.randint(1, MOST_TOUCHES))
        else:
            code = launcher.run(run, after=random.uniform(0.2, 3.0))
        assert code in (0, -signal.SIGKILL)
        return code

    while kills < KILLS:
        run = Path(f"killed-{number}").resolve()
        kills += until_done(launcher, run, whole, kill)
        number += 1
    print(f"{kills} kills over {number} runs")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 85)])
def test_stopped_by_a_signal_a_run_ends_where_an_undisturbed_one_ends(
    launcher: Launcher, whole: Path, number: int, expected: int
) -> None:
    random, run, codes = Random(2), Path("stopped").resolve(), list[int]()

    def stop() -> int:
        codes.append(launcher.run(run, signal=number, at=random.randint(1, MOST_TOUCHES)))
        assert codes[-1] in (0, expected, -number)  # the last: before training began
        return codes[-1]

    until_done(launcher, run, whole, stop)
    log = run.with_suffix(".log").read_text()
    # A signal in the last step finds nothing to go on with, only what may follow the run.
    assert len(re.findall("the same command goes on|waits for the same command", log)) == codes.count(expected) > 0


def test_with_its_newest_checkpoint_cut_short_a_run_goes_on_from_the_one_before(
    launcher: Launcher, whole: Path
) -> None:
    random, run = Random(3), Path("cut").resolve()

    def kill_and_cut() -> int:
        code = launcher.run(run, at=random.randint(60, MOST_TOUCHES))
        checkpoints = sorted(run.glob("checkpoints/step-*"))
        if code != 0 and len(checkpoints) > 1:
            file = random.choice([path for path in checkpoints[-1].iterdir() if path.stat().st_size])
            os.truncate(file, random.randrange(file.stat().st_size))
        return code

    until_done(launcher, run, whole, kill_and_cut)
    assert "is damaged" in run.with_suffix(".log").read_text()


def test_a_full_disk_harms_nothing_and_the_run_goes_on_when_there_is_room(launcher: Launcher, whole: Path) -> None:
    disk = Path("disk").resolve()
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    random, run, full = Random(4), disk / "run", [0]

    def fill() -> int:
        code = launcher.run(run, fill_at=random.randint(20, MOST_TOUCHES))
        (disk / FILLER).unlink(missing_ok=True)
        assert code in (0, 1)
        full[0] += code == 1
        return code

    try:
        until_done(launcher, run, whole, fill)
        log = run.with_suffix(".log").read_text()
        assert log.count("is full") == full[0] > 0
    finally:
        subprocess.run(["umount", str(disk)], check=False)
