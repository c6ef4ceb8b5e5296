"""Best-fit packing: short sequences side by side in rows of one length, so that hardly a place stays empty.

Krell et al. 2021, https://arxiv.org/abs/2107.02027. Attention is kept within each sequence, and its positions start
anew, so that it learns what it would learn alone. Shapes: P sequences, N rows, B rows of a batch, S longest of them.
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


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Every sequence once, in rows of at most `capacity` tokens: the longest first, each into the fullest row it fits.

    Args:
        lengths: [P] tokens of each sequence, none over `capacity`.

    Returns:
        the numbers of the sequences in each row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # free tokens and number of each row that is not full, sorted
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        at = bisect_left(spaces, (length, -1))
        if at == len(spaces):
            rows.append([number])
            space, row = capacity - length, len(rows) - 1
        else:
            free, row = spaces.pop(at)
            rows[row].append(number)
            space = free - length
        if space > 0:
            insort(spaces, (space, row))
    return [np.asarray(row) for row in rows]


@dataclass(frozen=True)
class Packed:
    """Encoded sequences with labels for their tokens, several in a row."""

    sequences: Encoded
    rows: list[np.ndarray]  # the sequences of each row
    first_position: int = 0  # 0, or behind the padding index as RoBERTa counts

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of each row. [N]"""
        lengths = self.sequences.lengths
        return np.asarray([lengths[row].sum() for row in self.rows], dtype=np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row. [N]"""
        return self.sizes

    @property
    def num_targets(self) -> np.ndarray:
        """Labelled tokens of each sequence. [P]"""
        return self.sequences.num_targets

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """The rows `items` as padded tensors [B, S]; their mask numbers a row's sequences from 1, padding is 0."""
        import torch

        encoded = self.sequences
        width = -(-int(self.sizes[items].max()) // multiple_of) * multiple_of
        shape = (len(items), width)
        ids = np.full(shape, encoded.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        types, positions = np.zeros(shape, dtype=np.int64), np.full(shape, self.first_position, dtype=np.int64)
        numbers = np.zeros(shape, dtype=np.int64)
        for place, item in enumerate(items):
            at = 0
            for number, sequence in enumerate(self.rows[item], start=1):
                start, end = encoded.offsets[sequence : sequence + 2]
                here = slice(at, at + int(end - start))
                ids[place, here] = encoded.input_ids[start:end]
                if encoded.labels is not None:
                    labels[place, here] = encoded.labels[start:end]
                if encoded.token_type_ids is not None:
                    types[place, here] = encoded.token_type_ids[start:end]
                positions[place, here] += np.arange(end - start)
                numbers[place, here] = number
                at = here.stop
        arrays = {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": numbers}
        if encoded.token_type_ids is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
