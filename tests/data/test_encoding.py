"""Tokenised texts equal what the tokenizer says of each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertcli.data.encoding import encode_texts
from bertcli.models.build import load_tokenizer


def test_pairs_are_cut_longest_first_and_match_the_tokenizer(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    texts, pairs = ["a fine film", "bad", ""], ["what a lovely day " * 9, "x", "soup"]
    encoded = encode_texts(tokenizer, texts, pairs, max_length=13)
    batch = encoded.batch(np.arange(3))
    expected = tokenizer(texts, pairs, truncation=True, max_length=13, padding=True, return_tensors="pt")
    for name, tensor in expected.items():
        assert batch[name].equal(tensor), name


def test_more_texts_than_one_slice_keep_their_order(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    texts = ["film " * (1 + row % 5) for row in range(4100)]
    assert encode_texts(tokenizer, texts, None, 64).lengths.tolist() == [3 + row % 5 for row in range(4100)]
