"""An ONNX graph on ONNX Runtime that can be called like the model it was exported from, to score and time it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import PreTrainedModel

from bertcli.models.onnx_export import load_session


class OnnxModel(torch.nn.Module):
    """An exported graph, run on the CPU with as many threads as torch uses.

    Attributes:
        original: the model that was exported, whose family decides how batches are padded.
    """

    def __init__(self, path: Path, original: PreTrainedModel):
        super().__init__()
        self.original = original
        self._session = load_session(path, torch.get_num_threads())
        self._input_names = [entry.name for entry in self._session.get_inputs()]
        self._output_names = [entry.name for entry in self._session.get_outputs()]

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """Return the outputs of a batch as attributes, with the names that they have in transformers."""
        arrays = {name: inputs[name].numpy() for name in self._input_names}
        outputs = self._session.run(self._output_names, arrays)
        return SimpleNamespace(**dict(zip(self._output_names, map(torch.from_numpy, outputs), strict=True)))
