"""Graphs in int8 and fp16 are smaller, keep the types of their inputs and outputs, and give about the same outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bertcli.models.onnx_export import MAX_DIFFERENCES, largest_difference, load_session, write_onnx
from bertcli.models.onnx_precision import convert_onnx, onnx_bytes

NAMES = ["input_ids", "attention_mask"]


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    fields = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=500, max_position_embeddings=64, initializer_range=0.1, **fields)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7] *= 100  # a scale for the whole table would suit only this row
    return model


@pytest.fixture(scope="module")
def graph(model: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_onnx(model, NAMES, path)
    return path


@pytest.mark.parametrize(("precision", "share", "tolerance"), [("fp16", 0.6, 0.01), ("int8", 0.5, 0.2)])
def test_onnx_precision_keeps_outputs_in_a_smaller_file(
    model: BertForSequenceClassification, graph: Path, precision: str, share: float, tolerance: float
) -> None:
    target = Path("model.onnx")
    convert_onnx(graph, target, precision)
    assert onnx_bytes(target) < share * onnx_bytes(graph)
    assert 0 < largest_difference(model, NAMES, target) < tolerance
    entries = [[*onnx.load(path).graph.input, *onnx.load(path).graph.output] for path in (graph, target)]
    types = [[(entry.name, entry.type.tensor_type.elem_type) for entry in part] for part in entries]
    assert types[0] == types[1]


@pytest.mark.parametrize(("mean", "std"), [(1e-6, 1e-6), (300_000.0, 10.0)])
def test_fp16_keeps_regression_outputs_beyond_its_range_and_resolution(mean: float, std: float) -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=1, **fields)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(std)
        model.classifier.bias.fill_(mean)
    write_onnx(model, NAMES, Path("model.onnx"))
    convert_onnx(Path("model.onnx"), Path("fp16.onnx"), "fp16")
    inputs = {"input_ids": torch.arange(12).reshape(3, 4), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    outputs = load_session(Path("fp16.onnx")).run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert abs(outputs[0] - expected).max() < 0.01 * std


def test_int8_quantizes_linear_layers_and_embeddings(graph: Path) -> None:
    convert_onnx(graph, Path("int8.onnx"), "int8")
    tensors = {tensor.name: tensor for tensor in onnx.load("int8.onnx").graph.initializer}
    in_fp32 = [tensor.dims for tensor in tensors.values() if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(len(dims) < 2 or dims[1] == 1 for dims in in_fp32)  # biases, scales, normalization
    assert [*tensors["bert.embeddings.word_embeddings.weight_int8"].dims] == [500, 64]


def test_int8_weights_have_7_bits_so_that_16_bit_sums_do_not_overflow(graph: Path) -> None:
    convert_onnx(graph, Path("int8.onnx"), "int8")
    nodes = [node for node in onnx.load("int8.onnx").graph.node if node.op_type == "MatMulInteger"]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load("int8.onnx").graph.initializer}
    assert nodes
    assert max(abs(weights[node.input[1]].astype(int)).max() for node in nodes) == 64


def test_int8_difference_tells_quantization_errors_from_a_wrong_graph(
    model: BertForSequenceClassification, graph: Path
) -> None:
    convert_onnx(graph, Path("int8.onnx"), "int8")
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.classifier.bias += 5
    limit = MAX_DIFFERENCES["int8"]
    assert largest_difference(model, NAMES, Path("int8.onnx"), "int8") < limit
    assert largest_difference(wrong, NAMES, Path("int8.onnx"), "int8") > limit
