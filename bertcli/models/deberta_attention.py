"""Mixed precision for DeBERTa (version 1), whose attention transformers can compute only in one precision.

It masks bf16 or fp16 scores with the lowest fp32 number, which these cannot hold, so the first step ends in an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

ATTENTION = "transformers.models.deberta.modeling_deberta.DisentangledSelfAttention"  # importing it takes 10 ms


def attend_in_one_precision(model: nn.Module) -> None:
    """Make the attention of DeBERTa layers compute in the precision of their weights; leave other models as they are.

    The rest of each layer still uses the autocast precision.
    """
    for module in model.modules():
        kind = type(module)
        if f"{kind.__module__}.{kind.__name__}" == ATTENTION:
            module.forward = partial(_without_autocast, module, module.forward)


def _without_autocast(
    module: Any, forward: Callable[..., Any], hidden_states: torch.Tensor, *args: Any, **inputs: Any
) -> Any:
    inputs = {name: _cast(value, module.in_proj.weight.dtype) for name, value in inputs.items()}
    states, *others = (_cast(value, module.in_proj.weight.dtype) for value in (hidden_states, *args))
    with torch.autocast(states.device.type, enabled=False):
        return forward(states, *others, **inputs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
