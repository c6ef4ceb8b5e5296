"""Best-fit packing: concatenate short sequences into rows of about the same length, with almost no padding.

Krell et al. 2021, https://arxiv.org/abs/2107.02027. Attention stays within each sequence and position IDs restart, so
packing does not change what is learned. Shapes: P sequences, N rows, B rows of a batch, S tokens in its longest row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded

if TYPE_CHECKING:
    import torch


def pack_sequences(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack sequences into rows of at most `capacity` tokens: longest first, each into the fullest row that has room.

    Args:
        lengths: [P] number of tokens in each sequence, at most `capacity`.

    Returns:
        The indices of the sequences in each row; every sequence is in exactly one row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # free tokens and index of each row that is not full, sorted
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        best = bisect_left(spaces, (length, -1))
        if best == len(spaces):
            rows.append([sequence])
            free, row = capacity - length, len(rows) - 1
        else:
            space, row = spaces.pop(best)
            rows[row].append(sequence)
            free = space - length
        if free > 0:
            insort(spaces, (free, row))
    return [np.asarray(row) for row in rows]


@dataclass(frozen=True)
class PackedSequences:
    """Encoded sequences with a label for each token, packed into rows."""

    sequences: Encoded
    rows: list[np.ndarray]  # indices of the sequences in each row
    first_position_id: int = 0  # 0, or padding index + 1 for RoBERTa

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens in each row. [N]"""
        lengths = self.sequences.lengths
        return np.asarray([lengths[row].sum() for row in self.rows], dtype=np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each row. [N]"""
        return self.num_tokens

    @property
    def num_targets(self) -> np.ndarray:
        """Number of labeled tokens in each sequence. [P]"""
        return self.sequences.num_targets

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate the rows `items` into padded tensors [B, S].

        The attention mask holds the number of each token's sequence in its row, from 1; it is 0 for padding.
        """
        import torch

        encoded = self.sequences
        width = -(-int(self.num_tokens[items].max()) // multiple_of) * multiple_of
        shape = (len(items), width)
        ids = np.full(shape, encoded.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        types, positions = np.zeros(shape, dtype=np.int64), np.full(shape, self.first_position_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, item in enumerate(items):
            offset = 0
            for number, sequence in enumerate(self.rows[item], start=1):
                start, end = encoded.offsets[sequence : sequence + 2]
                target = slice(offset, offset + int(end - start))
                ids[row, target] = encoded.input_ids[start:end]
                if encoded.labels is not None:
                    labels[row, target] = encoded.labels[start:end]
                if encoded.token_type_ids is not None:
                    types[row, target] = encoded.token_type_ids[start:end]
                positions[row, target] += np.arange(end - start)
                mask[row, target] = number
                offset = target.stop
        arrays = {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}
        if encoded.token_type_ids is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
