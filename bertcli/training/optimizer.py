"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with bias correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return one or two parameter groups per learning-rate scale; biases and normalization weights are not decayed.

    Args:
        lr_scales: learning-rate scale by parameter name; parameters that are not in it have scale 1.
    """
    norm_layers = tuple(
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower() and name
    )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = name.endswith("bias") or name.rpartition(".")[0] in norm_layers
            groups.setdefault(((lr_scales or {}).get(name, 1.0), no_decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if no_decay else weight_decay, "lr_scale": lr_scale}
        for (lr_scale, no_decay), parameters in groups.items()
    ]


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """Build a fused AdamW over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay, lr_scales)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
