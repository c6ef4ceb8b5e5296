"""Gradient checkpointing: recompute the activations of encoder layers in the backward pass instead of keeping them.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. It costs about a third more computation. Dropout draws the same
random numbers again, so losses and gradients do not change.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from bertcli.errors import ModelError
from bertcli.models.freezing import encoder_layers
from bertcli.models.shared_encoder import find_encoders


def checkpoint_layers(module: nn.Module) -> None:
    """Make all encoders in a module recompute the activations of their layers, except those of the last one.

    The backward pass starts with the last layer, so recomputing its activations would not save memory.

    Raises:
        ModelError: if the layers of an encoder do not support it.
    """
    # Not `gradient_checkpointing_enable`, which also makes frozen embeddings compute a gradient.
    for encoder in find_encoders(module):
        layers: list[Any] = [part for part in encoder.modules() if isinstance(part, GradientCheckpointingLayer)]
        if not encoder.supports_gradient_checkpointing or not layers:
            raise unsupported(encoder.config.model_type)
        for layer in layers:
            layer.gradient_checkpointing = layer is not _last_layer(encoder)
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        if "use_cache" in inspect.signature(encoder.forward).parameters:
            encoder.register_forward_pre_hook(_without_cache, with_kwargs=True)


def _without_cache(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Keep no keys and values for generation, to which recomputed layers of GPT-2 would add theirs again."""
    return args, inputs | {"use_cache": False}


def unsupported(model_type: str) -> ModelError:
    """Return the error for a family whose layers cannot be recomputed."""
    return ModelError(
        f"hardware.gradient_checkpointing is true, but {model_type} models in transformers do not support it; set it "
        "to auto, and lower hardware.micro_batch_size to save memory"
    )


def _last_layer(encoder: PreTrainedModel) -> nn.Module | None:
    with suppress(ModelError):  # if the layers cannot be identified
        return encoder_layers(encoder)[-1]
    return None
