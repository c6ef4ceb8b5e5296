"""The vocabulary's large matrix only where a token is asked for: a masked-language model answers for one in seven.

Shapes: B sequences, S tokens of the longest, H width, M asked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


class AskedPositions(torch.nn.Module):
    """A language model whose logits are [M, V], of the asked tokens alone, instead of [B, S, V]."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._asked: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._choose)

    def _choose(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        assert self._asked is not None, "the model is to be called through its wrapper"
        return (inputs[0][self._asked], *inputs[1:])

    def forward(self, asked: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """The model's output for `inputs`, its token logits where `asked` [B, S] is true."""
        self._asked = asked
        try:
            return self.model(**inputs)
        finally:
            self._asked = None
