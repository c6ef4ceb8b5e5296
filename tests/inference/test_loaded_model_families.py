"""For each model family, the prediction for a text is that of plain transformers, whatever else is in its batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertcli.commands.predict import predict, predict_features
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import ModelError, UsageError
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.schema import HardwareSection

from ..conftest import QUIET
from ..model_families import CLASSIFIER, save

TEXTS = ["a film", "what a lovely day the soup was awful i love the harbour", "bad train", "film", ""]


def probabilities(family: str, output: str, *values: list[str], is_batched: bool = True) -> np.ndarray:
    hardware = None if is_batched else HardwareSection.model_construct(eval_batch_tokens=1)
    predict(family, PredictionInput([*values]), output, hardware=hardware, console=QUIET)
    lines = [json.loads(line) for line in Path(output).read_text().splitlines()]
    return np.asarray([list(line["probabilities"].values()) for line in lines])


def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *texts: str, **inputs: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(**tokenizer(*texts, return_tensors="pt", **inputs)).logits.softmax(-1).numpy()[0]


def assert_independent_of_the_batch(
    family: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    together = probabilities(family, "together.jsonl", *[[text] for text in texts])
    alone = probabilities(family, "alone.jsonl", *[[text] for text in texts], is_batched=False)
    for row, text in enumerate(texts):
        assert np.allclose(together[row], alone[row], atol=3e-6)
        if tokenizer(text)["input_ids"]:
            assert np.allclose(together[row], plain(model, tokenizer, text), atol=3e-6)


@pytest.mark.parametrize(
    "family",
    [
        *(
            "bert",
            "albert",
            "deberta-v2",
            "distilbert",
            "modernbert",
            "mpnet",
            "longformer",
            "squeezebert",
            "bart",
            "t5",
        ),
        *("fnet", "convbert", "mobilebert", "nystromformer", "yoso"),  # padding changes their outputs
    ],
)
def test_prediction_does_not_depend_on_other_texts_in_the_batch(family: str, encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    assert_independent_of_the_batch(family, save(family, tokenizer), tokenizer, TEXTS)


def test_funnel_predicts_texts_that_are_too_short_for_it_alone(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    model = save("funnel", tokenizer)
    assert_independent_of_the_batch("funnel", model, tokenizer, [TEXTS[1], "the soup was awful"])
    together = probabilities("funnel", "all.jsonl", *[[text] for text in TEXTS])
    for row, text in enumerate(TEXTS):
        assert np.allclose(together[row], probabilities("funnel", f"short-{row}.jsonl", [text])[0], atol=3e-6)


def test_xlnet_reads_all_tokens_and_is_padded_on_the_left(xlnet_tokenizer: PreTrainedTokenizerBase) -> None:
    model = save("xlnet", xlnet_tokenizer)
    assert_independent_of_the_batch("xlnet", model, xlnet_tokenizer, TEXTS)
    together = probabilities("xlnet", "pairs.jsonl", ["a film", "bad train"], ["a film", TEXTS[1]])
    assert np.allclose(together[0], plain(model, xlnet_tokenizer, "a film", "bad train"), atol=3e-6)


def test_encoder_ignores_the_padding_side_of_its_tokenizer(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    model = save("bert", tokenizer)
    settings = json.loads(Path("bert/tokenizer_config.json").read_text())
    Path("bert/tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    assert ModelSource("bert").load_tokenizer().padding_side == "left"
    assert_independent_of_the_batch("bert", model, tokenizer, TEXTS)


def test_gpt2_pads_with_the_end_of_text_and_reads_it_for_an_empty_text(
    gpt2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = save("gpt2", gpt2_tokenizer)
    assert model.config.pad_token_id is None
    assert gpt2_tokenizer.pad_token is None
    assert_independent_of_the_batch("gpt2", model, gpt2_tokenizer, TEXTS)
    empty = probabilities("gpt2", "empty.jsonl", [""])[0]
    assert np.allclose(empty, plain(model, gpt2_tokenizer, "<|endoftext|>"), atol=3e-6)


def test_roberta_without_token_types_reads_pairs_of_a_bert_tokenizer(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    model = save("roberta", tokenizer)
    assert max(tokenizer("good", "bad")["token_type_ids"]) == 1
    expected = plain(model, tokenizer, "a film", "bad train", return_token_type_ids=False)
    assert np.allclose(probabilities("roberta", "pair.jsonl", ["a film", "bad train"])[0], expected, atol=3e-6)


@pytest.mark.parametrize(("family", "model_class"), [("t5", "AutoModel"), ("bart", "AutoModel"), ("fnet", CLASSIFIER)])
def test_features_do_not_depend_on_other_texts_in_the_batch(family: str, model_class: str, encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    model = save(family, tokenizer, model_class)
    encoder_model = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    inputs = PredictionInput([[text] for text in TEXTS])
    predict_features(family, inputs, "features.npy", layers=[-1], pooling="mean", console=QUIET)
    for text, features in zip(TEXTS, np.load("features.npy"), strict=True):
        with torch.inference_mode():
            states = encoder_model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))[0]
        assert np.allclose(features, states[0].mean(0), atol=1e-5)


def test_cls_features_of_xlnet_are_those_of_its_last_token(xlnet_tokenizer: PreTrainedTokenizerBase) -> None:
    save("xlnet", xlnet_tokenizer)
    inputs = PredictionInput([[text] for text in TEXTS])
    for pooling in ("cls", "tokens"):
        predict_features("xlnet", inputs, f"{pooling}.parquet", layers=[-1], pooling=pooling, console=QUIET)
    tokens, pooled = (pyarrow.parquet.read_table(f"{name}.parquet").to_pylist() for name in ("tokens", "cls"))
    for row, pooled_row in zip(tokens, pooled, strict=True):
        assert row["tokens"][-1] == "[CLS]"
        assert row["layer_-1"][-1] == pooled_row["layer_-1"]


def test_cls_features_without_a_cls_token_are_refused(gpt2_tokenizer: PreTrainedTokenizerBase) -> None:
    save("gpt2", gpt2_tokenizer)
    with pytest.raises(UsageError, match=r"adds no \[CLS\] token to a text; use --pooling mean"):
        predict_features("gpt2", PredictionInput([["a"]]), "x.npy", layers=[-1], pooling="cls", console=QUIET)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (
            "xmod",
            {"languages": ["en", "de"], "default_language": None},
            "set default_language in its config.json to one of en, de",
        ),
        ("nystromformer", {"num_landmarks": 4}, "accepts only sequences of exactly 64 tokens"),
    ],
)
def test_models_that_cannot_read_any_text_are_refused(
    family: str, fields: dict[str, Any], message: str, encoder: Path
) -> None:
    save(family, ModelSource(str(encoder)).load_tokenizer(), **fields)
    with pytest.raises(ModelError, match=message):
        probabilities(family, "x.jsonl", ["a film"])
