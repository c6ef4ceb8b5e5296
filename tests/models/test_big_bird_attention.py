"""BigBird reads a long text with block-sparse attention, whatever texts came before it or share its batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers

from bertcli.data.encoding import encode_texts
from bertcli.inference.embeddings import FeatureExtractor, pool
from bertcli.inference.loaded_model import load_for_inference, predict_inputs
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.tokenizer_matching import mixes_padding
from bertcli.recipe.schema import DataSection

from ..conftest import QUIET
from ..model_families import CLASSIFIER, build_wordpiece_tokenizer, encode, plain, save

LONG = "a fine film what a lovely day the soup was awful i love the harbour " * 2
TEXTS = ["a film", LONG, f"{LONG} {LONG}", "bad train"]
SMALL: dict[str, Any] = {"block_size": 4, "num_random_blocks": 1}  # full attention up to 28 tokens


def test_long_texts_have_block_sparse_attention_after_short_ones() -> None:
    tokenizer = build_wordpiece_tokenizer()
    save("big_bird", tokenizer, CLASSIFIER, **SMALL)
    loaded = load_for_inference(ModelSource("big_bird"))
    for _ in range(2):
        ((_, _, _, logits),) = predict_inputs(loaded, loaded.task, [{"text": text} for text in TEXTS], QUIET)
        for text, row in zip(TEXTS, logits, strict=True):
            compute = plain("big_bird", CLASSIFIER)  # loaded again, since it changes its attention for good
            assert np.allclose(row, compute(encode(tokenizer, text)), atol=1e-5)


def test_features_of_long_texts_have_block_sparse_attention_after_short_ones() -> None:
    save("big_bird", build_wordpiece_tokenizer(), "AutoModel", **SMALL)
    extractor = FeatureExtractor(ModelSource("big_bird"), [-1], DataSection(), None)

    def features(*texts: str) -> np.ndarray:
        encoded = encode_texts(extractor.tokenizer, texts, None, 100)
        return pool(extractor.hidden_states(encoded), encoded, "mean")

    expected = features(LONG)
    assert np.allclose(features(*TEXTS)[1], expected[0], atol=1e-5)


def test_only_block_sparse_attention_of_long_texts_mixes_padding_in() -> None:
    config = transformers.BigBirdConfig(**SMALL)
    assert not mixes_padding(config, 28)
    assert mixes_padding(config, 29)
    assert not mixes_padding(transformers.BigBirdConfig(**SMALL, attention_type="original_full"), 29)
