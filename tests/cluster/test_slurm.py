"""Batch scripts as text, and run by bash with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bertcli.cluster.slurm import Place, Request, batch_script, seconds_ahead
from bertcli.errors import UsageError

PLACE = Place(Path("/work/my project"), Path("/work/my project/50%/slurm"), ("bertcli",))
TASKS = [("one", ["finetune", "it's.yaml", "a=$HOME"]), ("two", ["finetune", "two words", "*"])]


def directives(request: Request, number_of_tasks: int = 1) -> dict[str, str]:
    lines = batch_script("about", TASKS[:number_of_tasks], request, PLACE).splitlines()
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    return {name: value for name, _, value in pairs}


def test_what_is_asked_for_is_written_out() -> None:
    assert directives(Request()) == {
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
    asked = directives(Request(2, 4, 8, "1:00:00", "gpu", ("--account=ours", "exclusive")), 2)
    assert asked["output"].endswith("/%A_%a.log'")
    wanted = {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8", "time": "1:00:00"}
    assert wanted.items() <= asked.items()
    assert {"partition": "gpu", "array": "0-1", "account": "ours", "exclusive": ""}.items() <= asked.items()
    assert "gpus-per-node" not in directives(Request(gpus=0))
    assert directives(Request(gpus=0))["ntasks-per-node"] == "1"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("10", 60), ("10:30", 63), ("1:00:00", 360), ("0-2", 600), ("2-01:30", 600), ("2-00:00:00", 600), (None, 300)],
)
def test_a_job_is_told_to_stop_a_tenth_of_its_time_ahead(time: str | None, seconds: int) -> None:
    assert seconds_ahead(time) == seconds


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(time="2h"), "--time 2h"),
        (Request(time="1:2:3:4"), "--time"),
        (Request(time="0:30"), "a minute or more"),
        (Request(further=("nodes=3",)), "sets nodes itself"),
        (Request(further=("-A ours",)), "expected a directive"),
        (Request(partition="gpu\n#SBATCH --time=1"), "no line break"),
    ],
)
def test_what_slurm_would_not_understand_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        batch_script("about", TASKS, request_, PLACE)


class Stage:
    """Runs a batch script where `srun` does what a test says."""

    def __init__(self, step: str, state: str = "RUNNING"):
        lines = {"srun": step, "squeue": f"echo {state}", "scontrol": "echo scontrol $@"}
        for name, line in lines.items():
            Path(name).write_text(f"#!/bin/bash\n{line}\n")
            Path(name).chmod(0o755)

    def start(self, script: str, **variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{Path.cwd()}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"} | variables
        return subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)


SCRIPT = batch_script("about", TASKS[:1], Request(cpus=3), replace(PLACE, mirror=Path("/a mirror")))


@pytest.mark.parametrize("number", [0, 1])
def test_each_task_of_an_array_has_its_words(number: int) -> None:
    stage = Stage("""printf '%s|' "${@: -3}" """)
    process = stage.start(batch_script("about", TASKS, Request(), PLACE), SLURM_ARRAY_TASK_ID=str(number))
    assert process.communicate()[0] == "|".join([*TASKS[number][1], ""])


def test_the_step_has_its_cores_and_knows_the_mirror_and_no_network() -> None:
    told, _ = Stage('echo "$@ $BERTCLI_MIRROR $HF_HUB_OFFLINE"').start(SCRIPT).communicate()
    assert "--cpus-per-task=3 bertcli finetune it's.yaml a=$HOME /a mirror 1" in told


@pytest.mark.parametrize("code", [85, 138, 143])
def test_a_run_that_was_stopped_goes_back_into_the_queue(code: int) -> None:
    process = Stage(f"exit {code}").start(SCRIPT)
    assert process.communicate()[0] == "scontrol requeue 12\n"
    assert process.returncode == code


def test_a_task_of_an_array_requeues_itself_alone() -> None:
    array = batch_script("about", TASKS, Request(), PLACE)
    process = Stage("exit 85").start(array, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="1")
    assert process.communicate()[0] == "scontrol requeue 12_1\n"


@pytest.mark.parametrize(("code", "state"), [(0, "RUNNING"), (1, "RUNNING"), (137, "RUNNING"), (143, "COMPLETING")])
def test_one_that_is_over_or_cancelled_does_not(code: int, state: str) -> None:
    process = Stage(f"exit {code}", state).start(SCRIPT)
    assert process.communicate()[0] == ""
    assert process.returncode == code


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_what_the_script_is_told_it_tells_the_run_and_waits(number: int) -> None:
    stage = Stage("trap 'sleep 0.1; echo saved; exit 85' USR1; touch began; while :; do sleep 0.01; done")
    process = stage.start(SCRIPT)
    while not Path("began").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "saved\nscontrol requeue 12\n"
    assert process.returncode == 85
