"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with bias correction and BERT's groups."""

from __future__ import annotations

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weights that decay; biases and normalisation weights, which do not."""
    normalisations = tuple(
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower() and name
    )
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = name.endswith("bias") or name.rpartition(".")[0] in normalisations
            (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
