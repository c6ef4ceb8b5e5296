"""DeBERTa's attention: mixed precision for version 1, and only the relative positions that occur for versions 2 and 3.

transformers masks version 1's bf16 or fp16 scores with the lowest fp32 number, which these cannot hold, so the first
step ends in an error. For versions 2 and 3 it projects all 512 embeddings of relative positions to keys and queries in
each layer, and multiplies them with each token, although a sequence of S tokens has only 2 S - 1 relative positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

ATTENTION = "transformers.models.deberta.modeling_deberta.DisentangledSelfAttention"  # importing it takes 10 ms
ATTENTION_V2 = "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention"


def attend_in_one_precision(model: nn.Module) -> None:
    """Make the attention of DeBERTa layers compute in the precision of their weights; leave other models as they are.

    The rest of each layer still uses the autocast precision.
    """
    for module in _find(model, ATTENTION):
        module.forward = partial(_without_autocast, module, module.forward)


def skip_unused_relative_positions(model: nn.Module) -> None:
    """Make the attention of DeBERTa-v2 and -v3 layers project only the relative positions that occur in a batch.

    The result is the same. Other models are left as they are.
    """
    for module in _find(model, ATTENTION_V2):
        if module.relative_attention:
            module.forward = partial(_with_used_positions, module, module.forward, module.pos_ebd_size)


def _find(model: nn.Module, name: str) -> Iterator[Any]:
    for module in model.modules():
        kind = type(module)
        if f"{kind.__module__}.{kind.__name__}" == name:
            yield module


def _with_used_positions(
    module: Any, forward: Callable[..., Any], full_span: int, hidden_states: torch.Tensor, *args: Any, **inputs: Any
) -> Any:
    """Call `forward` with the middle rows of `rel_embeddings` [2 * full_span, H], those of the occurring positions."""
    length = hidden_states.shape[-2]
    # Larger distances share the embedding of a bucket; up to half the number of buckets, each has its own.
    is_exact = module.position_buckets <= 0 or length - 1 <= module.position_buckets // 2
    span = min(length, full_span) if is_exact else full_span
    inputs["rel_embeddings"] = inputs["rel_embeddings"][full_span - span : full_span + span]
    module.pos_ebd_size = span
    return forward(hidden_states, *args, **inputs)


def _without_autocast(
    module: Any, forward: Callable[..., Any], hidden_states: torch.Tensor, *args: Any, **inputs: Any
) -> Any:
    inputs = {name: _cast(value, module.in_proj.weight.dtype) for name, value in inputs.items()}
    states, *others = (_cast(value, module.in_proj.weight.dtype) for value in (hidden_states, *args))
    with torch.autocast(states.device.type, enabled=False):
        return forward(states, *others, **inputs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
