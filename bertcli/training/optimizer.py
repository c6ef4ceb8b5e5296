"""AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with bias correction and BERT's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, rate_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Weights that decay, and biases and normalisation weights, which do not; of each, a group for each rate.

    Args:
        rate_factors: by parameter, the share of the learning rate it learns with; all of it if not named.
    """
    normalisations = tuple(
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower() and name
    )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = name.endswith("bias") or name.rpartition(".")[0] in normalisations
            groups.setdefault(((rate_factors or {}).get(name, 1.0), is_plain), []).append(parameter)
    return [
        {"params": members, "weight_decay": 0.0 if is_plain else weight_decay, "rate_factor": factor}
        for (factor, is_plain), members in groups.items()
    ]


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    rate_factors: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay, rate_factors)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
