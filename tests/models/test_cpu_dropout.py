"""CPU dropout: its rate, scaling, seeding and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertcli.models.cpu_dropout import CpuDropout, fast_dropout, use_cpu_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_has_the_right_rate_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = fast_dropout(torch.ones(1000, 1001, dtype=dtype), rate)
    assert (out == 0).float().mean() == pytest.approx(rate, abs=0.002)
    assert out.float().mean() == pytest.approx(1, abs=0.02)
    for offset in range(4):  # one draw serves four elements, which must be equally likely and independent
        assert (out.flatten()[offset::4] == 0).float().mean() == pytest.approx(rate, abs=0.003)
    both = (out.flatten()[:-1:4] == 0) & (out.flatten()[1::4] == 0)[: len(out.flatten()[:-1:4])]
    assert both.float().mean() == pytest.approx(rate**2, abs=0.003)


def test_dropout_depends_on_the_seed_and_differs_between_calls() -> None:
    values = torch.ones(77, 3)
    torch.manual_seed(1)
    first, second = fast_dropout(values, 0.5), fast_dropout(values, 0.5)
    torch.manual_seed(1)
    assert torch.equal(fast_dropout(values, 0.5), first)
    assert not torch.equal(first, second)


def test_dropout_gradient_has_the_same_mask() -> None:
    values = torch.randn(50, 7, requires_grad=True)
    out = fast_dropout(values, 0.3)
    out.sum().backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, (out != 0).float() / 0.7, rtol=1e-4)


def test_dropout_with_rate_0_or_1_and_in_evaluation() -> None:
    values = torch.randn(5, 5)
    assert fast_dropout(values, 0.0) is values
    assert not fast_dropout(values, 1.0).any()
    assert CpuDropout(0.9).eval()(values) is values


def test_use_cpu_dropout_replaces_every_dropout_layer() -> None:
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
    names = list(model.state_dict())
    use_cpu_dropout(model)
    assert [module.p for module in model.modules() if isinstance(module, CpuDropout)] == [0.2, 0.3]
    assert list(model.state_dict()) == names
