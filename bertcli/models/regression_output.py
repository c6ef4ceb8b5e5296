"""The output layer of a regression model: computed in fp32, and trained on standardized targets.

A new output layer predicts numbers near 0, and with the learning rates of fine-tuning it never reaches targets in the
thousands. Therefore, the layer computes standardized numbers during training and converts them to the units of the
targets. In the saved model, scale and shift are merged into the layer's weight and bias.

Shapes: B batch, F input features of the layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.models.missing_weights import is_encoder_tensor


class RegressionOutput(nn.Linear):
    """A replacement for a linear layer that takes over its parameters and uses them to predict standardized targets.

    Args:
        mean: mean of the targets.
        std: standard deviation of the targets.
    """

    def __init__(self, layer: nn.Linear, mean: float = 0.0, std: float = 1.0):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        # Without a bias, the mean cannot be represented: divide numbers by their root mean square instead.
        self.mean, self.std = (mean, std) if layer.bias is not None else (0.0, math.hypot(mean, std))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Predict numbers [B, 1] in the units of the targets from features [B, F].

        This uses fp32, since bf16 is too coarse (2008 follows 2000). In evaluation mode, the layer computes exactly
        what the saved model does.
        """
        with torch.autocast(features.device.type, enabled=False):
            if self.training:
                bias = None if self.bias is None else self.bias.float()
                standardized = functional.linear(features.float(), self.weight.float(), bias)
                result: torch.Tensor = _ToUnits.apply(standardized, self.mean, self.std)
                return result
            return functional.linear(features.float(), *self.in_units())

    @torch.no_grad()
    def in_units(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weight and the bias of the plain linear layer that predicts in the units of the targets."""
        bias = None if self.bias is None else self.bias.float() * self.std + self.mean
        return self.weight.float() * self.std, bias

    @torch.no_grad()
    def from_units(self) -> None:
        """Convert, in place, parameters that predict in the units of the targets, such as those of a trained model."""
        self.weight.div_(self.std)
        if self.bias is not None:
            self.bias.sub_(self.mean).div_(self.std)


class _ToUnits(torch.autograd.Function):
    """Conversion of standardized numbers to the units of the targets, with gradients of the standardized error.

    The loss is in squared units, as are the validation loss and that of the saved model. Its gradient would be `std`
    squared times that of the standardized loss, which learning rate, clipping and Adam's epsilon are intended for.
    """

    @staticmethod
    def forward(ctx: Any, standardized: torch.Tensor, mean: float, std: float) -> torch.Tensor:
        ctx.std = std
        return standardized * std + mean

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] / ctx.std, None, None


def standardize_targets(model: PreTrainedModel, mean: float, std: float, *, is_new_head: bool) -> None:
    """Train a regression model on standardized targets; it still takes and predicts numbers in the original units.

    Args:
        mean: mean of the targets in the training rows.
        std: standard deviation of the targets in the training rows.
        is_new_head: whether the output layer is newly initialized; a trained one already predicts in original units.

    Raises:
        ModelError: if the output layer cannot be identified.
    """
    names = _output_layers(model)
    if not names:
        raise ModelError(
            f"cannot identify the output layer of {model.config.model_type} models, which large or small targets "
            "require (in the training rows, their mean is not within ±10, or their standard deviation is not between "
            "0.1 and 10); standardize the targets in the files, or choose another model"
        )
    for name in names:
        layer: Any = model.get_submodule(name)
        output = RegressionOutput(layer, mean, std)
        if not is_new_head:
            output.from_units()
        model.set_submodule(name, output)


def use_fp32_output(model: nn.Module) -> None:
    """Compute the output layer in fp32 if this is a regression model; its parameters and results stay the same."""
    for name in _output_layers(model):
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, RegressionOutput(layer))


def _output_layers(model: nn.Module) -> list[str]:
    """Return the names of a regression model's plain linear output layers; empty for other models."""
    if not isinstance(model, PreTrainedModel) or not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    return [
        name
        for name, part in model.named_modules()
        if type(part) is nn.Linear and part.out_features == model.config.num_labels == 1
        if not is_encoder_tensor(model, name)
    ]


def state_dict_in_units(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return a model's state dict for saving, with output layers that predict in the units of the targets."""
    state = dict(state)
    for name, part in module.named_modules():
        if isinstance(part, RegressionOutput):
            weight, bias = part.in_units()
            state[f"{name}.weight"] = weight
            if bias is not None:
                state[f"{name}.bias"] = bias
    return state
