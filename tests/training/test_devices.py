"""Moving batches to a device, tested with stand-ins for tensors; precision of consecutive runs."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bertcli.data.token_index import TokenIndex
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, prepare_batch


class RecordingTensor:
    """A stand-in for a tensor that records the calls that move it."""

    def __init__(self, *calls: str):
        self.calls = calls

    def pin_memory(self) -> RecordingTensor:
        return RecordingTensor(*self.calls, "pin_memory")

    def to(self, device: torch.device, *, non_blocking: bool) -> RecordingTensor:
        return RecordingTensor(*self.calls, f"to {device}{', non-blocking' * non_blocking}")


@pytest.mark.parametrize(
    ("device", "calls"),
    [("cuda", ("pin_memory", "to cuda, non-blocking")), ("cpu", ("to cpu, non-blocking",))],
)
def test_prepare_batch_pins_memory_for_a_gpu_only(device: str, calls: tuple[str, ...]) -> None:
    index = TokenIndex(*cast(Any, (RecordingTensor(), RecordingTensor(), RecordingTensor())), max_seqlen=3)
    batch = cast(Any, {"input_ids": RecordingTensor(), "output_positions": index})
    prepared = prepare_batch(batch, torch.nn.Identity(), torch.device(device))
    moved = prepared["output_positions"]
    assert prepared["input_ids"].calls == calls
    assert (moved.indices.calls, moved.cu_seqlens.calls, moved.padded_indices.calls) == (calls,) * 3
    assert moved.max_seqlen == 3


def test_precision_may_differ_between_consecutive_runs() -> None:
    fp32, bf16 = (build_accelerator(HardwareSection(device="cpu", precision=name)) for name in ("fp32", "bf16"))
    layer, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for accelerator, dtype in ((fp32, torch.float32), (bf16, torch.bfloat16)):
        with accelerator.autocast():
            assert layer(values).dtype == dtype
    assert (fp32.mixed_precision, bf16.mixed_precision) == ("no", "bf16")
