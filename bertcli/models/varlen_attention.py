"""Attention within each sequence of a padded or unpadded batch, registered with transformers as an implementation.

Shapes as in `bertcli.data.token_index`, and N heads, E head size, L longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
MAX_UNFUSED_KEYS, MAX_UNFUSED_KEYS_TRAINING = 128, 512  # in bf16 on a CPU; longer sequences use the fused kernel
MIN_WINDOWS = 4  # sequences of at least this many windows are worth cutting into blocks


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
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output: [B, S, N, E], [1, T, N, E] if `unpadded`, or [1, M, N, E] if `output_positions`.

    If flash attention is available (CUDA, half precision), unpadded sequences are processed without padding. Otherwise,
    and with attention dropout, which that kernel lacks, they are padded first.

    Args:
        query: [B, N, S, E]; [1, N, T, E] with `unpadded`, [1, N, M, E] with `output_positions`.
        key: [B, N, S, E], or [1, N, T, E] with `unpadded`; `value` likewise.
        attention_mask: [B, 1, S, S] or [B, 1, 1, S], true where a query may attend to a key; None with `unpadded` or
            without masking.
        unpadded: `TokenIndex` of the tokens in `key` and `value`; None: they are padded.
        output_positions: `TokenIndex` of the tokens in `query`; None: the same tokens as in `key`.
        sliding_window: a query attends only to keys at a smaller distance in tokens; None: to all keys.
    """
    query_index = unpadded if output_positions is None else output_positions
    attend = partial(
        _padded_attention, module, dropout=dropout, scaling=scaling, window=sliding_window, options=options
    )
    if query_index is None:
        return attend(query, key, value, attention_mask), None
    if unpadded is not None and dropout == 0.0 and _supports_flash(query):
        return _flash_attention(query, key, value, query_index, unpadded, scaling, sliding_window), None
    rows, max_seqlen = len(query_index.cu_seqlens) - 1, query_index.max_seqlen
    num_fill_tokens = query.shape[2] - len(query_index.padded_indices)
    query = pad_input(query[0].transpose(0, 1), query_index.padded_indices, rows, max_seqlen).transpose(1, 2)
    positions = None
    if output_positions is not None and sliding_window is not None:
        positions = _positions(output_positions, unpadded, key.shape[2])
    if unpadded is not None:
        key, value = (
            pad_input(part[0].transpose(0, 1), unpadded.padded_indices, rows, unpadded.max_seqlen).transpose(1, 2)
            for part in (key, value)
        )
        is_token = torch.arange(unpadded.max_seqlen, device=query.device) < unpadded.cu_seqlens.diff()[:, None]
        # [D, 1, 1, L], not expanded to [D, 1, L, L]: SDPA on a CPU would turn it into numbers and keep them.
        attention_mask = is_token[:, None, None]
    elif attention_mask is not None and attention_mask.shape[2] > 1:
        query_masks = attention_mask[:, 0].flatten(0, 1)[query_index.indices]  # [M, S]
        # Padding queries attend to everything: a fully masked row has no softmax.
        full_mask = query_masks.new_ones((rows * max_seqlen, query_masks.shape[-1]))
        full_mask = full_mask.index_copy(0, query_index.padded_indices, query_masks)
        attention_mask = full_mask.view(rows, 1, max_seqlen, -1)
    attended = attend(query, key, value, attention_mask, positions=positions)
    attended = attended.flatten(0, 1)[query_index.padded_indices]
    if num_fill_tokens:
        attended = functional.pad(attended, (0, 0, 0, 0, 0, num_fill_tokens))
    return attended[None], None


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_index: Any,
    unpadded: Any,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the attention output [1, T, N, E] or [1, M, N, E] of PyTorch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))  # [·, N, E]
    cu_seqlens = (query_index.cu_seqlens, unpadded.cu_seqlens)
    max_seqlens = (query_index.max_seqlen, unpadded.max_seqlen)
    options: dict[str, Any] = {} if window is None else {"window_size": (window - 1, window - 1)}
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    output: Any = varlen_attn(query, key, value, *cu_seqlens, *max_seqlens, scale=scaling, **options)
    return output[None]


