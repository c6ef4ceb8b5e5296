"""Masked-language-model logits for the target positions only; the large vocabulary projection skips other tokens.

BERT's masking selects one token in seven. Shapes: B batch, S sequence, H hidden, M target tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


class SparsePrediction(torch.nn.Module):
    """A language model that returns logits [M, V] of the target positions only, instead of [B, S, V]."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # A pooler also needs the first tokens, so the last layer has to process all tokens.
        self.output_tokens = "all" if getattr(model.base_model, "pooler", None) else "targets"
        self._target_positions: torch.Tensor | None = None
        projection: Any = model.get_output_embeddings()
        if model.config.model_type == "mobilebert":  # multiplies by the weights of its output embeddings itself
            projection = model.get_submodule("cls.predictions")
        projection.register_forward_pre_hook(self._select_targets)

    def _select_targets(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0].flatten(0, 1)  # [B * S, H]
        if self._target_positions is not None:
            hidden = hidden[self._target_positions]
        return (hidden, *inputs[1:])

    def forward(self, target_positions: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Return the model's output, with token logits for `target_positions` [M] in the flattened batch.

        Without `target_positions`, the logits are those of all tokens that reach the head: in a padding-free model, the
        target tokens.
        """
        self._target_positions = target_positions
        try:
            return self.model(**inputs)
        finally:
            self._target_positions = None
