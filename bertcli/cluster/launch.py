"""Run `bertcli` in several processes: started here on one machine, or on many nodes by `srun`."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bertcli.errors import Interrupted, ProcessError, describe_exit
from bertcli.files import write_json
from bertcli.runs.environment import num_cores

MIN_PORT, NUM_PORTS = 20_000, 10_000  # below the ephemeral ports that an operating system assigns
FAILURE_VARIABLE = "BERTCLI_FAILURE_FILE"  # where a process that `launch` started writes its error
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
POLL_SECONDS = 0.05
KILL_AFTER_SECONDS = 30.0  # after one process fails: the others may be waiting for it in a collective


def is_worker_process() -> bool:
    """Return whether a launcher (`launch`, `torchrun` or `srun`) started this process as one of several."""
    return "RANK" in os.environ


def world_size() -> int:
    """Return the number of processes that a launcher started, of which this is one; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if is_worker_process() else 1


def join_slurm_step() -> None:
    """If `srun` started this process as one of several, set torch's environment variables from Slurm's.

    Does nothing if a launcher has already set them. The rendezvous is on the first node, at a port derived from the
    job ID. The cores of a node are divided equally among its processes.
    """
    environment = os.environ
    if is_worker_process() or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    num_local_tasks = len(environment["SLURM_GTIDS"].split(","))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = str(num_local_tasks)
    environment.setdefault("MASTER_ADDR", first_node(environment["SLURM_STEP_NODELIST"]))
    environment.setdefault("MASTER_PORT", str(MIN_PORT + int(environment["SLURM_JOB_ID"]) % NUM_PORTS))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, int(environment["SLURM_CPUS_ON_NODE"]) // num_local_tasks)))


def first_node(node_list: str) -> str:
    """Return the first host name in Slurm's compressed node list: `gpu07` for `gpu[07-09,12],big1`."""
    first = re.match(r"([^,\[]|\[[^]]*\])+", node_list)
    assert first is not None
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


def launch(num_processes: int, arguments: Sequence[str]) -> None:
    """Run `bertcli` with these arguments in `num_processes` processes.

    A signal is passed on to all of them, and they get the time they need to save a checkpoint. If one fails, the
    others are stopped. The cores of this machine are divided equally among them unless `OMP_NUM_THREADS` is set.

    Raises:
        Interrupted: if a signal arrived.
        ProcessError: if a process failed; the error has the message and exit code of the first failure.
    """
    environment = os.environ | {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    with tempfile.TemporaryDirectory() as folder:
        failures = [Path(folder, f"{rank}.json") for rank in range(num_processes)]
        processes: list[subprocess.Popen[bytes]] = []
        with _passed_on_signals(processes) as received:
            for rank, failure in enumerate(failures):
                if not received:
                    processes.append(start_process(rank, arguments, environment | {FAILURE_VARIABLE: str(failure)}))
            failed_rank = wait_for_all(processes, failures, received)
        if received:
            reports = filter(None, map(_read_failure, failures))
            message = next((report["message"] for report in reports), f"stopped by {signal.Signals(received[0]).name}")
            raise Interrupted(received[0], message)
        if failed_rank is not None:
            raise _process_error(failed_rank, processes[failed_rank].returncode, _read_failure(failures[failed_rank]))


def free_port() -> int:
    """Return a port on this machine that no program listens on."""
    while True:
        port = random.randrange(MIN_PORT, MIN_PORT + NUM_PORTS)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def start_process(rank: int, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process `rank` in a new session, where Ctrl-C reaches it only if it is passed on."""
    command = [sys.executable, "-m", "bertcli", *arguments]
    variables = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(command, env=variables, start_new_session=True)


def report_failure(message: str, exit_code: int) -> None:
    """Report an error to the `launch` that started this process, which prints only the first error, and exit.

    Does nothing in any other process.
    """
    file = os.environ.get(FAILURE_VARIABLE)
    if file is None:
        return
    failure = {"message": message, "exit_code": exit_code, "time": time.time()}
    write_json(Path(file), failure)
    end_process(exit_code)


def end_process(exit_code: int) -> None:
    """Exit without the exit handlers of torch, which abort if another process is gone, and at times on a busy machine.

    Does nothing in a process that `launch` did not start.
    """
    if FAILURE_VARIABLE not in os.environ:
        return
    with suppress(OSError):  # the reader has closed the pipe
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def wait_for_all(
    processes: Sequence[subprocess.Popen[bytes]], failures: Sequence[Path], received: Sequence[int]
) -> int | None:
    """Wait until all processes have ended, and stop the others once one fails; return the rank of the first to fail.

    Args:
        failures: the files of `report_failure`.
        received: the signals that were passed on; once there is one, no process is stopped.
    """
    failed_rank, deadline = None, 0.0
    while True:
        codes = [process.poll() for process in processes]
        if failed_rank is None and any(codes) and not received:
            failed = [rank for rank, code in enumerate(codes) if code or failures[rank].is_file()]
            failed_rank = min(failed, key=lambda rank: _failure_time(failures[rank]))
            deadline = time.monotonic() + KILL_AFTER_SECONDS
            _send(processes, signal.SIGTERM)
        if None not in codes:
            return failed_rank
        if failed_rank is not None and time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


@contextmanager
def _passed_on_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within the block, pass signals on to the processes; yield the list of those that arrived."""
    received: list[int] = []

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        received.append(signal_number)
        _send(processes, signal_number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _send(processes: Sequence[subprocess.Popen[bytes]], signal_number: int) -> None:
    for process in processes:
        process.send_signal(signal_number)  # does nothing if it has ended


def _read_failure(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _failure_time(file: Path) -> float:
    """Return when a process reported its error; minus infinity if it died silently, which made the others fail."""
    failure = _read_failure(file)
    return -math.inf if failure is None else failure["time"]


def _process_error(rank: int, code: int, failure: Mapping[str, Any] | None) -> ProcessError:
    if failure is None:
        message = f"process {rank} died ({describe_exit(code)}); re-run the same command to resume"
        return ProcessError(message, code if code > 0 else 128 - code)
    prefix = f"process {rank}: " if rank else ""
    return ProcessError(f"{prefix}{failure['message']}", failure["exit_code"])
