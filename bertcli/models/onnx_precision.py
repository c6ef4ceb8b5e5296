"""Convert an ONNX graph from fp32 to a smaller precision: fp16 for GPUs, int8 for CPUs.

int8 is ONNX Runtime's dynamic quantization: weights are stored as int8, activations are quantized as they arrive, so no
calibration data is needed. Embedding tables are stored as int8, too, and looked-up rows are converted back.
Shapes: V vocabulary, H hidden.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

NUM_BITS = {"fp32": 32, "fp16": 16, "int8": 8}  # of a weight, by precision
MAX_ONNX_BYTES = 2_000_000_000  # limit of an ONNX file; the weights of larger models go into a separate file
QUANTIZED_OPS = ("MatMul",)  # linear layers: the quantizer turns Gemm into MatMul
MAX_INT8 = 127


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

    _quantize_embeddings(model)
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


def _quantize_embeddings(model: onnx.ModelProto) -> None:
    """Store embedding tables [V, H] as int8 with a scale per row, by which looked-up rows are multiplied.

    ONNX Runtime's quantizer has one scale for a whole table, which rare tokens with large embeddings determine: with
    it, MiniLM loses 0.7 points of accuracy on SST-2, and with a scale per row 0.1.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input)
    gathers = [node for node in graph.node if node.op_type == "Gather" and _axis(node) == 0]
    lookups = Counter(node.input[0] for node in gathers)
    float_tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
        if 0 < lookups[tensor.name] == uses[tensor.name]  # not an output layer with the same weights
    }
    for name, tensor in float_tables.items():
        weights = numpy_helper.to_array(tensor)
        scales = np.maximum(np.abs(weights).max(1, keepdims=True) / MAX_INT8, np.finfo(np.float32).tiny)
        rounded = np.round(weights / scales).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), f"{name}_scales"))
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in float_tables:
            nodes.append(node)
            continue
        (table, indices), (output,) = node.input, node.output
        nodes += [
            helper.make_node("Gather", [f"{table}_int8", indices], [f"{output}_int8"]),
            helper.make_node("Gather", [f"{table}_scales", indices], [f"{output}_scales"]),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_rounded"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}_rounded", f"{output}_scales"], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _convert_to_fp16(model: onnx.ModelProto, target: Path, external: bool) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    fp32_nodes = _single_output_layers(model)
    converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=fp32_nodes)
    if fp32_nodes:
        _remove_round_trips(converted)
    onnx.save(converted, target, save_as_external_data=external, location=f"{target.name}.data")


def _single_output_layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes from a last linear layer with a single output, such as that of a regression, on.

    They stay in fp32: numbers in the units of the targets may be beyond the range or the resolution of fp16.
    """
    graph = model.graph
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    names = []
    pending = [output.name for output in graph.output]
    while pending:
        node = producers.get(pending.pop())
        if node is None:
            continue
        names.append(node.name)
        if node.op_type in ("Gemm", "MatMul"):
            if not any(1 in sizes.get(name, ()) and len(sizes[name]) == 2 for name in node.input):
                return []
        else:
            pending += node.input
    return names


def _remove_round_trips(model: onnx.ModelProto) -> None:
    """Remove casts to fp16 and back, which the converter inserts between an fp32 node and an fp32 output."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    outputs = {output.name for output in model.graph.output}
    for name in outputs & casts.keys():
        inner = casts.get(casts[name].input[0])
        if inner is not None:
            casts[name].input[0] = inner.input[0]
            model.graph.node.remove(inner)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


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
