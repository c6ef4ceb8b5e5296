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
        # A pooler reads first tokens too, so the last layer then has to answer for all.
        self.reading = "all" if getattr(model.base_model, "pooler", None) else "asked"
        self._asked: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._choose)

    def _choose(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]
        return (hidden.flatten(0, 1) if self._asked is None else hidden.flatten(0, 1)[self._asked], *inputs[1:])

    def forward(self, asked: torch.Tensor | None = None, **inputs: Any) -> Any:
        """The model's output for `inputs`, its token logits of the `asked` places [M] in the flattened batch.

        Without `asked`, they are those of all tokens that reach the head: of a padding-free model only the asked ones.
        """
        self._asked = asked
        try:
            return self.model(**inputs)
        finally:
            self._asked = None
