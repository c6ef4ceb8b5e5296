"""Vectors of an encoder are plain transformers' hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from bertcli.commands.predict import predict_features
from bertcli.console import Console
from bertcli.errors import UsageError

QUIET = Console(quiet=True)
TEXTS = ["a fine film", "", "the soup was awful " * 9, "bad train"]


def hidden_states(encoder: Path, text: str) -> torch.Tensor:
    """[L + 1, S, H]"""
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(encoder)(text, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(encoder).eval()(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([state[0] for state in states])


def write(encoder: Path, output: str, layers: list[int], pooling: str) -> Path:
    values = [[text] for text in TEXTS]
    predict_features(str(encoder), values, output, layers=layers, pooling=pooling, console=QUIET)
    return Path(output)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooled_vectors_of_one_or_several_layers(encoder: Path, pooling: str) -> None:
    one, several = (
        np.load(write(encoder, "one.npy", [-1], pooling)),
        np.load(write(encoder, "two.npy", [0, 1], pooling)),
    )
    table = pyarrow.parquet.read_table(write(encoder, "both.parquet", [1, -1], pooling))
    assert (one.shape, several.shape) == ((4, 16), (4, 2, 16))
    assert table["text"].to_pylist() == TEXTS
    for row, text in enumerate(TEXTS):
        states = hidden_states(encoder, text)
        expected = states.mean(1) if pooling == "mean" else states[:, 0]
        assert np.allclose(one[row], expected[-1], atol=1e-5)
        assert np.allclose(several[row], expected[[0, 1]], atol=1e-5)
        assert np.allclose(table["layer_1"][row].as_py(), expected[1], atol=1e-5)
        assert np.allclose(table["layer_-1"][row].as_py(), expected[-1], atol=1e-5)


def test_vectors_of_every_token(encoder: Path) -> None:
    table = pyarrow.parquet.read_table(write(encoder, "tokens.parquet", [-1], "tokens"))
    for row, text in enumerate(TEXTS):
        vectors, tokens = table["layer_-1"][row].as_py(), table["tokens"][row].as_py()
        assert tokens[0] == "[CLS]"
        assert len(tokens) == len(vectors)
        assert np.allclose(vectors, hidden_states(encoder, text)[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("output", "layers", "pooling", "words"),
    [
        ("x.npy", [-1], "tokens", r"name a \.parquet file"),
        ("x.npy", [3], "mean", "found layer 3"),
        ("x.csv", [-1], "mean", "ends in"),
        ("x.npy", [-1], "man", "Did you mean mean"),
    ],
)
def test_what_cannot_be_is_refused(encoder: Path, output: str, layers: list[int], pooling: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write(encoder, output, layers, pooling)


def test_an_existing_file_is_kept(encoder: Path) -> None:
    Path("mine.npy").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        write(encoder, "mine.npy", [-1], "mean")
    assert Path("mine.npy").read_text() == "kept"
