"""Temperature scaling: divide the logits of a saved model, so that its probabilities match how often it is right.

`bertcli.metrics.calibration` fits the temperature. It is merged into the output layer, so that plain transformers and
ONNX give the same probabilities.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.files import manifest_update, temporary_path
from bertcli.models.missing_weights import is_encoder_tensor

WEIGHTS = "model.safetensors"
KEY = "bertcli_temperature"  # in the metadata of the file: weights and temperature change in one step


def saved_temperature(folder: Path) -> float | None:
    """Return the temperature that the weights in a model folder have been divided by; None if they have not."""
    if not (folder / WEIGHTS).is_file():
        return None
    with safe_open(folder / WEIGHTS, "pt") as weights:
        metadata = weights.metadata() or {}
    return float(metadata[KEY]) if KEY in metadata else None


def divide_logits(folder: Path, layer: str, temperature: float) -> None:
    """Divide the weight and bias of the output layer `layer` of a saved model by `temperature`, in one step.

    Raises:
        ModelError: if the saved model has no weights of this name.
    """
    path = folder / WEIGHTS
    with safe_open(path, "pt") as weights:
        metadata = weights.metadata() or {}
    tensors = load_file(path)
    if f"{layer}.weight" not in tensors:
        raise ModelError(f"cannot calibrate the model: {path} has no {layer}.weight; remove answers.calibrated")
    for name in {f"{layer}.weight", f"{layer}.bias"} & tensors.keys():
        tensors[name] = (tensors[name].float() / temperature).to(tensors[name].dtype)
    for leftover in folder.glob(f".{WEIGHTS}.*"):  # of a process that was killed here
        leftover.unlink()
    temporary = temporary_path(path)
    try:
        save_file(tensors, temporary, metadata | {KEY: repr(temperature)})
        shutil.copymode(path, temporary)
        with manifest_update(folder, path.name):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def find_output_layer(model: PreTrainedModel, num_outputs: int) -> str:
    """Return the name of the linear layer that computes the logits.

    Args:
        num_outputs: number of logits of an input.

    Raises:
        ModelError: if there is none, so that its logits cannot be divided by a temperature.
    """
    names = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == num_outputs and not is_encoder_tensor(model, name)
    ]
    if not names:
        raise ModelError(
            f"cannot identify the output layer of {model.config.model_type} models, which answers.calibrated=true "
            "changes; remove it, or choose another model"
        )
    return names[-1]  # a head of several layers ends with it
