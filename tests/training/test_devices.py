"""How batches reach a device, shown by stand-ins for its tensors."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bertcli.data.token_index import Gathered
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, on_device


class Told:
    """A stand-in for a tensor that writes down what is done with it."""

    def __init__(self, *done: str):
        self.done = done

    def pin_memory(self) -> Told:
        return Told(*self.done, "pinned")

    def to(self, device: torch.device, *, non_blocking: bool) -> Told:
        return Told(*self.done, f"sent to {device}{' without waiting' * non_blocking}")


@pytest.mark.parametrize(
    ("device", "done"),
    [("cuda", ("pinned", "sent to cuda without waiting")), ("cpu", ("sent to cpu without waiting",))],
)
def test_a_gpu_fetches_batches_from_pinned_memory(device: str, done: tuple[str, ...]) -> None:
    read = Gathered(*cast(Any, (Told(), Told(), Told())), longest=3)
    sent = on_device(cast(Any, {"input_ids": Told(), "read": read}), torch.nn.Identity(), torch.device(device))
    assert sent["input_ids"].done == done
    assert (sent["read"].places.done, sent["read"].starts.done, sent["read"].within.done) == (done,) * 3
    assert sent["read"].longest == 3


def test_runs_one_after_the_other_may_differ_in_precision() -> None:
    wide, half = (build_accelerator(HardwareSection(device="cpu", precision=kind)) for kind in ("fp32", "bf16"))
    layer, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for accelerator, dtype in ((wide, torch.float32), (half, torch.bfloat16)):
        with accelerator.autocast():
            assert layer(values).dtype == dtype
    assert (wide.mixed_precision, half.mixed_precision) == ("no", "bf16")
