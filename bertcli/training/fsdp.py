"""Weights, gradients and moments divided among processes, for models that one device cannot hold.

FSDP (Zhao et al. 2023, https://arxiv.org/abs/2304.11277), as torch has it: each process keeps a share of every tensor
and collects a layer only while it computes it. What is saved is whole, so a run may go on with another number of
processes, or undivided.
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
    """Divide a model among all processes, in place; each of the `layers` is collected by itself."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inner = outer = MixedPrecisionPolicy()
    if precision == "bf16":
        inner = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)  # what a head reads is as its weights
        outer = replace(inner, output_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=inner)
    fully_shard(model, mesh=mesh, mp_policy=outer)


@contextmanager
def gradients_kept_apart(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within the block gradients add up in each process without being summed over all."""
    if not isinstance(model, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def own_share(
    batches: list[np.ndarray], accelerator: Accelerator, model: nn.Module
) -> Iterator[tuple[np.ndarray, bool]]:
    """The batches that this process computes, and whether they count.

    All processes compute a divided model together, so one that has no batch left computes any, which does not count.
    """
    own = batches[accelerator.process_index :: accelerator.num_processes]
    yield from ((items, True) for items in own)
    if isinstance(model, FSDPModule) and len(own) < -(-len(batches) // accelerator.num_processes):
        yield batches[0], False


def whole(value: Any) -> Any:
    """A tensor of which each process has a share, whole on every process; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def copy_whole(model: nn.Module, twin: nn.Module) -> None:
    """Put the weights of a divided model into an undivided one of the same make; all processes have to ask together."""
    with torch.no_grad():
        for part, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.copy_(whole(part))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state with whole tensors; all processes have to ask together."""
    state = optimizer.state_dict()
    moments = {
        number: {name: whole(value) for name, value in values.items()} for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimiser a state of whole tensors, of which it keeps its share."""
    parameters = [part for group in optimizer.param_groups for part in group["params"]]

    def own(number: int, value: Any) -> Any:
        part = parameters[number]
        if isinstance(part, DTensor) and isinstance(value, torch.Tensor) and value.shape == part.shape:
            return distribute_tensor(value.to(part.device), part.device_mesh, part.placements)
        return value

    moments = {
        number: {name: own(number, value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
