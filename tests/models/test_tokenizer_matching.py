"""Models and tokenizers are made to fit one another, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bertcli.errors import ModelError
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.tokenizer_matching import (
    UNLIMITED_LENGTH,
    check_end_of_text,
    match_tokenizer,
    max_input_length,
)


@pytest.fixture
def wordpiece(encoder: Path) -> PreTrainedTokenizerBase:
    return ModelSource(str(encoder)).load_tokenizer()


def config_of(family: str, **fields: Any) -> PretrainedConfig:
    return transformers.AutoConfig.for_model(family, vocab_size=500, **fields)


def test_tokenizer_with_more_entries_than_the_model_is_refused(wordpiece: PreTrainedTokenizerBase) -> None:
    size = len(wordpiece)
    match_tokenizer(wordpiece, transformers.BertConfig(vocab_size=size), "small")
    wordpiece.add_tokens(["newword"])
    with pytest.raises(
        ModelError, match=rf"with {size + 1} entries, expected at most {size}, .* the config\.json of small;"
    ):
        match_tokenizer(wordpiece, transformers.BertConfig(vocab_size=size), "small")


def test_token_id_beyond_the_embeddings_is_refused_if_ids_have_gaps(
    wordpiece: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordpiece, "get_vocab", lambda: {"[PAD]": 0, "far": 700})
    with pytest.raises(ModelError, match="with 701 entries, expected at most 500"):
        match_tokenizer(wordpiece, config_of("bert"), "small")


@pytest.mark.parametrize(
    ("length", "message"), [("x", "expected a number"), (2, "no room for text besides 2 special tokens")]
)
def test_length_that_leaves_no_room_for_text_is_refused(
    wordpiece: PreTrainedTokenizerBase, length: Any, message: str
) -> None:
    wordpiece.model_max_length = length
    with pytest.raises(ModelError, match=message):
        match_tokenizer(wordpiece, config_of("bert"), "model")


@pytest.mark.parametrize("num_types", [0, 1, 2])
def test_token_types_are_left_out_if_the_model_has_none(wordpiece: PreTrainedTokenizerBase, num_types: int) -> None:
    match_tokenizer(wordpiece, config_of("roberta", type_vocab_size=num_types), "model")
    wordpiece.save_pretrained("saved")
    for tokenizer in (wordpiece, transformers.AutoTokenizer.from_pretrained("saved")):
        assert ("token_type_ids" in tokenizer("good", "bad")) == (num_types == 2)


def test_more_token_types_than_the_model_has_are_refused(xlnet_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match="with 3 token types, expected at most 2"):
        match_tokenizer(xlnet_tokenizer, config_of("bert"), "model")


def test_configuration_without_a_padding_token_gets_the_one_of_the_tokenizer(
    wordpiece: PreTrainedTokenizerBase,
) -> None:
    for missing in (None, -1):
        config = config_of("gpt2", pad_token_id=missing)
        match_tokenizer(wordpiece, config, "model")
        assert config.pad_token_id == wordpiece.pad_token_id


def test_tokenizer_without_a_padding_token_uses_the_end_of_text(wordpiece: PreTrainedTokenizerBase) -> None:
    wordpiece.pad_token, wordpiece.eos_token = None, "[SEP]"
    config = config_of("gpt2")
    match_tokenizer(wordpiece, config, "model")
    assert config.pad_token_id == wordpiece.pad_token_id == wordpiece.sep_token_id
    wordpiece.pad_token = wordpiece.eos_token = None
    with pytest.raises(ModelError, match="the tokenizer of model has neither a padding nor an end-of-text token"):
        match_tokenizer(wordpiece, config_of("gpt2"), "model")


def test_decoders_pad_with_the_token_by_which_they_find_the_end_of_a_text(wordpiece: PreTrainedTokenizerBase) -> None:
    match_tokenizer(wordpiece, config_of("bert", pad_token_id=wordpiece.sep_token_id), "model")
    assert wordpiece.pad_token == "[PAD]"  # the encoder masks it
    match_tokenizer(wordpiece, config_of("gpt2", pad_token_id=wordpiece.sep_token_id), "model")
    assert wordpiece.pad_token == "[SEP]"
    with pytest.raises(ModelError, match=r"padding token ID 3, expected 40, by which model finds the end of a text"):
        match_tokenizer(wordpiece, config_of("gpt2", pad_token_id=40), "model")


@pytest.mark.parametrize("saved_side", ["left", "right"])
def test_padding_goes_to_the_side_that_the_model_ignores(wordpiece: PreTrainedTokenizerBase, saved_side: str) -> None:
    for family, side in (("bert", "right"), ("gpt2", "right"), ("xlnet", "left")):
        wordpiece.padding_side = saved_side
        match_tokenizer(wordpiece, config_of(family), "model")
        assert wordpiece.padding_side == side


@pytest.mark.parametrize(
    ("family", "fields", "limit"),
    [
        ("bert", {"max_position_embeddings": 64}, 64),
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ("xlnet", {}, UNLIMITED_LENGTH),
        ("t5", {}, UNLIMITED_LENGTH),
    ],
)
def test_maximum_length_of_relative_positions_is_that_of_the_tokenizer(
    wordpiece: PreTrainedTokenizerBase, family: str, fields: dict[str, int], limit: int
) -> None:
    wordpiece.model_max_length = int(1e30)
    assert max_input_length(wordpiece, config_of(family, **fields)) == limit
    wordpiece.model_max_length = 50
    assert max_input_length(wordpiece, config_of(family, **fields)) == 50


def test_classifier_that_reads_the_end_of_a_text_needs_a_tokenizer_that_adds_it(
    wordpiece: PreTrainedTokenizerBase,
) -> None:
    classifier, end_id = "AutoModelForSequenceClassification", wordpiece.sep_token_id
    check_end_of_text(wordpiece, config_of("bart", eos_token_id=end_id), classifier, "model")
    for family, model_class in (("bart", "AutoModelForQuestionAnswering"), ("bert", classifier)):
        check_end_of_text(wordpiece, config_of(family, eos_token_id=40), model_class, "model")
    with pytest.raises(
        ModelError, match=f"ends texts with the token ID {end_id}, expected 40, the eos_token_id of model"
    ):
        check_end_of_text(wordpiece, config_of("bart", eos_token_id=40), classifier, "model")
