"""The training loop: a generator of step records on top of Accelerate, independent of task, disk and console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn.utils import get_total_norm

from bertcli.data.batching import GlobalBatch
from bertcli.training.devices import compiles_each_size, prepare_batch
from bertcli.training.fsdp import full_tensor, no_gradient_sync

Targets = dict[str, torch.Tensor]
Loss = Callable[[Any, Targets, dict[str, int]], torch.Tensor]
"""(model outputs, targets by name, their counts in the global batch) → the micro-batch's share of the mean loss."""


@dataclass(frozen=True)
class StepRecord:
    """The outcome of one optimizer step. Tensors stay on the device, so the caller decides when to synchronize."""

    step: int  # from 1
    loss: torch.Tensor  # this process's share of the mean over the global batch
    grad_norm: torch.Tensor  # before clipping
    learning_rate: float
    skipped: torch.Tensor  # 1 if the gradient was non-finite and the weights are unchanged, else 0
    num_examples: int
    num_tokens: int
    num_padded_tokens: int
    overflowed: bool = False  # whether the fp16 gradient overflowed, so that the scaler skipped the step
    micro_batch_size: int | None = None  # number of examples if micro-batches were limited or halved; None: as batched


def train_steps(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: AcceleratedOptimizer,
    learning_rate_at: Callable[[int], float],
    batches: Iterable[GlobalBatch],
    compute_loss: Loss,
    *,
    max_grad_norm: float | None,
    start_step: int = 0,
    micro_batch_size: int | None = None,
    halve_on_oom: bool = False,
) -> Iterator[StepRecord]:
    """Run one optimizer step for each global batch and yield its record.

    The loss of a step is the sum over its targets (examples, or labeled tokens) divided by their number in the global
    batch, however they are distributed over micro-batches and processes. Gradient accumulation and uneven last batches
    therefore do not change the result. A step with a non-finite gradient leaves weights and moments unchanged.

    Args:
        optimizer: from `training.optimizer.build_optimizer`; each parameter group has an `lr_scale`.
        learning_rate_at: learning rate of the optimizer step with the given index (from 0).
        compute_loss: the micro-batch's share of the mean loss of the global batch.
        max_grad_norm: clip the gradient to this norm; None: no clipping.
        start_step: number of steps already completed.
        micro_batch_size: maximum number of examples per micro-batch; None: as batched.
        halve_on_oom: halve the micro-batches, for this and all later steps, when the device runs out of memory.

    Raises:
        torch.OutOfMemoryError: if a micro-batch does not fit in memory, and halving it is disabled or impossible.
    """
    parameters, modules = list(model.parameters()), list(model.modules())
    for step, batch in enumerate(batches, start=start_step):
        # Parts of it are in evaluation mode when they were loaded, and after they were evaluated between two steps.
        if not all(module.training for module in modules):
            model.train()
        learning_rate = learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        while True:
            try:
                split = batch if micro_batch_size is None else batch.split(micro_batch_size)
                loss = _accumulate_gradient(accelerator, model, split, compute_loss)
                break
            except torch.OutOfMemoryError:
                size = max(len(micro["input_ids"]) for micro in split.micro_batches)
                if not halve_on_oom or size == 1:
                    raise
                micro_batch_size = size // 2
            # Outside of `except`, whose exception keeps the tensors of the failed micro-batch alive.
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        norm, skipped = _clip_gradient(accelerator, parameters, optimizer, loss, max_grad_norm or float("inf"))
        optimizer.step()
        overflowed = optimizer.step_was_skipped
        optimizer.zero_grad(set_to_none=True)
        counts = batch.num_examples, batch.num_tokens, batch.num_padded_tokens
        yield StepRecord(step + 1, loss, norm, learning_rate, skipped, *counts, overflowed, micro_batch_size)


def _clip_gradient(
    accelerator: Accelerator,
    parameters: list[torch.nn.Parameter],
    optimizer: AcceleratedOptimizer,
    loss: torch.Tensor,
    max_norm: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip the gradient, or have the optimizer do it; return its norm, and 1 if the step is to be skipped, else 0."""
    if accelerator.scaler is not None:  # fp16: the scaler skips such steps itself, and occasionally overflows by design
        return accelerator.clip_grad_norm_(parameters, max_norm), (~torch.isfinite(loss)).float()
    if accelerator.device.type == "mps":  # its fused AdamW ignores both `found_inf` and `grad_scale`
        norm = accelerator.clip_grad_norm_(parameters, max_norm)
        if not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
        return norm, (~torch.isfinite(norm)).float()
    norm = full_tensor(get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    skipped = (~torch.isfinite(norm)).float()  # also covers a non-finite loss, and is the same on every process
    # Fused AdamW reads both on the device and divides while reading: clipping needs no separate pass.
    optimizer.optimizer.found_inf = skipped
    # On a CPU, skip a division by 1, which would rewrite every gradient; on a GPU, the comparison would synchronize.
    clips = accelerator.device.type != "cpu" or bool(norm > max_norm)
    optimizer.optimizer.grad_scale = (norm / max_norm).clamp(min=1.0) if clips else None
    return norm, skipped


def _accumulate_gradient(
    accelerator: Accelerator, model: torch.nn.Module, batch: GlobalBatch, compute_loss: Loss
) -> torch.Tensor:
    """Accumulate the gradient of the global batch's mean loss in the parameters; return that loss."""
    total = torch.zeros((), device=accelerator.device)
    last = len(batch.micro_batches) - 1
    for index, micro in enumerate(batch.micro_batches):
        inputs = prepare_batch(micro, model, accelerator.device, round_up=compiles_each_size(accelerator))
        targets = {name: inputs.pop(name) for name in batch.num_targets if name in inputs}
        with nullcontext() if index == last else no_gradient_sync(accelerator, model):
            loss = compute_loss(model(**inputs), targets, batch.num_targets) * (index <= last - batch.num_dummy_batches)
            # DDP averages gradients over processes, but this loss is already divided by the global count.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total
