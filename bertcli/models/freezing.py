"""Fine-tuning strategies: which parameters are trainable, from which step on, and at which learning rate.

Depth counts from the bottom: 0 for the embeddings, 1 … L for the layers, L + 1 for everything above (pooler, head).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bertcli.errors import ModelError
from bertcli.models.shared_encoder import find_encoders
from bertcli.recipe.plan import Plan
from bertcli.recipe.schema import StrategySection, TrainingSection

HEAD_INPUTS = {  # why the encoder's last hidden states are not enough for the head, by family
    "canine": "whose pooler reads other hidden states than the last",
    "funnel": "whose encoder shortens texts",
    "longformer": "whose heads decide what the encoder attends to",  # as those of encoder-decoders
}
PARTS_BELOW = {  # by family: parts of the encoder that its layers read, and their depth
    "canine": {"initial_char_encoder": 0, "chars_to_molecules": 0},
    "deberta-v2": {"encoder.LayerNorm": 0, "encoder.conv": 1},  # of the relative positions; beside the first layer
}


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the encoder's layers, lowest first; those of a decoder that reads the encoder's output come after them.

    Raises:
        ModelError: if all layers share one set of weights, or a layer is not a module by itself.
    """
    config: Any = model.config
    num_layers = getattr(config, "num_hidden_layers", None)
    num_decoder_layers = getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", None))
    stacks = list(_layer_stacks(model.base_model, {num_layers, num_decoder_layers}))
    if len({name.rpartition(".")[0] for name, _ in stacks}) < len(stacks):
        stacks = []  # the parts of a layer are in different stacks, as in XLM
    if not stacks:
        raise ModelError(
            f"cannot identify the layers of {config.model_type} models, which the recipe requires; use "
            "training.strategy=full, and remove hardware.shard and these keys of training: freeze_embeddings, "
            "freeze_layers, head_learning_rate, layer_decay, reinit_layers, teacher_hidden_weight"
        )
    if config.is_encoder_decoder:
        return [layer for _, layers in stacks for layer in layers]
    return max((layers for _, layers in stacks), key=lambda layers: sum(map(_num_parameters, layers)))


