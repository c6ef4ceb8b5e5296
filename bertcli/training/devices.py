"""Device, precision and threads: resolve `auto`, build the Accelerator, and move batches to its device."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState

from bertcli.data.token_index import add_block_mask, add_token_index, labeled_tokens
from bertcli.errors import UsageError
from bertcli.malloc import retain_freed_memory
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import num_cores

PROCESS_TIMEOUT = timedelta(hours=12)  # other processes wait while the main one downloads, tokenizes or saves
FLOPS_PER_THREAD = 16_000_000  # of a matrix product; with fewer, threads wait longer than they compute
ACCELERATE_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def choose_precision(hardware: HardwareSection) -> str:
    """Return `fp32`, `bf16` or `fp16`; `auto` selects the fastest precision that the device supports natively.

    Raises:
        UsageError: if the precision is fp16 without a CUDA GPU.
    """
    if hardware.precision == "fp16" and not _uses_gpu(hardware):
        raise UsageError("hardware.precision=fp16 requires a CUDA GPU; use fp32 or bf16")
    return native_precisions(hardware)[0] if hardware.precision == "auto" else hardware.precision


def native_precisions(hardware: HardwareSection) -> list[str]:
    """Return the precisions that the recipe's device supports natively, fastest first."""
    if _uses_gpu(hardware):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return [*(["bf16"] if bf16 else []), "fp16", "fp32"]
    return [*(["bf16"] if cpu_computes_bf16() else []), "fp32"]


def cpu_computes_bf16() -> bool:
    """Return whether this CPU has bf16 matrix instructions; without them bf16 is far slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def build_accelerator(
    hardware: HardwareSection, *, has_unused_parameters: bool = False, logging_folder: Path | None = None
) -> Accelerator:
    """Build the Accelerator for the recipe's device and precision.

    Args:
        has_unused_parameters: whether some steps leave trainable parameters without a gradient.
        logging_folder: where the recipe's trackers write; None: no trackers.

    Raises:
        UsageError: if the device is not available.
    """
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("hardware.device is cuda, but no CUDA device is available; use auto or cpu")
    if hardware.device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("hardware.device is mps, but MPS is not available; use auto or cpu")
    if uses_cpu(hardware):
        retain_freed_memory()
        torch.set_num_threads(available_threads(hardware))
    precision = ACCELERATE_NAMES[choose_precision(hardware)]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        # Accelerate shares one state per process; replace it, so that runs in one process can differ in precision.
        AcceleratorState._shared_state = {}
    return Accelerator(
        cpu=uses_cpu(hardware),
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,
        log_with=list(hardware.trackers) or None if logging_folder else None,
        project_dir=logging_folder,
        # The buffers of encoders are constants and need no broadcast.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=has_unused_parameters)
        ],
    )


def init_processes(hardware: HardwareSection) -> PartialState:
    """Join the processes that `torchrun`, `srun` or Accelerate's launcher started; return their state."""
    return PartialState(cpu=uses_cpu(hardware), timeout=PROCESS_TIMEOUT)


def available_threads(hardware: HardwareSection) -> int:
    """Return the recipe's number of threads; `auto` stands for torch's (`OMP_NUM_THREADS`), at most one per core."""
    return min(torch.get_num_threads(), num_cores()) if hardware.threads == "auto" else hardware.threads


@contextmanager
def restore_num_threads() -> Iterator[None]:
    """After the block, set torch's number of threads back to what it was before."""
    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)


def choose_num_threads(
    hardware: HardwareSection, module: torch.nn.Module, tokens_per_batch: float, saved: int | None
) -> int:
    """Return the number of threads to train with on a CPU.

    The number follows from the size of the model's matrix products, never from a measurement: it changes the order of
    sums and so the last digits of what is learned, and the same command has to learn the same.

    Args:
        tokens_per_batch: average number of tokens in a forward pass.
        saved: the number that a resumed run was started with.
    """
    available = available_threads(hardware)
    if hardware.threads != "auto":
        return available
    if saved is not None:
        return min(saved, available)
    sizes = [layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    flops = 2 * tokens_per_batch * statistics.median(sizes or [0])
    return min(available, max(1, round(flops / FLOPS_PER_THREAD)))


def prepare_batch(
    batch: dict[str, torch.Tensor], model: torch.nn.Module, device: torch.device, *, round_up: bool = False
) -> dict[str, Any]:
    """Turn a batch into the inputs of `model` and move them to `device` without synchronizing.

    The mask `target_positions` [B, S] becomes the indices of its positions in the flattened batch [M]; `labels` are
    reduced to those positions. In training on a single task, the targets of a tagger are the labeled tokens.

    Args:
        round_up: whether numbers of tokens are rounded up (`compiles_each_size`), by padding and targets without label.
    """
    cpu_inputs: dict[str, Any] = {}
    on_cpu = device.type == "cpu"
    task_model: Any = getattr(model, "module", model)
    if "task" in batch:  # a plain number, which the model reads without synchronizing
        cpu_inputs["task"] = int(batch["task"][0])
        batch = {name: value for name, value in batch.items() if name != "task"}
        task_model = task_model.models[cpu_inputs["task"]]
    padding_free = None if "frozen_hidden_states" in batch else getattr(task_model, "padding_free", None)
    is_tagger = padding_free is not None and padding_free.output_tokens == "labeled" and task_model.training
    if "labels" in batch and (is_tagger or (round_up and "target_positions" in batch)):
        is_target = labeled_tokens(batch, round_up=round_up, may_be_padding=padding_free is None)
        batch = batch | {"target_positions": is_target}
    if "target_positions" in batch and "labels" in batch:  # on the CPU: indexing by a mask on a GPU synchronizes
        batch = batch | {"labels": batch["labels"][batch["target_positions"]]}
    if padding_free is not None:
        batch = add_token_index(
            batch,
            padding_free.output_tokens,
            on_cpu=on_cpu,
            round_up=round_up,
            has_local_attention=padding_free.has_local_attention,
        )
    elif "position_ids" in batch:
        batch = add_block_mask(batch)
    if "is_full" in batch:
        cpu_inputs["is_full"] = batch.pop("is_full")
    if "target_positions" in batch:
        batch = batch | {"target_positions": batch["target_positions"].flatten().nonzero()[:, 0]}
    if device.type == "cuda":  # only copies from pinned memory are asynchronous
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return cpu_inputs | {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def compiles_each_size(accelerator: Accelerator) -> bool:
    """Return whether matrix products are compiled for each number of tokens: those in bf16 on a CPU, by oneDNN."""
    return accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"


def pad_to_multiple_of(accelerator: Accelerator) -> int:
    """Return the multiple that padded lengths are rounded up to: 8 for the tensor cores of a GPU, else 1."""
    return 8 if accelerator.device.type == "cuda" else 1


def uses_cpu(hardware: HardwareSection) -> bool:
    """Return whether to set `cpu=True`, without which Accelerate would not join processes on a machine without GPUs."""
    no_gpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return hardware.device == "cpu" or (hardware.device == "auto" and no_gpu)


def _uses_gpu(hardware: HardwareSection) -> bool:
    return hardware.device in ("auto", "cuda") and torch.cuda.is_available()
