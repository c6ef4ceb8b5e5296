"""An ONNX graph on ONNX Runtime that can be called like the model it was exported from, to score and time it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import PreTrainedModel


class OnnxModel(torch.nn.Module):
    """An exported graph, run on the CPU with as many threads as torch uses.

    Attributes:
        original: the model that was exported, whose family decides how batches are padded.
    """

    def __init__(self, path: Path, original: PreTrainedModel):
        import onnxruntime

        super().__init__()
        self.original = original
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input_names = [entry.name for entry in self._session.get_inputs()]
        self._output_names = [entry.name for entry in self._session.get_outputs()]

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """Return the outputs of a batch as attributes, with the names that they have in transformers."""
        arrays = {name: inputs[name].numpy() for name in self._input_names}
        outputs = self._session.run(self._output_names, arrays)
        return SimpleNamespace(**dict(zip(self._output_names, map(torch.from_numpy, outputs), strict=True)))
