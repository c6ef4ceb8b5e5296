"""LoRA adapters as peft saves them: a few weights, and the name of the base model that they change.

bertcli saves the model's `config.json` with an adapter. peft does not; the configuration is then derived from that of
the base model and from the adapter.
"""

from __future__ import annotations

import copy
import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.errors import ModelError, describe_error, quoted
from bertcli.models.missing_weights import describe_tensors
from bertcli.models.pickled_weights import PICKLED_ADAPTER, missing_weights_note
from bertcli.models.saved_weights import check_dtypes, check_finite, check_shapes

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"  # peft's file names
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, of tensor names
MODEL_CLASSES = {  # by peft's task_type
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


class SavedAdapter:
    """A folder with a LoRA adapter."""

    def __init__(self, path: str):
        self.path = path

    @cached_property
    def settings(self) -> PeftConfig:
        """The content of adapter_config.json.

        Raises:
            ModelError: if it is missing or unreadable, or that of an adapter of another kind.
        """
        from peft import PeftConfig

        file = Path(self.path) / ADAPTER_CONFIG
        if not file.is_file():  # peft would ask the Hub for it
            raise ModelError(f"cannot read the LoRA adapter in {self.path}: {file.name} is missing; restore it")
        try:
            fields = json.loads(file.read_text("utf-8"))
            kind = fields.get("peft_type", "LORA") if isinstance(fields, dict) else "LORA"  # peft refuses other content
            if kind != "LORA":
                raise ModelError(
                    f"the adapter in {self.path} has the peft_type {quoted(kind)}, expected 'LORA'; merge it into its "
                    "base model with merge_and_unload of peft, and use the saved result"
                )
            return PeftConfig.from_pretrained(self.path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._unreadable(error) from error

    def check_weights(self) -> None:
        """Check that the adapter has a file of weights.

        Raises:
            ModelError: if it has not.
        """
        folder = Path(self.path)
        if not (folder / ADAPTER_WEIGHTS).is_file():
            is_pickled = (folder / PICKLED_ADAPTER).is_file()
            problem = missing_weights_note(folder) if is_pickled else f"{ADAPTER_WEIGHTS} is missing; restore it"
            raise ModelError(f"no weights in {self.path}: {problem}")

    @property
    def base_name(self) -> str:
        """The name of the base model.

        Raises:
            ModelError: if the adapter does not name one, or cannot be read.
        """
        name = self.settings.base_model_name_or_path
        if not isinstance(name, str) or not name.strip():  # null if the model was created in memory
            raise ModelError(
                f"the {ADAPTER_CONFIG} in {self.path} does not name the base model of the LoRA adapter: found "
                f"base_model_name_or_path {quoted(name)}, expected its folder or its name on the Hub"
            )
        return name

    def derive_config(self, base: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the base model, with the architecture and the number of labels of the adapter.

        Raises:
            ModelError: if the adapter does not say which architecture it is for, or cannot be read.
        """
        import torch
        import transformers
        from safetensors import SafetensorError

        config, kind = copy.deepcopy(base), getattr(self.settings, "task_type", None)
        named = (self.settings.auto_mapping or {}).get("base_model_class")
        if kind in MODEL_CLASSES:
            mapping = getattr(transformers, MODEL_CLASSES[kind])._model_mapping
            named = mapping[type(config)].__name__ if type(config) in mapping else None
        model_class = getattr(transformers, str(named), None)
        if model_class is None:
            raise ModelError(
                f"the LoRA adapter in {self.path} has no config.json, and its {ADAPTER_CONFIG} names no class of "
                f"{config.model_type} models (task_type {quoted(kind)}); save the model's configuration in the same "
                "folder, with model.config.save_pretrained"
            )
        config.architectures = [model_class.__name__]
        try:
            shapes = self._shapes()
            sizes = []
            for num_labels in (2, 3):
                changed = copy.deepcopy(config)
                changed.num_labels = num_labels
                with torch.device("meta"):
                    model = model_class(changed)
                sizes.append({name: [*tensor.shape] for name, tensor in model.state_dict().items()})
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise self._unreadable(error) from error
        for name, size in sizes[0].items():
            dims = [dim for dim, length in enumerate(size) if length != sizes[1][name][dim]]
            if dims and (saved := shapes.get(f"{PREFIX}{name}")) is not None and saved[dims[0]] != config.num_labels:
                config.num_labels = saved[dims[0]]
        return config

    def merge_into(self, model: PreTrainedModel) -> tuple[PreTrainedModel, set[str]]:
        """Merge the adapter into a model; return the result, and the names of its tensors that the adapter replaced.

        Raises:
            ModelError: if the adapter cannot be read, does not match the model, or is of another kind.
        """
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import SafetensorError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about missing tensors, which are an error below
                peft_model = PeftModel.from_pretrained(model, self.path, ignore_mismatched_sizes=True)
            state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
            shapes = self._shapes()
            needed, saved = {*state}, {*shapes}
            mismatched = [
                (name.removeprefix(PREFIX), shapes[name], state[name].shape)
                for name in needed & saved
                if shapes[name] != [*state[name].shape]
            ]
            check_shapes(mismatched, self.path, ADAPTER_CONFIG)
            check_dtypes(Path(self.path), needed)
            check_finite(state.items(), self.path)
            self._check_complete(needed - saved, needed)
            if unused := saved - needed:
                names = describe_tensors([name.removeprefix(PREFIX) for name in unused], ())
                raise ModelError(
                    f"the LoRA adapter in {self.path} has weights that its configuration does not use: {names}; "
                    f"restore its {ADAPTER_CONFIG}"
                )
            return peft_model.merge_and_unload(), {name.removeprefix(PREFIX) for name in saved}
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
            if str(error.args[0] if error.args else "").startswith(PREFIX):  # peft's, for a tensor of the head
                self._check_complete({error.args[0]}, set())
            raise self._unreadable(error) from error

    def _shapes(self) -> dict[str, list[int]]:
        """Return the shapes of the saved tensors, by peft's names."""
        from safetensors import safe_open

        with safe_open(Path(self.path) / ADAPTER_WEIGHTS, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}

    def _check_complete(self, missing: set[str], needed: set[str]) -> None:
        """Check that no tensors of the adapter are missing.

        Raises:
            ModelError: if some are missing; the message lists the first few.
        """
        if missing:
            names, all_names = ([name.removeprefix(PREFIX) for name in sorted(part)] for part in (missing, needed))
            raise ModelError(
                f"the LoRA adapter in {self.path} lacks weights that its configuration needs: "
                f"{describe_tensors(names, all_names)}. Restore its files"
            )

    def _unreadable(self, error: Exception) -> ModelError:
        return ModelError(f"cannot read the LoRA adapter in {self.path}: {describe_error(error)}")