def _layer_stacks(base: nn.Module, sizes: set[int | None]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield the name and the layers of each stack of one of these sizes; those of Funnel are in several blocks."""
    found: list[str] = []
    for name, part in base.named_modules():
        if isinstance(part, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            layers = [layer for block in part for layer in (block if isinstance(block, nn.ModuleList) else [block])]
            if len(layers) in sizes:
                found.append(name)
                yield name, layers


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def all_encoder_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of all encoders in a module, without duplicates."""
    return list(dict.fromkeys(layer for encoder in find_encoders(module) for layer in encoder_layers(encoder)))


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return the depth of each parameter, by name."""
    layers, base = encoder_layers(model), model.base_model
    depths = {id(part): depth for depth, layer in enumerate(layers, start=1) for part in layer.parameters()}
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    embeddings = [table.weight for table in tables]  # GPT-2's are named wte and wpe
    embeddings += [part for name, part in base.named_parameters() if "embed" in name]
    for part in embeddings:
        depths.setdefault(id(part), 0)
    for prefix, depth in _parts_below(model).items():
        for name, part in base.named_parameters():
            if name.startswith(f"{prefix}."):
                depths.setdefault(id(part), depth)
    return {name: depths.get(id(part), len(layers) + 1) for name, part in model.named_parameters()}


def _parts_below(model: PreTrainedModel) -> dict[str, int]:
    """Return the depth of the parts that layers read besides the embeddings, by name; all other parts are above."""
    config: Any = model.config
    if config.is_encoder_decoder:  # the norm after the encoder's last layer
        return {"encoder": config.num_hidden_layers}
    return PARTS_BELOW.get(config.model_type, {})


def lr_scales(model: PreTrainedModel, section: TrainingSection) -> dict[str, float]:
    """Return the factor of each parameter's learning rate, by name; empty if all are 1.

    Layer-wise learning rate decay: Howard & Ruder 2018 (https://arxiv.org/abs/1801.06146), ELECTRA
    (https://arxiv.org/abs/2003.10555).
    """
    if section.layer_decay == 1 and section.head_learning_rate is None:
        return {}
    top = len(encoder_layers(model)) + 1
    head_scale = (section.head_learning_rate or section.learning_rate) / section.learning_rate
    return {
        name: head_scale if depth == top else section.layer_decay ** (top - depth)
        for name, depth in parameter_depths(model).items()
    }


def lowest_trainable_depth(section: StrategySection, num_layers: int, plan: Plan, step: int) -> int:
    """Return the lowest depth that is trainable in optimizer step `step` (from 0).

    Gradual unfreezing: Howard & Ruder 2018, https://arxiv.org/abs/1801.06146.
    """
    if section.strategy == "features":
        return num_layers + 1
    lowest = section.freeze_layers + 1 if section.freeze_layers else int(section.freeze_embeddings)
    if section.strategy != "gradual":
        return lowest
    if section.unfreeze_every_steps is not None:
        every = section.unfreeze_every_steps
    elif section.unfreeze_every_epochs is not None:
        every = max(1, round(section.unfreeze_every_epochs * plan.steps_per_epoch))
    else:
        every = max(1, plan.total_steps // (2 * max(1, num_layers + 1 - lowest)))
    return max(lowest, num_layers + 1 - step // every)


class LayerFreezer:
    """A schedule that unfreezes parameters at certain steps; parameters that never become trainable stay frozen.

    Raises:
        ModelError: if the model has fewer layers than `freeze_layers`, or its layers cannot be identified.
    """

    def __init__(self, model: PreTrainedModel, section: StrategySection, plan: Plan):
        self._section, self._plan = section, plan
        uses_layers = section.strategy != "features"
        self._num_layers = len(encoder_layers(model)) if uses_layers else 0
        if section.freeze_layers > self._num_layers:
            raise ModelError(
                f"training.freeze_layers is {section.freeze_layers}, but the model has {self._num_layers} layers"
            )
        depths = parameter_depths(model) if uses_layers else _head_depths(model)
        final_lowest = lowest_trainable_depth(section, self._num_layers, plan, plan.total_steps - 1)
        for name, part in model.named_parameters():
            part.requires_grad_(part.requires_grad and depths[name] >= final_lowest)
        self._trainable = [(part, depths[name]) for name, part in model.named_parameters() if part.requires_grad]
        self._lowest: int | None = None

    def set_step(self, step: int) -> None:
        """Set which parameters are trainable in optimizer step `step` (from 0)."""
        lowest = lowest_trainable_depth(self._section, self._num_layers, self._plan, step)
        if lowest != self._lowest:
            for part, depth in self._trainable:
                part.requires_grad_(depth >= lowest)
            self._lowest = lowest


def _head_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return depth 0 for each parameter of the frozen encoder and 1 for those above it: the pooler and the head."""
    pooler = getattr(model.base_model, "pooler", None)
    above = set() if pooler is None else {id(part) for part in pooler.parameters()}
    frozen = {id(part) for part in model.base_model.parameters()} - above
    return {name: int(id(part) not in frozen) for name, part in model.named_parameters()}


def build_freezer(model: PreTrainedModel, section: StrategySection, plan: Plan) -> LayerFreezer | None:
    """Return the `LayerFreezer` of a recipe, or None if it trains all parameters from the first step on."""
    is_freezing = section.strategy != "full" or section.freeze_layers or section.freeze_embeddings
    return LayerFreezer(model, section, plan) if is_freezing else None


def reinitialize_layers(model: PreTrainedModel, num_layers: int) -> None:
    """Reinitialize the top `num_layers` layers and the pooler, with torch's global random generator.

    Zhang et al. 2021, https://arxiv.org/abs/2006.05987.

    Raises:
        ModelError: if the model has fewer than `num_layers` layers, or they cannot be identified.
    """
    layers = encoder_layers(model)
    if num_layers > len(layers):
        raise ModelError(f"training.reinit_layers is {num_layers}, but the model has {len(layers)} layers")
    pooler = getattr(model.base_model, "pooler", None)
    for part in [*layers[len(layers) - num_layers :], *([] if pooler is None else [pooler])]:
        for module in part.modules():
            for tensor in (module, *module.parameters(recurse=False)):
                tensor._is_hf_initialized = False  # otherwise transformers skips loaded weights
            model._init_weights(module)


class _PrecomputedOutput(BaseModelOutputWithPooling):
    """An encoder's output in which the fields that only some families have, such as `past_key_values`, are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class PrecomputedHiddenStates:
    """Hooks that make a model read its encoder's last hidden states from the batch instead of computing them.

    `frozen_hidden_states` in the batch is [B, S, H], or [B, K, S, H] with K choices per example; S is 1 if only
    the first token's states are given.

    Raises:
        ModelError: if the head uses more than the encoder's last hidden states, or changes what the encoder attends to.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config
        reason = HEAD_INPUTS.get("longformer" if config.is_encoder_decoder else config.model_type)
        if reason is not None:
            raise ModelError(
                f"training.strategy=features does not work with {config.model_type} models, {reason}; set "
                "training.freeze_layers instead"
            )
        self._hidden_states: torch.Tensor | None = None
        model.register_forward_pre_hook(self._take_hidden_states, with_kwargs=True, prepend=True)
        base = model.base_model
        base.forward = partial(self._encode, base, base.forward)

    def _take_hidden_states(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        inputs = dict(inputs)
        self._hidden_states = inputs.pop("frozen_hidden_states", None)
        return args, inputs

    def _encode(self, base: Any, forward: Any, *args: Any, **inputs: Any) -> Any:
        if self._hidden_states is None:
            return forward(*args, **inputs)
        hidden = self._hidden_states.flatten(0, -3)
        pooler = getattr(base, "pooler", None)
        if isinstance(pooler, nn.Linear):  # in ALBERT and BigBird, whose activation is a module next to it
            activation = getattr(base, "pooler_activation", None) or base.activation
            return _PrecomputedOutput(hidden, activation(pooler(hidden[:, 0])))
        return _PrecomputedOutput(hidden, None if pooler is None else pooler(hidden))
