"""Find models by name, and load and save their configurations, tokenizers and weights."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.errors import ModelError, describe_error, did_you_mean, quoted
from bertcli.models.missing_weights import (
    MissingWeights,
    describe_missing,
    encoder_prefix,
    is_encoder_tensor,
)
from bertcli.models.pickled_weights import (
    PICKLED,
    PICKLED_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    cached_conversion,
    find_weights_on_hub,
    missing_weights_note,
)
from bertcli.models.saved_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SavedAdapter
from bertcli.models.saved_weights import check_dtypes, check_finite, check_names, check_shapes
from bertcli.models.split_words import with_spaces_before_words
from bertcli.models.tokenizer_matching import PADDING_SENSITIVE_FAMILIES
from bertcli.recipe.yaml_layers import DATA_SUFFIXES

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
    "hidden_dropout",  # Funnel, GPT-NeoX
    "dropout_rate",  # T5
    "classifier_dropout_prob",  # ALBERT
    "qa_dropout",  # DistilBERT
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"),  # GPT-2
)
WEIGHT_OPTIONS = {"dtype": "float32", "use_safetensors": True}
UNSUPPORTED_FAMILIES = {  # and why
    "tapas": "it also reads the cells of tables",
    **dict.fromkeys(
        ("layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "bros"), "it also reads the positions of words on a page"
    ),
    "markuplm": "it also reads the paths of words in web pages",
    **dict.fromkeys(("lxmert", "modernvbert", "neomme", "perceiver", "t5gemma2", "ultravbert"), "it also reads images"),
    "qwen3_asr": "it also reads audio",
    "mra": "its attention needs compiled kernels, without which it returns zeros",
    "t5gemma": "its classifier reads another position of a text if there is padding after it",
}
CHOICE_PROBLEMS = {  # why the prediction for a choice would depend on the other choices
    **dict.fromkeys(PADDING_SENSITIVE_FAMILIES, "mix padding into the text"),
    "roformer": "read the last position, which is padding",
}
LOADABLE_WEIGHTS = (SAFETENSORS, SAFETENSORS_INDEX, ADAPTER_WEIGHTS, PICKLED, PICKLED_INDEX)
CONFIG_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)
"""What transformers raises while it builds a model from an invalid configuration."""


class ModelSource:
    """A model name that is resolved once, with access to the model's path, configuration, tokenizer and weights.

    The name is looked up as a run folder or model folder, then in the mirror, in the local cache and on the Hub.

    Attributes:
        path: folder of the model; the name itself if the model is in the cache or on the Hub.

    Raises:
        ModelError: if the name is a file, or a folder that has no model or does not exist.
    """

    def __init__(self, name: str, mirror: Path | None = None):
        self.name, self.mirror = name, mirror
        self.path = _resolve(name, mirror)

    @property
    def absolute_name(self) -> str:
        """A name that is valid from any working directory: for a folder, the absolute path of its model."""
        return str(Path(self.path).resolve()) if Path(self.name).is_dir() else self.name

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration, read once. Only `match_tokenizer` may change it; all other code must copy it first.

        Raises:
            ModelError: if the model does not exist, its configuration is corrupt, or its folder has no weights.
        """
        from transformers import AutoConfig

        if self._is_bare_adapter:
            self._adapter.check_weights()
            return self._adapter.derive_config(self._adapter_base.config)
        config = _from_pretrained(AutoConfig.from_pretrained, "configuration", self.path)
        architectures = config.architectures or []
        if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
            raise ModelError(
                f"the config.json of {self.path} has the architectures {quoted(architectures)}, expected a list of "
                "class names; correct or restore it"
            )
        if Path(self.path).is_dir() and not _has_weights(Path(self.path)):
            raise ModelError(
                f"no weights in {self.path}: {missing_weights_note(Path(self.path))}. To train from scratch with this "
                f"tokenizer, set model.name=null and model.tokenizer={self.name} (in pretraining, tokenizer.name)."
            )
        return config

    @cached_property
    def weights_path(self) -> str:
        """The folder or Hub model ID with safetensors weights: `path`, or the cached conversion of pickled weights.

        Raises:
            ModelError: if pickled weights cannot be converted.
        """
        folder = Path(self.path) if Path(self.path).is_dir() else find_weights_on_hub(self.path)
        if folder is None or _has_weights(folder, (SAFETENSORS, SAFETENSORS_INDEX, ADAPTER_WEIGHTS)):
            return self.path
        return str(cached_conversion(folder, self.name))

    def has_head(self, model_class: str) -> bool:
        """Return whether the saved model has the head of `model_class` (an `AutoModelFor…` name)."""
        return has_head(self.config, model_class)

    def load_tokenizer(self, *, is_split_into_words: bool = False) -> PreTrainedTokenizerBase:
        """Load the fast tokenizer; `match_tokenizer` then makes it compatible with a model.

        Args:
            is_split_into_words: whether the inputs will be lists of words, which the tokenizer then reads as it reads
                running text (see `with_spaces_before_words`).

        Raises:
            ModelError: if the tokenizer does not exist, is corrupt, or has no vocabulary or no fast version.
        """
        from transformers import AutoTokenizer

        if self._is_bare_adapter and not (Path(self.path) / "tokenizer_config.json").is_file():
            return self._adapter_base.load_tokenizer(is_split_into_words=is_split_into_words)
        load = partial(_from_pretrained, AutoTokenizer.from_pretrained, "tokenizer", self.path)
        tokenizer = load()
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {self.name}, a {type(tokenizer).__name__}, has no fast version (tokenizer.json), "
                "which bertcli needs; use another model"
            )
        # Without files, transformers makes up a tokenizer of special tokens, in some families with the word start "▁".
        if tokenizer.get_vocab().keys() <= {*tokenizer.get_added_vocab(), "▁"}:
            raise ModelError(
                f"no tokenizer in {self.path}: tokenizer.json (or the files of its vocabulary, such as vocab.txt) is "
                "missing, or has only special tokens; restore it"
            )
        return with_spaces_before_words(tokenizer, load) if is_split_into_words else tokenizer

    def load_model(
        self,
        model_class: str,
        config_fields: dict[str, Any] | None = None,
        *,
        dropout: float | None = None,
        new_head: bool = False,
        on_missing: Callable[[MissingWeights], None] | None = None,
    ) -> PreTrainedModel:
        """Load the model with the head of `model_class`, in fp32.

        Args:
            config_fields: overrides for its configuration.
            dropout: sets all dropout rates; None keeps them.
            new_head: load only the encoder and initialize a new head, even if the model has one.
            on_missing: called with the weights that are missing from the saved model and were initialized at random,
                such as those of a new head, and with those that are not used. If None, both are an error, except
                missing weights of the head if `new_head`.

        Raises:
            ModelError: if the model does not exist, its family has no such head, or its weights are missing,
                incomplete, not finite, not in safetensors format, or do not match its configuration in number or shape.
        """
        config = copy.deepcopy(self.config)
        set_config_fields(config, config_fields or {}, dropout)
        check_model_class(config, model_class, self.name)
        with _quiet_transformers():
            model, missing, unexpected = self._load_weights(model_class, config, new_head=new_head)
        weights = describe_missing(model, missing, unexpected, model_class)
        if on_missing is not None:
            on_missing(weights)
        elif weights.encoder or (weights.head and not new_head):
            raise ModelError(
                f"{self.name} lacks weights that its configuration needs: {weights}; its outputs would be random. "
                "Restore its files, or train it with `bertcli finetune`"
            )
        elif weights.unused:
            raise ModelError(
                f"{self.name} has weights that its configuration does not use: {weights.unused}; its outputs would not "
                "be those of the trained model. Restore its config.json"
            )
        return model

    def _load_weights(
        self, model_class: str, config: PretrainedConfig, *, new_head: bool = False
    ) -> tuple[PreTrainedModel, set[str], set[str]]:
        """Load the model; also return the names of missing tensors, and of saved tensors that it does not use.

        Raises:
            ModelError: if the model cannot be loaded (see `load_model`), but not if weights are missing.
        """
        import torch
        import transformers

        auto_class = getattr(transformers, model_class)
        if (Path(self.path) / ADAPTER_WEIGHTS).is_file():
            saved, missing, unexpected = *self._load_with_adapter(), set()
        else:
            saved_class = transformers.AutoModel if new_head else auto_class
            try:
                saved, report = _from_pretrained(
                    saved_class.from_pretrained,
                    "model",
                    self.weights_path,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported by name below
                    **WEIGHT_OPTIONS,
                )
            except ModelError:
                with torch.device("meta"), invalid_config_errors(self.name):
                    saved_class.from_config(config)  # if this fails too, config.json is at fault, not the weights
                raise
            check_shapes(report["mismatched_keys"], self.path)
            parameters = {name.removeprefix(f"{saved.base_model_prefix}.") for name, _ in saved.named_parameters()}
            check_dtypes(Path(self.weights_path), parameters, f"{saved.base_model_prefix}.")
            persistent = {*saved.state_dict()}
            tensors = [pair for pair in (*saved.named_parameters(), *saved.named_buffers()) if pair[0] in persistent]
            check_finite(tensors, self.path, f"{saved.base_model_prefix}.")
            missing, unexpected = report["missing_keys"], report["unexpected_keys"]
            expected = [name for name, _ in saved.named_parameters() if is_encoder_tensor(saved, name)]
            check_names(expected, missing, unexpected, self.path)
            if not new_head:
                _remove_missing_pooler(saved, missing)
                return _copy_to_aligned_memory(saved), missing, unexpected
        model = auto_class.from_config(config)
        if type(saved) is type(model) and not new_head:
            model.load_state_dict(saved.state_dict())
            return model, missing, unexpected
        return model, _copy_encoder(saved, model, missing), unexpected

    def _load_with_adapter(self) -> tuple[PreTrainedModel, set[str]]:
        """Load a LoRA adapter saved by peft together with its base model, and merge them.

        Returns:
            The model, and the names of the tensors that neither the adapter nor the base model has.

        Raises:
            ModelError: if the adapter or its base model cannot be read, or the adapter is of another kind.
        """
        import transformers

        base, config = self._adapter_base, copy.deepcopy(self.config)
        if base.config.model_type != config.model_type:
            raise ModelError(
                f"the LoRA adapter in {self.path} is for the model type {config.model_type}, but its base model "
                f"{base.name} is of type {base.config.model_type}; correct base_model_name_or_path in its "
                f"{ADAPTER_CONFIG}"
            )
        architecture = (config.architectures or ["AutoModel"])[0]
        with invalid_config_errors(self.name):
            model = getattr(transformers, architecture)(config)
        head = f"AutoModel{architecture[architecture.find('For') :]}" if "For" in architecture else "AutoModel"
        if base.config.architectures != config.architectures or base.config.num_labels != config.num_labels:
            head = "AutoModel"  # the adapter includes the head
        saved, missing, _ = base._load_weights(head, copy.deepcopy(base.config))
        if type(saved) is type(model):
            model.load_state_dict(saved.state_dict())
        else:
            missing = _copy_encoder(saved, model, missing)
        merged, replaced = self._adapter.merge_into(model)
        return merged, missing - replaced

    @property
    def _adapter(self) -> SavedAdapter:
        return SavedAdapter(self.path)

    @property
    def _adapter_base(self) -> ModelSource:
        """The base model of the LoRA adapter.

        Raises:
            ModelError: if the adapter cannot be read, or its base model is not found or is the adapter itself.
        """
        name = self._adapter.base_name
        try:
            base = ModelSource(name, self.mirror)
            if Path(base.path).resolve() == Path(self.path).resolve():  # it was saved in the folder of its base model
                raise ModelError("that is the folder of the adapter; move the adapter_* files to another folder.")
            base.config  # noqa: B018
        except ModelError as error:
            raise ModelError(
                f"cannot load the base model {quoted(name)} of the LoRA adapter in {self.path}: {error} Or correct "
                f"base_model_name_or_path in its {ADAPTER_CONFIG}"
            ) from error
        return base

    @property
    def _is_bare_adapter(self) -> bool:
        """Whether the model is a LoRA adapter without a config.json."""
        folder = Path(self.path)
        return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _resolve(name: str, mirror: Path | None) -> str:
    folder = Path(name)
    if folder.is_dir():
        model_folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if any(
            (model_folder / file).is_file() for file in ("config.json", "tokenizer.json", "vocab.txt", ADAPTER_CONFIG)
        ):
            return str(model_folder)
        task_models = sorted(str(config.parent) for config in folder.glob("model/*/config.json"))
        cure = f"; use one of its models: {', '.join(task_models)}" if task_models else ""
        raise ModelError(f"found folder {folder} without config.json, expected a run folder or a saved model{cure}")
    if folder.is_file():
        found = f"found file {folder}, expected a run folder, a saved model or a Hub model ID"
        cure = f"; predict on data with --input {folder}, or create a recipe to train on it: bertcli init {folder}"
        raise ModelError(found + (cure if folder.suffix.lower() in DATA_SUFFIXES else ""))
    if name.startswith((".", "/", "~")):  # not a Hub model ID
        siblings = [str(folder.with_name(sibling.name)) for sibling in folder.parent.glob("*/")]
        cure = did_you_mean(name, siblings, are_paths=True)
        raise ModelError(f"found no folder {name}, expected a run folder or a saved model.{cure}")
    in_mirror = mirror / "models" / name if mirror and not {"..", "/"} & {*folder.parts} else None
    return str(in_mirror) if in_mirror and in_mirror.is_dir() else name


