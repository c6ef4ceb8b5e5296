"""Moving batches to a device, tested with stand-ins for tensors; precision of consecutive runs; number of threads."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bertcli.data.token_index import TokenIndex
from bertcli.recipe.schema import HardwareSection
from bertcli.training import devices
from bertcli.training.devices import (
    build_accelerator,
    choose_num_threads,
    compiles_each_size,
    prepare_batch,
    restore_num_threads,
)


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
    assert (compiles_each_size(fp32), compiles_each_size(bf16)) == (False, True)


TINY, LARGE = torch.nn.Linear(16, 16), torch.nn.Linear(1024, 1024)


@pytest.fixture
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cores", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)


@pytest.mark.usefixtures("_sixteen_cores")
@pytest.mark.parametrize(
    ("module", "tokens", "saved", "threads", "expected"),
    [
        (TINY, 4096, None, "auto", 1),
        (LARGE, 8, None, "auto", 1),
        (LARGE, 100, None, "auto", 13),
        (LARGE, 10_000, None, "auto", 16),  # torch's threads, but not more than there are cores
        (torch.nn.LayerNorm(16), 10_000, None, "auto", 1),
        (LARGE, 10_000, 1, "auto", 1),  # a resumed run
        (TINY, 16, 20, "auto", 16),  # … on a smaller machine
        (TINY, 16, 1, 3, 3),
    ],
)
def test_number_of_threads_follows_from_the_size_of_the_matrix_products(
    module: torch.nn.Module, tokens: int, saved: int | None, threads: Any, expected: int
) -> None:
    assert choose_num_threads(HardwareSection(threads=threads), module, tokens, saved) == expected


def test_a_run_does_not_change_the_number_of_threads_of_the_next() -> None:
    before = torch.get_num_threads()
    with restore_num_threads():
        build_accelerator(HardwareSection(device="cpu", threads=before + 1))
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
