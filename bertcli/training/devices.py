"""Device and precision: what `auto` means on this machine, and the Accelerator that drives it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState

from bertcli.data.token_index import with_block_mask, with_layout
from bertcli.errors import UsageError
from bertcli.malloc import keep_memory
from bertcli.recipe.schema import HardwareSection

PATIENCE = timedelta(hours=12)  # of processes that wait while the first one reads, tokenises or saves
ACCELERATE_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def choose_precision(hardware: HardwareSection) -> str:
    """`fp32`, `bf16` or `fp16`: the asked one, or for `auto` the fastest that the device computes natively.

    Raises:
        UsageError: fp16 on a CPU, which trains to nonsense.
    """
    if hardware.precision == "fp16" and not _uses_gpu(hardware):
        raise UsageError("found hardware.precision fp16 on a CPU, expected fp32 or bf16 there")
    return native_precisions(hardware)[0] if hardware.precision == "auto" else hardware.precision


def native_precisions(hardware: HardwareSection) -> list[str]:
    """What the recipe's device computes natively, the fastest first."""
    if _uses_gpu(hardware):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return [*(["bf16"] if bf16 else []), "fp16", "fp32"]
    return [*(["bf16"] if cpu_computes_bf16() else []), "fp32"]


def cpu_computes_bf16() -> bool:
    """Whether this CPU has bf16 matrix instructions; without them bf16 is far slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def build_accelerator(
    hardware: HardwareSection, *, has_idle_weights: bool = False, logging_folder: Path | None = None
) -> Accelerator:
    """The Accelerator for the recipe's device and precision.

    Args:
        has_idle_weights: some steps have no gradient for weights that learn in others.
        logging_folder: where the recipe's trackers write; None: there is nothing to follow.

    Raises:
        UsageError: the asked device is not there.
    """
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("found hardware.device cuda, but this machine shows no CUDA device; use auto or cpu")
    if hardware.device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("found hardware.device mps, but this machine has none; use auto or cpu")
    if _uses_cpu(hardware):
        keep_memory()
    precision = ACCELERATE_NAMES[choose_precision(hardware)]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._shared_state = {}  # of runs one after the other each has its own; earlier ones keep theirs
    return Accelerator(
        cpu=_uses_cpu(hardware),
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,
        log_with=list(hardware.trackers) or None if logging_folder else None,
        project_dir=logging_folder,
        # The buffers of encoders are constants: nothing to send at each step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=has_idle_weights)
        ],
    )


def processes_of(hardware: HardwareSection) -> PartialState:
    """Which of how many processes this is, as `torchrun`, `srun` or Accelerate's launcher started them."""
    return PartialState(cpu=_uses_cpu(hardware), timeout=PATIENCE)


def on_device(batch: dict[str, torch.Tensor], model: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """A batch as `model` reads it, sent to its device without waiting.

    Of `asked` [B, S] the places in the flattened batch are sent [M], of `labels` those alone.
    """
    if "asked" in batch and "labels" in batch:  # what chooses by a mask on the device has to wait for it
        batch = batch | {"labels": batch["labels"][batch["asked"]]}
    known: dict[str, Any] = {}
    reader: Any = getattr(model, "module", model)
    if "task" in batch:  # a number that the model is to know without asking the device
        known["task"] = int(batch["task"][0])
        batch = {name: value for name, value in batch.items() if name != "task"}
        reader = reader.models[known["task"]]
    padding_free = getattr(reader, "padding_free", None)
    if padding_free is not None and "vectors" not in batch:
        batch = with_layout(batch, padding_free.reading, on_cpu=device.type == "cpu")
    elif "position_ids" in batch:
        batch = with_block_mask(batch)
    if "is_full" in batch:
        known["is_full"] = batch.pop("is_full")
    if "asked" in batch:
        batch = batch | {"asked": batch["asked"].flatten().nonzero()[:, 0]}
    if device.type == "cuda":  # which copies other memory only when it gets there, and has this process wait for it
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return known | {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def width_multiple(accelerator: Accelerator) -> int:
    """What padded lengths are rounded up to: 8 suits the tensor cores of a GPU."""
    return 8 if accelerator.device.type == "cuda" else 1


def _uses_cpu(hardware: HardwareSection) -> bool:
    """Said outright, or Accelerate would not join the processes of a machine without a GPU."""
    none = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return hardware.device == "cpu" or (hardware.device == "auto" and none)


def _uses_gpu(hardware: HardwareSection) -> bool:
    return hardware.device in ("auto", "cuda") and torch.cuda.is_available()
