"""Hidden states of each sequence's first token ([CLS]), recorded in chosen layers and added to the model's output.

Shapes: B batch, S sequence, T unpadded tokens, L recorded layers, H hidden. With K choices per example, B is B * K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.models.freezing import encoder_layers


def record_cls_states(model: PreTrainedModel, depths: Sequence[int]) -> None:
    """Make a model return the first tokens' hidden states in some layers, as `outputs.hidden_states` = ([B, L, H],).

    Args:
        depths: the L layers to record, in ascending order; 1 is the lowest.
    """
    layers, states = encoder_layers(model), list[torch.Tensor]()

    def record(layer: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        padding_free: Any = getattr(model, "padding_free", None)
        if padding_free is not None and padding_free.output_positions is not None and layer is layers[-1]:
            states.append(hidden[0])  # hidden is [1, B, H]
        elif padding_free is not None and padding_free.unpadded is not None:
            states.append(hidden[0, padding_free.unpadded.cu_seqlens[:-1]])  # hidden is [1, T, H]
        else:
            states.append(hidden[:, 0])  # hidden is [B, S, H]

    def add_to_outputs(_: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Add to a field that every output class has, since distributed wrappers rebuild outputs from their fields."""
        recorded = list(states)
        states.clear()  # also after a forward pass that ran out of memory
        if len(recorded) == len(depths) and outputs is not None:
            outputs["hidden_states"] = (torch.stack(recorded, 1),)

    for depth in depths:
        layers[depth - 1].register_forward_hook(record)
    model.register_forward_hook(add_to_outputs, always_call=True)


def cls_hidden_states(outputs: Any) -> torch.Tensor:
    """Return the hidden states that `record_cls_states` added to a model's output: [B, L, H]."""
    states: torch.Tensor = outputs.hidden_states[0]
    return states
