"""Word embeddings that are trained only in the rows of tokens seen in training.

A dataset uses only part of the vocabulary: SST-2 uses less than half of BERT's, and monolingual texts use a small part
of a multilingual one. The other rows never have a gradient, and AdamW only applies weight decay to them, which scales
them all by the same factor. So the gradient, the optimizer's moments and its update cover only the seen rows, plus an
extra row of ones that never has a gradient either, and so records that factor. The result is the same.
Shapes: V vocabulary, R seen rows, H hidden, B sequences, S sequence length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bertcli.models.shared_encoder import find_encoders

MAX_SEEN_SHARE = 0.8  # of the vocabulary; if more of it is seen, there is little to save


class SeenRowsEmbedding(nn.Module):
    """A replacement for an embedding table [V, H] that takes over its parameter and reduces it to the seen rows.

    Args:
        seen_ids: the token ids that occur in training, in ascending order. [R]
    """

    def __init__(self, table: nn.Embedding, seen_ids: torch.Tensor):
        super().__init__()
        weight = table.weight
        unseen_ids = torch.ones(len(weight), dtype=torch.bool).index_fill(0, seen_ids, False).nonzero()[:, 0]
        self.num_seen = len(seen_ids)
        self.row_indices: torch.Tensor
        row_indices = torch.cat([seen_ids, unseen_ids]).argsort()
        self.register_buffer("row_indices", row_indices, persistent=False)  # [V]: from token id to row, seen rows first
        self.rest: torch.Tensor
        self.register_buffer("rest", weight.detach()[unseen_ids])  # [V - R, H]
        ones = torch.ones_like(weight.detach()[:1])
        # [R + 1, H]; set in place, so that all references to the parameter stay valid
        weight.data = torch.cat([weight.detach()[seen_ids], ones])
        self.weight = weight
        padding = None if table.padding_idx is None else int(row_indices[table.padding_idx])
        self.padding_idx = None if padding is None or padding >= self.num_seen else padding  # has no gradient

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, S, H] of token ids [B, S]; those of unseen ids are correct but have no gradient."""
        rows = self.row_indices[input_ids]
        seen = functional.embedding(rows.clamp(max=self.num_seen), self.weight, self.padding_idx)
        unseen = self.rest[(rows - self.num_seen).clamp(min=0)] * self.weight[-1].detach()
        return torch.where((rows < self.num_seen)[..., None], seen, unseen.to(seen.dtype))  # FSDP sets the dtype

    @torch.no_grad()
    def full_weight(self) -> torch.Tensor:
        """Return the current embedding table with all rows. [V, H]"""
        return torch.cat([self.weight[:-1], self.rest * self.weight[-1]])[self.row_indices]


def train_seen_rows_only(module: nn.Module, seen_ids: np.ndarray) -> None:
    """Train only the seen rows of each encoder's word embeddings in `module`.

    Embedding tables that are frozen or tied to another layer, or of which more than `MAX_SEEN_SHARE` of the rows are
    seen, are left as they are: unless frozen, all their rows are trained.

    Args:
        seen_ids: the token ids that occur in training, without duplicates, in any order. [R]
    """
    sorted_ids = torch.from_numpy(np.sort(seen_ids)).long()
    for encoder in find_encoders(module):
        try:
            table = encoder.get_input_embeddings()
        except NotImplementedError:  # CANINE has no vocabulary
            continue
        if type(table) is not nn.Embedding or table.max_norm is not None or not table.weight.requires_grad:
            continue
        rows = sorted_ids[sorted_ids < len(table.weight)]
        users = [
            part
            for part in module.modules()
            if any(parameter is table.weight for parameter in part._parameters.values())
        ]
        if len(users) > 1 or len(rows) > MAX_SEEN_SHARE * len(table.weight):
            continue
        encoder.set_input_embeddings(SeenRowsEmbedding(table, rows))


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the model's state dict for saving, in which word embeddings have all rows."""
    state = model.state_dict()
    for name, part in model.named_modules():
        if isinstance(part, SeenRowsEmbedding):
            del state[f"{name}.rest"]
            state[f"{name}.weight"] = part.full_weight()
    return state