def _has_weights(folder: Path, names: Iterable[str] = LOADABLE_WEIGHTS) -> bool:
    return any((folder / name).is_file() for name in names)


def has_head(config: PretrainedConfig, model_class: str) -> bool:
    """Return whether the saved model has the head of `model_class` (an `AutoModelFor…` name)."""
    return any(model_class.removeprefix("AutoModel") in name for name in config.architectures or ())


def check_model_class(config: PretrainedConfig, model_class: str, name: str) -> None:
    """Check that transformers has a model of this family with the head of `model_class`, and that bertcli can run it.

    Raises:
        ModelError: if the family has no such model, or a field of the configuration is missing or not supported.
    """
    import transformers

    if type(config) not in getattr(transformers, model_class)._model_mapping:
        head = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model_class.removeprefix("AutoModelFor")).lower()
        raise ModelError(
            f"cannot use {name}: {config.model_type} has no model for {head} ({model_class}); use a model of another "
            "family"
        )
    if config.model_type in UNSUPPORTED_FAMILIES:
        raise ModelError(f"cannot use {name}: {UNSUPPORTED_FAMILIES[config.model_type]}; use a model of another family")
    has_classifier = model_class not in ("AutoModel", "AutoModelForSeq2SeqLM")
    if config.is_encoder_decoder and has_classifier and getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"the config.json of {name} lacks decoder_start_token_id, the ID of the decoder's first token; add it"
        )
    if config.model_type == "nystromformer" and config.num_landmarks != config.segment_means_seq_len:
        raise ModelError(
            f"{name} accepts only sequences of exactly {config.segment_means_seq_len} tokens, since its num_landmarks "
            f"({config.num_landmarks}) differs from its segment_means_seq_len; bertcli requires a model that "
            "accepts any length"
        )
    if model_class == "AutoModelForMultipleChoice" and (problem := CHOICE_PROBLEMS.get(config.model_type)):
        raise ModelError(
            f"cannot use {name} for multiple choice, where choices of different lengths share a batch: "
            f"{config.model_type} models {problem}; use a model of another family"
        )
    if config.model_type == "xmod" and config.default_language is None:
        raise ModelError(
            f"{name} has an adapter for each language, but no default language; set default_language in its "
            f"config.json to one of {', '.join(config.languages):.80}"
        )


