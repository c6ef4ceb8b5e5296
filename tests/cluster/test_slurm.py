"""Batch scripts: their text, and their behavior in bash with fake Slurm programs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bertcli.cluster.slurm import JobCommand, JobEnvironment, JobResources, batch_script, signal_lead_seconds
from bertcli.errors import UsageError

ENVIRONMENT = JobEnvironment(Path("/work/my project"), Path("/work/my project/50%/slurm"), ("bertcli",))
COMMANDS = [
    JobCommand("one", ["finetune", "it's.yaml", "a=$HOME"]),
    JobCommand("two", ["finetune", "two words", "*"]),
]


def directives(resources: JobResources, num_tasks: int = 1) -> dict[str, str]:
    lines = batch_script("about", COMMANDS[:num_tasks], resources, ENVIRONMENT).splitlines()
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    return {name: value for name, _, value in pairs}


def test_batch_script_requests_the_resources() -> None:
    assert directives(JobResources()) == {
        "job-name": "50%",
        "chdir": "'/work/my project'",
        "output": "'/work/my project/50%%/slurm/%j.log'",
        "open-mode": "append",
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "requeue": "",
        "signal": "B:USR1@300",
    }
    full = directives(JobResources(2, 4, 8, "1:00:00", "gpu", ("--account=ours", "exclusive")), 2)
    assert full["output"].endswith("/%A_%a.log'")
    expected = {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8", "time": "1:00:00"}
    assert expected.items() <= full.items()
    assert {"partition": "gpu", "array": "0-1", "account": "ours", "exclusive": ""}.items() <= full.items()
    assert "gpus-per-node" not in directives(JobResources(gpus=0))
    assert directives(JobResources(gpus=0))["ntasks-per-node"] == "1"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("10", 60), ("10:30", 63), ("1:00:00", 360), ("0-2", 600), ("2-01:30", 600), ("2-00:00:00", 600), (None, 300)],
)
def test_signal_lead_is_a_tenth_of_the_time_limit(time: str | None, seconds: int) -> None:
    assert signal_lead_seconds(time) == seconds


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (JobResources(time="2h"), "--time 2h"),
        (JobResources(time="1:2:3:4"), "--time"),
        (JobResources(time="0:30"), "at least one minute"),
        (JobResources(extra_directives=("nodes=3",)), "submit` sets nodes"),
        (JobResources(extra_directives=("-A ours",)), "expected an sbatch option"),
        (JobResources(partition="gpu\n#SBATCH --time=1"), "without line breaks"),
    ],
)
def test_batch_script_rejects_invalid_resources(resources: JobResources, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        batch_script("about", COMMANDS, resources, ENVIRONMENT)


class FakeSlurm:
    """Runs a batch script with a fake `srun` that executes a given shell line."""

    def __init__(self, step: str, state: str = "RUNNING"):
        lines = {"srun": step, "squeue": f"echo {state}", "scontrol": "echo scontrol $@"}
        for name, line in lines.items():
            Path(name).write_text(f"#!/bin/bash\n{line}\n")
            Path(name).chmod(0o755)

    def start(self, script: str, **variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{Path.cwd()}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"} | variables
        return subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


SCRIPT = batch_script("about", COMMANDS[:1], JobResources(cpus=3), replace(ENVIRONMENT, mirror=Path("/a mirror")))


@pytest.mark.parametrize("index", [0, 1])
def test_array_task_gets_its_arguments(index: int) -> None:
    slurm = FakeSlurm("""printf '%s|' "${@: -3}" """)
    script = batch_script("about", COMMANDS, JobResources(), ENVIRONMENT)
    process = slurm.start(script, SLURM_ARRAY_TASK_ID=str(index))
    assert process.communicate()[0] == "|".join([*COMMANDS[index].arguments, ""])


def test_step_gets_cores_mirror_and_offline_mode() -> None:
    output, _ = FakeSlurm('echo "$@ $BERTCLI_MIRROR $HF_HUB_OFFLINE"').start(SCRIPT).communicate()
    assert "--cpus-per-task=3 bertcli finetune it's.yaml a=$HOME /a mirror 1" in output


@pytest.mark.parametrize("code", [85, 138, 143])
def test_interrupted_run_is_requeued(code: int) -> None:
    process = FakeSlurm(f"exit {code}").start(SCRIPT)
    assert process.communicate()[0] == "scontrol requeue 12\n"
    assert process.returncode == code


def test_array_task_requeues_only_itself() -> None:
    array = batch_script("about", COMMANDS, JobResources(), ENVIRONMENT)
    process = FakeSlurm("exit 85").start(array, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="1")
    assert process.communicate()[0] == "scontrol requeue 12_1\n"


@pytest.mark.parametrize(("code", "state"), [(0, "RUNNING"), (1, "RUNNING"), (137, "RUNNING"), (143, "COMPLETING")])
def test_finished_or_cancelled_run_is_not_requeued(code: int, state: str) -> None:
    process = FakeSlurm(f"exit {code}", state).start(SCRIPT)
    assert process.communicate()[0] == ""
    assert process.returncode == code


def test_script_forwards_a_signal_that_arrives_while_the_run_starts() -> None:
    slurm = FakeSlurm("trap 'echo saved; exit 85' USR1; touch began; while :; do sleep 0.01; done")
    early = "while [[ ! -e began ]]; do sleep 0.01; done; kill -USR1 $$\nstep=$!"
    process = slurm.start(SCRIPT.replace("step=$!", early))
    assert process.communicate()[0] == "saved\nscontrol requeue 12\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_script_forwards_signals_and_waits_for_the_run(number: int) -> None:
    slurm = FakeSlurm("trap 'sleep 0.1; echo saved; exit 85' USR1; touch began; while :; do sleep 0.01; done")
    process = slurm.start(SCRIPT)
    while not Path("began").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate()[0] == "saved\nscontrol requeue 12\n"
    assert process.returncode == 85
