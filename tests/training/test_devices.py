"""How batches reach a device, shown by stand-ins for its tensors."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bertcli.data.layout import Gathered
from bertcli.training.devices import on_device


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
