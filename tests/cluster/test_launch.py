"""Which of how many processes this is, in the words of `srun` and of torch; how they are started."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from bertcli.cluster import launch as module
from bertcli.cluster.launch import first_node, join_step, launch

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


def joined(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    """What torch's variables are afterwards."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM")}
    monkeypatch.setattr(os, "environ", kept | variables)
    join_step()
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_step_of_several_tasks_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined(monkeypatch, **STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
        "OMP_NUM_THREADS": "8",
    }


def test_who_has_joined_already_or_is_alone_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined(monkeypatch, **STEP, RANK="3") == {"RANK": "3"}
    assert joined(monkeypatch, **STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    batch_script = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert joined(monkeypatch, **batch_script) == {}
    assert joined(monkeypatch, **STEP, MASTER_ADDR="10.0.0.1")["MASTER_ADDR"] == "10.0.0.1"


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
def test_the_first_node_is_read_from_slurms_list(node_list: str, first: str) -> None:
    assert first_node(node_list) == first


@pytest.mark.parametrize(("asked", "seconds"), [(None, module.SECONDS_TO_STOP), ("7", 7)])
def test_after_a_signal_processes_have_hours_to_save_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, seconds: int
) -> None:
    given: list[Any] = []

    def started(config: Any, program: str) -> Callable[..., None]:
        given.append(config)
        return lambda *arguments: None

    kept = {name: value for name, value in os.environ.items() if name != "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
    monkeypatch.setattr(os, "environ", kept | ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": asked} if asked else {}))
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    assert launch(2, ["finetune"]) == 0
    assert given[0].shutdown_timeout == seconds
    assert module.SECONDS_TO_STOP >= 3600
