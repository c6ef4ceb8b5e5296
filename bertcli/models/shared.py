"""One encoder under several models, each with the head of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
