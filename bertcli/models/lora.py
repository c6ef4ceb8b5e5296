"""LoRA: low-rank adapters for the linear layers of an encoder, with peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bertcli.errors import ModelError
from bertcli.models.freezing import encoder_layers
from bertcli.models.from_pretrained import save_model
from bertcli.models.regression_output import state_dict_in_units
from bertcli.models.saved_adapter import ADAPTER_WEIGHTS
from bertcli.recipe.schema import StrategySection

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def add_lora(model: PreTrainedModel, section: StrategySection, base_name: str) -> PeftModel:
    """Add a LoRA adapter to each linear layer of the encoder; only the adapters, the pooler and the head are trainable.

    LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, as implemented in peft.

    Args:
        base_name: name or absolute path of the base model, to be recorded in a saved adapter.

    Returns:
        The model wrapped by peft; `model` itself is modified in place and uses the adapters.

    Raises:
        ModelError: if the encoder has no linear layers, or an unmerged adapter is to be trained on another adapter.
    """
    from peft import LoraConfig, get_peft_model

    if not section.lora_merge and (Path(base_name) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{base_name} is a LoRA adapter, and adapters cannot be stacked; train one of the two with "
            "training.lora_merge=true, which saves a full model"
        )
    base = model.base_model
    in_layers = {id(part) for layer in encoder_layers(model) for part in layer.modules()}
    targets = [
        f"{model.base_model_prefix}.{name}"
        for name, part in base.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and id(part) in in_layers
    ]
    head_names = [name for name, part in model.named_children() if part is not base]
    pooler = getattr(base, "pooler", None)
    if not targets:
        raise ModelError(
            f"{model.config.model_type} models have no linear layers for LoRA to adapt; use another strategy"
        )
    config = LoraConfig(
        base_model_name_or_path=base_name,
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets,
        modules_to_save=[name for name in head_names if any(True for _ in getattr(model, name).parameters())]
        + ([] if pooler is None else ["pooler"]),
    )
    model.name_or_path = base_name
    return get_peft_model(model, config)


def save_lora(peft_model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merged: bool) -> None:
    """Save the adapter only (with head, configuration and tokenizer), or the full model with the adapter merged in."""
    if merged:
        save_model(copy.deepcopy(peft_model).merge_and_unload(), tokenizer, folder)
        return
    inner: Any = peft_model.get_base_model()
    inner.config.architectures = [type(inner).__name__]
    state = state_dict_in_units(peft_model, peft_model.state_dict())
    # The embeddings are unchanged, and "auto" would query the Hub.
    peft_model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    inner.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
