"""Rank and world size from Slurm's variables, and the start of several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from bertcli.cluster import launch as module
from bertcli.cluster.launch import first_node, join_slurm_step, launch

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


@pytest.mark.parametrize(("variable", "seconds"), [(None, module.SHUTDOWN_TIMEOUT_SECONDS), ("7", 7)])
def test_launch_shutdown_timeout_is_hours_unless_the_environment_sets_it(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, seconds: int
) -> None:
    configs: list[Any] = []

    def fake_launch(config: Any, program: str) -> Callable[..., None]:
        configs.append(config)
        return lambda *arguments: None

    kept = {name: value for name, value in os.environ.items() if name != "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
    monkeypatch.setattr(os, "environ", kept | ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": variable} if variable else {}))
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", fake_launch)
    assert launch(2, ["finetune"]) == 0
    assert configs[0].shutdown_timeout == seconds
    assert module.SHUTDOWN_TIMEOUT_SECONDS >= 3600
