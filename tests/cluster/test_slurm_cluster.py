"""Jobs on a real two-node Slurm cluster on this machine, including preemption and requeueing."""

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
TIMEOUT_SECONDS = 150
RECIPE = [
    "sample/sentiment",
    "data.max_length=32",
    "data.max_eval_examples=50",
    "training.global_batch_size=8",
    "training.max_steps=200",
    "evaluation.every_steps=50",
    "hardware.log_every_steps=5",
    "hardware.device=cpu",
    "hardware.precision=fp32",  # `auto` is bf16 on some CPUs, whose rounding differs by 0.003 between one and two nodes
]
DROPOUT = "model.dropout=0.1"  # so that a resumed run needs its random state


class Cluster:
    """Runs Slurm programs and `bertcli` in one folder."""

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
        """Run a program and return its stdout."""
        process = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0 or not check, process.stderr
        return process.stdout.strip()

    def submit(self, run: str, *arguments: str) -> dict[str, str]:
        """Submit a job without GPUs and return the JSON output of `bertcli submit`."""
        program = (sys.executable, "-m", "bertcli", "submit", *RECIPE, *arguments, "--run", run)
        return json.loads(self.call(*program, "--gpus", "0", "--time", "20", "--json"))

    def wait_until(self, job: str, *states: str) -> None:
        """Wait until the job, or each task of an array, is in one of the states."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        squeue = ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        while not set(current := self.call(*squeue).splitlines()) <= set(states):
            assert time.monotonic() < deadline, f"job {job} is {current}: {self.logs()}"
            time.sleep(0.3)

    def wait_for_steps(self, run: str) -> None:
        """Wait until the run has logged a training step."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        history = RunFolder(self.folder / run).train_history
        while not (history.is_file() and history.stat().st_size):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        """Return the logs of all jobs."""
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self.folder.glob("*/slurm/*.log"))

    def results(self, run: str) -> dict[str, Any]:
        """Return the results of a finished run."""
        return json.loads(RunFolder(self.folder / run).results.read_text())

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """Return the weights of a run's model."""
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
    """A finished array of four seeds, the last of which was interrupted once, and the job that collects the results."""
    submitted = cluster.submit("seeds", DROPOUT, "training.seed=[1,2,3,4]", "--array")
    cluster.wait_for_steps("seeds/seed-4")
    # The last task has the job ID of the array; requeueing it must not requeue the other tasks.
    cluster.call("scancel", "--signal=USR1", "--batch", f"{submitted['job']}_3")
    cluster.wait_until(submitted["job"], "COMPLETED")
    cluster.wait_until(submitted["gathering_job"], "COMPLETED")
    return submitted


def test_array_of_seeds_is_collected_as_if_run_by_one_job(cluster: Cluster, seeds: dict[str, str]) -> None:
    results = cluster.results("seeds")
    assert results["runs"] == [f"seeds/seed-{seed}" for seed in (1, 2, 3, 4)]
    each = [cluster.results(run)["metrics"]["validation"]["loss"] for run in results["runs"]]
    assert results["metrics"]["validation"]["loss"]["values"] == each
    assert Path(seeds["gathering_log"]).read_text().count("is already finished; showing its results") == 4


def test_interrupted_array_task_resumes_alone(cluster: Cluster, seeds: dict[str, str]) -> None:
    logs = [Path(seeds["log"].replace("*", str(number))).read_text() for number in range(4)]
    assert ["resuming" in log for log in logs] == [False, False, False, True]
    assert "stopped and saved after step" in logs[3]


def test_preempted_job_ends_like_an_uninterrupted_one(cluster: Cluster, seeds: dict[str, str]) -> None:
    submitted = cluster.submit("preempted", DROPOUT)
    cluster.wait_for_steps("preempted")
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    cluster.wait_until(urgent, "COMPLETED")
    cluster.wait_until(submitted["job"], "COMPLETED")
    log = Path(submitted["log"]).read_text()
    assert log.count("stopped and saved after step") == log.count("resuming preempted") == 1, log
    uninterrupted, preempted = cluster.weights("seeds/seed-1"), cluster.weights("preempted")
    assert uninterrupted.keys() == preempted.keys()
    assert all(torch.equal(tensor, preempted[name]) for name, tensor in uninterrupted.items())
    assert cluster.results("preempted")["metrics"] == cluster.results("seeds/seed-1")["metrics"]


def test_shipped_scripts_run_seeds_and_collect_their_results(cluster: Cluster, seeds: dict[str, str]) -> None:
    folder = REPOSITORY / "recipes" / "slurm"
    sbatch = ("sbatch", "--parsable", "--gpus-per-node=0", "--time=20")
    array = cluster.call(*sbatch, "--array=3-4", str(folder / "seeds.sh"), "shipped", *RECIPE, DROPOUT)
    arguments = (*RECIPE, DROPOUT, "training.seed=[3,4]", "--run", "shipped")
    last = cluster.call(*sbatch, f"--dependency=afterany:{array}", str(folder / "one-gpu.sh"), *arguments)
    cluster.wait_until(last, "COMPLETED")
    log = (cluster.folder / f"one-gpu-{last}.log").read_text()
    assert log.count("is already finished; showing its results") == 2, log
    # Seed 4 of the other array was interrupted; this one was not.
    interrupted, uninterrupted = cluster.weights("seeds/seed-4"), cluster.weights("shipped/seed-4")
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in interrupted.items())
    assert len(cluster.results("shipped")["runs"]) == 2


def test_array_of_a_search_shares_its_trials(cluster: Cluster) -> None:
    space = ["search.learning_rate={log_uniform: [1e-5, 1e-3]}", "search.trials=3"]
    submitted = cluster.submit("search", *space, "--array", "--jobs", "2")
    cluster.wait_for_steps("search/trial-1")
    cluster.call("scancel", "--signal=USR1", "--batch", f"{submitted['job']}_0")
    cluster.wait_until(submitted["job"], "COMPLETED")
    cluster.wait_until(submitted["gathering_job"], "COMPLETED")
    assert list(cluster.results("search")["points"]) == ["trial-0", "trial-1", "trial-2"]
    logs = [Path(submitted["log"].replace("*", str(number))).read_text() for number in range(2)]
    assert "stopped and saved after step" in logs[0]
    assert sum(log.count("resuming search/trial-") for log in logs) == 1


def test_two_nodes_train_the_same_as_one(cluster: Cluster) -> None:
    one, two = cluster.submit("one"), cluster.submit("two", "--nodes", "2")
    for job in (one["job"], two["job"]):
        cluster.wait_until(job, "COMPLETED")
    description = cluster.call("scontrol", "show", "job", two["job"])
    assert "NumNodes=2" in description
    assert "NumTasks=2" in description
    assert Path(two["log"]).read_text().count("200/200  validation") == 1
    weights = cluster.weights("two")
    for name, tensor in cluster.weights("one").items():
        if not name.endswith("key.bias"):  # softmax is invariant to it: its gradient is rounding noise
            assert torch.allclose(tensor, weights[name], atol=1e-3), name


def test_cancelled_job_is_not_requeued(cluster: Cluster) -> None:
    job = cluster.submit("cancelled")["job"]
    while not cluster.call("squeue", "--noheader", "--steps", f"{job}.0", check=False):
        time.sleep(0.2)
    cluster.call("scancel", job)
    cluster.wait_until(job, "CANCELLED")
    assert "Restarts=0" in cluster.call("scontrol", "show", "job", job)
