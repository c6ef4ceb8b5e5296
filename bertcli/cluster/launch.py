"""Several processes of `bertcli` on this machine, joined by torch.distributed's own launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bertcli.errors import exit_code_of


def is_joined() -> bool:
    """Whether a launcher (this one, or `torchrun`) has started this process as one of several."""
    return "RANK" in os.environ


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `bertcli` with these arguments in `num_processes` processes; the exit code of the first that failed, else 0.

    A failure or a signal ends them all. Each has its share of the cores, unless `OMP_NUM_THREADS` says otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
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
        elastic_launch(config, sys.executable)("-m", "bertcli.cli", *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return exit_code_of(error.sigval)
    return 0
