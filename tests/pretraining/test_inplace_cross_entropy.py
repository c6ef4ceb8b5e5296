"""The loss of tokens is PyTorch's, in value and gradient, and takes no memory beside that of the logits."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertcli.pretraining import inplace_cross_entropy as module
from bertcli.pretraining.inplace_cross_entropy import vocabulary_loss


def scored(number: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states and the matrix that makes logits of them, and labels."""
    torch.manual_seed(0)
    hidden, matrix = torch.randn(number, 8, dtype=dtype), 3 * torch.randn(8, 50, dtype=dtype)
    return hidden.requires_grad_(), matrix.requires_grad_(), torch.randint(50, (number,))


@pytest.mark.parametrize("at_once", [50, 170, 2**20], ids=["one token", "three", "all"])
@pytest.mark.parametrize("number", [7, 1, 0])
def test_loss_and_gradients_are_those_of_cross_entropy(
    number: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    hidden, matrix, labels = scored(number)
    expected = torch.nn.functional.cross_entropy(hidden @ matrix, labels, reduction="sum") / 3
    wanted = torch.autograd.grad(expected, (hidden, matrix))
    loss = vocabulary_loss(hidden @ matrix, labels) / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, gradient in zip(torch.autograd.grad(loss, (hidden, matrix)), wanted, strict=True):
        assert torch.allclose(found, gradient, atol=1e-6)


def test_halves_are_summed_in_fp32() -> None:
    hidden, matrix, labels = scored(7, torch.bfloat16)
    expected = torch.nn.functional.cross_entropy((hidden @ matrix).float(), labels, reduction="sum")
    loss = vocabulary_loss(hidden @ matrix, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (wanted,), (found,) = torch.autograd.grad(expected, hidden), torch.autograd.grad(loss, hidden)
    assert torch.allclose(found, wanted, atol=0.05)


def test_without_a_gradient_the_logits_stay() -> None:
    logits, labels = torch.randn(4, 50), torch.arange(4)
    before = logits.clone()
    vocabulary_loss(logits, labels)
    assert torch.equal(logits, before)


def test_nothing_as_large_as_the_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 100)
    logits, labels = torch.randn(40, 50, requires_grad=True), torch.randint(50, (40,))
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if (
                isinstance(out, torch.Tensor)
                and out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()
            ):
                made.append(out.numel())
            return out

    with Watch():
        torch.autograd.grad(vocabulary_loss(logits, labels), logits)
    assert max(made) <= 100
