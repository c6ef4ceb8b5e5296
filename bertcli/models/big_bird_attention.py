"""Attention of BigBird that depends on a text's length only, not on the texts before it.

transformers replaces block-sparse attention with full attention when a batch is short, and never changes it back, so a
long text would be read otherwise after a short one.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bertcli.models.shared_encoder import find_encoders
from bertcli.models.tokenizer_matching import max_full_attention


def reset_attention_type(model: nn.Module) -> None:
    """Make BigBird encoders return to their configured attention when a batch is long; leave others as they are."""
    for encoder in find_encoders(model):
        if encoder.config.model_type == "big_bird":
            encoder.register_forward_pre_hook(_reset, with_kwargs=True)


def _reset(encoder: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    ids = args[0] if args else inputs["input_ids"]
    if ids.shape[-1] > max_full_attention(encoder.config):  # else transformers uses full attention by itself
        encoder.set_attention_type(encoder.config.attention_type)
