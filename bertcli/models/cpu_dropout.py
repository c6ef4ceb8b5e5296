"""Dropout (Srivastava et al. 2014) with cheap random numbers for CPUs.

PyTorch draws a 32-bit integer for each element, on a single thread, which takes a tenth or more of a training step of a
small encoder. Here each 64-bit integer from a fast generator (SFC64) serves four elements, so rates are exact to
1/65,536. The generator is seeded from PyTorch's, so seeds and resumed runs work as usual.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

NUM_LEVELS = 2**16


class CpuDropout(nn.Dropout):
    """A faster `nn.Dropout` for CPUs."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Apply dropout during training; return the values unchanged in evaluation mode."""
        return fast_dropout(values, self.p) if self.training else values


def fast_dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Set each value to zero with probability `rate` and divide the others by 1 - `rate`."""
    threshold = round(rate * NUM_LEVELS)
    if threshold == 0:
        return values
    if threshold == NUM_LEVELS:
        return values * 0.0
    dropped: torch.Tensor = _FastDropout.apply(values, threshold)
    return dropped


class _FastDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, threshold: int) -> torch.Tensor:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        words = np.random.SFC64(seed).random_raw(-(-values.numel() // 4))
        levels = torch.from_numpy(words.view(np.int16))[: values.numel()].view(values.shape)
        min_kept = threshold - NUM_LEVELS // 2
        # Clamping to (min_kept - 1, min_kept) and shifting gives 0 or 1; a comparison would be slower.
        keep_mask = levels.clamp_(min_kept - 1, min_kept).sub_(min_kept - 1).to(values.dtype)
        scale = keep_mask.mul_(NUM_LEVELS / (NUM_LEVELS - threshold))
        ctx.save_for_backward(scale)
        return values * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


def use_cpu_dropout(model: nn.Module) -> None:
    """Replace every dropout layer of the model with `CpuDropout`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CpuDropout(child.p).train(child.training))
