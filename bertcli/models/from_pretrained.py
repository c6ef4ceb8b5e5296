"""Models and tokenizers: found by name, loaded or made from scratch.

Names are looked up as a run folder, a model folder, in the mirror, in the local Hugging Face cache, on the hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "hidden_dropout",  # Funnel, DeBERTa's kin
    "dropout_rate",  # T5
    "classifier_dropout_prob",  # ALBERT
    "qa_dropout",  # DistilBERT
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"),  # GPT-2
)


COUNT_BEHIND_PADDING = (
    *("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "longformer", "ibert"),
    *("xmod", "data2vec-text", "esm"),
)


WEIGHTS = {"dtype": "float32", "use_safetensors": True}


ADAPTER_WEIGHTS = "adapter_model.safetensors"  # as peft names them
UNLIMITED_LENGTH = 10**9  # tokenizers say 1e30 when they know no limit


def resolve_model(name: str, mirror: Path | None) -> str:
    """The folder that holds model `name`, or the name itself, for the cache and the hub.

    Raises:
        ModelError: the name is a folder that holds no model.
    """
    folder = Path(name)
    if folder.is_dir():
        inside = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if any((inside / known).is_file() for known in ("config.json", "tokenizer.json", "vocab.txt")):
            return str(inside)
        several = sorted(str(config.parent) for config in folder.glob("model/*/config.json"))
        cure = f"; name one of its models: {', '.join(several)}" if several else ""
        raise ModelError(f"found folder {folder} without config.json, expected a run folder or a saved model{cure}")
    if folder.is_file():
        raise ModelError(f"found the file {folder}, expected a run folder, a saved model or a hub name")
    in_mirror = mirror / "models" / name if mirror and not {"..", "/"} & {*folder.parts} else None
    return str(in_mirror) if in_mirror and in_mirror.is_dir() else name


def lasting_name(name: str) -> str:
    """A name of model `name` that holds from any working directory: of a folder, the whole path of what it holds."""
    return str(Path(resolve_model(name, None)).resolve()) if Path(name).is_dir() else name


def load_tokenizer(name: str, mirror: Path | None, *, for_words: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of model `name`.

    Args:
        for_words: it is given words one by one; those that read the space before a word as part of it (RoBERTa's)
            then put one before each.
    """
    from transformers import AutoTokenizer

    place = resolve_model(name, mirror)
    tokenizer = _from_pretrained(AutoTokenizer.from_pretrained, "tokenizer", place)
    if for_words and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = _from_pretrained(AutoTokenizer.from_pretrained, "tokenizer", place, add_prefix_space=True)
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no padding token, which batches need")
    return tokenizer


def load_config(name: str, mirror: Path | None) -> PretrainedConfig:
    """The configuration of model `name`."""
    from transformers import AutoConfig

    place = resolve_model(name, mirror)
    config = _from_pretrained(AutoConfig.from_pretrained, "configuration", place)
    if Path(place).is_dir() and not _has_weights(Path(place)):
        raise ModelError(
            f"found {place} without weights, expected model.safetensors there. "
            f"To start from fresh weights, give model.size and model.tokenizer={name} instead of model.name."
        )
    return config


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json", ADAPTER_WEIGHTS)
    return any((folder / name).is_file() for name in names)


def has_trained_head(config: PretrainedConfig, model_class: str) -> bool:
    """Whether the saved model was one with the head of `model_class` (an `AutoModelFor…` name)."""
    return any(model_class.removeprefix("AutoModel") in name for name in config.architectures or ())


