"""Models with randomly initialized weights: BERT in its standard sizes, or any transformers architecture."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from bertcli.errors import ModelError, did_you_mean
from bertcli.models.from_pretrained import check_model_class, set_config_fields, set_dropout
from bertcli.models.tokenizer_matching import first_position_id
from bertcli.recipe.pretrain_schema import ArchitectureSection
from bertcli.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_REASON_CHARACTERS = 160  # of another library's error
VOCABULARY_MULTIPLE = 64  # for efficient matrix sizes on every device
# layers, width, heads: https://github.com/google-research/bert (base and large 2018; the small ones, Turc et al. 2019)
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
DEBERTA_FIELDS = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
# What the published models of a family set in addition to their size, where the defaults of transformers differ
FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "modernbert": {"classifier_pooling": "mean"},
    "deberta": DEBERTA_FIELDS | {"pos_att_type": "c2p|p2c"},
    "deberta-v2": DEBERTA_FIELDS
    | {"pos_att_type": "p2c|c2p", "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True},
}
# Sizes that differ from BERT's: ELECTRA (Clark et al. 2020), ModernBERT (Warner et al. 2024)
FAMILY_SIZES: dict[tuple[str, str], dict[str, int]] = {
    ("electra", "small"): {
        "num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
        "embedding_size": 128,
    },
    ("modernbert", "base"): {"num_hidden_layers": 22, "intermediate_size": 1152},
    ("modernbert", "large"): {"num_hidden_layers": 28, "intermediate_size": 2624},
}  # fmt: skip
GATED_FAMILIES = (  # with three matrices in a feed-forward layer instead of two
    *("modernbert", "modernbert-decoder", "eurobert", "nomic_bert", "gte"),
)


def build_config(
    section: ArchitectureSection, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> PretrainedConfig:
    """Build the configuration of a new model for pretraining with `tokenizer`.

    Its size and its other fields are those of the family's published models, if they have this size. The vocabulary
    size is padded to a multiple of 64; the extra entries are never used.

    Raises:
        ModelError: if transformers lacks the model family, or the family lacks a field or rejects a value.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if section.family not in CONFIG_MAPPING:
        cure = did_you_mean(section.family, CONFIG_MAPPING)
        raise ModelError(f"found model.family {section.family!r}, expected a transformers model type.{cure}")
    defaults = AutoConfig.for_model(section.family)
    family_fields = FAMILY_FIELDS.get(section.family, {})
    fields: dict[str, Any] = {}
    if section.size is not None:
        fields = {name: value for name, value in _size_fields(section).items() if hasattr(defaults, name)}
        fields |= family_fields
    for name in section.config_overrides:
        if not hasattr(defaults, name) and name not in family_fields:
            cure = did_you_mean(name, vars(defaults))
            raise ModelError(f"{section.family} has no field {name!r}; remove it from model.config_overrides.{cure}")
    try:  # some defaults depend on other fields
        config = AutoConfig.for_model(section.family, **fields | section.config_overrides)
        _match_config(config, section, tokenizer, max_sequence_length)
    except Exception as error:  # the classes validate their fields in different ways
        raise _invalid_config(section.family, error) from error
    if section.dropout is not None:
        set_dropout(config, section.dropout)
    return config


def _size_fields(section: ArchitectureSection) -> dict[str, Any]:
    """Return the fields of the configuration, under all names that families use, that make up the size."""
    assert section.size is not None
    layers, width, heads = SIZES[section.size]
    # Of the same number of parameters: two thirds of the width if there are three matrices instead of two
    feed_forward = 8 * width // 3 // 64 * 64 if section.family in GATED_FAMILIES else 4 * width
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": feed_forward,
        "embedding_size": width,
        **FAMILY_SIZES.get((section.family, section.size), {}),
    }


def padded_vocab_size(num_entries: int) -> int:
    """Return the vocabulary size of a new model for a tokenizer with this many entries."""
    return -(-num_entries // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _match_config(
    config: PretrainedConfig, section: ArchitectureSection, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> None:
    """Set the fields of a new configuration that depend on the tokenizer or the sequences."""
    config.vocab_size = padded_vocab_size(len(tokenizer))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(config, name):
            setattr(config, name, getattr(tokenizer, name, None))
    if (
        config.is_encoder_decoder and getattr(config, "eos_token_id", 0) is None
    ):  # their classifiers read the state of the last one
        config.eos_token_id = tokenizer.sep_token_id
    limit = getattr(config, "max_position_embeddings", None)  # -1: a family without a limit, such as xlnet
    if limit and limit > 0 and "max_position_embeddings" not in section.config_overrides:
        # Rotary positions have no weights, so there is no reason to support fewer than the family does.
        minimum = limit if getattr(config, "rope_parameters", None) else 512
        config.max_position_embeddings = max(minimum, max_sequence_length) + first_position_id(config)


def build_from_config(config: PretrainedConfig, model_class: str) -> PreTrainedModel:
    """Build a model of `model_class` (an `AutoModelFor…` name) with randomly initialized weights.

    Raises:
        ModelError: if the model family has no such class, or the configuration is invalid.
    """
    import transformers

    check_model_class(config, model_class, f"model.family {config.model_type}")
    try:
        return getattr(transformers, model_class).from_config(config)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise _invalid_config(config.model_type, error) from error


def _invalid_config(family: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS].rstrip(".")
    return ModelError(
        f"cannot build a model of family {family} with this configuration ({type(error).__name__}: {reason}); change "
        "model.config_overrides"
    )


def has_pair_head(config: PretrainedConfig) -> bool:
    """Return whether the family's pretraining class has a sentence-pair head besides its token head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING

    if type(config) not in MODEL_FOR_PRETRAINING_MAPPING:
        return False
    model_class: Any = MODEL_FOR_PRETRAINING_MAPPING[type(config)]
    parameters = inspect.signature(model_class.forward).parameters
    return "next_sentence_label" in parameters or "sentence_order_label" in parameters


def build_bert_config(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Build the configuration of a BERT of `section.size` for the vocabulary of `tokenizer`."""
    from transformers import BertConfig

    layers, width, heads = SIZES[section.size]
    return BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_bert(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase, model_class: str, config_fields: dict[str, Any]
) -> PreTrainedModel:
    """Build a BERT of `section.size` with randomly initialized weights for the vocabulary of `tokenizer`."""
    import transformers

    config = build_bert_config(section, tokenizer)
    set_config_fields(config, config_fields, section.dropout)
    return getattr(transformers, model_class).from_config(config)
