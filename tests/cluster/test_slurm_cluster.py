"""Jobs of a real Slurm cluster of two nodes on this machine, one of which makes room for another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertcli.runs.folder import RunFolder

from ..conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).with_name("slurm.sh")
PATIENCE = 150  # seconds
RECIPE = [
    "sample/sentiment",
    "data.max_length=32",
    "data.max_eval_examples=50",
    "training.global_batch_size=8",
    "training.max_steps=200",
    "evaluation.every_steps=50",
    "hardware.log_every_steps=5",
    "hardware.device=cpu",
]
DROPOUT = "model.dropout=0.1"  # so that a run that goes on needs its random numbers


class Cluster:
    """Slurm's and our programs, called from one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "BERTCLI_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def call(self, *command: str, check: bool = True) -> str:
        """What a program says on stdout."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def submit(self, run: str, *words: str) -> dict[str, str]:
        """What `bertcli submit` says of a job without GPUs."""
        program = (sys.executable, "-m", "bertcli", "submit", *RECIPE, *words, "--run", run)
        return json.loads(self.call(*program, "--gpus", "0", "--time", "20", "--json"))

    def wait_until(self, job: str, *states: str) -> None:
        """Until the job, or each of its tasks, is in one of the states."""
        deadline = time.monotonic() + PATIENCE
        asked = ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        while not set(found := self.call(*asked).splitlines()) <= set(states):
            assert time.monotonic() < deadline, f"job {job} is {found}: {self.logs()}"
            time.sleep(0.3)

    def wait_for_steps(self, run: str) -> None:
        """Until the run has begun to learn."""
        deadline = time.monotonic() + PATIENCE
        history = RunFolder(self.folder / run).train_history
        while not (history.is_file() and history.stat().st_size):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        """Of all jobs."""
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self.folder.glob("*/slurm/*.log"))

    def results(self, run: str) -> dict[str, Any]:
        """Of a finished run."""
        return json.loads(RunFolder(self.folder / run).results.read_text())

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """Of a run's model."""
        return load_file(RunFolder(self.folder / run).model / "model.safetensors")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    try:
        started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
        if started.returncode == 3:
            pytest.skip(f"{started.stderr.strip()}; on Debian: apt-get install slurmctld slurmd slurm-client munge")
        assert started.returncode == 0, started.stderr
        yield Cluster(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="module")
def seeds(cluster: Cluster) -> dict[str, str]:
    """An array of four seeds, done, the last of which was stopped once; and the job that gathers."""
    told = cluster.submit("seeds", DROPOUT, "training.seed=[1,2,3,4]", "--array")
    cluster.wait_for_steps("seeds/seed-4")
    # The last task has the number of the whole array; what it asks for must not befall the others.
    cluster.call("scancel", "--signal=USR1", "--batch", f"{told['job']}_3")
    cluster.wait_until(told["job"], "COMPLETED")
    cluster.wait_until(told["gathering_job"], "COMPLETED")
    return told


def test_an_array_of_seeds_is_gathered_as_if_one_job_had_run_them(cluster: Cluster, seeds: dict[str, str]) -> None:
    results = cluster.results("seeds")
    assert results["runs"] == [f"seeds/seed-{seed}" for seed in (1, 2, 3, 4)]
    each = [cluster.results(run)["metrics"]["validation"]["loss"] for run in results["runs"]]
    assert results["metrics"]["validation"]["loss"]["values"] == each
    assert Path(seeds["gathering_log"]).read_text().count("is finished; its results stand") == 4


def test_a_task_of_an_array_that_was_stopped_goes_on_alone(cluster: Cluster, seeds: dict[str, str]) -> None:
    logs = [Path(seeds["log"].replace("*", str(number))).read_text() for number in range(4)]
    assert ["resuming" in log for log in logs] == [False, False, False, True]
    assert "stopped after step" in logs[3]


def test_a_job_that_makes_room_for_another_ends_where_an_undisturbed_one_ends(
    cluster: Cluster, seeds: dict[str, str]
) -> None:
    told = cluster.submit("disturbed", DROPOUT)
    cluster.wait_for_steps("disturbed")
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    cluster.wait_until(urgent, "COMPLETED")
    cluster.wait_until(told["job"], "COMPLETED")
    log = Path(told["log"]).read_text()
    assert log.count("stopped after step") == log.count("resuming disturbed") == 1, log
    undisturbed, disturbed = cluster.weights("seeds/seed-1"), cluster.weights("disturbed")
    assert undisturbed.keys() == disturbed.keys()
    assert all(torch.equal(tensor, disturbed[name]) for name, tensor in undisturbed.items())
    assert cluster.results("disturbed")["metrics"] == cluster.results("seeds/seed-1")["metrics"]


def test_the_shipped_scripts_run_seeds_and_sum_them_up(cluster: Cluster, seeds: dict[str, str]) -> None:
    folder = REPOSITORY / "recipes" / "slurm"
    send = ("sbatch", "--parsable", "--gpus-per-node=0", "--time=20")
    array = cluster.call(*send, "--array=3-4", str(folder / "seeds.sh"), "shipped", *RECIPE, DROPOUT)
    words = (*RECIPE, DROPOUT, "training.seed=[3,4]", "--run", "shipped")
    last = cluster.call(*send, f"--dependency=afterany:{array}", str(folder / "one-gpu.sh"), *words)
    cluster.wait_until(last, "COMPLETED")
    log = (cluster.folder / f"one-gpu-{last}.log").read_text()
    assert log.count("is finished; its results stand") == 2, log
    # The fourth seed of the other array was stopped on its way, this one was not.
    stopped, undisturbed = cluster.weights("seeds/seed-4"), cluster.weights("shipped/seed-4")
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in stopped.items())
    assert len(cluster.results("shipped")["runs"]) == 2


def test_two_nodes_learn_what_one_learns(cluster: Cluster) -> None:
    one, two = cluster.submit("one"), cluster.submit("two", "--nodes", "2")
    for job in (one["job"], two["job"]):
        cluster.wait_until(job, "COMPLETED")
    described = cluster.call("scontrol", "show", "job", two["job"])
    assert "NumNodes=2" in described
    assert "NumTasks=2" in described
    assert Path(two["log"]).read_text().count("200/200  validation") == 1
    weights = cluster.weights("two")
    for name, tensor in cluster.weights("one").items():
        if not name.endswith("key.bias"):  # no softmax feeds it: its gradient is rounding noise
            assert torch.allclose(tensor, weights[name], atol=1e-3), name


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    job = cluster.submit("cancelled")["job"]
    while not cluster.call("squeue", "--noheader", "--steps", f"{job}.0", check=False):
        time.sleep(0.2)
    cluster.call("scancel", job)
    cluster.wait_until(job, "CANCELLED")
    assert "Restarts=0" in cluster.call("scontrol", "show", "job", job)
