"""Attention within the sequences of a batch, however they lie, as transformers calls it.

Shapes as in `bertcli.data.token_index`, and H heads, E width of a head; L the longest sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bertcli.models.cpu_dropout import drop

ATTENTION = "bertcli"
WIDEST_HEAD = 256  # of flash attention


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    computed: Any = None,
    read: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What each query sees: [B, S, H, E], or [1, T, H, E] of the `computed` or [1, M, H, E] of the `read` tokens.

    Where flash attention can be had (CUDA, half precision), sequences are attended to as they lie; elsewhere, and with
    dropout on attention, which that kernel does not know, in a table of them.

    Args:
        query: [B, H, S, E]; [1, H, T, E] with `computed`, [1, H, M, E] with `read` (both `Gathered`).
        key: [B, H, S, E], or [1, H, T, E] with `computed`; `value` likewise.
        attention_mask: true where a query may see a key, [B, 1, S, S]; None with `computed`, or if all see all.
    """
    asking = computed if read is None else read
    if asking is None:
        return _attend(module, query, key, value, attention_mask, dropout, scaling, **options), None
    if computed is not None and dropout == 0.0 and _kernel_takes(query):
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))  # [·, H, E]
        starts, longest = (asking.starts, computed.starts), (asking.longest, computed.longest)
        out: Any = varlen_attn(query, key, value, *starts, *longest, scale=scaling)
        return out[None], None
    rows = len(asking.starts) - 1
    filling = query.shape[2] - len(asking.within)
    query = spread(query[0].transpose(0, 1), asking.within, rows, asking.longest).transpose(1, 2)
    if computed is not None:
        key, value = (
            spread(part[0].transpose(0, 1), computed.within, rows, computed.longest).transpose(1, 2)
            for part in (key, value)
        )
        seen = torch.arange(computed.longest, device=query.device) < computed.starts.diff()[:, None]  # [D, L]
        attention_mask = seen[:, None, None].expand(-1, 1, asking.longest, -1)
    elif attention_mask is not None:
        seen = attention_mask[:, 0].flatten(0, 1)[asking.places]  # [M, S]
        table = seen.new_ones((rows * asking.longest, seen.shape[-1]))  # a query that sees nothing has no softmax
        attention_mask = table.index_copy(0, asking.within, seen).view(rows, 1, asking.longest, -1)
    attended = _attend(module, query, key, value, attention_mask, dropout, scaling, **options)
    attended = attended.flatten(0, 1)[asking.within]
    return functional.pad(attended, (0, 0, 0, 0, 0, filling))[None] if filling else attended[None], None


def _kernel_takes(query: torch.Tensor) -> bool:
    """Whether flash attention for sequences of different lengths knows this device, precision and width."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= WIDEST_HEAD
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def spread(values: torch.Tensor, places: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """The first n values at their places [n] in [rows, width, …], zero elsewhere."""
    table = values.new_zeros((rows * width, *values.shape[1:]))
    return table.index_copy(0, places, values[: len(places)]).unflatten(0, (rows, width))


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    **options: Any,
) -> torch.Tensor:
    """Plain attention [B, S, H, E]; dropout on a CPU by `drop`, where PyTorch's own would take the slow way too."""
    if dropout == 0.0 or query.device.type != "cpu":
        options = {"dropout": dropout, "scaling": scaling, "is_causal": False} | options
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = drop(functional.softmax(scores, dim=-1), dropout)
    return torch.matmul(shares, value).transpose(1, 2)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
