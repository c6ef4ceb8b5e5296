"""Models with fresh weights for pretraining: BERT's presets, or any architecture transformers knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from bertcli.errors import ModelError, did_you_mean
from bertcli.models.from_pretrained import (
    _set_fields,
    first_position,
    set_dropout,
)
from bertcli.recipe.pretrain_schema import ArchitectureSection
from bertcli.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKABLE = ("bert", "electra", "roberta", "camembert", "xlm-roberta")  # take positions and a mask of who may see whom


VOCABULARY_MULTIPLE = 64  # matrix sizes that suit every device


def build_config(
    section: ArchitectureSection, tokenizer: PreTrainedTokenizerBase, longest_sequence: int
) -> PretrainedConfig:
    """The configuration of a fresh model for the vocabulary of `tokenizer`.

    The vocabulary is padded to a multiple of 64: the entries beyond the tokenizer's are never used.

    Raises:
        ModelError: there is no such family, or a field that it does not have.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if section.family not in CONFIG_MAPPING:
        cure = did_you_mean(section.family, CONFIG_MAPPING)
        raise ModelError(f"found model.family {section.family!r}, expected a model type of transformers.{cure}")
    known = AutoConfig.for_model(section.family)
    fields: dict[str, Any] = {}
    if section.size is not None:
        layers, width, heads = SIZES[section.size]
        fields = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
        fields |= {"intermediate_size": 4 * width, "embedding_size": width}
        fields = {name: value for name, value in fields.items() if hasattr(known, name)}
    for name in section.fields:
        if not hasattr(known, name):
            raise ModelError(f"{section.family} has no field {name!r}.{did_you_mean(name, vars(known))}")
    config = AutoConfig.for_model(section.family, **fields | section.fields)  # some fields follow from others
    config.vocab_size = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(config, name):
            setattr(config, name, getattr(tokenizer, name, None))
    if getattr(config, "max_position_embeddings", None) and "max_position_embeddings" not in section.fields:
        config.max_position_embeddings = max(512, longest_sequence) + first_position(config)
    if section.dropout is not None:
        set_dropout(config, section.dropout)
    return config


def build_from_config(config: PretrainedConfig, model_class: str) -> PreTrainedModel:
    """A model of `model_class` (an `AutoModelFor…` name) with fresh weights.

    Raises:
        ModelError: this family has no such model.
    """
    import transformers

    try:
        return getattr(transformers, model_class).from_config(config)
    except ValueError as error:
        raise ModelError(f"{config.model_type} has no model for this objective ({model_class})") from error


def tells_pairs(config: PretrainedConfig) -> bool:
    """Whether the family's pretraining class has a head for pairs of texts beside that for tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING

    if type(config) not in MODEL_FOR_PRETRAINING_MAPPING:
        return False
    model_class: Any = MODEL_FOR_PRETRAINING_MAPPING[type(config)]
    known = inspect.signature(model_class.forward).parameters
    return "next_sentence_label" in known or "sentence_order_label" in known


# layers, width, heads: https://github.com/google-research/bert (base and large 2018; the small ones, Turc et al. 2019)
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


def build_model(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase, model_class: str, config_fields: dict[str, Any]
) -> PreTrainedModel:
    """A BERT of `section.size` with fresh weights for the vocabulary of `tokenizer`."""
    import transformers

    layers, width, heads = SIZES[section.size]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        pad_token_id=tokenizer.pad_token_id,
    )
    _set_fields(config, config_fields, section.dropout)
    return getattr(transformers, model_class).from_config(config)