def _positions(output_positions: Any, unpadded: Any, num_keys: int) -> torch.Tensor:
    """Return the position of each output token in its sequence, padded as the queries are. [D, L]"""
    index = output_positions
    rows, max_seqlen = len(index.cu_seqlens) - 1, index.max_seqlen
    if unpadded is None:
        positions = index.indices % num_keys
    else:
        positions = index.indices - unpadded.cu_seqlens[:-1][index.padded_indices // max_seqlen]
    return pad_input(positions, index.padded_indices, rows, max_seqlen)


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
    *,
    dropout: float,
    scaling: float | None,
    window: int | None = None,
    positions: torch.Tensor | None = None,
    options: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Compute attention over padded sequences [B, S, N, E].

    PyTorch has no fused kernel with dropout for CPUs; there, separate operations with `fast_dropout` are faster. In
    bf16, they are also faster without dropout, unless sequences are long.

    Args:
        window: a query attends only to keys at a smaller distance; None: to all.
        positions: the position of each query [B, S]; None: they are in order.
        options: further options of the fused kernel.
    """
    num_keys = key.shape[2]
    if window is not None and num_keys > window:
        if positions is None and num_keys > MIN_WINDOWS * window and (mask is None or mask.shape[2] == 1):
            attend = partial(_padded_attention, module, dropout=dropout, scaling=scaling)
            return _local_attention(attend, query, key, value, mask, window)
        places = torch.arange(num_keys, device=query.device)
        distances = (places[:, None] if positions is None else positions[:, None, :, None]) - places
        is_near = distances.abs() < window
        mask = is_near if mask is None else mask & is_near
    if _fused_is_faster(query, num_keys, dropout):
        options = {"dropout": dropout, "scaling": scaling, "is_causal": False} | (options or {})
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        # Not -inf: a query of the padding may have no key, and the NaN of its softmax would reach the gradients.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = fast_dropout(functional.softmax(scores, dim=-1, dtype=torch.float32), dropout)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2)


def _fused_is_faster(query: torch.Tensor, num_keys: int, dropout: float) -> bool:
    """Return whether PyTorch's fused attention is faster than separate operations; see tests/benchmarks/RESULTS.md."""
    if query.device.type != "cpu":
        return True
    max_keys = MAX_UNFUSED_KEYS_TRAINING if query.requires_grad else MAX_UNFUSED_KEYS
    return dropout == 0.0 and (query.dtype != torch.bfloat16 or num_keys > max_keys)


def _local_attention(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    window: int,
) -> torch.Tensor:
    """Compute attention within a window over padded sequences [B, S, N, E], in time and memory linear in S.

    The queries are cut into blocks as long as the window reaches; each attends to its own and the neighboring blocks.
    Beltagy et al. 2020, https://arxiv.org/abs/2004.05150.

    Args:
        attend: computes attention of each query to all keys that a mask allows.
        mask: [B, 1, 1, S], true for keys that may be attended to; None: all.
    """
    (rows, _, length, _), reach = query.shape, max(1, window - 1)
    blocks = -(-length // reach)
    padding = blocks * reach - length
    is_key = query.new_ones((rows, length), dtype=torch.bool) if mask is None else mask[:, 0, 0].expand(rows, length)
    is_key = functional.pad(is_key, (reach, reach + padding)).unfold(1, 3 * reach, reach)  # [B, blocks, 3 * reach]
    query = functional.pad(query, (0, 0, 0, padding)).unflatten(2, (blocks, reach))  # [B, N, blocks, reach, E]
    padded = (functional.pad(part, (0, 0, reach, reach + padding)) for part in (key, value))
    parts = (part.unflatten(2, (blocks + 2, reach)) for part in padded)
    key, value = (torch.cat((part[:, :, :-2], part[:, :, 1:-1], part[:, :, 2:]), dim=3) for part in parts)
    places = torch.arange(3 * reach, device=query.device)
    is_near = (places[reach : 2 * reach, None] - places).abs() < window
    # A query of the padding may have no key: let it attend to all, since its output is dropped.
    near_keys = is_near & is_key[:, :, None]  # [B, blocks, reach, 3 * reach]
    near_keys = near_keys | ~near_keys.any(-1, keepdim=True)
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    attended = attend(query, key, value, near_keys.flatten(0, 1)[:, None])
    return attended.unflatten(0, (rows, blocks)).flatten(1, 2)[:, :length]


AttentionInterface.register(ATTENTION, varlen_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