def check_trainable(config: PretrainedConfig, name: str) -> None:
    """Check that models of this configuration can be trained on texts of any length.

    Raises:
        ModelError: if they cannot.
    """
    if config.model_type == "reformer" and config.axial_pos_embds:
        raise ModelError(
            f"{name} can be trained only on sequences of exactly {math.prod(config.axial_pos_shape)} tokens (its "
            "axial_pos_shape); use a model of another family, or fine-tune it with training.strategy=features"
        )


@contextmanager
def invalid_config_errors(name: str) -> Iterator[None]:
    """Within the block, which builds the model `name`, report errors as those of its config.json.

    Raises:
        ModelError: if the model cannot be built.
    """
    try:
        yield
    except CONFIG_ERRORS as error:
        raise _invalid_config(name, error) from error


def _invalid_config(name: str, error: Exception) -> ModelError:
    return ModelError(f"the config.json of {name} cannot be used ({describe_error(error)}); correct or restore it")


def _remove_missing_pooler(model: PreTrainedModel, missing: set[str]) -> None:
    """Remove the pooler of an encoder that was saved without one, as by masked-language modeling."""
    encoder: Any = model
    pooler = getattr(encoder, "pooler", None)
    is_optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if pooler is not None and is_optional and missing >= {f"pooler.{name}" for name in pooler.state_dict()}:
        encoder.pooler = None


