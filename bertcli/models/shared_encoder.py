"""The encoders in what is trained, and one of them under several models, each with the head of its task."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def encoders_of(module: nn.Module) -> list[PreTrainedModel]:
    """The encoders in what is trained, each once."""
    return [part for part in module.modules() if isinstance(part, PreTrainedModel) and part.base_model is part]


class SharedEncoder(nn.Module):
    """Models of one architecture with one encoder; each batch is for one of them."""

    def __init__(self, models: list[PreTrainedModel]):
        super().__init__()
        self.models = nn.ModuleList(models)
        # Some heads do without the pooling layer that others read.
        encoders = [model.base_model for model in models]
        encoder = max(encoders, key=lambda encoder: sum(1 for _ in encoder.parameters()))
        for model in models:
            setattr(model, model.base_model_prefix, encoder)

    def forward(self, task: int, **inputs: Any) -> Any:
        """What the model number `task` makes of the inputs."""
        return self.models[task](**inputs)

    def num_parameters(self) -> int:
        """Those of the encoder, counted once, and of all heads."""
        return sum(part.numel() for part in self.parameters())
