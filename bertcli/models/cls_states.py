"""What the layers of an encoder make of each sequence's first token, told in the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.models.freezing import layers_of


def tell_first_states(model: PreTrainedModel, depths: Sequence[int]) -> None:
    """Let a model's output hold, as its one hidden state, what L layers make of each first token: [B, L, N].

    With K choices an item there are B * K first tokens.

    Args:
        depths: of the L layers, in ascending order; 1 is the lowest.
    """
    layers, states = layers_of(model), list[torch.Tensor]()

    def note(layer: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        reading: Any = getattr(model, "padding_free", None)
        if reading is not None and reading.read is not None and layer is layers[-1]:
            states.append(hidden[0])  # [1, B, N]
        elif reading is not None and reading.computed is not None:
            states.append(hidden[0, reading.computed.starts[:-1]])  # [1, T, N]
        else:
            states.append(hidden[:, 0])  # [B, S, N]

    def tell(_: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """In a field that every output has, since wrappers for several processes rebuild outputs by their fields."""
        told = list(states)
        states.clear()  # also after a layer that failed for want of memory
        if len(told) == len(depths) and outputs is not None:
            outputs["hidden_states"] = (torch.stack(told, 1),)

    for depth in depths:
        layers[depth - 1].register_forward_hook(note)
    model.register_forward_hook(tell, always_call=True)


def first_states(outputs: Any) -> torch.Tensor:
    """What `tell_first_states` has put into an output: [B, L, N]."""
    states: torch.Tensor = outputs.hidden_states[0]
    return states
