"""Dropout on a CPU: the right share, scaled, the same by the same seed, and the gradient where the values passed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertcli.models.cpu_dropout import CpuDropout, drop, use_cpu_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_right_and_the_mean_is_kept(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = drop(torch.ones(1000, 1001, dtype=dtype), rate)
    assert (out == 0).float().mean() == pytest.approx(rate, abs=0.002)
    assert out.float().mean() == pytest.approx(1, abs=0.02)
    for place in range(4):  # one draw serves four elements: each is as likely as the others, and they are independent
        assert (out.flatten()[place::4] == 0).float().mean() == pytest.approx(rate, abs=0.003)
    both = (out.flatten()[:-1:4] == 0) & (out.flatten()[1::4] == 0)[: len(out.flatten()[:-1:4])]
    assert both.float().mean() == pytest.approx(rate**2, abs=0.003)


def test_the_same_seed_drops_the_same_and_the_next_call_others() -> None:
    values = torch.ones(77, 3)
    torch.manual_seed(1)
    first, second = drop(values, 0.5), drop(values, 0.5)
    torch.manual_seed(1)
    assert torch.equal(drop(values, 0.5), first)
    assert not torch.equal(first, second)


def test_the_gradient_passes_where_the_values_passed() -> None:
    values = torch.randn(50, 7, requires_grad=True)
    out = drop(values, 0.3)
    out.sum().backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, (out != 0).float() / 0.7, rtol=1e-4)


def test_a_rate_of_nothing_or_all_and_evaluation() -> None:
    values = torch.randn(5, 5)
    assert drop(values, 0.0) is values
    assert not drop(values, 1.0).any()
    assert CpuDropout(0.9).eval()(values) is values


def test_every_dropout_layer_of_a_model_is_replaced() -> None:
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
    names = list(model.state_dict())
    use_cpu_dropout(model)
    assert [module.p for module in model.modules() if isinstance(module, CpuDropout)] == [0.2, 0.3]
    assert list(model.state_dict()) == names
