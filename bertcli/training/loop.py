"""The loop: a generator of step records on top of Accelerate. It knows no task, no disk and no console."""

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
from bertcli.training.devices import on_device
from bertcli.training.fsdp import gradients_kept_apart, whole

Targets = dict[str, torch.Tensor]
Loss = Callable[[Any, Targets, dict[str, int]], torch.Tensor]
"""(a model's output, targets by name, their numbers in the whole batch) → the micro-batch's share of the mean loss."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did. Tensors stay on the device: reading them is the caller's choice of moment."""

    step: int  # from 1
    loss: torch.Tensor  # mean over the global batch, as far as this process sees it
    grad_norm: torch.Tensor  # before clipping
    learning_rate: float
    skipped: torch.Tensor  # 1 if the gradient was no number and the weights stayed as they were; else 0
    num_examples: int
    num_tokens: int
    num_padded_tokens: int
    overflowed: bool = False  # whether fp16's gradient was too large and its scaler left the step out
    micro_batch_size: int | None = None  # items at once, if memory did not hold as many as the batches came with


def train_steps(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: AcceleratedOptimizer,
    rate_at: Callable[[int], float],
    batches: Iterable[GlobalBatch],
    loss_of: Loss,
    *,
    max_grad_norm: float | None,
    start_step: int = 0,
    micro_batch_size: int | None = None,
    may_divide: bool = False,
) -> Iterator[StepRecord]:
    """Make one optimiser step for each global batch and say what it did.

    The loss of a step is the sum over its targets (examples, or labelled tokens) divided by their number, however they
    are spread over micro-batches and processes: accumulation and uneven last batches do not change what is learned.
    A step whose gradient is no number leaves weights and moments as they were.

    Args:
        optimizer: as `training.optimizer.build_optimizer` makes it: its groups say their share of the rate.
        rate_at: learning rate of the optimiser step with the given number (from 0).
        max_grad_norm: clip the gradient to this norm; None: no clipping.
        start_step: steps already made.
        micro_batch_size: items at once at most; None: as the batches come.
        may_divide: whether micro-batches are halved, from then on, when memory does not hold them.

    Raises:
        torch.OutOfMemoryError: memory does not hold what may not be divided further.
    """
    parameters = list(model.parameters())
    for step, batch in enumerate(batches, start=start_step):
        if not model.training:  # what was asked between steps left it so
            model.train()
        rate = rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        while True:
            try:
                fitting = batch if micro_batch_size is None else batch.divided(micro_batch_size)
                loss = _accumulate(accelerator, model, fitting, loss_of)
                break
            except torch.OutOfMemoryError:
                rows = max(len(micro["input_ids"]) for micro in fitting.micro_batches)
                if not may_divide or rows == 1:
                    raise
                micro_batch_size = rows // 2
            optimizer.zero_grad(set_to_none=True)  # of the part that fitted; outside, where nothing holds the rest
            torch.cuda.empty_cache()
        norm, skipped = _clip(accelerator, parameters, optimizer, loss, max_grad_norm or float("inf"))
        optimizer.step()
        overflowed = optimizer.step_was_skipped
        optimizer.zero_grad(set_to_none=True)
        counts = batch.num_examples, batch.num_tokens, batch.num_padded_tokens
        yield StepRecord(step + 1, loss, norm, rate, skipped, *counts, overflowed, micro_batch_size)


def _clip(
    accelerator: Accelerator,
    parameters: list[torch.nn.Parameter],
    optimizer: AcceleratedOptimizer,
    loss: torch.Tensor,
    limit: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip the gradient, or have the optimiser do it; its norm, and 1 if the optimiser is to leave the step out."""
    if accelerator.scaler is not None:  # fp16's leaves such steps out by itself, and is meant to overflow now and then
        return accelerator.clip_grad_norm_(parameters, limit), (~torch.isfinite(loss)).float()
    if accelerator.device.type == "mps":  # whose kernel looks at neither of the two below
        norm = accelerator.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
        return norm, (~torch.isfinite(norm)).float()
    norm = whole(get_total_norm([part.grad for part in parameters if part.grad is not None]))
    skipped = (~torch.isfinite(norm)).float()  # a loss that is no number has such a gradient, on every process
    # Fused AdamW looks at both on the device, and divides as it reads: clipping costs no pass of its own.
    optimizer.optimizer.found_inf = skipped
    clips = accelerator.device.type != "cpu" or bool(norm > limit)  # to divide by 1 would write each gradient again
    optimizer.optimizer.grad_scale = (norm / limit).clamp(min=1.0) if clips else None
    return norm, skipped


def _accumulate(accelerator: Accelerator, model: torch.nn.Module, batch: GlobalBatch, loss_of: Loss) -> torch.Tensor:
    """Leave the gradient of the global batch's mean loss in the parameters; return that loss."""
    total = torch.zeros((), device=accelerator.device)
    last = len(batch.micro_batches) - 1
    for at, micro in enumerate(batch.micro_batches):
        inputs = on_device(micro, model, accelerator.device)
        targets = {name: inputs.pop(name) for name in batch.num_targets if name in inputs}
        with nullcontext() if at == last else gradients_kept_apart(accelerator, model):
            loss = loss_of(model(**inputs), targets, batch.num_targets) * (at <= last - batch.stand_ins)
            # DDP averages gradients over processes, but this loss is already a share of the whole.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total
