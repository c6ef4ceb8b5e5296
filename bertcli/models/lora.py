"""LoRA: low-rank adapters beside the matrices of an encoder, as peft builds them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.models.freezing import layers_of
from bertcli.models.from_pretrained import (
    ADAPTER_WEIGHTS,
    save_model,
)
from bertcli.recipe.schema import StrategySection

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_lora(model: PreTrainedModel, section: StrategySection, base_name: str) -> PeftModel:
    """Put low-rank additions beside each matrix of the encoder's layers; they and the head learn.

    LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, as peft builds it.

    Args:
        base_name: what the additions will be laid over again; it must hold from any working directory.

    Returns:
        peft's view of the model, which knows the additions; `model` itself computes with them.

    Raises:
        ModelError: the encoder's layers are not made of plain matrices, or the base is additions itself.
    """
    from peft import LoraConfig, get_peft_model

    if not section.lora_merge and (Path(base_name) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{base_name} holds low-rank additions (LoRA), over which no others can be laid; train either of the two "
            "with training.lora_merge=true, which saves the whole model"
        )
    base = model.base_model
    prefix = next(name for name, part in base.named_modules() if part is layers_of(model))
    targets = [
        f"{model.base_model_prefix}.{name}"
        for name, part in base.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(f"{prefix}.")
    ]
    heads = [name for name, part in model.named_children() if part is not base]
    pooler = getattr(base, "pooler", None)
    if not targets:
        raise ModelError(f"the layers of a {model.config.model_type} model have no matrices that LoRA could add to")
    config = LoraConfig(
        base_model_name_or_path=base_name,
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets,
        modules_to_save=[name for name in heads if any(True for _ in getattr(model, name).parameters())]
        + ([] if pooler is None else ["pooler"]),
    )
    model.name_or_path = base_name
    return get_peft_model(model, config)


def save_lora(view: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merged: bool) -> None:
    """Write the additions alone (with head, configuration and tokenizer), or the whole model that they make."""
    if merged:
        save_model(copy.deepcopy(view).merge_and_unload(), tokenizer, folder)
        return
    inner: Any = view.get_base_model()
    inner.config.architectures = [type(inner).__name__]
    view.save_pretrained(str(folder), save_embedding_layers=False)  # they are as they were; "auto" asks the hub
    inner.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