def _copy_encoder(source: PreTrainedModel, target: PreTrainedModel, missing: Iterable[str]) -> set[str]:
    """Copy the encoder of `source` to `target`, and return the names of `target`'s tensors that are still random.

    Args:
        missing: names of the random tensors of `source`.
    """
    state: Any = source.base_model.state_dict()
    incompatible = target.base_model.load_state_dict(state, strict=False)  # one of the models may lack a pooler
    prefix, source_prefix = encoder_prefix(target), encoder_prefix(source)
    names = {name for name in target.state_dict() if not is_encoder_tensor(target, name)}
    names |= {f"{prefix}{name}" for name in incompatible.missing_keys}
    in_encoder = {name.removeprefix(source_prefix) for name in missing if is_encoder_tensor(source, name)}
    return names | {f"{prefix}{name}" for name in in_encoder if name not in incompatible.unexpected_keys}


def _copy_to_aligned_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Move CPU weights out of the memory-mapped file into memory that torch allocates, and return the model.

    Mapped tensors start at unaligned addresses, where matrix products round differently, so the loaded model's outputs
    would differ in the last digit from those before saving.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model and its tokenizer so that plain transformers can load them with `from_pretrained(folder)`."""
    from bertcli.models.regression_output import state_dict_in_units
    from bertcli.models.seen_embeddings import full_state_dict

    with _quiet_transformers():
        model.save_pretrained(folder, state_dict=state_dict_in_units(model, full_state_dict(model)))
        tokenizer.save_pretrained(folder)


def set_config_fields(config: PretrainedConfig, fields: dict[str, Any], dropout: float | None) -> None:
    """Override fields of a configuration and, unless `dropout` is None, set all dropout rates."""
    for name, value in fields.items():
        setattr(config, name, value)
    if dropout is not None:
        set_dropout(config, dropout)


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set all dropout rates of a configuration."""
    for name in DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    # Without it, the token classifiers of GPT-2, Llama and other decoders use a rate of 0.1.
    config.classifier_dropout = dropout


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers inside the context."""
    from transformers.utils import logging

    verbosity, bars_were_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_were_enabled:
            logging.enable_progress_bar()


def _from_pretrained(load: Callable[..., Any], kind: str, path: str, **options: Any) -> Any:
    """Call a `from_pretrained` method, trying local folders and the local cache before the Hub.

    Code shipped with a model is never run; unless `trust_remote_code` is False, transformers would prompt on stdin.

    Args:
        kind: the noun for error messages, such as "tokenizer".
        path: a folder or a Hub model ID.

    Raises:
        ModelError: if loading fails.
    """
    from transformers import AutoConfig

    options["trust_remote_code"] = False
    try:
        try:
            return load(path, local_files_only=True, **options)
        except OSError:
            if Path(path).is_dir():
                raise
            return load(path, **options)
    except Exception as error:  # the libraries raise many types, from file system to HTTP errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(path).is_dir():
            corrupt_file = _corrupt_file(Path(path))
            if not corrupt_file and (Path(path) / "config.json").is_file():
                if kind == "configuration":
                    raise _invalid_config(path, error) from error
                _from_pretrained(AutoConfig.from_pretrained, "configuration", path)  # raises an error if it is at fault
            is_missing = kind == "tokenizer" and not corrupt_file and not (Path(path) / "tokenizer.json").is_file()
            note = " (tokenizer.json is missing)" if is_missing else corrupt_file
            raise ModelError(f"cannot read the {kind} in {path}: {reason.rstrip(':')}{note}") from error
        siblings = [str(Path(path).with_name(folder.name)) for folder in Path(path).parent.glob("*/")]
        cure = did_you_mean(path, siblings, are_paths=True)
        raise ModelError(
            f"cannot load the {kind} of {path!r}: not a folder, not in a mirror, not in the local cache, and not "
            f"available from the Hub ({reason.rstrip('.')}).{cure} Check the name, or point "
            "--mirror (or BERTCLI_MIRROR) at a local copy; `bertcli fetch` downloads one."
        ) from error


def _corrupt_file(folder: Path) -> str:
    """Return a note that names the first unreadable file of a saved model; empty if all are readable."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "np"):
                    pass
        except (OSError, ValueError, RecursionError, SafetensorError):
            return f" ({path.name} is corrupt)"
    return ""
