"""Word embeddings that learn in the rows alone which training meets.

A vocabulary serves all texts, a data set meets a part of it: SST-2 less than half of BERT's, texts of one language a
small part of a multilingual one. The other rows never have a gradient, and AdamW does nothing to them but shrink them,
all by one factor. So gradient, moments and the optimiser's pass over them are of the rows that are met, and one more
row, of ones and without a gradient either, tells that factor: what is learned is the same.
Shapes: V rows of the vocabulary, R of them met, N width, B sequences of a batch, S longest of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bertcli.models.shared_encoder import encoders_of

MOST = 0.8  # of the rows: where nearly all are met there is nothing to leave out


class MetRows(nn.Module):
    """Stands for a table of embeddings [V, N], whose parameter it takes over and cuts to the rows that are met.

    Args:
        met: numbers of the rows that training meets, ascending. [R]
    """

    def __init__(self, table: nn.Embedding, met: torch.Tensor):
        super().__init__()
        weight = table.weight
        others = torch.ones(len(weight), dtype=torch.bool).index_fill(0, met, False).nonzero()[:, 0]
        self.num_met = len(met)
        self.places: torch.Tensor
        places = torch.cat([met, others]).argsort()
        self.register_buffer("places", places, persistent=False)  # [V]: where each row is, first those that are met
        self.rest: torch.Tensor
        self.register_buffer("rest", weight.detach()[others])  # [V - R, N]
        ones = torch.ones_like(weight.detach()[:1])
        weight.data = torch.cat([weight.detach()[met], ones])  # [R + 1, N]; whoever knows the parameter keeps it
        self.weight = weight
        padding = None if table.padding_idx is None else int(places[table.padding_idx])
        self.padding = None if padding is None or padding >= self.num_met else padding  # that row does not learn

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The rows of the ids [B, S]: [B, S, N]. Rows that were not to be met are right, but do not learn."""
        places = self.places[input_ids]
        found = functional.embedding(places.clamp(max=self.num_met), self.weight, self.padding)
        others = self.rest[(places - self.num_met).clamp(min=0)] * self.weight[-1].detach()
        return torch.where((places < self.num_met)[..., None], found, others.to(found.dtype))  # FSDP sets its precision

    @torch.no_grad()
    def whole(self) -> torch.Tensor:
        """The table as it is now. [V, N]"""
        return torch.cat([self.weight[:-1], self.rest * self.weight[-1]])[self.places]


def learn_met_rows(module: nn.Module, met: np.ndarray) -> None:
    """Have the word embeddings of each encoder in `module` learn in the rows alone that training meets.

    Embeddings that do not learn, that other parts read as well, or that are nearly all met stay as they are.

    Args:
        met: numbers of the rows, each once, in any order. [R]
    """
    ids = torch.from_numpy(np.sort(met)).long()
    for encoder in encoders_of(module):
        try:
            table = encoder.get_input_embeddings()
        except NotImplementedError:  # CANINE has no vocabulary
            continue
        if type(table) is not nn.Embedding or table.max_norm is not None or not table.weight.requires_grad:
            continue
        rows = ids[ids < len(table.weight)]
        readers = [part for part in module.modules() if any(own is table.weight for own in part._parameters.values())]
        if len(readers) > 1 or len(rows) > MOST * len(table.weight):
            continue
        encoder.set_input_embeddings(MetRows(table, rows))


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The state of a model as it is saved: word embeddings with all their rows."""
    state = model.state_dict()
    for name, part in model.named_modules():
        if isinstance(part, MetRows):
            del state[f"{name}.rest"]
            state[f"{name}.weight"] = part.whole()
    return state
