"""Rank and world size from Slurm's variables, and the start of several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.cluster import launch as module
from bertcli.cluster.launch import FAILURE_VARIABLE, first_node, join_slurm_step, launch, wait_for_all
from bertcli.errors import Interrupted, ProcessError

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_GTIDS": "4,5,6,7",
    "SLURM_CPUS_ON_NODE": "32",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


def torch_variables(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    """Return torch's variables after `join_slurm_step`."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM")}
    monkeypatch.setattr(os, "environ", kept | variables)
    join_slurm_step()
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_join_slurm_step_sets_torch_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_variables(monkeypatch, **STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
        "OMP_NUM_THREADS": "8",
    }


def test_join_slurm_step_leaves_launched_and_single_processes_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_variables(monkeypatch, **STEP, RANK="3") == {"RANK": "3"}
    assert torch_variables(monkeypatch, **STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    batch_script = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert torch_variables(monkeypatch, **batch_script) == {}
    assert torch_variables(monkeypatch, **STEP, MASTER_ADDR="10.0.0.1")["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-09,12],big1", "gpu07"),
        ("r[1-2]-c[3,5]", "r1-c3"),
        ("n[5,7].hpc", "n5.hpc"),
    ],
)
def test_first_node_of_slurm_node_list(node_list: str, first: str) -> None:
    assert first_node(node_list) == first


PRELUDE = """
import os, signal, sys, time
from bertcli.cluster.launch import report_failure
def wait_for(*names):
    while not all(map(os.path.exists, names)):
        time.sleep(0.01)
"""
WAIT_FOREVER = "open('waiting', 'w'); time.sleep(60)"
KILLED = "wait_for('waiting'); os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def launch_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Launch one Python program per rank in place of `bertcli`."""

    def launch_all(*programs: str) -> None:
        def start_process(rank: int, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", PRELUDE + programs[rank]], env=environment)

        monkeypatch.setattr(module, "start_process", start_process)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.005)
        monkeypatch.setattr(module, "free_port", lambda: module.MIN_PORT)  # tests have no sockets
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        launch(len(programs), ["finetune"])

    return launch_all


def test_launch_sets_the_variables_of_torch(launch_programs: Callable[..., None]) -> None:
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    program = (
        f"assert [os.environ[name] for name in {names}] == ['2', '2', '127.0.0.1']; int(os.environ['MASTER_PORT'])"
    )
    launch_programs(program, program)


@pytest.mark.parametrize(
    ("first", "second", "message", "exit_code"),
    [
        (WAIT_FOREVER, KILLED, "process 1 died (killed, perhaps for lack of memory); re-run the same command", 137),
        (KILLED, WAIT_FOREVER, "process 0 died (killed, perhaps for lack of memory); re-run the same command", 137),
        (WAIT_FOREVER, "wait_for('waiting'); os.abort()", "process 1 died (ended by SIGABRT); re-run the same", 134),
        (WAIT_FOREVER, "wait_for('waiting'); sys.exit(3)", "process 1 died (exit code 3); re-run", 3),
        (WAIT_FOREVER, "wait_for('waiting'); report_failure('no rows', 1)", "process 1: no rows", 1),
        ("wait_for('waiting'); report_failure('no rows', 2)", WAIT_FOREVER, "no rows", 2),
    ],
)
def test_launch_stops_all_processes_once_one_fails_and_names_it(
    launch_programs: Callable[..., None], first: str, second: str, message: str, exit_code: int
) -> None:
    with pytest.raises(ProcessError) as caught:
        launch_programs(first, second)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize(
    ("codes", "failure_times", "failed_rank"),
    [
        ((1, 1), (2.0, 1.0), 1),  # the other lost its peer after that
        ((1, None), (2.0, 1.0), 1),  # it has not exited yet
        ((1, -9), (2.0, None), 1),  # killed without a word
        ((-9, 1), (None, 2.0), 0),
        ((0, 1), (None, 2.0), 1),
    ],
)
def test_first_of_several_failures_is_the_cause(
    codes: tuple[int | None, ...], failure_times: tuple[float | None, ...], failed_rank: int, tmp_path: Path
) -> None:
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    for file, failure_time in zip(files, failure_times, strict=True):
        if failure_time is not None:
            file.write_text(json.dumps({"message": "", "exit_code": 1, "time": failure_time}))
    polls = [iter([code, 1 if code is None else code]) for code in codes]
    processes: list[Any] = [SimpleNamespace(poll=poll.__next__, send_signal=lambda _: None) for poll in polls]
    assert wait_for_all(processes, files, received=[]) == failed_rank


def test_launch_kills_a_process_that_waits_for_one_that_failed(
    launch_programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KILL_AFTER_SECONDS", 0.0)
    with pytest.raises(ProcessError, match=r"^process 1: no rows$"):
        launch_programs(
            f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT_FOREVER}",
            "wait_for('waiting'); report_failure('no rows', 1)",
        )


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 85)])
def test_launch_passes_signals_on_and_waits_until_all_have_saved(
    launch_programs: Callable[..., None], number: signal.Signals, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KILL_AFTER_SECONDS", 0.0)  # not for those that save
    stop = f"signal.signal({int(number)}, lambda *_: {{save}}); open(f'ready{{rank}}', 'w'); time.sleep(60)"
    save = "(wait_for('first'), report_failure('stopped and saved', 143))"
    programs = [
        stop.format(rank=0, save=save),
        stop.format(rank=1, save="(open('first', 'w'), report_failure('stopped and saved', 143))"),
        f"wait_for('ready0', 'ready1'); os.kill(os.getppid(), {int(number)}); wait_for('first')",
    ]
    with pytest.raises(Interrupted, match=r"^stopped and saved$") as caught:
        launch_programs(*programs)
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("options", [["--json"], ["--json", "--debug"]])
def test_failed_process_leaves_its_message_to_the_launcher(options: list[str], tmp_path: Path) -> None:
    failure = tmp_path / "failure.json"
    environment = os.environ | {"RANK": "1", FAILURE_VARIABLE: str(failure)}
    command = [sys.executable, "-m", "bertcli", "report", "nowhere", *options]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert ("process 1: Traceback" in process.stderr) == ("--debug" in options)
    assert "--debug" in options or process.stderr == ""
    assert json.loads(failure.read_text())["message"].startswith("found no finished run in nowhere")


def test_failure_of_any_process_is_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ProcessError("process 1: no rows", 1)

    monkeypatch.setattr(module, "launch", fail)
    result = CliRunner().invoke(app, ["finetune", "sample/sentiment", "--processes", "2", "--json"])
    assert json.loads(result.stdout) == {"error": "process 1: no rows", "exit_code": 1}
    assert result.stderr == "error: process 1: no rows\n"
    assert result.exit_code == 1


@pytest.mark.parametrize("arguments", [("--help",), ("recipes", "check", "sample/sentiment", "no.key=1")])
def test_launched_process_ends_without_exit_handlers(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
import atexit, os, sys
from bertcli.cli.main import main
atexit.register(os.abort)
sys.argv = ["bertcli", *{arguments!r}]
main()
"""
    command, abort = [sys.executable, "-c", code], -signal.SIGABRT
    variables = {name: value for name, value in os.environ.items() if name != FAILURE_VARIABLE}
    ended = subprocess.run(command, env=variables, capture_output=True, check=False)
    launched = subprocess.run(
        command, env=variables | {FAILURE_VARIABLE: str(tmp_path / "failure")}, capture_output=True, check=False
    )
    assert (ended.returncode, launched.returncode) == (abort, 0 if "--help" in arguments else 2)
    assert launched.stdout == ended.stdout
