"""Indices of the tokens that a padding-free model processes and outputs, built on the host.

They are built before a batch is sent to the device, where computing them would force a synchronization at each step.
Shapes: B rows of a batch with S positions each, D sequences in these rows (D > B if rows are packed), T unpadded
tokens, M output tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL

if TYPE_CHECKING:
    import torch

MAX_REAL_FRACTION = 0.9  # on a CPU, batches with a larger fraction of real tokens run as fast with their padding
SIZES_PER_OCTAVE = 16  # distinct token counts per power of two, where each count compiles its own matrix products
MIN_OUTPUT_TOKENS = 2  # `torch.compile` compiles 0 and 1 separately
OutputTokens = Literal["all", "first", "targets", "labeled"]
"""The tokens whose last hidden states the head uses: all, the first of each sequence, the `target_positions` of the
batch, or those if it has any (the labeled tokens, in training) and otherwise all."""


@dataclass(frozen=True)
class TokenIndex:
    """An index of n tokens of a batch, ordered by sequence, with at most L tokens per sequence.

    They may be followed by f padding tokens, which are also processed but do not belong to any sequence.
    """

    indices: torch.Tensor  # [n + f] into the flattened batch [B * S], or into the T unpadded tokens
    cu_seqlens: torch.Tensor  # [D + 1] int32: where each sequence starts among the n tokens, and n
    padded_indices: torch.Tensor  # [n] position of each token in the sequences padded to L [D * L]
    max_seqlen: int  # L

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TokenIndex:
        """Return a copy on `device`, like `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenIndex:
        """Return a copy in page-locked memory, like `torch.Tensor.pin_memory`."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> TokenIndex:
        return TokenIndex(
            function(self.indices), function(self.cu_seqlens), function(self.padded_indices), self.max_seqlen
        )


def build_token_index(
    indices: np.ndarray, sequence_ids: np.ndarray, num_sequences: int, padding: np.ndarray | None = None
) -> TokenIndex:
    """Build the index of the tokens at `indices` [n].

    Args:
        sequence_ids: [n] the sequence of each token, ascending, less than `num_sequences`.
        padding: [f] indices of padding tokens that are also processed.
    """
    import torch

    counts = np.bincount(sequence_ids, minlength=num_sequences)
    starts = np.concatenate(([0], np.cumsum(counts)))
    max_seqlen = max(1, int(counts.max()))
    padded_indices = np.arange(len(indices)) - starts[sequence_ids] + sequence_ids * max_seqlen
    if padding is not None:
        indices = np.concatenate((indices, padding))
    return TokenIndex(
        torch.from_numpy(indices),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(padded_indices),
        max_seqlen,
    )


def labeled_tokens(batch: dict[str, torch.Tensor], *, round_up: bool, may_be_padding: bool = False) -> torch.Tensor:
    """Return which tokens of a batch have a label: the masked ones, or the first one of each word. [B, S]

    Others are included if there are fewer than `MIN_OUTPUT_TOKENS`, and to `round_up` their number to one of
    `SIZES_PER_OCTAVE` sizes.

    Args:
        may_be_padding: whether the others may be padding, which padding-free models do not compute.
    """
    import torch

    is_labeled = batch["labels"] != IGNORED_LABEL
    num_labeled = int(is_labeled.sum())
    num_more = max(_num_fill_tokens(num_labeled) if round_up else 0, MIN_OUTPUT_TOKENS - num_labeled)
    others = ~is_labeled
    if not may_be_padding:
        others &= batch["attention_mask"].bool()
    candidates = others.flatten().nonzero()[:, 0]
    num_more = min(num_more, len(candidates))
    # Evenly spaced: the last layer pads the queries of each row to the number of the row with the most.
    chosen = candidates[torch.arange(num_more) * len(candidates) // max(1, num_more)]
    return is_labeled.flatten().index_fill(0, chosen, True).view_as(is_labeled)


def add_token_index(
    batch: dict[str, Any],
    output_tokens: OutputTokens,
    *,
    on_cpu: bool,
    round_up: bool = False,
    has_local_attention: bool = False,
) -> dict[str, Any]:
    """Return the batch with the inputs of a padding-free model: `unpadded`, `output_positions` and `is_full`.

    The first two are added only where they save work, `is_full` only if the batch has no padding.

    Args:
        batch: collated tensors. `attention_mask` [B, S] (or [B, K, S]) is 0 for padding; other numbers distinguish the
            sequences packed into a row.
        round_up: include padding to round the number of unpadded tokens up to one of `SIZES_PER_OCTAVE` sizes.
        has_local_attention: whether tokens attend by their distance, so that none within a sequence can be dropped.
    """
    if output_tokens == "labeled":
        output_tokens = "targets" if "target_positions" in batch else "all"
    mask = batch["attention_mask"].numpy()
    mask = mask.reshape(-1, mask.shape[-1])
    is_packed = "position_ids" in batch
    may_drop = output_tokens == "first" and not has_local_attention
    unpads = _should_unpad(mask, may_drop=may_drop, is_packed=is_packed, on_cpu=on_cpu)
    if is_packed and not unpads:
        batch = add_block_mask(batch)
    if not is_packed and mask.all():
        batch = batch | {"is_full": True}  # checking the mask on the device would synchronize
    if output_tokens == "all" and not unpads:
        return batch
    order, sequence_ids = np.arange(mask.size), np.repeat(np.arange(len(mask)), mask.shape[1])
    if unpads:
        order, sequence_ids = _real_tokens(mask)
        padding = np.flatnonzero(mask.ravel() == 0)[: _num_fill_tokens(len(order))] if round_up else None
        batch = batch | {"unpadded": build_token_index(order, sequence_ids, int(sequence_ids[-1]) + 1, padding)}
    if output_tokens == "all":
        return batch
    if output_tokens == "first":
        is_output = order % mask.shape[1] == 0
    else:
        is_output = batch["target_positions"].numpy().ravel()[order]
        batch = {name: value for name, value in batch.items() if name != "target_positions"}
    positions = np.flatnonzero(is_output)
    index = build_token_index(positions, sequence_ids[positions], int(sequence_ids[-1]) + 1)
    return batch | {"output_positions": index}


def add_block_mask(batch: dict[str, Any]) -> dict[str, Any]:
    """Replace a packed batch's mask of sequence numbers [B, S] with a block-diagonal attention mask [B, 1, S, S]."""
    mask = batch["attention_mask"]
    # Let padding attend to padding: the softmax of a position that attends to nothing is undefined.
    return batch | {"attention_mask": (mask[:, :, None] == mask[:, None, :])[:, None]}


def _should_unpad(mask: np.ndarray, *, may_drop: bool, is_packed: bool, on_cpu: bool) -> bool:
    num_real = int(np.count_nonzero(mask))
    if is_packed:  # on a CPU, masking rows that are full anyway costs less than padding every sequence
        return not on_cpu
    if num_real == mask.size or (on_cpu and num_real > MAX_REAL_FRACTION * mask.size):
        return False
    # A token masked out within a sequence can be dropped only if its output is not used.
    return may_drop or not (mask[:, 1:] > mask[:, :-1]).any()


def _num_fill_tokens(num_tokens: int) -> int:
    """Return the number of padding tokens that round `num_tokens` up to one of `SIZES_PER_OCTAVE` sizes per octave."""
    return -num_tokens % max(1, 2 ** (num_tokens.bit_length() - 1) // SIZES_PER_OCTAVE)


def _real_tokens(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each non-padding token in the flattened batch, and the sequence it belongs to. [T]"""
    flat = mask.ravel()
    indices = np.flatnonzero(flat)
    is_start = (np.diff(indices // mask.shape[1]) != 0) | (np.diff(flat[indices]) != 0)
    return indices, np.concatenate(([0], np.cumsum(is_start)))
