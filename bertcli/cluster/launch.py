"""Several processes of `bertcli`: started here by torch.distributed's own launcher, or on many machines by `srun`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from bertcli.errors import exit_code_of
from bertcli.runs.environment import num_cores

FIRST_PORT, NUM_PORTS = 20_000, 10_000  # below those that a system gives away by itself
SECONDS_TO_STOP = 24 * 3600  # of the longest step, evaluation and save; whoever waits less kills us all anyway


def is_joined() -> bool:
    """Whether a launcher (this one, or `torchrun`) has started this process as one of several."""
    return "RANK" in os.environ


def join_step() -> None:
    """If `srun` has started this process as one of several, say so in torch's words, unless someone has.

    All meet at the first node, at a port that follows from the job's number. Each has its share of the cores.
    """
    environment = os.environ
    if is_joined() or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    tasks_here = len(environment["SLURM_GTIDS"].split(","))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = str(tasks_here)
    environment.setdefault("MASTER_ADDR", first_node(environment["SLURM_STEP_NODELIST"]))
    environment.setdefault("MASTER_PORT", str(FIRST_PORT + int(environment["SLURM_JOB_ID"]) % NUM_PORTS))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, int(environment["SLURM_CPUS_ON_NODE"]) // tasks_here)))


def first_node(node_list: str) -> str:
    """The first name in Slurm's way to write several: `gpu07` of `gpu[07-09,12],big1`."""
    first = re.match(r"([^,\[]|\[[^]]*\])+", node_list)
    assert first is not None
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `bertcli` with these arguments in `num_processes` processes; the exit code of the first that failed, else 0.

    A failure or a signal ends them all; after a signal they have the time they need to save. Each has its share of the
    cores, unless `OMP_NUM_THREADS` says otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))  # torch before 2.12 waits 30, always
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
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return exit_code_of(error.sigval)
    return 0
