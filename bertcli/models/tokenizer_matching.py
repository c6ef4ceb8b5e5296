"""Make a model and a tokenizer compatible: vocabulary, padding, token types and maximum length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bertcli.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

POSITION_OFFSET_FAMILIES = (  # their positions start after the padding index
    *("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "longformer", "ibert"),
    *("xmod", "data2vec-text", "esm", "luke", "lilt", "markuplm"),
)
PADDING_SENSITIVE_FAMILIES = (  # they mix padding into tokens: Fourier transforms, convolutions, landmarks, hashing
    *("canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "reformer", "yoso"),
)
PADDING_WARNING = (
    "{} models mix padding into the text; training pads each batch to its longest text, while evaluation and "
    "prediction use batches of texts of the same length, without padding"
)
UNLIMITED_LENGTH = 10**9


def match_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> None:
    """Make a tokenizer and the configuration of the model `name` compatible; both are changed in place.

    * The tokenizer gets a padding token if it has none (the configuration's, else its own end-of-text token), and the
      configuration gets the ID of the padding token if it has none.
    * The tokenizer pads on the side that leaves the model's outputs unchanged, whatever side it was saved with.
    * The tokenizer returns no token types if the model has no embeddings for them.

    Raises:
        ModelError: if the model lacks embeddings for some tokens or token types, the padding tokens do not match, or
            the maximum length leaves no room for text.
    """
    _check_vocabulary(tokenizer, config, name)
    _check_length(tokenizer, config, name)
    _match_padding_token(tokenizer, config, name)
    # The head of a model that summarizes the last position, as XLNet does, must not read padding there. All others
    # count positions from the first token, or do not depend on the side.
    tokenizer.padding_side = "left" if reads_last_position(config) else "right"
    _match_token_types(tokenizer, config, name)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> None:
    num_embeddings = getattr(config, "vocab_size", None)
    num_entries = max(tokenizer.get_vocab().values(), default=-1) + 1  # IDs of added tokens may leave gaps
    if num_embeddings is not None and num_embeddings < num_entries:
        raise ModelError(
            f"found a tokenizer with {num_entries} entries, expected at most {num_embeddings}, the vocab_size in "
            f"the config.json of {name}; use the tokenizer that the model was trained with, or restore config.json"
        )


def _check_length(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> None:
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ModelError(
            f"found model_max_length {str(tokenizer.model_max_length)[:40]!r} in the tokenizer_config.json of {name}, "
            "expected a number"
        )
    length = max_input_length(tokenizer, config)
    num_special = tokenizer.num_special_tokens_to_add()
    if length <= num_special:
        raise ModelError(
            f"{name} supports at most {length} tokens (model_max_length in its tokenizer_config.json, or "
            f"max_position_embeddings in its config.json), which leaves no room for text besides {num_special} special "
            "tokens; correct the limit"
        )


def _match_padding_token(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> None:
    special: dict[Any, str] = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    padding_id: Any = getattr(config, "pad_token_id", None)
    if padding_id is None or padding_id < 0:
        padding_id = None
    if tokenizer.pad_token_id is None:
        token = special.get(padding_id) or tokenizer.eos_token
        if token is None:
            raise ModelError(
                f"the tokenizer of {name} has neither a padding nor an end-of-text token, and batches need one; set "
                "pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = token
    if padding_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    elif padding_id != tokenizer.pad_token_id and _compares_padding_ids(config):
        if padding_id not in special:
            raise ModelError(
                f"found a tokenizer with the padding token ID {tokenizer.pad_token_id}, expected {padding_id}, by "
                f"which {name} finds the end of a text; set pad_token_id in its config.json to the tokenizer's"
            )
        tokenizer.pad_token = special[padding_id]


def check_end_of_text(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, model_class: str, name: str
) -> None:
    """Check that a tokenizer ends texts with the token that the text classifiers of encoder-decoders read.

    Args:
        model_class: the `AutoModelFor…` name of the head.

    Raises:
        ModelError: if it does not.
    """
    if not config.is_encoder_decoder or model_class != "AutoModelForSequenceClassification":
        return
    ids, end_id = tokenizer("a")["input_ids"], config.eos_token_id
    if ids[-1] != end_id:
        raise ModelError(
            f"found a tokenizer that ends texts with the token ID {ids[-1]}, expected {end_id}, the eos_token_id of "
            f"{name}, which its classifier reads; use the tokenizer that the model was trained with"
        )


def _compares_padding_ids(config: PretrainedConfig) -> bool:
    """Return whether models find the last token of a text by the padding ID, as the classifiers of decoders do."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return is_decoder and not reads_last_position(config)


def _match_token_types(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> None:
    num_types = getattr(config, "type_vocab_size", None)
    types = tokenizer("a", "a").get("token_type_ids")
    if num_types is None or types is None or max(types) < num_types:
        return
    if num_types > 1:
        raise ModelError(
            f"found a tokenizer with {max(types) + 1} token types, expected at most {num_types}, the type_vocab_size "
            f"of {name}; use the tokenizer that the model was trained with"
        )
    set_input_names(tokenizer, [part for part in tokenizer.model_input_names if part != "token_type_ids"])


def set_input_names(tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
    """Set the inputs that a tokenizer returns, including after it is saved and loaded."""
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names


def max_input_length(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Return the maximum number of tokens per sequence, or `UNLIMITED_LENGTH` if there is no limit."""
    limits = (max_positions(config), tokenizer.model_max_length, UNLIMITED_LENGTH)
    return min(limit for limit in limits if limit and limit > 0)


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the number of tokens that the model has positions for; None if its positions are relative."""
    num_positions = getattr(config, "max_position_embeddings", None) or 0  # -1 in XLNet
    return num_positions - first_position_id(config) if num_positions > 0 else None


def first_position_id(config: PretrainedConfig) -> int:
    """Return the position id of a sequence's first token: 0, or in RoBERTa-like families the padding index + 1."""
    return (config.pad_token_id or 0) + 1 if config.model_type in POSITION_OFFSET_FAMILIES else 0


def reads_last_position(config: PretrainedConfig) -> bool:
    """Return whether the model's classifier reads the last position of a sequence, where XLNet has its [CLS]."""
    return getattr(config, "summary_type", None) == "last"


def min_sequence_length(model: torch.nn.Module) -> int:
    """Return the minimum sequence length that a model supports: 1, but more for Funnel, which halves the sequence."""
    from bertcli.models.shared_encoder import find_encoders

    configs = [encoder.config for encoder in find_encoders(model)]
    return max(
        (2 ** (len(config.block_sizes) - 1) + 1 for config in configs if config.model_type == "funnel"), default=1
    )


def is_padding_sensitive(model: torch.nn.Module, max_length: int) -> bool:
    """Return whether padding changes a model's outputs, so only sequences of the same length may share a batch.

    Args:
        max_length: number of tokens of the longest sequence.
    """
    from bertcli.models.shared_encoder import find_encoders

    return any(mixes_padding(encoder.config, max_length) for encoder in find_encoders(model))


def mixes_padding(config: PretrainedConfig, max_length: int) -> bool:
    """Return whether models of this configuration mix padding into texts of at most `max_length` tokens."""
    if config.model_type == "big_bird":  # the last block of a long sequence attends to all tokens
        return config.attention_type == "block_sparse" and max_length > max_full_attention(config)
    return config.model_type in PADDING_SENSITIVE_FAMILIES


def max_full_attention(config: Any) -> int:
    """Return the length up to which BigBird uses full attention, whatever its configuration says."""
    return (5 + 2 * config.num_random_blocks) * config.block_size
