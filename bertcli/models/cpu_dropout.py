"""Dropout (Srivastava et al. 2014) whose chance costs a CPU little.

PyTorch draws a whole number of 32 bits for each element, on one thread, which is a tenth and more of a training step
of a small encoder. Here 64 bits of a fast generator (SFC64) serve four elements: the rate is exact to 1/65,536.
Its seed comes from PyTorch's generator, so seeds and resumed runs mean what they mean elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

DRAWS = 2**16


class CpuDropout(nn.Dropout):
    """What `nn.Dropout` does, drawn faster."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The values, a share `p` of them dropped and the others scaled up; in evaluation, as they are."""
        return drop(values, self.p) if self.training else values


def drop(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Set a share `rate` of the values to zero and divide the others by 1 - `rate`."""
    threshold = round(rate * DRAWS)
    if threshold == 0:
        return values
    if threshold == DRAWS:
        return values * 0.0
    dropped: torch.Tensor = _Drop.apply(values, threshold)
    return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, threshold: int) -> torch.Tensor:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        words = np.random.SFC64(seed).random_raw(-(-values.numel() // 4))
        drawn = torch.from_numpy(words.view(np.int16))[: values.numel()].view(values.shape)
        least = threshold - DRAWS // 2  # that is kept; by arithmetic, since comparisons run slower than it
        factors = drawn.clamp_(least - 1, least).sub_(least - 1).to(values.dtype).mul_(DRAWS / (DRAWS - threshold))
        ctx.save_for_backward(factors)
        return values * factors

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradient * factors, None


def use_cpu_dropout(model: nn.Module) -> None:
    """Put `CpuDropout` in the place of every dropout layer of the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CpuDropout(child.p).train(child.training))
