"""Convert an ONNX graph from fp32 to a smaller precision: fp16 for GPUs, int8 for CPUs.

int8 is ONNX Runtime's dynamic quantization: weights are stored as int8, activations are quantized as they arrive, so no
calibration data is needed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

NUM_BITS = {"fp32": 32, "fp16": 16, "int8": 8}  # of a weight, by precision
MAX_ONNX_BYTES = 2_000_000_000  # limit of an ONNX file; the weights of larger models go into a separate file
QUANTIZED_OPS = ("MatMul", "Gather")  # linear layers (the quantizer turns Gemm into MatMul), and embedding tables


def convert_onnx(source: Path, target: Path, precision: str) -> None:
    """Write a copy of an fp32 graph in another precision; inputs and outputs keep their types.

    Args:
        precision: `fp16` or `int8`.
    """
    import onnx

    model = onnx.load(source)
    # Torch records shapes of weights, too. Those of transposed weights would contradict the quantized ones.
    del model.graph.value_info[:]
    external = onnx_bytes(source) * NUM_BITS[precision] / NUM_BITS["fp32"] > MAX_ONNX_BYTES
    with _quiet():
        if precision == "int8":
            _quantize(model, target, external)
        else:
            _convert_to_fp16(model, target, external)


def onnx_bytes(path: Path) -> int:
    """Return the size of an ONNX file, with that of the file next to it that holds the weights of a large model."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _quantize(model: onnx.ModelProto, target: Path, external: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(QUANTIZED_OPS),
        per_channel=True,
        # Products of 8-bit weights and activations overflow 16-bit sums on x86 CPUs without VNNI instructions, which
        # the file may be copied to. Weights of 7 bits do not, and are as fast.
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=external,
    )


def _convert_to_fp16(model: onnx.ModelProto, target: Path, external: bool) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted = convert_float_to_float16(model, keep_io_types=True)
    onnx.save(converted, target, save_as_external_data=external, location=f"{target.name}.data")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's advice to preprocess the graph, and its notes on constants that fp16 rounds."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
