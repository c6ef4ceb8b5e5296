"""The in-place cross-entropy has PyTorch's values and gradients, and allocates no tensor as large as the logits."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.pretraining.inplace_cross_entropy import inplace_cross_entropy

MAX_CHUNK_LOGITS = "bertcli.pretraining.inplace_cross_entropy.MAX_CHUNK_LOGITS"


def random_inputs(
    num_tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the projection matrix from which logits are computed, and labels."""
    torch.manual_seed(0)
    hidden, projection = torch.randn(num_tokens, 8, dtype=dtype), 3 * torch.randn(8, 50, dtype=dtype)
    return hidden.requires_grad_(), projection.requires_grad_(), torch.randint(50, (num_tokens,))


@pytest.mark.parametrize("chunk_logits", [50, 170, 2**20], ids=["one token", "three tokens", "all tokens"])
@pytest.mark.parametrize("num_tokens", [7, 1, 0])
def test_cross_entropy_and_gradients_equal_pytorch(
    num_tokens: int, chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MAX_CHUNK_LOGITS, chunk_logits)
    hidden, projection, labels = random_inputs(num_tokens)
    expected = torch.nn.functional.cross_entropy(hidden @ projection, labels, reduction="sum") / 3
    expected_gradients = torch.autograd.grad(expected, (hidden, projection))
    loss = inplace_cross_entropy(hidden @ projection, labels) / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, (hidden, projection))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_tokens_without_label_have_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAX_CHUNK_LOGITS, 170)  # three tokens
    hidden, projection, labels = random_inputs(7)
    labels[[1, 5, 6]] = IGNORED_LABEL
    expected = torch.nn.functional.cross_entropy(hidden @ projection, labels, reduction="sum")
    expected_gradients = torch.autograd.grad(expected, (hidden, projection))
    loss = inplace_cross_entropy(hidden @ projection, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, (hidden, projection))
    assert not gradients[0][[1, 5, 6]].any()
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_cross_entropy_of_bf16_logits_is_summed_in_fp32() -> None:
    hidden, projection, labels = random_inputs(7, torch.bfloat16)
    expected = torch.nn.functional.cross_entropy((hidden @ projection).float(), labels, reduction="sum")
    loss = inplace_cross_entropy(hidden @ projection, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (expected_gradient,), (gradient,) = torch.autograd.grad(expected, hidden), torch.autograd.grad(loss, hidden)
    assert torch.allclose(gradient, expected_gradient, atol=0.05)


def test_cross_entropy_without_gradient_keeps_the_logits() -> None:
    logits, labels = torch.randn(4, 50), torch.arange(4)
    before = logits.clone()
    inplace_cross_entropy(logits, labels)
    assert torch.equal(logits, before)


def test_cross_entropy_allocates_only_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAX_CHUNK_LOGITS, 100)
    logits, labels = torch.randn(40, 50, requires_grad=True), torch.randint(50, (40,))
    allocated: list[int] = []

    class RecordAllocations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            output = func(*args, **(kwargs or {}))
            if (
                isinstance(output, torch.Tensor)
                and output.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()
            ):
                allocated.append(output.numel())
            return output

    with RecordAllocations():
        torch.autograd.grad(inplace_cross_entropy(logits, labels), logits)
    assert max(allocated) <= 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_pass_of_cross_entropy_allocates_no_copy_of_the_logits(dtype: torch.dtype) -> None:
    from torch.profiler import ProfilerActivity, profile

    logits, labels = torch.randn(40, 5000, dtype=dtype, requires_grad=True), torch.randint(5000, (40,))
    labels[::7] = IGNORED_LABEL
    loss = inplace_cross_entropy(logits * 1, labels)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss.backward()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events())
    assert allocated < logits.nbytes + 10_000  # the gradient of `logits * 1`, which is the test's own
