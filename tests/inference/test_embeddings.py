"""Extracted features equal the hidden states of plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from bertcli.commands.predict import predict_features
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import DataError, UsageError

from ..conftest import QUIET

TEXTS = ["a fine film", "", "the soup was awful " * 9, "bad train"]


def hidden_states(encoder: Path, text: str) -> torch.Tensor:
    """[L + 1, S, H]"""
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(encoder)(text, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(encoder).eval()(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([state[0] for state in states])


def write_features(encoder: Path, output: str, layers: list[int], pooling: str) -> Path:
    inputs = PredictionInput([[text] for text in TEXTS])
    predict_features(str(encoder), inputs, output, layers=layers, pooling=pooling, console=QUIET)
    return Path(output)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooled_features_of_one_or_several_layers(encoder: Path, pooling: str) -> None:
    last_layer = np.load(write_features(encoder, "last.npy", [-1], pooling))
    two_layers = np.load(write_features(encoder, "two.npy", [0, 1], pooling))
    table = pyarrow.parquet.read_table(write_features(encoder, "both.parquet", [1, -1], pooling))
    assert (last_layer.shape, two_layers.shape) == ((4, 16), (4, 2, 16))
    assert table["text"].to_pylist() == TEXTS
    for row, text in enumerate(TEXTS):
        states = hidden_states(encoder, text)
        expected = states.mean(1) if pooling == "mean" else states[:, 0]
        assert np.allclose(last_layer[row], expected[-1], atol=1e-5)
        assert np.allclose(two_layers[row], expected[[0, 1]], atol=1e-5)
        assert np.allclose(table["layer_1"][row].as_py(), expected[1], atol=1e-5)
        assert np.allclose(table["layer_-1"][row].as_py(), expected[-1], atol=1e-5)


def test_token_features(encoder: Path) -> None:
    table = pyarrow.parquet.read_table(write_features(encoder, "tokens.parquet", [-1], "tokens"))
    for row, text in enumerate(TEXTS):
        features, tokens = table["layer_-1"][row].as_py(), table["tokens"][row].as_py()
        assert tokens[0] == "[CLS]"
        assert len(tokens) == len(features)
        assert np.allclose(features, hidden_states(encoder, text)[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("output", "layers", "pooling", "message"),
    [
        ("x.npy", [-1], "tokens", r"use a \.parquet file"),
        ("x.npy", [3], "mean", "found layer 3"),
        ("x.csv", [-1], "mean", "ends in"),
        ("x.npy", [-1], "man", "Did you mean mean"),
    ],
)
def test_invalid_feature_options(encoder: Path, output: str, layers: list[int], pooling: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_features(encoder, output, layers, pooling)


def test_features_do_not_overwrite_a_file(encoder: Path) -> None:
    Path("mine.npy").write_text("kept")
    with pytest.raises(UsageError, match="already exists"):
        write_features(encoder, "mine.npy", [-1], "mean")
    assert Path("mine.npy").read_text() == "kept"


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_features_of_no_inputs_are_refused(encoder: Path, name: str) -> None:
    Path("in.jsonl").touch()
    with pytest.raises(DataError, match="found no inputs"):
        predict_features(
            str(encoder), PredictionInput(path="in.jsonl"), name, layers=[-1], pooling="mean", console=QUIET
        )
    assert not Path(name).exists()


def test_token_features_stand_beside_a_column_of_the_same_name(encoder: Path) -> None:
    Path("in.csv").write_text("tokens\na fine film\n")
    inputs = PredictionInput(path="in.csv", columns=["tokens"])
    predict_features(str(encoder), inputs, "x.parquet", layers=[-1], pooling="tokens", console=QUIET)
    table = pyarrow.parquet.read_table("x.parquet")
    assert table.column_names == ["input_tokens", "tokens", "layer_-1"]
    assert table["input_tokens"].to_pylist() == ["a fine film"]
