"""Texts as token ids, kept as ragged arrays: no padding is stored, and a million short texts fit in memory.

Shapes: N examples, T tokens of all examples together, B examples of a batch, S longest sequence of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 2000


@dataclass(frozen=True)
class Encoded:
    """N tokenised examples laid end to end; example i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray  # [T] int32
    token_type_ids: np.ndarray | None  # [T] int8; None if the model has no segments
    offsets: np.ndarray  # [N + 1] int64
    labels: np.ndarray | None  # [N] int64 or float32, or [N, C] float32; None if unlabelled
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example. [N]"""
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """The examples `rows` [B] as padded tensors [B, S] under the names Hugging Face models take.

        S is the longest of these rows, rounded up to `multiple_of` (8 suits tensor cores).
        """
        import torch

        starts, lengths = self.offsets[rows], self.lengths[rows]
        width = -(-int(lengths.max()) // multiple_of) * multiple_of
        places = np.arange(width)
        mask = places < lengths[:, None]
        source = (starts[:, None] + places)[mask]

        def padded(values: np.ndarray, fill: int) -> torch.Tensor:
            table = np.full(mask.shape, fill, dtype=np.int64)
            table[mask] = values[source]
            return torch.from_numpy(table)

        tensors = {"input_ids": padded(self.input_ids, self.pad_token_id), "attention_mask": torch.from_numpy(mask * 1)}
        if self.token_type_ids is not None:
            tensors["token_type_ids"] = padded(self.token_type_ids, 0)
        if self.labels is not None:
            tensors["labels"] = torch.from_numpy(self.labels[rows])
        return tensors


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    labels: np.ndarray | None = None,
) -> Encoded:
    """Tokenise N texts (or N pairs), cut to `max_length` tokens: the longer text of a pair first.

    Args:
        texts: N first texts.
        pairs: N second texts, or None.
        max_length: tokens, special ones included.
        labels: [N] or [N, C], carried along.
    """
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        output = tokenizer(
            list(texts[part]),
            None if pairs is None else list(pairs[part]),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths += [len(row) for row in output["input_ids"]]
        ids += [np.asarray(row, dtype=np.int32) for row in output["input_ids"]]
        types += [np.asarray(row, dtype=np.int8) for row in output.get("token_type_ids", ())]
    return Encoded(
        input_ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
        token_type_ids=np.concatenate(types) if types else None,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        labels=labels,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
