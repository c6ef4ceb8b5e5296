"""Several models, each with its task's head, on one shared encoder (multi-task learning)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def find_encoders(module: nn.Module) -> list[PreTrainedModel]:
    """Return the encoders inside a module, without duplicates."""
    return [part for part in module.modules() if isinstance(part, PreTrainedModel) and part.base_model is part]


class SharedEncoder(nn.Module):
    """Models of one architecture that share an encoder; each batch belongs to one of them."""

    def __init__(self, models: list[PreTrainedModel]):
        super().__init__()
        self.models = nn.ModuleList(models)
        # Some heads use no pooler: share the encoder that has one.
        encoders = [model.base_model for model in models]
        encoder = max(encoders, key=lambda encoder: sum(1 for _ in encoder.parameters()))
        for model in models:
            setattr(model, model.base_model_prefix, encoder)

    def forward(self, task: int, **inputs: Any) -> Any:
        """Return the output of model number `task`."""
        return self.models[task](**inputs)

    def num_parameters(self) -> int:
        """Return the number of parameters of all heads and the encoder, counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
