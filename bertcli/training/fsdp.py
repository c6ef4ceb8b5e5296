"""FSDP: weights, gradients and moments sharded over processes, for models that do not fit on one device.

Torch's FSDP2 (Zhao et al. 2023, https://arxiv.org/abs/2304.11277): each process keeps a shard of every parameter and
gathers a layer only while it computes it. Checkpoints and models hold full tensors, so a run can be resumed with a
different number of processes, or unsharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, layers: Iterable[nn.Module], device: torch.device, precision: str) -> None:
    """Shard a model over all processes, in place; each of `layers` is gathered separately."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inner = outer = MixedPrecisionPolicy()
    if precision == "bf16":
        inner = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)  # layers output bf16
        outer = replace(inner, output_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=inner)
    fully_shard(model, mesh=mesh, mp_policy=outer)


@contextmanager
def no_gradient_sync(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within the block, accumulate gradients on each process without synchronizing them."""
    if not isinstance(model, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def local_batches(
    batches: list[np.ndarray], accelerator: Accelerator, model: nn.Module
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the batches that this process evaluates, each with whether it counts.

    All processes must run a sharded model together, so a process that has no batch left runs a dummy batch, which does
    not count.
    """
    local = batches[accelerator.process_index :: accelerator.num_processes]
    yield from ((items, True) for items in local)
    if isinstance(model, FSDPModule) and len(local) < -(-len(batches) // accelerator.num_processes):
        yield batches[0], False


def full_tensor(value: Any) -> Any:
    """Gather a sharded tensor on every process; return anything else unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def copy_full_parameters(model: nn.Module, target: nn.Module) -> None:
    """Copy the parameters of a sharded model into an unsharded one; all processes must call it together."""
    with torch.no_grad():
        for source, copy in zip(model.parameters(), target.parameters(), strict=True):
            copy.copy_(full_tensor(source))


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state dict with full tensors; all processes must call it together."""
    state = optimizer.state_dict()
    moments = {
        index: {name: full_tensor(value) for name, value in values.items()} for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict of full tensors; an optimizer of sharded parameters keeps only its shards."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def shard_like_parameter(index: int, value: Any) -> Any:
        parameter = parameters[index]
        if isinstance(parameter, DTensor) and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return value

    moments = {
        index: {name: shard_like_parameter(index, value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
