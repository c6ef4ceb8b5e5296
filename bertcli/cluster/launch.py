"""Run `bertcli` in several processes: started here by torch.distributed's launcher, or on many nodes by `srun`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from bertcli.errors import signal_exit_code
from bertcli.runs.environment import num_cores

MIN_PORT, NUM_PORTS = 20_000, 10_000  # below the ephemeral ports that an operating system assigns
SHUTDOWN_TIMEOUT_SECONDS = 24 * 3600  # covers the longest step, evaluation and save; schedulers enforce shorter limits


def is_worker_process() -> bool:
    """Whether a launcher (`launch`, `torchrun` or `srun`) started this process as one of several."""
    return "RANK" in os.environ


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


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `bertcli` with these arguments in `num_processes` processes.

    A failure or signal stops all of them; after a signal they have time to save a checkpoint. The cores of this machine
    are divided equally among them unless `OMP_NUM_THREADS` is set.

    Returns:
        The exit code of the first process that failed, else 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    # torch before 2.12 ignores this and always waits 30 seconds
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_SECONDS))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "bertcli", *arguments)
    except ChildFailedError as error:
        exit_code = error.get_first_failure()[1].exitcode
        return exit_code if exit_code > 0 else 128 - exit_code
    except SignalException as error:
        return signal_exit_code(error.sigval)
    return 0