def load_model(
    name: str,
    mirror: Path | None,
    model_class: str,
    config_fields: dict[str, Any],
    *,
    dropout: float | None = None,
    fresh_head: bool = False,
) -> PreTrainedModel:
    """Model `name` with the head of `model_class`, its weights in fp32; a head it lacks is newly made.

    Args:
        config_fields: overrides of its configuration.
        dropout: all dropout rates; None: as they are.
        fresh_head: take the encoder only and make a new head, whatever the model has.

    Raises:
        ModelError: no such model, no weights, or weights that are not safetensors.
    """
    import transformers

    config, place = load_config(name, mirror), resolve_model(name, mirror)
    _set_fields(config, config_fields, dropout)
    auto_class = getattr(transformers, model_class)
    options = {"config": config, **WEIGHTS}
    with _quiet_transformers():
        if (Path(place) / ADAPTER_WEIGHTS).is_file():
            saved = _load_adapted(Path(place), mirror)
        elif fresh_head:
            saved = _from_pretrained(transformers.AutoModel.from_pretrained, "model", place, **options)
        else:
            return _in_own_memory(_from_pretrained(auto_class.from_pretrained, "model", place, **options))
        model = auto_class.from_config(config)
        if type(saved) is type(model) and not fresh_head:
            model.load_state_dict(saved.state_dict())
        else:  # some encoders end in a pooling layer that their classifier does not have
            model.base_model.load_state_dict(saved.base_model.state_dict(), strict=False)
        return model


def _in_own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its weights where torch puts fresh ones.

    As they are loaded they lie in the file, at odd addresses, for which matrix products round in another way: the model
    would score otherwise, in the last digit, than it did before it was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model


def _load_adapted(folder: Path, mirror: Path | None) -> PreTrainedModel:
    """The model that low-rank additions saved by peft make of the one they were made for.

    Raises:
        ModelError: the additions, or what they belong to, cannot be read.
    """
    import transformers
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    config = load_config(str(folder), mirror)
    try:
        base_name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        base = getattr(transformers, (config.architectures or ["AutoModel"])[0])(config)
        encoder = load_model(base_name, mirror, "AutoModel", {})
        base.base_model.load_state_dict(encoder.state_dict(), strict=False)
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot read the additions (LoRA) in {folder}: {error}") from error


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer so that plain `from_pretrained(folder)` loads them."""
    from bertcli.models.seen_embeddings import whole_weights

    with _quiet_transformers():
        model.save_pretrained(folder, state_dict=whole_weights(model))
        tokenizer.save_pretrained(folder)


def longest_input(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Tokens the model can read at once."""
    positions = getattr(config, "max_position_embeddings", None) or UNLIMITED_LENGTH
    return min(positions - first_position(config), tokenizer.model_max_length)


def first_position(config: PretrainedConfig) -> int:
    """The position of a sequence's first token as the model counts them: RoBERTa starts behind the padding index."""
    return (config.pad_token_id or 0) + 1 if config.model_type in COUNT_BEHIND_PADDING else 0


def _set_fields(config: PretrainedConfig, fields: dict[str, Any], dropout: float | None) -> None:
    for name, value in fields.items():
        setattr(config, name, value)
    if dropout is not None:
        set_dropout(config, dropout)


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set every dropout rate the configuration has."""
    for name in DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, dropout)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and load reports of transformers off the console while inside."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _from_pretrained(load: Callable[..., Any], what: str, place: str, **options: Any) -> Any:
    """Call a `from_pretrained`: folders and the local cache first, the hub only for what is not there.

    Code that comes with a model is never run; without saying so, transformers would ask, and take an answer from stdin.
    """
    options["trust_remote_code"] = False
    try:
        try:
            return load(place, local_files_only=True, **options)
        except OSError:
            if Path(place).is_dir():
                raise
            return load(place, **options)
    except Exception as error:  # the libraries raise many kinds, from the file system up to HTTP
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(place).is_dir():
            raise ModelError(f"cannot read the {what} in {place}: {reason}{_damaged_file(Path(place))}") from error
        near = did_you_mean(place, [str(Path(place).with_name(one.name)) for one in Path(place).parent.glob("*/")])
        raise ModelError(
            f"cannot load the {what} of {place!r}: not a folder, not in a mirror, not in the local cache, and the hub "
            f"did not give it ({reason.rstrip('.')}).{near} Check the name, or point --mirror (or BERTCLI_MIRROR) at a "
            "copy, such as `bertcli fetch` makes."
        ) from error


def _damaged_file(folder: Path) -> str:
    """Words about the first file of a saved model that cannot be read; none if all can."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "np"):
                    pass
        except (OSError, ValueError, RecursionError, SafetensorError):
            return f" ({path.name} is damaged)"
    return ""
