"""New models: their configuration fits the tokenizer, and a family that cannot be built is refused in one sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerBase

from bertcli.errors import ModelError
from bertcli.models.from_scratch import build_config, build_from_config
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.pretrain_schema import ArchitectureSection, TokenizerKind
from bertcli.recipe.schema import Size

CLASSIFIER = "AutoModelForSequenceClassification"
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


def tokenizer(kind: TokenizerKind = "wordpiece") -> PreTrainedTokenizerBase:
    return train_tokenizer(lambda: ["a fine film"], 400, kind)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize(("family", "fields"), [("t5", T5), ("bart", BART)])
def test_encoder_decoder_classifies_by_the_end_of_text_of_a_trained_tokenizer(
    family: str, fields: dict[str, int], kind: TokenizerKind
) -> None:
    encoder_tokenizer = tokenizer(kind)
    section = ArchitectureSection(family=family, size=None, config_overrides={**fields})
    config = build_config(section, encoder_tokenizer, 32)
    config.decoder_start_token_id = encoder_tokenizer.pad_token_id
    inputs = encoder_tokenizer("a fine film", return_tensors="pt")
    assert int(inputs.input_ids[0, -1]) == config.eos_token_id
    model = build_from_config(config, CLASSIFIER)
    assert torch.isfinite(model(input_ids=inputs.input_ids).logits).all()


@pytest.mark.parametrize(
    ("family", "model_class", "message"),
    [
        ("xlnet", "AutoModelForMaskedLM", "xlnet"),
        ("tapas", "AutoModelForMaskedLM", "tapas: it also reads the cells of tables"),
        ("modernbert-decoder", "AutoModelForCausalLM", "cannot build a model of family modernbert-decoder"),
    ],
)
def test_family_that_cannot_be_pretrained_is_refused(family: str, model_class: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        build_from_config(build_config(ArchitectureSection(family=family, size=None), tokenizer(), 32), model_class)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "size", "vocab_size", "millions"),
    [  # of the encoders of the published models, without heads
        ("bert", "base", 30_522, 109.5),
        ("bert", "large", 30_522, 335.1),
        ("roberta", "base", 50_265, 124.6),
        ("roberta", "large", 50_265, 355.4),
        ("electra", "small", 30_522, 13.5),
        ("electra", "base", 30_522, 108.9),
        ("electra", "large", 30_522, 334.1),
        ("modernbert", "base", 50_368, 149.0),
        ("modernbert", "large", 50_368, 394.8),
        ("deberta", "base", 50_265, 138.6),
        ("deberta-v2", "base", 128_100, 183.8),
        ("deberta-v2", "large", 128_100, 434.0),
    ],
)
def test_model_of_a_published_size_has_its_number_of_parameters(
    family: str, size: Size, vocab_size: int, millions: float
) -> None:
    config = build_config(ArchitectureSection(family=family, size=size), tokenizer(), 512)
    config.vocab_size = vocab_size
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.06)


def test_modernbert_has_local_attention_except_in_each_third_layer() -> None:
    config = build_config(ArchitectureSection(family="modernbert", size="base"), tokenizer(), 1024)
    assert [kind == "full_attention" for kind in config.layer_types] == [layer % 3 == 0 for layer in range(22)]
    assert (config.sliding_window, config.max_position_embeddings, config.classifier_pooling) == (64, 8192, "mean")
