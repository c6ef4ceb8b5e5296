"""Attention within each sequence of a padded or unpadded batch, registered with transformers as an implementation.

Shapes as in `bertcli.data.token_index`, and N heads, E head size, L longest sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bertcli.models.cpu_dropout import fast_dropout

ATTENTION = "bertcli"  # its name in transformers
MAX_FLASH_HEAD_SIZE = 256


def varlen_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    unpadded: Any = None,
    output_positions: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output: [B, S, N, E], [1, T, N, E] if `unpadded`, or [1, M, N, E] if `output_positions`.

    If flash attention is available (CUDA, half precision), unpadded sequences are processed without padding. Otherwise,
    and with attention dropout, which that kernel lacks, they are padded first.

    Args:
        query: [B, N, S, E]; [1, N, T, E] with `unpadded`, [1, N, M, E] with `output_positions`.
        key: [B, N, S, E], or [1, N, T, E] with `unpadded`; `value` likewise.
        attention_mask: [B, 1, S, S], true where a query may attend to a key; None with `unpadded` or without masking.
        unpadded: `TokenIndex` of the tokens in `key` and `value`; None: they are padded.
        output_positions: `TokenIndex` of the tokens in `query`; None: the same tokens as in `key`.
    """
    query_index = unpadded if output_positions is None else output_positions
    if query_index is None:
        return _padded_attention(module, query, key, value, attention_mask, dropout, scaling, **options), None
    if unpadded is not None and dropout == 0.0 and _supports_flash(query):
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))  # [·, N, E]
        cu_seqlens = (query_index.cu_seqlens, unpadded.cu_seqlens)
        max_seqlens = (query_index.max_seqlen, unpadded.max_seqlen)
        output: Any = varlen_attn(query, key, value, *cu_seqlens, *max_seqlens, scale=scaling)
        return output[None], None
    rows, max_seqlen = len(query_index.cu_seqlens) - 1, query_index.max_seqlen
    num_fill_tokens = query.shape[2] - len(query_index.padded_indices)
    query = pad_input(query[0].transpose(0, 1), query_index.padded_indices, rows, max_seqlen).transpose(1, 2)
    if unpadded is not None:
        key, value = (
            pad_input(part[0].transpose(0, 1), unpadded.padded_indices, rows, unpadded.max_seqlen).transpose(1, 2)
            for part in (key, value)
        )
        is_token = (
            torch.arange(unpadded.max_seqlen, device=query.device) < unpadded.cu_seqlens.diff()[:, None]
        )  # [D, L]
        attention_mask = is_token[:, None, None].expand(-1, 1, max_seqlen, -1)
    elif attention_mask is not None:
        query_masks = attention_mask[:, 0].flatten(0, 1)[query_index.indices]  # [M, S]
        # Padding queries attend to everything: a fully masked row has no softmax.
        full_mask = query_masks.new_ones((rows * max_seqlen, query_masks.shape[-1]))
        full_mask = full_mask.index_copy(0, query_index.padded_indices, query_masks)
        attention_mask = full_mask.view(rows, 1, max_seqlen, -1)
    attended = _padded_attention(module, query, key, value, attention_mask, dropout, scaling, **options)
    attended = attended.flatten(0, 1)[query_index.padded_indices]
    if num_fill_tokens:
        attended = functional.pad(attended, (0, 0, 0, 0, 0, num_fill_tokens))
    return attended[None], None


def _supports_flash(query: torch.Tensor) -> bool:
    """Return whether variable-length flash attention supports this device, precision and head size."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= MAX_FLASH_HEAD_SIZE
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def pad_input(values: torch.Tensor, indices: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """Scatter the first n values to `indices` [n] of the flattened [rows, width, …]; the rest is zero."""
    padded = values.new_zeros((rows * width, *values.shape[1:]))
    return padded.index_copy(0, indices, values[: len(indices)]).unflatten(0, (rows, width))


def _padded_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    **options: Any,
) -> torch.Tensor:
    """Compute attention over padded sequences [B, S, N, E].

    PyTorch has no fused kernel with dropout for CPUs; there, separate operations with `fast_dropout` are faster.
    """
    if dropout == 0.0 or query.device.type != "cpu":
        options = {"dropout": dropout, "scaling": scaling, "is_causal": False} | options
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = fast_dropout(functional.softmax(scores, dim=-1), dropout)
    return torch.matmul(weights, value).transpose(1, 2)


AttentionInterface.register(ATTENTION, varlen_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
